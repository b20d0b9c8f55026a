"""A dataset trains as the same photos in a folder do, and a run from it resumes to the bit, also from another place."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from booth.common.errors import UserError
from booth.config.values import default_of
from booth.data.image_folder import find_images
from booth.train import loop


@pytest.fixture(params=["torchbooth"])  # what differs from a folder is over before a backend begins
def package(request):
    return request.param


def write(path, pictures):
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {
        "photo": [{"bytes": picture, "path": None} for picture in pictures],
        "says": [f"a sks robot, number {number}" for number in range(len(pictures))],
    }
    Dataset.from_dict(rows, Features({"photo": ImageFeature(), "says": Value("string")})).to_parquet(path)
    return str(path)


def outcome(run):
    weights = load_file(run.pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    return [line["loss"] for line in run.metrics], weights


def test_a_parquet_file_trains_and_resumes_to_the_bit(backend_class, tiny_config, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    pictures = [path.read_bytes() for path in find_images(photos, "instance.images")]
    config = tiny_config
    config.instance.images = write(tmp_path / "data" / "robots.parquet", pictures)
    config.instance.captions, config.instance.prompt = "metadata", ""
    config.instance.image_column, config.instance.caption_column = "photo", "says"
    config.prior.weight, config.train.learning_rate = 0.0, 1e-3
    losses, weights = outcome(loop.train(backend_class, config, tmp_path / "whole"))

    # The same photos and captions in a folder: the same run.
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, picture in enumerate(pictures):
        (folder / f"{number}.png").write_bytes(picture)
        (folder / f"{number}.txt").write_text(f"a sks robot, number {number}", encoding="utf-8")
    plain = config.copy_and_resolve_references()
    plain.instance.images, plain.instance.captions = str(folder), "text"
    for other in ("caption_column", "image_column"):
        with pytest.raises(UserError, match=rf"instance\.{other}='\w+' (has no effect|is for datasets)"):
            loop.train(backend_class, plain, tmp_path / "plain")
        plain.instance[other] = default_of(f"instance.{other}")
    assert outcome(loop.train(backend_class, plain, tmp_path / "plain"))[0] == losses

    config.instance.images, config.train.steps = str(tmp_path / "data"), 3
    loop.train(backend_class, config, tmp_path / "parts")
    (tmp_path / "data").rename(tmp_path / "moved")
    config.instance.images, config.train.steps = str(tmp_path / "moved" / "robots.parquet"), 4
    run = loop.train(backend_class, config, tmp_path / "parts")
    assert outcome(run)[0] == losses and len(set(losses)) == 4
    assert all(np.array_equal(array, weights[name]) for name, array in outcome(run)[1].items())

    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["captions"]["00002.png"] == "a sks robot, number 2"
    config.instance.images, config.train.steps = write(tmp_path / "other.parquet", [*pictures[:4], pictures[0]]), 5
    with pytest.raises(UserError, match=r"instance images changed since this run began \(00004\.png\)"):
        loop.train(backend_class, config, tmp_path / "parts")
