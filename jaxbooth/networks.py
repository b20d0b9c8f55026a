"""Loads the networks of a pipeline folder: what to compute (Network) and with what (a flat dict of arrays)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from booth.pipeline_dir import PipelineDir
from jaxbooth.models.clip import CLIPTextModel
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.models.vae import AutoencoderKL
from jaxbooth.sharding import place_parameters
from jaxbooth.weights import Network, from_diffusers

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


def of(params: Mapping[str, jax.Array], component: str) -> dict[str, jax.Array]:
    """The parameters of one component, by their names inside it."""
    prefix = component + "."
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def load(pipeline: PipelineDir, mesh: Mesh, precision: str, remat: bool) -> Models:
    """Reads the safetensors weights and places them by the sharding rules. UserError if they do not fit the configs.

    Only the UNet computes in `precision`: encoding is done once, or once an update, and in float32. `remat`: UNet and
    text encoder compute their activations once more in a backward pass instead of keeping them.
    """
    networks: dict[str, Network] = {}
    params: dict[str, jax.Array] = {}
    options: dict[str, dict[str, Any]] = {
        "unet": {"dtype": jnp.bfloat16 if precision == "bf16" else jnp.float32, "remat": remat},
        "vae": {},
        "text_encoder": {"remat": remat},
    }
    for component in _CLASSES:
        config = json.dumps(pipeline.component_config(component), sort_keys=True)
        network = _build(component, config, **options[component])
        tensors = from_diffusers(network, pipeline.tensors(component), component)
        params |= place_parameters(mesh, {f"{component}.{name}": value for name, value in tensors.items()})
        networks[component] = network
    scale, shift = pipeline.latent_scaling
    return Models(**networks, params=params, vae_scale=scale, vae_shift=shift)


@lru_cache
def _build(component: str, config: str, **options: Any) -> Network:
    # Cached: a Network is a static argument of the compiled functions, which are then found again in one process.
    return Network.build(_CLASSES[component], json.loads(config), **options)
