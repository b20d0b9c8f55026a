"""Loading: what does not fit is refused; the libraries' own loading fills gaps with random numbers."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextModel

from booth.common.errors import UserError
from booth.models.open import open_pipeline
from torchbooth.networks import load


@pytest.fixture
def copy(tiny_pipeline, tmp_path):
    return shutil.copytree(tiny_pipeline, tmp_path / "pipeline")


def test_weights_are_those_of_from_pretrained(tiny_pipeline):
    models = load(open_pipeline(tiny_pipeline))
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline, subfolder="unet")
    text_encoder = CLIPTextModel.from_pretrained(tiny_pipeline, subfolder="text_encoder")
    for ours, theirs in ((models.unet, unet), (models.text_encoder, text_encoder)):
        expected = theirs.state_dict()
        assert ours.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())
    ids = torch.arange(77)[None]
    assert torch.equal(models.text_encoder(ids)[0], text_encoder(ids)[0])


@pytest.mark.parametrize("component", ["unet", "text_encoder", "vae"])
def test_a_missing_tensor_is_refused(copy, component):
    path = next((copy / component).glob("*.safetensors"))
    tensors = load_file(path)
    lost = sorted(name for name in tensors if name.endswith(".weight"))[3]
    del tensors[lost]
    save_file(tensors, path)
    with pytest.raises(UserError, match=f"{component} weights do not fit its config: missing {lost}; left over none"):
        load(open_pipeline(copy))


def test_a_wrong_shape_is_refused(copy):
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_in.weight"] = np.zeros((64, 4, 1, 1), np.float32)
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"conv_in.weight is float32\[64, 4, 1, 1\] instead of float\[64, 4, 3, 3\]"):
        load(open_pipeline(copy))


def test_the_attention_of_older_vaes(copy):
    """Other names, and 1x1 convolutions for linear layers: the same network."""
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    expected = load(open_pipeline(copy)).vae.state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in tensors.items():
        for new, former in old.items():
            if f".{new}." in name:
                name = name.replace(f".{new}.", f".{former}.")
                tensor = tensor[..., None, None] if tensor.ndim == 2 else tensor
        renamed[name] = np.ascontiguousarray(tensor)
    assert renamed.keys() != tensors.keys()
    save_file(renamed, path)
    loaded = load(open_pipeline(copy)).vae.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.items())


def test_gradient_checkpointing_changes_nothing_but_memory(tiny_config, tmp_path):
    from booth.train import loop
    from torchbooth.backend import Backend

    plain = loop.train(Backend, tiny_config, tmp_path / "plain")
    tiny_config.prior.images, tiny_config.train.gradient_checkpointing = str(plain.path / "class_images"), "block"
    saved = loop.train(Backend, tiny_config, tmp_path / "checkpointing")
    assert [line["loss"] for line in saved.metrics] == pytest.approx([line["loss"] for line in plain.metrics], rel=1e-6)
    backend = Backend(tiny_config)
    state = backend.init(backend.load(open_pipeline(tiny_config.model.source)))
    assert state.models.unet.is_gradient_checkpointing
