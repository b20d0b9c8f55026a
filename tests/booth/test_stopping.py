"""Signals, in processes of their own: what Python cannot hear ends it all the same."""

import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
from waiting import PATIENCE_S

from booth.common import signals
from booth.common.signals import Interrupted, StopRequest

BEGIN = """
import hashlib, time
from booth.common import signals
from booth.common.signals import StopRequest, deafness_ends

def compute():  # as a framework does: long, in one call
    print("computing", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

signals._DEAF_S = 0.5
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
        time.sleep(1)  # so that it is inside the call
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_ctrl_c_inside_a_computation(start):
    process = start("compute()")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert err == "\nbooth: stopped inside a computation; the same command continues\n"


def test_ctrl_c_where_python_hears_it(start):
    process = start("""\
signals._DEAF_S = 5  # a busy machine may take a while to come to the handler
try:
    print("computing", flush=True)
    time.sleep(3600)
except KeyboardInterrupt:
    time.sleep(6)  # cleans up, as long as it takes""")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (0, "the end\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_waits_for_the_update_a_second_does_not(start, number):
    process = start("request.arm()\ncompute()")
    process.send_signal(number)
    time.sleep(1.5)
    assert process.poll() is None, "the update is to be finished"
    process.send_signal(number)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number


def test_a_second_signal_after_a_slow_update(start):
    """The first was heard late; that says nothing of the second."""
    process = start("""\
import threading
request.arm()
print("computing", flush=True)
while not request.number:
    hashlib.pbkdf2_hmac("sha256", b"", b"", 3_000_000)
print("noted", request.number, flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)""")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "noted 2\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130


# Those that schedulers, terminals and failing machines send.
ASKING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGPWR]


def test_every_signal_that_ends_a_process_is_decided():
    """Listed as one that asks to stop, or named in the module's text with the reason why it is left alone."""
    ignored = {signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT}  # by default, by the system
    stopping_jobs = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
    realtime = range(signal.SIGRTMIN, signal.SIGRTMAX + 1)
    ending = signal.valid_signals() - ignored - stopping_jobs - set(realtime)
    undecided = [number for number in ending if isinstance(number, signal.Signals) and number not in signals._SIGNALS
                 and not re.search(rf"\b{number.name}\b", signals.__doc__)]  # fmt: skip
    assert not undecided
    assert set(ASKING) == set(signals._SIGNALS)


@pytest.mark.parametrize("number", ASKING[2:], ids=[number.name for number in ASKING[2:]])
def test_others_are_noted_too(number):
    with StopRequest() as request:
        request.arm()
        signal.raise_signal(number)
        assert request.number == number
        with pytest.raises(Interrupted) as interrupted:
            signal.raise_signal(number)
    assert interrupted.value.code == 128 + number
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_closed_terminal(tmp_path):
    """What is written to it afterwards goes nowhere and is no error."""
    body = f"""
import pathlib, sys, time
from booth.common.signals import StopRequest
with StopRequest() as request:
    request.arm()
    print("computing", flush=True)
    while not request.number:
        time.sleep(0.01)
    print("saving", flush=True)
    print("saving", file=sys.stderr, flush=True)
    pathlib.Path({str(tmp_path / "saved")!r}).write_text(str(int(request.number)))
"""
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-c", body])
    seen = b""
    while b"computing" not in seen:
        seen += os.read(terminal, 1000)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (tmp_path / "saved").read_text() == str(int(signal.SIGHUP))


def test_a_first_signal_is_noted(start):
    process = start("""\
request.arm()
print("computing", flush=True)
while not request.number:
    pass
time.sleep(1)""")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (0, "the end\n")
    assert err == "\nstopping: this update is finished and saved; a second Ctrl-C or signal stops at once\n"


def test_what_need_not_be_finished_is_interrupted(start):
    process = start("""\
request.arm()
try:
    with request.at_once():
        print("computing", flush=True)
        time.sleep(3600)
except KeyboardInterrupt:
    print(request.number, flush=True)""")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (0, "15\nthe end\n")
