"""kill -9, Ctrl-C and SIGTERM: the same command goes on, and what comes out is the same to the bit."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file
from waiting import PATIENCE_S, wait_until

# The process kills itself the moment this file or folder is to get its name: complete, but not yet published.
KILLED_AT = """
import os, signal

replace = os.replace

def killed(old, new, **options):
    if str(new).endswith("{}"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(old, new, **options)

os.replace = killed
"""


@pytest.fixture
def arguments(job):
    def arguments(workdir):
        return job(workdir, prior__count=4, prior__inference_steps=2, train__steps=12, checkpoint__every_steps=4)

    return arguments


@pytest.fixture
def start(tmp_path, environment):
    """Starts `python -m PACKAGE.train`, of torchbooth unless told otherwise; ends it with the test."""
    started = []

    def start(arguments, package="torchbooth", first=""):
        command = [sys.executable, "-m", f"{package}.train", *arguments]
        with (tmp_path / "stderr").open("w") as stderr:
            process = subprocess.Popen(command, cwd=tmp_path, env=environment(first), stderr=stderr)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(path, process):
    wait_until(path.exists, process, path)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def steps(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()]


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()]


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_killed_twice_and_finished(run, arguments, environment, main, tmp_path, package):
    """`make crash-test` does the same at random moments of every phase."""
    assert main(package, "train", *arguments(tmp_path / "undisturbed")).code == 0
    folder = tmp_path / "run"

    env = environment(KILLED_AT.format("class-00002.png"))
    assert run(f"{package}.train", *arguments(folder), env=env).returncode == -signal.SIGKILL
    assert "class-00001.png" in names(folder / "class_images") and not (folder / "metrics.jsonl").exists()

    env = environment(KILLED_AT.format("step-000008"))
    assert run(f"{package}.train", *arguments(folder), env=env).returncode == -signal.SIGKILL
    assert names(folder / "checkpoints") == [".staging-step-000008", "step-000004"]

    last = run(f"{package}.train", *arguments(folder))
    assert last.returncode == 0 and "resumed from step 4\n" in last.stderr
    assert names(folder / "checkpoints") == ["step-000008", "step-000012"]
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"], "nothing half made is left"
    assert steps(folder) == list(range(1, 13))
    assert losses(folder) == losses(tmp_path / "undisturbed")
    unet = "pipeline/unet/diffusion_pytorch_model.safetensors"
    got, wanted = load_file(folder / unet), load_file(tmp_path / "undisturbed" / unet)
    assert got.keys() == wanted.keys() and all(np.array_equal(got[name], wanted[name]) for name in wanted)


SIGNALS = {"Ctrl-C": (signal.SIGINT, 130), "SIGTERM": (signal.SIGTERM, 143), "SIGHUP": (signal.SIGHUP, 129)}


@pytest.mark.parametrize(("package", "number", "code"), [
    ("torchbooth", *SIGNALS["Ctrl-C"]),
    pytest.param("jaxbooth", *SIGNALS["SIGTERM"], marks=pytest.mark.full),
    pytest.param("torchbooth", *SIGNALS["SIGTERM"], marks=pytest.mark.full),
    pytest.param("jaxbooth", *SIGNALS["Ctrl-C"], marks=pytest.mark.full),
    pytest.param("torchbooth", *SIGNALS["SIGHUP"], marks=pytest.mark.full),
    pytest.param("jaxbooth", *SIGNALS["SIGHUP"], marks=pytest.mark.full),
])  # fmt: skip
def test_asked_to_stop(start, run, arguments, tmp_path, package, number, code):
    """The update at hand is finished and saved, whatever checkpoint.every_steps says; the same command goes on."""
    folder = tmp_path / "run"
    endless = [*arguments(folder), "--config.train.steps=100000", "--config.checkpoint.every_steps=0",
               "--config.log.every_steps=1"]  # fmt: skip
    process = start(endless, package)
    wait_until(lambda: (folder / "metrics.jsonl").exists() and len(steps(folder)) >= 3, process, "the third update")
    process.send_signal(number)
    assert process.wait(timeout=PATIENCE_S) == code
    err = (tmp_path / "stderr").read_text()
    (saved,) = names(folder / "checkpoints")
    step = int(saved.removeprefix("step-"))
    assert err.splitlines()[-1] == f"{package}: stopped after step {step}, which is saved; the same command continues"
    assert "stopping: this update is finished and saved; a second Ctrl-C or signal stops at once" in err
    assert "Traceback" not in err and "Error" not in err
    assert steps(folder) == list(range(1, step + 1)), "not one update is lost"
    more = run(f"{package}.train", *arguments(folder), f"--config.train.steps={step + 1}",
               "--config.checkpoint.every_steps=0")  # fmt: skip
    assert more.returncode == 0 and f"resumed from step {step}" in more.stderr, more.stderr
    assert steps(folder) == list(range(1, step + 2))


@pytest.mark.full
@pytest.mark.parametrize(("number", "code"), [SIGNALS["Ctrl-C"], SIGNALS["SIGTERM"]])
def test_asked_to_stop_twice(start, arguments, tmp_path, number, code):
    """At once, and without damage: the update is lost, the last checkpoint is not."""
    folder = tmp_path / "run"
    slow = """
import sys, time
import torchbooth.checkpoint

torchbooth.checkpoint.save = lambda *_: (print("saving", file=sys.stderr, flush=True), time.sleep(7200))
"""
    process = start(
        [*arguments(folder), "--config.train.steps=100000", "--config.log.every_steps=1"], "torchbooth", slow
    )
    wait_until(lambda: (folder / "metrics.jsonl").exists() and len(steps(folder)) >= 3, process, "the third update")
    process.send_signal(number)
    said(tmp_path / "stderr", "saving", process)  # which takes its time
    process.send_signal(number)
    assert process.wait(timeout=PATIENCE_S) == code
    err = (tmp_path / "stderr").read_text()
    assert err.splitlines()[-1].startswith("torchbooth: interrupted; the same command continues")
    assert "Traceback" not in err
    assert not names(folder / "checkpoints"), "nothing half made is left"


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.full), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_before_training_it_stops_at_once(start, arguments, tmp_path, number, code):
    folder = tmp_path / "run"
    process = start(
        [*arguments(folder), "--config.prior.inference_steps=900", "--config.prior.count=1000"], "torchbooth"
    )
    wait_for(folder / "class_images" / "class_images.json", process)
    process.send_signal(number)
    assert process.wait(timeout=PATIENCE_S) == code
    assert not (folder / "metrics.jsonl").exists()


def said(path, text, process):
    wait_until(lambda: text in path.read_text(encoding="utf-8"), process, text)


@pytest.mark.full
def test_pictures_are_not_waited_for(start, arguments, tmp_path):
    """They can be made again; the updates before them are saved."""
    folder = tmp_path / "run"
    previews = ["--config.samples.every_steps=3", "--config.samples.inference_steps=900",
                "--config.samples.images_per_prompt=1000", "--config.checkpoint.every_steps=0"]  # fmt: skip
    process = start([*arguments(folder), *previews], "torchbooth", "import os; os.environ['TQDM_MININTERVAL'] = '0'")
    said(tmp_path / "stderr", "preview:", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE_S) == 143
    assert names(folder / "checkpoints") == ["step-000003"] and not any((folder / "samples").glob("step-*"))
    assert (tmp_path / "stderr").read_text().splitlines()[-1] == (
        "torchbooth: stopped after step 3, which is saved; the same command continues"
    )
