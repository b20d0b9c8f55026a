"""The commands as people give them, where records of a run are gone or were edited."""

import json
import shutil

import pytest


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def trained(run, job, tmp_path):
    arguments = job("run", adapter__kind="lora", adapter__rank=2)
    done = run("torchbooth.train", *arguments)
    assert done.returncode == 0, done.stderr
    return arguments, tmp_path / "run"


def refused(done):
    assert done.returncode == 2 and done.stdout == "", done.stderr
    (line,) = done.stderr.splitlines()[-1:]
    assert "Traceback" not in done.stderr
    return line.removeprefix("torchbooth: error: ")


def test_a_finished_run_whose_checkpoints_were_deleted(trained, run):
    arguments, folder = trained
    shutil.rmtree(folder / "checkpoints")
    lora, metrics = contents(folder / "lora"), (folder / "metrics.jsonl").read_bytes()
    again = run("torchbooth.train", *arguments)
    assert again.returncode == 0
    assert "already at step 4 of 4: nothing left to do" in again.stderr.splitlines()
    shorter = [text.replace("train.steps=4", "train.steps=2") for text in arguments]
    said = refused(run("torchbooth.train", *shorter))
    assert said == (
        "--workdir run was saved at step 4, but that checkpoint is not in run/checkpoints any more (there is none); put"
        " it back, or give another --workdir to start again"
    )
    assert contents(folder / "lora") == lora and (folder / "metrics.jsonl").read_bytes() == metrics


def test_an_edited_config(trained, run):
    _, folder = trained
    path = folder / "config.json"
    record = json.loads(path.read_text())
    record["config"] |= {"adapter.rank": 4, "train.steps": 6}
    path.write_text(json.dumps(record))
    again = ["--config", "run/config.json", "--workdir", "run"]
    said = "belongs to another run: adapter.rank was 2, is 4; restore these values"
    assert said in refused(run("torchbooth.train", *again))
    done = run("torchbooth", "export", "--run", "run", "--format", "kohya", "--out", "dog.safetensors")
    assert done.returncode == 0, done.stderr
    record["config"]["adapter.rank"] = 2
    path.write_text(json.dumps(record))
    assert "began with other values: train.steps was 4, is 6; put" in refused(run("torchbooth.train", *again))
    assert run("torchbooth.train", *again, "--accept-changes").returncode == 0
