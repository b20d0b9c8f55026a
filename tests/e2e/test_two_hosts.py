"""Several hosts: real processes on this machine that meet as hosts of a slice do, each with four devices of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from waiting import PATIENCE_S, wait_until


def environment(devices):
    return os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}


@pytest.fixture
def on_hosts(tmp_path):
    """Runs `jaxbooth train` in several processes that are one run; [(exit code, stderr)] of each."""

    def on_hosts(arguments, *others, devices=4):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            coordinator = f"localhost:{free.getsockname()[1]}"
        processes = []
        for index, own in enumerate((arguments, *others)):
            elsewhere = tmp_path / f"host{index}"
            elsewhere.mkdir(exist_ok=True)
            command = [sys.executable, "-m", "jaxbooth.train", *own, "--coordinator", coordinator]
            command += ["--hosts", str(1 + len(others)), "--host", str(index)]
            with (tmp_path / f"host{index}.log").open("w") as stderr:  # a pipe that nobody reads would fill
                processes.append(subprocess.Popen(command, cwd=elsewhere, env=environment(devices), stderr=stderr))
        try:
            codes = [process.wait(timeout=PATIENCE_S) for process in processes]
        finally:
            for process in processes:
                process.kill()
        return [(code, (tmp_path / f"host{index}.log").read_text()) for index, code in enumerate(codes)]

    return on_hosts


@pytest.mark.full  # seven processes, three of which compile
def test_two_hosts_train_as_one(job, run, on_hosts, tiny_pipeline, tmp_path):
    """Two steps on two hosts, one more on one with eight devices, a last on two: the same as four on one."""
    fields = {"train__learning_rate": 3e-4, "checkpoint__every_steps": 1, "samples__every_steps": 2}
    # The same for both: made anew on other devices they may differ by 1 of 255, and so would all that follows.
    fields["prior__images"] = tmp_path / "class_images"
    fields["mesh__fsdp"] = 8  # one copy of the weights, half of it on each host

    def arguments(steps, folder="two"):
        return job(tmp_path / folder, **fields | {"train__steps": steps})

    expected = run("jaxbooth.train", *arguments(4, "one"), env=environment(8))
    assert expected.returncode == 0, expected.stderr

    # Only host 0 has the photos.
    without = [word.replace("instance.images=", "instance.images=/nowhere") for word in arguments(2)]
    for code, error in on_hosts(arguments(2), without):
        assert code == 0, error
    assert not list((tmp_path / "host1").iterdir()), "host 0 alone writes files, but for checkpoints"
    written = tmp_path / "two" / "checkpoints" / "step-000002" / "trainable"
    sizes = [sum(file.stat().st_size for file in written.glob(f"ocdbt.process_{k}/d/*")) for k in (0, 1)]
    assert min(sizes) > 0.4 * sum(sizes), "each host writes its half"
    alone = run("jaxbooth.train", *arguments(3), env=environment(8))
    assert alone.returncode == 0 and "resumed from step 2" in alone.stderr, alone.stderr
    for code, error in on_hosts(arguments(4), arguments(4)):
        assert code == 0, error

    def losses(folder):
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    assert len(losses("two")) == 4
    np.testing.assert_allclose(losses("two"), losses("one"), rtol=1e-5)
    name = "unet/diffusion_pytorch_model.safetensors"
    before = load_file(tiny_pipeline / name)
    one, two = (load_file(tmp_path / folder / "pipeline" / name) for folder in ("one", "two"))
    difference = np.sqrt(sum(np.sum((two[key] - one[key]) ** 2.0) for key in one))
    update = np.sqrt(sum(np.sum((one[key] - before[key]) ** 2.0) for key in one))
    assert difference / update <= 3e-4
    for picture in ("samples/step-000002.png", "samples/step-000004.png"):
        images = [np.asarray(Image.open(tmp_path / folder / picture)).astype(int) for folder in ("one", "two")]
        assert np.abs(images[0] - images[1]).max() <= 1, picture


def test_all_end_when_the_leader_refuses(job, on_hosts, tmp_path):
    arguments = job(tmp_path / "run", instance__images=tmp_path / "nothing")
    (code, error), (other_code, other_error) = on_hosts(arguments, arguments)
    assert code == 2 and error.splitlines()[-1].startswith("jaxbooth: error: instance.images")
    assert other_code == 2 and "jaxbooth: error: host 0 has stopped: instance.images" in other_error


@pytest.mark.full  # four processes that compile
def test_three_hosts_train_as_one(job, run, on_hosts, tmp_path):
    """Rows and devices that three does not divide, and photos, captions and masks that only host 0 has."""
    fields = {"train__learning_rate": 3e-4, "train__text_encoder": True, "mesh__fsdp": 2, "prior__weight": 0.0}
    expected = run("jaxbooth.train", *job(tmp_path / "one", **fields | {"mesh__fsdp": 1}), env=environment(1))
    assert expected.returncode == 0, expected.stderr
    arguments = job(tmp_path / "three", **fields)
    without = [word.replace("instance.images=", "instance.images=/nowhere") for word in arguments]
    for code, error in on_hosts(arguments, without, without, devices=2):
        assert code == 0, error

    def losses(folder):
        return [json.loads(line)["loss"] for line in (tmp_path / folder / "metrics.jsonl").open()]

    np.testing.assert_allclose(losses("three"), losses("one"), rtol=1e-5)


# Takes the place of host 1's third update: its devices fail, and the others' wait for them.
FAILING = """
import sys
if "--host" in sys.argv and sys.argv[sys.argv.index("--host") + 1] == "1":
    from jaxbooth.backend import Backend
    step, count = Backend.train_step, iter(range(9))
    Backend.train_step = lambda self, *arguments: step(self, *arguments) if next(count) < 2 else 1 / 0
