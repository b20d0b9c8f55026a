"""UNet and text encoder of the next base: as those of the base in use, whose weights they begin with."""

from pathlib import Path

import torch
from base_training.denoiser import TEXT_ENCODER, UNET, Networks
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from booth.models.embedded import base_path

FILES = {"unet": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors"}


def networks_begun_from_the_base(channels: int) -> Networks:
    """Return networks for latents of so many channels, with the weights of the embedded base where the shapes agree: in
    all layers but the first and the last. They know already what words and noise are."""
    unet = UNet2DConditionModel(**UNET | {"in_channels": channels, "out_channels": channels})
    networks = Networks(unet, CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)))
    for network, (component, file) in zip(networks, FILES.items(), strict=True):
        _take(network, base_path() / component / file)
    return networks


def _take(network: torch.nn.Module, file: Path) -> None:
    own = network.state_dict()
    saved = {name: value.float() for name, value in load_file(file).items()}
    network.load_state_dict({name: saved[name] if name in saved and saved[name].shape == value.shape else value
                             for name, value in own.items()})  # fmt: skip
