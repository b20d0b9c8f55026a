"""kill -9, a full disk and Ctrl-C: the same command goes on, and what comes out is the same to the bit."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

# The process kills itself the moment the checkpoint of step 8 is to get its name: complete, but not yet published.
KILLED_AT_THE_CHECKPOINT = """
import os, signal

replace = os.replace

def killed(old, new, **options):
    if str(new).endswith("step-000008"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(old, new, **options)

os.replace = killed
"""
# No file may grow beyond 5 MB, as if the disk were full: the checkpoint's do.
FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))"


@pytest.fixture
def arguments(job):
    def arguments(workdir):
        return job(workdir, prior__count=8, prior__inference_steps=20, train__steps=12, checkpoint__every_steps=4)

    return arguments


@pytest.fixture
def start(tmp_path, environment):
    """Starts `python -m torchbooth.train`; ends it with the test."""
    started = []

    def start(arguments):
        command = [sys.executable, "-m", "torchbooth.train", *arguments]
        with (tmp_path / "stderr").open("w") as stderr:
            process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=stderr)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(path, process):
    until = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < until, f"{path} has not come"
        time.sleep(0.005)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def steps(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()]


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()]


def test_killed_three_times_and_finished(start, run, arguments, environment, main, tmp_path):
    assert main("torchbooth", "train", *arguments(tmp_path / "undisturbed")).code == 0
    folder = tmp_path / "run"

    process = start(arguments(folder))
    wait_for(folder / "class_images" / "class-00001.png", process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "metrics.jsonl").exists(), "killed while class images were made"

    env = environment(KILLED_AT_THE_CHECKPOINT)
    assert run("torchbooth.train", *arguments(folder), env=env).returncode == -signal.SIGKILL
    assert names(folder / "checkpoints") == [".staging-step-000008", "step-000004"]

    full = run("torchbooth.train", *arguments(folder), env=environment(FULL_DISK))
    assert full.returncode == 2 and "Traceback" not in full.stderr
    assert "torchbooth: error: the checkpoint of step 8 cannot be written to " in full.stderr.splitlines()[-1]
    assert names(folder / "checkpoints") == ["step-000004"]

    assert run("torchbooth.train", *arguments(folder)).returncode == 0
    assert names(folder / "checkpoints") == ["step-000008", "step-000012"]
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"], "nothing half made is left"
    assert steps(folder) == list(range(1, 13))
    assert losses(folder) == losses(tmp_path / "undisturbed")
    unet = "pipeline/unet/diffusion_pytorch_model.safetensors"
    got, wanted = load_file(folder / unet), load_file(tmp_path / "undisturbed" / unet)
    assert got.keys() == wanted.keys() and all(np.array_equal(got[name], wanted[name]) for name in wanted)


def test_interrupted_by_the_user(start, arguments, tmp_path):
    folder = tmp_path / "run"
    process = start([*arguments(folder), "--config.train.steps=100000", "--config.log.every_steps=1"])
    wait_for(folder / "checkpoints" / "step-000004", process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    err = (tmp_path / "stderr").read_text()
    assert (
        err.splitlines()[-1] == "torchbooth: interrupted; the same command continues, training from its last checkpoint"
    )
    assert "Traceback" not in err and "Error" not in err
    assert not list((folder / "checkpoints").glob(".*"))
