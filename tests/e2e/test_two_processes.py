"""torchbooth in several processes, as torchrun starts them for several GPUs: here on the CPU, over gloo."""

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


@pytest.fixture
def torchrun(tmp_path):
    """Runs `torchbooth train` in two processes or more; (exit code, stderr)."""

    def torchrun(arguments, *options, processes=2, module="torchbooth.train"):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        command += ["--master-addr", "localhost", *options]
        command += ["--master-port", str(port), "-m", module, *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
        return done.returncode, done.stderr

    return torchrun


FUSED = {"prior__weight": 0.0, "train__batch_size": 3, "memory__fused_backward": True, "train__max_grad_norm": 0.0}
ROWS = {"prior__weight": 0.0, "train__batch_size": 3, "train__accumulation": 3, "train__text_encoder": True}
SPLIT = {
    "mesh__fsdp": 2, "train__text_encoder": True, "train__gradient_checkpointing": "block", "train__pull": 30.0,
    "ema__decay": 0.5,
}  # fmt: skip
CASES = {
    "data parallel, text encoder, three rows one by one": pytest.param(ROWS, marks=pytest.mark.full),
    "fsdp, text encoder": pytest.param(SPLIT, marks=pytest.mark.full),
    "data parallel, three rows, fused": pytest.param(FUSED, marks=pytest.mark.full),
}  # fmt: skip


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_two_processes_train_as_one(job, run, torchrun, tiny_pipeline, tmp_path, fields):
    """Two steps in two processes, one more in one, a last in two: the same as four in one."""
    # Class images and previews made in other batches may differ by 1 of 255, and so would all that follows.
    fields = {"train__learning_rate": 3e-4, "checkpoint__every_steps": 1, "samples__every_steps": 2, **fields}
    fields["prior__images"] = tmp_path / "class_images"

    def arguments(steps, folder="two", **more):
        return job(tmp_path / folder, **fields | {"train__steps": steps} | more)

    expected = run("torchbooth.train", *arguments(4, "one", mesh__fsdp=1))
    assert expected.returncode == 0, expected.stderr
    code, error = torchrun(arguments(2))
    assert code == 0, error
    alone = run("torchbooth.train", *arguments(3, mesh__fsdp=1))
    assert alone.returncode == 0 and "resumed from step 2" in alone.stderr, alone.stderr
    code, error = torchrun(arguments(4))
    assert code == 0 and "resumed from step 3" in error, error

    def losses(folder):
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    one, two = losses("one"), losses("two")
    assert len(two) == 4
    for name in ("loss", "instance_loss", "grad_norm"):
        np.testing.assert_allclose([line[name] for line in two], [line[name] for line in one], rtol=1e-5, err_msg=name)
    for component, file in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        name = f"{component}/{file}.safetensors"
        before = load_file(tiny_pipeline / name)
        one, two = (load_file(tmp_path / folder / "pipeline" / name) for folder in ("one", "two"))
        update = np.sqrt(sum(np.sum((one[key] - before[key]) ** 2.0) for key in one))
        difference = np.sqrt(sum(np.sum((two[key] - one[key]) ** 2.0) for key in one))
        assert difference <= 3e-4 * update
        assert update > 0 or component not in fields


@pytest.mark.full
@pytest.mark.parametrize("asked", [0, 1])
def test_asked_to_stop_both_stop_after_the_same_update(job, tmp_path, asked):
    """Whichever of them is asked, as where one machine is taken away; what it has done is saved."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments = job(tmp_path / "run", train__steps=10_000, checkpoint__every_steps=0, log__every_steps=1)
    processes = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        environment = os.environ | place | meeting
        with (tmp_path / f"log{rank}").open("w") as stderr:
            command = [sys.executable, "-m", "torchbooth.train", *arguments]
            processes.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=stderr))
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
    error = (tmp_path / "log0").read_text()
    assert codes[0] == 143 and codes[1] in (2, 143), (error, (tmp_path / "log1").read_text())
    (saved,) = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert steps == list(range(1, int(saved.removeprefix("step-")) + 1))
    assert f"torchbooth: stopped after step {steps[-1]}, which is saved" in error


@pytest.mark.full  # jaxbooth's hosts show it too
def test_a_refusal_ends_all(job, torchrun, tmp_path):
    code, error = torchrun(job(tmp_path / "run", instance__images=tmp_path / "nothing"))
    assert code != 0
    assert "torchbooth: error: instance.images" in error
    assert "torchbooth: error: host 0 has stopped: instance.images" in error


@pytest.mark.full
def test_three_processes_train_as_one(job, run, torchrun, tmp_path):
    """Four rows over three processes: some of them compute rows that count for nothing."""
    expected = run("torchbooth.train", *job(tmp_path / "one", prior__images=tmp_path / "class_images"))
    assert expected.returncode == 0, expected.stderr
    code, error = torchrun(job(tmp_path / "three", prior__images=tmp_path / "class_images"), processes=3)
    assert code == 0, error

    def losses(folder):
        return [json.loads(line)["loss"] for line in (tmp_path / folder / "metrics.jsonl").open()]

    np.testing.assert_allclose(losses("three"), losses("one"), rtol=1e-5)


# Process 1 is killed in its third update, as a machine that is taken away; only once.
KILLED = """
import os, pathlib
marker = pathlib.Path(__file__).parent / "killed"
if os.environ.get("RANK") == "1" and not marker.exists():
    from torchbooth.backend import Backend
    step, count = Backend.train_step, iter(range(9))

    def train_step(self, *arguments):
        if next(count) == 2:
            marker.touch()
            os.kill(os.getpid(), 9)
        return step(self, *arguments)

    Backend.train_step = train_step
"""


@pytest.mark.full
def test_torchrun_restarts_all_and_the_run_goes_on(job, run, torchrun, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(KILLED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, error = torchrun(job(tmp_path / "run", checkpoint__every_steps=1, prior__weight=0.0), "--max-restarts", "1")
    assert code == 0, error
    assert (tmp_path / "killed").exists() and "resumed from step 2" in error
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert steps == [1, 2, 3, 4]


@pytest.mark.full
def test_one_that_fails_ends_all(job, torchrun, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(KILLED.replace("os.kill(os.getpid(), 9)", "1 / 0"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, error = torchrun(job(tmp_path / "run", prior__weight=0.0))
    assert code == 1 and "ZeroDivisionError" in error
    assert error.count("Traceback") <= 2, "the other's is one line; torchrun adds its own"


@pytest.mark.full
def test_two_processes_draw_as_one(run, torchrun, tiny_pipeline, tmp_path):
    arguments = ["sample", "--model", str(tiny_pipeline), "--prompt", "a photo of a cat", "--seeds", "0", "1", "2"]
    arguments += ["--steps", "3", "--batch-size", "3", "--size", "64"]
    alone = run("torchbooth", *arguments, "--out", str(tmp_path / "one"))
    assert alone.returncode == 0, alone.stderr
    code, error = torchrun([*arguments, "--out", str(tmp_path / "two")], module="torchbooth")
    assert code == 0, error
    for path in (tmp_path / "one").glob("*.png"):
        one, two = (np.asarray(Image.open(tmp_path / folder / path.name)).astype(int) for folder in ("one", "two"))
        assert np.abs(one - two).max() <= 1, path.name


def test_a_mesh_that_does_not_fit(job, run, tmp_path):
    refused = run("torchbooth.train", *job(tmp_path / "run", mesh__fsdp=2))
    assert refused.returncode == 2
    assert "torchbooth: error: mesh.fsdp=2 must divide the number of processes, 1: start them with" in refused.stderr
