"""Signals, in processes of their own: what Python cannot hear ends it all the same."""

import signal
import subprocess
import sys
import time

import pytest

BEGIN = """
import hashlib, time
from booth import stopping
from booth.stopping import StopRequest, deafness_ends

def compute():  # as a framework does: long, in one call
    print("computing", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

stopping._DEAF_S = 0.5
with deafness_ends("booth"), StopRequest() as request:
"""
END = """
    print("the end", flush=True)
"""


@pytest.fixture
def start():
    started = []

    def start(body):
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        process = subprocess.Popen(
            [sys.executable, "-c", BEGIN + lines + END], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "computing\n"
        time.sleep(0.2)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_ctrl_c_inside_a_computation(start):
    process = start("compute()")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert err == "\nbooth: stopped inside a computation; the same command continues\n"


def test_ctrl_c_where_python_hears_it(start):
    process = start("""\
try:
    print("computing", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(2)  # cleans up, as long as it takes""")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, "the end\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_waits_for_the_update_a_second_does_not(start, number):
    process = start("request.arm()\ncompute()")
    process.send_signal(number)
    time.sleep(1.5)
    assert process.poll() is None, "the update is to be finished"
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == 128 + number


def test_a_second_signal_after_a_slow_update(start):
    """The first was heard late; that says nothing of the second."""
    process = start("""\
import threading
request.arm()
print("computing", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 3_000_000)
print("noted", request.number, flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)""")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "noted 2\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130


def test_a_first_signal_is_noted(start):
    process = start("""\
request.arm()
print("computing", flush=True)
until = time.monotonic() + 30
while not request.number and time.monotonic() < until:
    pass
time.sleep(1)""")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=40)
    assert (process.returncode, out) == (0, "the end\n")
    assert err == "\nstopping: this update is finished and saved; once more stops at once\n"


def test_what_need_not_be_finished_is_interrupted(start):
    process = start("""\
request.arm()
try:
    with request.at_once():
        print("computing", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    print(request.number, flush=True)""")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=10)
    assert (process.returncode, out) == (0, "15\nthe end\n")
