"""The commands where records of a run are gone or were edited."""

import json
import shutil

import pytest


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def trained(main, job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = job("run", adapter__kind="lora", adapter__rank=2)
    assert main("torchbooth", "train", *arguments).code == 0
    return arguments, tmp_path / "run"


def refused(done):
    assert done.code == 2 and done.out == "", done.err
    (line,) = done.err.splitlines()[-1:]
    assert "Traceback" not in done.err
    return line.removeprefix("torchbooth: error: ")


def test_a_finished_run_whose_checkpoints_were_deleted(trained, main):
    arguments, folder = trained
    shutil.rmtree(folder / "checkpoints")
    lora, metrics = contents(folder / "lora"), (folder / "metrics.jsonl").read_bytes()
    again = main("torchbooth", "train", *arguments)
    assert again.code == 0
    assert "already at step 4 of 4: nothing left to do" in again.err.splitlines()
    shorter = [text.replace("train.steps=4", "train.steps=2") for text in arguments]
    said = refused(main("torchbooth", "train", *shorter))
    assert said == (
        "--workdir run was saved at step 4, but that checkpoint is not in run/checkpoints any more (there is none); put"
        " it back, or give another --workdir to start again"
    )
    assert contents(folder / "lora") == lora and (folder / "metrics.jsonl").read_bytes() == metrics


def test_an_edited_config(trained, main):
    _, folder = trained
    path = folder / "config.json"
    record = json.loads(path.read_text())
    record["config"] |= {"adapter.rank": 4, "train.steps": 6}
    path.write_text(json.dumps(record))
    again = ["--config", "run/config.json", "--workdir", "run"]
    said = "belongs to another run: adapter.rank was 2, is 4; restore these values"
    assert said in refused(main("torchbooth", "train", *again))
    done = main("torchbooth", "export", "--run", "run", "--format", "kohya", "--out", "dog.safetensors")
    assert done.code == 0, done.err
    record["config"]["adapter.rank"] = 2
    path.write_text(json.dumps(record))
    assert "began with other values: train.steps was 4, is 6; put" in refused(main("torchbooth", "train", *again))
    assert main("torchbooth", "train", *again, "--accept-changes").code == 0
