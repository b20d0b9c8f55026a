"""Loads the networks of a pipeline folder: what to compute (Network) and with what (a flat dict of arrays)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from booth.pipeline_dir import PipelineDir
from jaxbooth.models import kernels
from jaxbooth.models.clip import CLIPTextModel
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.models.vae import AutoencoderKL
from jaxbooth.sharding import place_parameters
from jaxbooth.weights import Network, from_diffusers

T = TypeVar("T")

_CLASSES: dict[str, type[nnx.Module]] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
}


@dataclass(frozen=True)
class Models:
    """`params`: float32 arrays in Flax layout by `component.name`; `vae_scale`, `vae_shift`: of the VAE's config."""

    unet: Network
    vae: Network
    text_encoder: Network
    params: dict[str, jax.Array]
    vae_scale: float
    vae_shift: float

    def of(self, component: str) -> dict[str, jax.Array]:
        """The parameters of one component, by their names inside it."""
        return of(self.params, component)


def of(params: Mapping[str, T], component: str) -> dict[str, T]:
    """What belongs to one component, by the names inside it."""
    prefix = component + "."
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def build(pipeline: PipelineDir, mesh: Mesh, config: Any) -> dict[str, Network]:
    """All networks, without their weights, as `config.train` wants them computed on these devices.

    Only the UNet computes in `train.precision`: encoding is done once, or once an update, and in float32. UserError for
    a kernel that the devices have not.
    """
    train = config.train
    dtype = jnp.bfloat16 if train.precision == "bf16" else jnp.float32
    recompute = train.gradient_checkpointing
    kernel = kernels.choose(train.attention, mesh.devices.flat[0], dtype, recompute=recompute == "attention")
    options: dict[str, dict[str, Any]] = {
        "unet": {"dtype": dtype, "remat": recompute == "block", "kernel": kernel},
        "vae": {},
        "text_encoder": {"remat": recompute == "block"},
    }
    return {
        component: _build(
            component, json.dumps(pipeline.component_config(component), sort_keys=True), **options[component]
        )
        for component in _CLASSES
    }


def load(pipeline: PipelineDir, mesh: Mesh, config: Any) -> Models:
    """Reads the safetensors weights and places them by the sharding rules. UserError if they do not fit the configs."""
    networks = build(pipeline, mesh, config)
    params: dict[str, jax.Array] = {}
    for component, network in networks.items():
        tensors = from_diffusers(network, pipeline.tensors(component), component)
        params |= place_parameters(mesh, {f"{component}.{name}": value for name, value in tensors.items()})
    scale, shift = pipeline.latent_scaling
    return Models(**networks, params=params, vae_scale=scale, vae_shift=shift)


@lru_cache
def _build(component: str, config: str, **options: Any) -> Network:
    # Cached: a Network is a static argument of the compiled functions, which are then found again in one process.
    return Network.build(_CLASSES[component], json.loads(config), **options)
