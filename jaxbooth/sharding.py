"""THE sharding: the mesh, which axis of a parameter is split, and how rows are spread.

The mesh has two axes: `data` (copies of the model) and `fsdp` (devices that share one copy of the weights and optimizer
states). Rows of a batch are spread over both. Since a row's weight in the loss is part of the batch, any spread gives
the same training; rows that do not divide are padded with rows of weight 0.
"""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from booth.backend import Batch
from booth.errors import UserError

# First match wins; every parameter must match. In Flax's layout the last axis is the layer's output features, which
# are a multiple of every usual device count; biases and norms are too small to be worth a gather.
RULES: tuple[tuple[str, P], ...] = (
    (r"norm[^.]*\.(weight|bias)$", P()),
    (r"\.bias$", P()),
    (r"\.weight$", P("fsdp")),
)
_ROWS = P(("data", "fsdp"))
_SHARED_FIELDS = ("context", "learning_rate")  # of a Batch: not rows, the same on every device


def make_mesh(fsdp: int) -> Mesh:
    """A mesh [devices / fsdp, fsdp] over all local devices. UserError if fsdp does not divide their number."""
    devices = jax.local_devices()
    if len(devices) % fsdp:
        raise UserError(f"mesh.fsdp={fsdp} must divide the number of devices, {len(devices)}")
    grid = np.array(devices).reshape(-1, fsdp)
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def parameter_sharding(mesh: Mesh, name: str, shape: tuple[int, ...]) -> NamedSharding:
    """Where a parameter (or its Adam moment) lives: split along its last axis where the rule says so and it divides."""
    spec = next(spec for pattern, spec in RULES if re.search(pattern, name))
    if spec == P() or shape[-1] % mesh.shape["fsdp"]:
        return NamedSharding(mesh, P())
    return NamedSharding(mesh, P(*[None] * (len(shape) - 1), *spec))


def place_parameters(mesh: Mesh, params: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Moves parameters to their devices."""
    return {name: jax.device_put(value, parameter_sharding(mesh, name, value.shape)) for name, value in params.items()}


def place_rows(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """Spreads [rows, ...] over all devices; the last row is repeated until the rows divide."""
    spare = -len(rows) % mesh.size
    padded = np.concatenate([rows, np.repeat(rows[-1:], spare, axis=0)]) if spare else rows
    return jax.device_put(padded, NamedSharding(mesh, _ROWS))


def place_shared(mesh: Mesh, value: np.ndarray) -> jax.Array:
    """The same array on every device."""
    return jax.device_put(value, NamedSharding(mesh, P()))


def place_batch(mesh: Mesh, batch: Batch) -> Batch:
    """The batch on the devices; padding rows repeat the last row with weight 0."""
    spare = -len(batch.weight) % mesh.size
    batch = replace(batch, weight=np.concatenate([batch.weight, np.zeros(spare, np.float32)]))
    placed: dict[str, Any] = {
        field.name: (place_shared if field.name in _SHARED_FIELDS else place_rows)(mesh, getattr(batch, field.name))
        for field in fields(batch)
    }
    return Batch(**placed)
