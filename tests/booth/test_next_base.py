"""The training of the next base goes on where it was interrupted, and begins with what the base in use knows."""

import numpy as np
import pytest
import torch
from drawn_world.world import example, render
from next_base import autoencoder
from next_base.autoencoder import object_psnr, through, train_autoencoder
from next_base.denoiser import networks_begun_from_the_base
from safetensors.torch import load_file
from train_next_base import sheet

from booth.models.embedded import base_path


@pytest.fixture(scope="module")
def pictures():
    return np.stack([render(*example(0, index)) for index in range(32)])


@pytest.mark.full
def test_an_interrupted_autoencoder_goes_on_to_the_bit(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "SAVE_EVERY", 2)

    class Interrupted(Exception):
        pass

    def interrupt(step, vae):
        if step == 2:
            raise Interrupted

    whole = train_autoencoder(pictures, 4, 0, tmp_path / "whole.pt", lambda step, vae: None)
    with pytest.raises(Interrupted):
        train_autoencoder(pictures, 4, 0, tmp_path / "parts.pt", interrupt)
    steps = []
    parts = train_autoencoder(pictures, 4, 0, tmp_path / "parts.pt", lambda step, vae: steps.append(step))
    assert steps == [4]
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())
    assert parts.config.scaling_factor == whole.config.scaling_factor
    sheet(pictures[:4], through(parts, np.array(pictures[:4])), tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 0


def test_objects_alone_are_measured(pictures):
    some = np.array(pictures[:2])
    wrong = some[..., :3].astype(int)
    wrong[0][some[0, ..., 3] == 0] += 50  # only the setting
    wrong[1][some[1, ..., 3] == 255] += 10
    with np.errstate(divide="ignore"):
        setting, both = object_psnr(wrong, some)
    assert setting == np.inf and 26 < both < 30, "10 of 255 in nearly every pixel: 28.1 dB"


def test_the_next_networks_know_what_the_base_knows():
    unet, text_encoder = networks_begun_from_the_base(8)
    assert unet.conv_in.weight.shape[1] == unet.conv_out.weight.shape[0] == 8
    base = load_file(base_path() / "unet" / "diffusion_pytorch_model.safetensors")
    state = unet.state_dict()
    same = [name for name in base if state[name].shape == base[name].shape]
    assert len(same) == len(base) - 3, "all but the first convolution's weight, and the last one's weight and bias"
    assert all(torch.equal(state[name], base[name].float()) for name in same)
    text = load_file(base_path() / "text_encoder" / "model.safetensors")
    kept = text_encoder.state_dict()
    found = [name for name in kept if any(name.endswith(other.removeprefix("text_model.")) for other in text)]
    assert len(found) == len(kept)
