"""Loading the networks of a pipeline folder: the computations (Network) and the arrays (a flat dict)."""

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
    """The networks of one pipeline. `params` are arrays in Flax layout by `component.name`, in the types that `load`
    describes; `vae_scale` and `vae_shift` are from the VAE's config; `adapter` is the one to train, and `adapted` are
    the networks with it, by component."""

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
        """The networks by component."""
        return {"unet": self.unet, "vae": self.vae, "text_encoder": self.text_encoder}

    def with_adapter(self) -> "Models":
        """Return the models with the adapter's layers in the networks, but without the arrays of these layers."""
        return replace(self, unet=self.adapted["unet"], text_encoder=self.adapted["text_encoder"])

    def of(self, component: str) -> dict[str, jax.Array]:
        """Return the parameters of one component, by their names inside it."""
        return of(self.params, component)


def of(params: Mapping[str, T], component: str) -> dict[str, T]:
    """Return the entries of one component, by the names inside it."""
    prefix = component + "."
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def build(pipeline: PipelineDir, mesh: Mesh, config: Any, adapter: Adapter | None = None) -> dict[str, Network]:
    """Return all networks, without their weights, with the settings of `config.train` on these devices.

    An `adapter` is put into its layers. Only the UNet computes in `train.precision`: encoding is done once, or once per
    update, and in float32. Raise UserError for a kernel that the devices do not have.
    """
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
    """Read the safetensors weights and place them by the sharding rules. Raise UserError if they do not fit the
    configs.

    If only an adapter trains, matrices and kernels are kept in the type that the network computes in.
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
    # This is cached: a Network is a static argument of compiled functions, and an equal one finds them again.
    return Network.build(_CLASSES[component], json.loads(config), **options)
