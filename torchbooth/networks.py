"""Loading the networks of a pipeline folder as diffusers and transformers modules."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights

from booth.common.errors import UserError
from booth.models.adapters import Adapter
from booth.models.pipeline import PipelineDir
from booth.models.weight_names import fit_weights

_PREFIX = "text_model."  # transformers 5 leaves it out of the module's names, but the folder format keeps it


@dataclass(frozen=True)
class Models:
    """The networks of one pipeline, in eval mode without gradients; `memory.Placement` decides where they are.

    `vae_scale` and `vae_shift` are from the VAE's config; `adapter` is the one to train.
    """

    unet: Any  # diffusers UNet2DConditionModel
    vae: Any  # diffusers AutoencoderKL
    text_encoder: Any  # transformers CLIPTextModel
    vae_scale: float
    vae_shift: float
    adapter: Adapter | None = None

    @property
    def networks(self) -> dict[str, Any]:
        """The networks by component."""
        return {"unet": self.unet, "vae": self.vae, "text_encoder": self.text_encoder}


def build(pipeline: PipelineDir, unet_dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Return the networks by component, in eval mode without gradients, in float32 and the UNet in `unet_dtype`.

    The surrounding context decides about their weights, such as fake tensors or no initialisation.
    """
    # diffusers imports bitsandbytes if it is installed, which on a CPU warns of a kernel that nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    before = torch.get_default_dtype()
    try:
        networks = {
            "vae": AutoencoderKL.from_config(pipeline.component_config("vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**pipeline.component_config("text_encoder"))),
        }
        torch.set_default_dtype(unet_dtype)
        networks["unet"] = UNet2DConditionModel.from_config(pipeline.component_config("unet"))
    except Exception as error:  # the libraries raise many types for a config that makes no network
        raise UserError(
            f"{pipeline.path}: its configs make no network ({' '.join(str(error).split())[:300]}); download it again"
        ) from error
    finally:
        torch.set_default_dtype(before)
    return {name: network.eval().requires_grad_(False) for name, network in networks.items()}


def load(pipeline: PipelineDir, unet_dtype: torch.dtype = torch.float32, adapter: Adapter | None = None) -> Models:
    """Read the safetensors weights (never pickles) into the host's memory, in float32 and the UNet's in `unet_dtype`.

    Raise UserError if names or shapes do not fit the configs: the libraries' own loading would fill gaps with random
    numbers.
    """
    with init_empty_weights(include_buffers=False):
        modules = build(pipeline, unet_dtype)
    for component, module in modules.items():
        names = {diffusers_name(component, name): name for name, _ in module.named_parameters()}
        shapes = {name: tuple(module.get_parameter(own).shape) for name, own in names.items()}
        fitted = fit_weights(component, pipeline.tensors(component), shapes)
        dtype = unet_dtype if component == "unet" else torch.float32
        weights = {names[name]: torch.from_numpy(array).to(dtype) for name, array in fitted.items()}
        module.load_state_dict(
            weights, strict=False, assign=True
        )  # the names are checked already; buffers may be missing
        module.requires_grad_(False)
    scale, shift = pipeline.latent_scaling
    return Models(**modules, vae_scale=scale, vae_shift=shift, adapter=adapter)


def diffusers_name(component: str, name: str) -> str:
    """Return the name in a pipeline folder of a module's own parameter."""
    return name if component != "text_encoder" or name.startswith(_PREFIX) else _PREFIX + name
