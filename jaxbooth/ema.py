"""The exponential moving average of the trained parameters; previews and exports use it."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxbooth.optim import Params
from jaxbooth.sharding import place_shared, shared_sharding, state_shardings


@partial(jax.tree_util.register_dataclass, data_fields=["weights", "updates"], meta_fields=[])
@dataclass(frozen=True)
class Average:
    """The average: `weights` in float32 by `component.name`, and the number of `updates` so far, a float32 scalar."""

    weights: Params
    updates: jax.Array


def shardings(mesh: Mesh, weights: Any, device: str) -> Any:
    """Return the placement: each average is split like its parameter; with `ema.device=host` it is in the memory of
    that device's host."""
    placed = state_shardings(mesh, weights)
    if device == "host":
        placed = jax.tree.map(lambda sharding: sharding.with_memory_kind("pinned_host"), placed)
    return placed


def on_device(average: Average, mesh: Mesh) -> Params:
    """Return the average's weights on the devices, where the networks can compute with them."""
    placed: Params = jax.device_put(average.weights, shardings(mesh, average.weights, "device"))
    return placed


def begin(trainable: Params, mesh: Mesh, device: str) -> Average:
    """Return the average before the first update: a copy of the weights."""
    weights = jax.jit(partial(jax.tree.map, jnp.copy), out_shardings=shardings(mesh, trainable, device))(trainable)
    return Average(weights, place_shared(mesh, np.zeros((), np.float32)))


@partial(jax.jit, static_argnames=("decay", "device", "mesh"), donate_argnames="average")
def update(
    average: Average, trainable: Params, skipped: jax.Array, *, decay: float, device: str, mesh: Mesh
) -> Average:
    """Return the average after an update; `skipped`, a scalar, is 1 if the update was skipped. The given one is
    consumed.

    After update n (0 is the first) it moves `max(1 - decay, 9 / (10 + n))` of the way to the new weights, but the
    whole way after the first. This is diffusers' `EMAModel` without its options, whose decay is
    min(decay, (1 + n) / (10 + n)). A skipped update does not count.
    """
    # Computed as 1 - decay in float32, the share would have an error of 1e-4.
    share = jnp.maximum(1 - decay, 9 / (10 + average.updates))
    share = jnp.where(average.updates > 0, share, 1.0) * (1 - skipped)
    weights = jax.device_put(average.weights, shardings(mesh, trainable, "device"))
    weights = {name: value + share * (trainable[name] - value) for name, value in weights.items()}
    return Average(
        jax.device_put(weights, shardings(mesh, trainable, device)),
        jax.device_put(average.updates + 1 - skipped, shared_sharding(mesh)),
    )
