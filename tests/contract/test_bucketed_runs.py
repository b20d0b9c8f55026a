"""Two concepts of pictures of three shapes: a resumed run is the same to the bit, and both backends train alike."""

import importlib

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from booth.train import loop

SIZES = [(90, 60), (64, 64), (50, 80)]  # of which three buckets are used


@pytest.fixture
def config(tiny_config, photos, tmp_path):
    for name, picked in {"dog": (0, 1, 2), "cat": (3, 4, 4)}.items():
        (tmp_path / name).mkdir()
        for number, (place, size) in enumerate(zip(picked, SIZES, strict=True)):
            picture = Image.open(sorted(photos.glob("*.png"))[place])
            picture.resize(size).save(tmp_path / name / f"{number}.png")
    tiny_config.concepts = tuple(
        {"instance.images": str(tmp_path / name), "instance.prompt": f"a photo of sks {name}",
         "prior.prompt": f"a photo of {name}", "weight": weight}
        for name, weight in (("dog", 1.0), ("cat", 1.5))
    )  # fmt: skip
    tiny_config.data.buckets, tiny_config.data.flip, tiny_config.prior.count = ("64x48", "64x64", "48x64"), True, 3
    tiny_config.train.learning_rate, tiny_config.train.batch_size, tiny_config.train.steps = 1e-4, 1, 6
    return tiny_config


# For each size jaxbooth compiles a step, an encoder and a sampler.
@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_resumed_equals_uninterrupted_to_the_bit(package, config, tmp_path):
    backend_class = importlib.import_module(f"{package}.backend").Backend
    whole = loop.train(backend_class, config, tmp_path / "whole")
    config.train.steps = 4
    loop.train(backend_class, config, tmp_path / "parts")
    config.train.steps = 6
    parts = loop.train(backend_class, config, tmp_path / "parts")
    assert losses(parts) == losses(whole) and len(set(losses(whole))) == 6
    there, here = (load_file(run.pipeline / "unet" / "diffusion_pytorch_model.safetensors") for run in (whole, parts))
    assert all(np.array_equal(there[name], here[name]) for name in there)
    if package == "jaxbooth":
        torch_class = importlib.import_module("torchbooth.backend").Backend
        np.testing.assert_allclose(losses(loop.train(torch_class, config, tmp_path / "torch")), losses(whole), 1e-4)


def losses(run):
    return [line["loss"] for line in run.metrics]
