"""The sharding: the mesh, which axis of a parameter is split, and how rows are distributed.

The mesh has three axes: `replica` (slices, which only the network of the data center connects), `data` (copies of the
model in a slice) and `fsdp` (devices that share one copy of the weights and optimizer states). Rows of a batch are
distributed over all three. Since a row's weight in the loss is part of the batch, any distribution gives the same
training. If the number of rows is not divisible, rows of weight 0 are added.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import DictKey
from jax.typing import DTypeLike

from booth.common.errors import UserError
from booth.diffusion.backend import ROW_FIELDS, WEIGHT_FIELDS, Batch

# The first match wins; every parameter must match. In Flax's layout the last axis is the layer's output features, whose
# number is a multiple of every usual device count; biases and norms are too small to be worth a gather.
RULES: tuple[tuple[str, P], ...] = (
    (r"norm[^.]*\.(weight|bias)$", P()),
    (r"\.(lora_[AB]|added)\.weight$", P()),
    (r"\.bias$", P()),
    (r"\.weight$", P("fsdp")),
)
_AXES = ("replica", "data", "fsdp")
_ROWS = P(_AXES)


def make_mesh(fsdp: int) -> Mesh:
    """Return the mesh over the devices of all hosts. Raise UserError as `mesh_of`."""
    devices = sorted(jax.devices(), key=_slice)
    return mesh_of(devices, fsdp, slices_of(devices))


def slices_of(devices: Sequence[Any]) -> int:
    """Return the number of TPU slices that these devices are in."""
    return len({_slice(device) for device in devices}) if devices[0].platform == "tpu" else 1


def _slice(device: Any) -> int:
    return getattr(device, "slice_index", 0)  # where there is one slice, devices do not have it


def mesh_of(devices: Sequence[Any], fsdp: int, slices: int = 1) -> Mesh:
    """Return a mesh [slices, devices of a slice / fsdp, fsdp] of these devices, which come slice by slice.

    The devices that share weights are in one slice: weights are sent in every pass, and gradients between slices once
    an update. Raise UserError if fsdp does not divide the number of devices of a slice.
    """
    if len(devices) // slices % fsdp:
        where = " of a slice" if slices > 1 else ""
        raise UserError(f"mesh.fsdp={fsdp} must divide the number of devices{where}, {len(devices) // slices}")
    grid = np.array(devices).reshape(slices, -1, fsdp)
    return Mesh(grid, _AXES, axis_types=(AxisType.Auto,) * len(_AXES))


def parameter_spec(name: str, shape: tuple[int, ...], fsdp: int) -> P:
    """Return how a parameter (and its Adam moments) is split: along its last axis, if its rule says so and the axis is
    divisible."""
    spec = next(spec for pattern, spec in RULES if re.search(pattern, name))
    return P(*[None] * (len(shape) - 1), *spec) if spec and shape[-1] % fsdp == 0 else P()


def place_parameters(mesh: Mesh, params: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Move parameters to their devices."""
    shardings = state_shardings(mesh, dict(params))
    return {name: _place(shardings[name], value) for name, value in params.items()}


def _place(sharding: NamedSharding, value: np.ndarray) -> jax.Array:
    """Put this host's part of a value, which all hosts have, on its own devices; `device_put` would compare the values
    of all hosts."""
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def fetch(array: jax.Array) -> np.ndarray:
    """Return the whole of an array on every host; all hosts must call this."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def state_shardings(mesh: Mesh, tree: Any) -> Any:
    """Return the sharding of every leaf of a tree whose innermost dicts are keyed by parameter name; others are
    replicated."""

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path[-1].key if isinstance(path[-1], DictKey) else None
        return NamedSharding(mesh, parameter_spec(name, leaf.shape, mesh.shape["fsdp"]) if name else P())

    return jax.tree_util.tree_map_with_path(sharding, tree)


def over_rows(mesh: Mesh, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """Return the function in a form that each device runs on its own rows and its own part of the parameters.

    So the program itself says what is sent where (`gathered`, `summed`). The compiler cannot split a network in its own
    way, and need not split a kernel that it does not know.
    """
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def parameter_specs(mesh: Mesh, params: Mapping[str, Any]) -> dict[str, P]:
    """Return how each parameter is split."""
    return {name: parameter_spec(name, value.shape, mesh.shape["fsdp"]) for name, value in params.items()}


def gathered(params: Mapping[str, jax.Array], specs: Mapping[str, P], dtype: DTypeLike) -> dict[str, jax.Array]:
    """Return the whole of each parameter, of which this device has the part that `specs` says. Use it in `over_rows`.

    A split parameter is cast to the compute dtype before it is sent, which halves the bytes in bfloat16. The gradient
    of a part is the sum over the devices that share a copy, also in the compute dtype: in bfloat16, more devices mean
    more rounding.
    """

    def gather(name: str, part: jax.Array) -> jax.Array:
        if not specs[name]:
            return part
        return jax.lax.all_gather(part.astype(dtype), "fsdp", axis=part.ndim - 1, tiled=True)

    return {name: gather(name, part) for name, part in params.items()}


def summed(gradients: Mapping[str, jax.Array], specs: Mapping[str, P]) -> dict[str, jax.Array]:
    """Return the gradients of `gathered` parameters, added up over the rows of all devices. Use it in `over_rows`."""
    return {name: _sum(value, ("data",) if specs[name] else ("data", "fsdp")) for name, value in gradients.items()}


def _sum(value: jax.Array, inside: tuple[str, ...]) -> jax.Array:
    """Return a sum over all slices and over these axes inside them.

    The network between slices is slow. So each slice adds up first, and then each of its devices sends its own share of
    the sum: all devices together send it once.
    """
    if jax.lax.axis_size("replica") == 1:
        return jax.lax.psum(value, inside)
    padded = jnp.pad(value.ravel(), (0, -value.size % jax.lax.axis_size(inside)))
    share = jax.lax.psum_scatter(padded, inside, tiled=True)
    share = jax.lax.psum(share, "replica")
    return jax.lax.all_gather(share, inside, tiled=True)[: value.size].reshape(value.shape)


def summed_rows(values: Any) -> Any:
    """Return sums over each device's rows, added up over all devices. Use it in `over_rows`."""
    return jax.lax.psum(values, _AXES)


