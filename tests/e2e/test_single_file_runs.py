"""Single files by the commands: a run from one is the run from its folder; a run becomes one."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from booth.commands import export
from booth.models.open import open_pipeline
from booth.train.metrics import read_metrics


@pytest.fixture
def done(main):
    """Gives a command, which must work; returns what it said."""

    def done(package, *arguments):
        outcome = main(package, *arguments)
        assert outcome.code == 0, outcome.err
        return outcome.err

    return done


def test_without_a_framework(done, tiny_pipeline, tmp_path, monkeypatch):
    def missing(package):
        raise AssertionError(f"{package} is not needed")

    monkeypatch.setattr(export, "load_backend", missing)
    file, options = tmp_path / "dog.safetensors", ["--format", "single-file", "--title", "Dog"]
    said = done("jaxbooth", "export", "--from", tiny_pipeline, "--out", file, *options)
    assert said == f"{tiny_pipeline} written to {file}\n"
    back = ["--from", file, "--model-config", tiny_pipeline, "--verify", "--precision", "fp16", "--out", tmp_path / "o"]
    assert f"{file} verified\n" in done("torchbooth", "export", *back)
    found, expected = open_pipeline(tmp_path / "o"), open_pipeline(tiny_pipeline)
    for component in expected.family.networks:
        wanted = expected.tensors(component)
        for name, array in found.tensors(component).items():
            np.testing.assert_array_equal(array, wanted[name].astype(np.float16), strict=True)


def test_a_run_from_a_file_and_its_export(done, job, tiny_sd2_pipeline, tmp_path):
    file = tmp_path / "base.safetensors"
    done("torchbooth", "export", "--from", tiny_sd2_pipeline, "--format", "single-file", "--out", file)
    fields = {"train__steps": 2, "train__text_encoder": True, "tokens__add": "['<sks>=dog']",
              "instance__prompt": "a photo of <sks> robot"}  # fmt: skip
    folder = job(tmp_path / "folder", model__source=tiny_sd2_pipeline, **fields)
    done("torchbooth", "train", *folder)
    for _ in range(2):  # the second time it is resumed: there is nothing left to do
        single = job(tmp_path / "single", model__source=file, model__config=tiny_sd2_pipeline, **fields)
        said = done("torchbooth", "train", *single)
    assert "already at step 2 of 2" in said
    losses = [
        [line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("folder", "single")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 2

    out = tmp_path / "dog.safetensors"
    said = done("torchbooth", "export", "--run", tmp_path / "single", "--format", "single-file", "--precision", "fp16",
                "--out", out)  # fmt: skip
    assert f"the new token <sks> is written to {tmp_path / 'dog-sks.safetensors'}" in said
    assert "pipeline of step 2 written" in said and (tmp_path / "dog-sks.safetensors").is_file()
    assert (tmp_path / "single" / "tokens" / "sks.safetensors").is_file()
    found = open_pipeline(out, config=str(tiny_sd2_pipeline))
    trained, base = open_pipeline(tmp_path / "folder" / "pipeline"), open_pipeline(tiny_sd2_pipeline)
    for component in ("unet", "vae", "text_encoder"):
        wanted, before = trained.tensors(component), base.tensors(component)
        for name, array in found.tensors(component).items():
            expected = wanted[name][: len(before[name])]  # without the row of the new word
            np.testing.assert_array_equal(array, expected.astype(np.float16), strict=True, err_msg=name)
    with safe_open(out, framework="np") as opened:
        metadata = opened.metadata()
    assert metadata["modelspec.trigger_phrase"] == "a photo of dog-sks robot"  # as the file beside it is called
    assert (metadata["modelspec.resolution"], metadata["modelspec.title"]) == ("64x64", "dog")
    assert (tmp_path / "dog.yaml").read_text() == (tmp_path / "base.yaml").read_text()
    assert (
        load_file(tmp_path / "single/pipeline/vae/diffusion_pytorch_model.safetensors").keys()
        == base.tensors("vae").keys()
    )


def test_a_lora_run_is_merged(done, job, tmp_path):
    done("torchbooth", "train", *job(tmp_path / "run", train__steps=1, prior__weight=0, adapter__kind="lora"))
    done("torchbooth", "export", "--run", tmp_path / "run", "--out", tmp_path / "merged")
    done(
        "torchbooth",
        "export",
        "--run",
        tmp_path / "run",
        "--format",
        "single-file",
        "--out",
        tmp_path / "x.safetensors",
    )
    whole = open_pipeline(tmp_path / "merged")
    found = open_pipeline(tmp_path / "x.safetensors", config=str(tmp_path / "merged")).tensors("unet")
    assert all(np.array_equal(found[name], array) for name, array in whole.tensors("unet").items())


def test_a_pickle_becomes_a_model(main, tiny_pipeline, tmp_path):
    export = ["export", "--from", tiny_pipeline, "--format", "single-file", "--out", tmp_path / "dog.safetensors"]
    assert main("torchbooth", *export).code == 0
    tensors = load_file(tmp_path / "dog.safetensors")
    torch.save({"state_dict": {key: torch.from_numpy(array) for key, array in tensors.items()}}, tmp_path / "cat.ckpt")
    done = main("torchbooth", "convert", tmp_path / "cat.ckpt", "--out", tmp_path / "cat.safetensors")
    assert done.code == 0 and "425 tensors of" in done.err, done.err
    found = open_pipeline(tmp_path / "cat.safetensors", config=str(tiny_pipeline))
    expected = open_pipeline(tiny_pipeline).tensors("vae")
    assert all((array == expected[name]).all() for name, array in found.tensors("vae").items())
    save_file(tensors, tmp_path / "x.ckpt")
    assert main("torchbooth", "convert", tmp_path / "x.ckpt", "--out", tmp_path / "y.safetensors").code == 2
    assert main("jaxbooth", "convert", tmp_path / "x.ckpt", "--out", tmp_path / "y.safetensors").code == 2