"""


@pytest.mark.full  # two more, and the grace that is given
def test_all_end_when_one_fails_in_an_update(job, on_hosts, run, tmp_path, monkeypatch):
    """The one that failed says why, and the same command continues from the last checkpoint."""
    (tmp_path / "sitecustomize.py").write_text(FAILING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    arguments = job(tmp_path / "run", prior__weight=0.0, log__every_steps=1, checkpoint__every_steps=1)
    (code, error), (failed_code, failed_error) = on_hosts(arguments, arguments)
    assert failed_code == 1 and "ZeroDivisionError" in failed_error
    assert code == 2 and "jaxbooth: error: another process of this run has ended" in error, error
    monkeypatch.delenv("PYTHONPATH")
    for code, error in on_hosts(arguments, arguments):
        assert code == 0, error
    assert "resumed from step 2" in error or "resumed from step 2" in (tmp_path / "host0.log").read_text()


@pytest.mark.full
@pytest.mark.parametrize("asked", [0, 1])
def test_asked_to_stop_all_stop_after_the_same_update(job, tmp_path, asked):
    """Whichever is asked, as where one machine is taken away; what they have done is saved."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    arguments = job(tmp_path / "run", train__steps=10_000, checkpoint__every_steps=0, log__every_steps=1)
    processes = []
    for index in range(2):
        command = [sys.executable, "-m", "jaxbooth.train", *arguments, "--coordinator", coordinator]
        with (tmp_path / f"log{index}").open("w") as stderr:
            processes.append(
                subprocess.Popen([*command, "--hosts", "2", "--host", str(index)], env=environment(1), stderr=stderr)
            )
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        wait_until(lambda: metrics.exists() and metrics.read_text(), processes[0], "the first update")
        time.sleep(2)  # so that it comes in the middle of things
        processes[asked].send_signal(signal.SIGTERM)
        codes = [process.wait(timeout=PATIENCE_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    errors = [(tmp_path / f"log{index}").read_text() for index in range(2)]
    assert codes == [143, 143], errors
    (saved,) = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    for error in errors:
        assert f"jaxbooth: stopped after step {int(saved.removeprefix('step-'))}, which is saved" in error