def pad_rows(rows: np.ndarray, multiple: int) -> np.ndarray:
    """Repeat the last row until the number of rows is a multiple of `multiple`."""
    spare = -len(rows) % multiple
    return np.concatenate([rows, np.repeat(rows[-1:], spare, axis=0)]) if spare else rows


def row_spec() -> P:
    """Return the spec of an array [rows, ...] distributed over all devices, for `over_rows`."""
    return _ROWS


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array [rows, ...] distributed over all devices."""
    return NamedSharding(mesh, _ROWS)


def shared_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device has as a whole."""
    return NamedSharding(mesh, P())


def place_rows(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """Distribute [rows, ...] over all devices, padded by `pad_rows`."""
    return _place(row_sharding(mesh), pad_rows(rows, mesh.size))


def place_shared(mesh: Mesh, value: Any) -> Any:
    """Return the array, or the tree of arrays, copied to every device."""
    return jax.tree.map(partial(_place, shared_sharding(mesh)), value)


def pad_batch(batch: Batch, multiple: int) -> Batch:
    """Return the batch padded with copies of its last row that have weight 0."""
    padded: Any = {name: pad_rows(getattr(batch, name), multiple) for name in ROW_FIELDS}
    for name in WEIGHT_FIELDS:
        padded[name][len(batch.weight) :] = 0
    return replace(batch, **padded)


def batch_specs(batch: Batch) -> Batch:
    """Return how a placed batch is split, for `over_rows`: rows over all devices, and the rest as a whole on each."""
    rows: Any = {name: P(None, *_ROWS) for name in ROW_FIELDS}
    return replace(jax.tree.map(lambda _: P(), batch), **rows)


def place_batch(mesh: Mesh, batch: Batch, pieces: int) -> Batch:
    """Return the batch on the devices in pieces, [pieces, rows, ...]. Each piece is padded by `pad_batch` and
    distributed over all devices.

    The rest of a batch (prompts, learning rates) is the same on every device.
    """
    parts = [pad_batch(piece, mesh.size) for piece in batch.pieces(pieces)]
    sharding = NamedSharding(mesh, P(None, *_ROWS))
    rows: Any = {name: _place(sharding, np.stack([getattr(part, name) for part in parts])) for name in ROW_FIELDS}
    return replace(
        batch,
        **rows,
        prompts=place_shared(mesh, batch.prompts),
        learning_rate=place_shared(mesh, dict(batch.learning_rate)),
        key=place_shared(mesh, np.int32(batch.key)),
    )


def own_rows(mesh: Mesh, rows: int, pieces: int) -> frozenset[int] | None:
    """Return which rows of a batch `place_batch` gives to this host's devices, or None for all if there is one host.

    Padding repeats a piece's last row, which need not be among this host's rows: a row of weight 0 may be anything.
    """
    if jax.process_count() == 1:
        return None
    in_piece = pad_rows(np.arange(rows // pieces), mesh.size).reshape(mesh.size, -1)
    here = [device.process_index == jax.process_index() for device in mesh.devices.flat]
    return frozenset(int(row) * pieces + piece for row in in_piece[here].flat for piece in range(pieces))
