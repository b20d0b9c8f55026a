"""Several hosts: real processes on this machine that meet as hosts of a slice do, each with four devices of its own."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from waiting import PATIENCE_S


def environment(devices):
    return os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}


@pytest.fixture
def on_hosts(tmp_path):
    """Runs `jaxbooth train` in two processes that are one run; [(exit code, stderr)] of host 0 and host 1."""

    def on_hosts(arguments, *others):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            coordinator = f"localhost:{free.getsockname()[1]}"
        processes = []
        for index, own in enumerate((arguments, *others)):
            elsewhere = tmp_path / f"host{index}"
            elsewhere.mkdir(exist_ok=True)
            command = [sys.executable, "-m", "jaxbooth.train", *own, "--coordinator", coordinator]
            command += ["--hosts", "2", "--host", str(index)]
            with (tmp_path / f"host{index}.log").open("w") as stderr:  # a pipe that nobody reads would fill
                processes.append(subprocess.Popen(command, cwd=elsewhere, env=environment(4), stderr=stderr))
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


# Takes the place of a host's third update: its devices fail, and the other's wait for them.
FAILING = """
import sys
if "--host" in sys.argv and sys.argv[sys.argv.index("--host") + 1] == "1":
    import booth.train.hosts
    step = booth.train.hosts._Follower.train_step
    count = iter(range(9))
    booth.train.hosts._Follower.train_step = lambda self: step(self) if next(count) < 2 else 1 / 0
"""


@pytest.mark.full  # two more, and the grace that is given
def test_all_end_when_one_fails_in_an_update(job, on_hosts, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(FAILING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    arguments = job(tmp_path / "run", prior__weight=0.0, log__every_steps=1)
    (code, error), (other_code, other_error) = on_hosts(arguments, arguments)
    assert code == other_code == 1
    assert "jaxbooth: error: host 1 has failed: division by zero" in error
    assert "ZeroDivisionError" in other_error
