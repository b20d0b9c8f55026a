"""More captions than rows: each update is given its rows' own, and nothing is compiled anew."""

import importlib
import shutil

import numpy as np
import pytest

from booth.train import loop


@pytest.mark.full  # jaxbooth compiles a step for each
@pytest.mark.parametrize("text_encoder", [False, True])
def test_both_backends_train_on_captions_alike(tiny_config, photos, tmp_path, text_encoder):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    for number, path in enumerate(sorted(folder.glob("*.png"))):
        path.rename(folder / f"a sks robot {'in the snow of a far country'[: 5 + 4 * number]}.png")
    config = tiny_config
    config.instance.images, config.instance.captions, config.instance.prompt = str(folder), "names", ""
    config.prior.weight, config.train.text_encoder, config.train.steps = 0.0, text_encoder, 4
    config.train.learning_rate = 1e-4
    runs = [
        loop.train(importlib.import_module(f"{package}.backend").Backend, config, tmp_path / package)
        for package in ("torchbooth", "jaxbooth")
    ]
    losses = [[line["loss"] for line in run.metrics] for run in runs]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert len(set(losses[0])) == 4
