"""Loads the networks of a pipeline folder: what to compute (Network) and with what (a flat dict of arrays)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from booth.models.adapters import Adapter, adapter_of
from booth.models.new_tokens import ROWS, initial_rows
from booth.models.pipeline import PipelineDir
from jaxbooth.models import kernels
from jaxbooth.models.clip import CLIPTextModel
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.models.vae import AutoencoderKL
from jaxbooth.sharding import place_parameters
from jaxbooth.weights import Network, from_diffusers, to_flax

T = TypeVar("T")

_CLASSES: dict[str, type[nnx.Module]] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
}


@dataclass(frozen=True)
class Models:
    """`params`: arrays in Flax layout by `component.name`, of the types that `load` says; `vae_scale`, `vae_shift`: of
    the VAE's config; `adapter`: the one that is to train, `adapted`: the networks with it, by component."""

    unet: Network
    vae: Network
    text_encoder: Network
    params: dict[str, jax.Array]
    vae_scale: float
    vae_shift: float
    adapter: Adapter | None
    adapted: Mapping[str, Network]

    @property
    def networks(self) -> dict[str, Network]:
        """By component."""
        return {"unet": self.unet, "vae": self.vae, "text_encoder": self.text_encoder}

    def with_adapter(self) -> "Models":
        """Return the same with the adapter's layers in its networks; their arrays are still to be added."""
        return replace(self, unet=self.adapted["unet"], text_encoder=self.adapted["text_encoder"])

    def of(self, component: str) -> dict[str, jax.Array]:
        """Return the parameters of one component, by their names inside it."""
        return of(self.params, component)


def of(params: Mapping[str, T], component: str) -> dict[str, T]:
    """Return what belongs to one component, by the names inside it."""
    prefix = component + "."
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def build(pipeline: PipelineDir, mesh: Mesh, config: Any, adapter: Adapter | None = None) -> dict[str, Network]:
    """Return all networks, without their weights, as `config.train` wants them computed on these devices.

    An `adapter` is in the layers that it is for.

    Only the UNet computes in `train.precision`: encoding is done once, or once an update, and in float32. Raise
    UserError for a kernel that the devices have not."""
    train = config.train
    dtype = jnp.bfloat16 if train.precision == "bf16" else jnp.float32
    recompute = train.gradient_checkpointing
    kernel = kernels.choose(train.attention, mesh.devices.flat[0], dtype, recompute=recompute == "attention")
    options: dict[str, dict[str, Any]] = {
        "unet": {"dtype": dtype, "remat": recompute == "block", "kernel": kernel},
        "vae": {},
        "text_encoder": {"remat": recompute == "block"}
        | ({"new_tokens": len(config.tokens.add)} if config.tokens.add else {}),
    }
    for component in _CLASSES:
        if adapter and (names := adapter.layers(component)):
            options[component] |= {"adapted": names, "rank": adapter.rank, "scale": adapter.scale}
            options[component] |= {"dropout": adapter.dropout}
    return {
        component: _build(
            component, json.dumps(pipeline.component_config(component), sort_keys=True), **options[component]
        )
        for component in _CLASSES
    }


def load(pipeline: PipelineDir, mesh: Mesh, config: Any) -> Models:
    """Read the safetensors weights and places them by the sharding rules. Raise UserError if they do not fit the
    configs.

    Where an adapter trains instead of them, matrices and kernels are kept in the type that the network computes in.
    """
    networks, adapter, rows = (
        build(pipeline, mesh, config),
        adapter_of(config, pipeline),
        initial_rows(config, pipeline),
    )
    params: dict[str, jax.Array] = {}
    for component, network in networks.items():
        tensors = pipeline.tensors(component)
        if component == "text_encoder" and rows is not None:
            tensors[ROWS] = rows
        tensors = from_diffusers(network, tensors, component)
        if adapter:
            tensors = {
                name: value.astype(network.dtype) if value.ndim > 1 else value for name, value in tensors.items()
            }
        params |= place_parameters(mesh, {f"{component}.{name}": value for name, value in tensors.items()})
    scale, shift = pipeline.latent_scaling
    adapted = build(pipeline, mesh, config, adapter)
    return Models(**networks, params=params, vae_scale=scale, vae_shift=shift, adapter=adapter, adapted=adapted)


def initial_adapters(models: Models, seed: int) -> dict[str, np.ndarray]:
    """Return the adapters' first values in Flax layout, by `component.name`."""
    assert models.adapter is not None
    return {
        f"{component}.{name}": to_flax(models.adapted[component], name, value)
        for component, name, value in (
            (*full.partition(".")[::2], value) for full, value in models.adapter.initial(seed).items()
        )
    }


@lru_cache
def _build(component: str, config: str, **options: Any) -> Network:
    # Cached: a Network is a static argument of the compiled functions, which are then found again in one process.
    return Network.build(_CLASSES[component], json.loads(config), **options)
