"""Loads the networks of a pipeline folder as diffusers and transformers modules."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights

from booth.pipeline_dir import PipelineDir, fit_weights

_PREFIX = "text_model."  # transformers 5 leaves it out of the module's names, the folder format keeps it


@dataclass(frozen=True)
class Models:
    """The networks of one pipeline, float32, on one device, in eval mode without gradients.

    `vae_scale`, `vae_shift`: of the VAE's config.
    """

    unet: Any  # diffusers UNet2DConditionModel
    vae: Any  # diffusers AutoencoderKL
    text_encoder: Any  # transformers CLIPTextModel
    vae_scale: float
    vae_shift: float


def load(pipeline: PipelineDir, device: torch.device) -> Models:
    """Reads the safetensors weights (never pickles) in float32 and moves them to the device.

    UserError if names or shapes do not fit the configs: the libraries' own loading would fill gaps with random numbers.
    """
    # Where bitsandbytes is installed diffusers imports it, which on a CPU warns of a kernel that nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with init_empty_weights(include_buffers=False):
        modules = {
            "unet": UNet2DConditionModel.from_config(pipeline.component_config("unet")),
            "vae": AutoencoderKL.from_config(pipeline.component_config("vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**pipeline.component_config("text_encoder"))),
        }
    for component, module in modules.items():
        names = {diffusers_name(component, name): name for name, _ in module.named_parameters()}
        shapes = {name: tuple(module.get_parameter(own).shape) for name, own in names.items()}
        fitted = fit_weights(component, pipeline.tensors(component), shapes)
        weights = {names[name]: torch.from_numpy(array) for name, array in fitted.items()}
        module.load_state_dict(weights, strict=False, assign=True)  # strict about names already, not about buffers
        module.to(device).eval().requires_grad_(False)
    scale, shift = pipeline.latent_scaling
    return Models(**modules, vae_scale=scale, vae_shift=shift)


def recompute_activations(network: Any) -> None:
    """Has a network compute its activations once more in the backward pass instead of keeping them."""
    if hasattr(network, "enable_gradient_checkpointing"):  # diffusers
        network.enable_gradient_checkpointing()
    else:  # transformers; token ids carry no gradient, which the reentrant kind would need
        # The second name is that of older transformers.
        enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
        enable({"use_reentrant": False})


def diffusers_name(component: str, name: str) -> str:
    """The name in a pipeline folder of a module's own parameter."""
    return name if component != "text_encoder" or name.startswith(_PREFIX) else _PREFIX + name
