"""Checkpoints in a bucket, with the clients that a real one would have."""

import importlib.util

import numpy as np
import pytest
from gcs_server import GcsServer
from safetensors.numpy import load_file

needs_gcsfs = pytest.mark.skipif(
    importlib.util.find_spec("gcsfs") is None, reason="gcsfs is not installed (the gcs extra)"
)


@pytest.fixture
def bucket(monkeypatch):
    server = GcsServer()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()


def steps(bucket, name="checkpoint.json"):
    return sorted(key.split("/")[1] for key in bucket.objects if key.endswith("/" + name))


@needs_gcsfs
@pytest.mark.full  # four runs of jaxbooth
def test_a_run_goes_on_from_a_bucket(job, main, bucket, tmp_path):
    assert main("jaxbooth", "train", *job(tmp_path / "local")).code == 0
    there = {"checkpoint__dir": "gs://bucket/dog", "checkpoint__every_steps": 1}
    done = main("jaxbooth", "train", *job(tmp_path / "run", train__steps=3, **there))
    assert done.code == 0, done.err
    assert steps(bucket) == ["step-000002", "step-000003"], "two are kept"
    assert not any("step-000001" in key for key in bucket.objects)
    assert not (tmp_path / "run" / "checkpoints").exists()

    # A crash while the newest was written: it has no record yet. And half a deleted one: no record any more.
    del bucket.objects["dog/step-000003/checkpoint.json"]
    done = main("jaxbooth", "train", *job(tmp_path / "run", **there))
    assert done.code == 0 and "resumed from step 2" in done.err
    assert steps(bucket) == ["step-000003", "step-000004"]
    name = "pipeline/unet/diffusion_pytorch_model.safetensors"
    here, gone_on = load_file(tmp_path / "local" / name), load_file(tmp_path / "run" / name)
    assert all(np.array_equal(here[key], gone_on[key]) for key in here)

    back = main("jaxbooth", "train", *job(tmp_path / "run", **there), "--from-step", "3")
    assert back.code == 0 and "step 4 was trained before" in back.err
    assert "superseded-000004" in steps(bucket), "nothing is deleted"
    exported = main("jaxbooth", "export", "--run", tmp_path / "run", "--step", "3", "--out", tmp_path / "out")
    assert exported.code == 0, exported.err

    other = main("jaxbooth", "train", *job(tmp_path / "other", **there))
    assert other.code == 2 and "holds checkpoints of another run" in other.err


def test_other_buckets_are_refused(job, main, tmp_path):
    for package, folder, said in (
        ("torchbooth", "gs://bucket/dog", "must be a local folder with torchbooth: only jaxbooth writes to buckets"),
        ("jaxbooth", "s3://bucket/dog", "must be a folder, or gs://BUCKET/FOLDER"),
    ):
        refused = main(package, "train", *job(tmp_path / "run", checkpoint__dir=folder))
        assert refused.code == 2 and said in refused.err


def test_without_gcsfs_it_says_what_to_install(job, main, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gcsfs" else find(name))
    refused = main("jaxbooth", "train", *job(tmp_path / "run", checkpoint__dir="gs://bucket/dog"))
    assert refused.code == 2 and "needs gcsfs; pip install gcsfs" in refused.err
