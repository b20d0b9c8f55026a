"""Checkpoints through Orbax: trainable tensors, moments and average, restored to any number of devices and hosts."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from booth.common.errors import not_finite
from booth.config.values import is_remote
from jaxbooth.ema import Average
from jaxbooth.sharding import shared_sharding
from jaxbooth.step import State

_TRAINABLE, _OPTIMIZER, _AVERAGE = "trainable", "optimizer", "average"

# Otherwise copies of one part would be sliced on the devices, so that each writes a piece. That needs a small compiled
# program for every shape, and memory that the devices may not have.
_HANDLERS = ocp.type_handlers.create_type_handler_registry(
    (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False))
)


def save(state: State, folder: Path) -> None:
    """Write into a folder; each host writes the parts of which it holds the first copy. Return when all is written.

    Raise UserError, before anything is written, if a trainable tensor is not finite.
    """
    for name, weights in state.trainable.items():
        # This is checked on the host: on the devices, a program for every shape would have to be compiled.
        if not all(np.isfinite(part.data).all() for part in weights.addressable_shards if part.replica_id == 0):
            raise not_finite(name)
    with _without_tracebacks(), _checkpointer() as checkpointer:
        checkpointer.save(_absolute(folder) / _TRAINABLE, args=ocp.args.PyTreeSave(state.trainable))
        checkpointer.save(_absolute(folder) / _OPTIMIZER, args=ocp.args.PyTreeSave(state.optimizer))
        if state.average:
            checkpointer.save(_absolute(folder) / _AVERAGE, args=ocp.args.PyTreeSave(_tree(state.average)))


@contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Silence tracebacks of a failed write, which is raised anyway: Orbax also logs its traceback and then closes its
    event loop, so that each of the other writes, which report to the loop, prints a traceback too.

    These may come even after the block has failed, so the settings are restored only after success.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    sys.unraisablehook = hook
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    yield
    sys.unraisablehook = before
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def restore(state: State, folder: Path) -> State:
    """Return the saved state, bit for bit, placed like `state`. A state that is not training gets the average, if there
    is one, as its trainable tensors."""
    if state.optimizer is None and (folder / _AVERAGE).exists():
        placed: Any = next(iter(state.trainable.values())).sharding
        updates = jax.ShapeDtypeStruct((), np.float32, sharding=shared_sharding(placed.mesh))
        average = _read(folder / _AVERAGE, {"weights": state.trainable, "updates": updates})
        return replace(state, trainable=average["weights"])
    state = replace(state, trainable=_read(folder / _TRAINABLE, state.trainable))
    if state.optimizer is None:
        return state
    state = replace(state, optimizer=_read(folder / _OPTIMIZER, state.optimizer))
    if state.average:
        state = replace(state, average=Average(**_read(folder / _AVERAGE, _tree(state.average))))
    return state


def saved_names(folder: Path) -> list[str]:
    """Return the names of the trainable tensors in a checkpoint."""
    return list(_handler().metadata(_absolute(folder) / _TRAINABLE).tree)  # one host alone can read this


def _tree(average: Average) -> dict[str, Any]:
    return {"weights": average.weights, "updates": average.updates}


def _read(path: Path, like: Any) -> Any:
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    placed = ocp.checkpoint_utils.construct_restore_args(shapes)
    with _checkpointer() as checkpointer:
        return checkpointer.restore(_absolute(path), args=ocp.args.PyTreeRestore(shapes, restore_args=placed))


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(_handler())


def _handler() -> ocp.PyTreeCheckpointHandler:
    return ocp.PyTreeCheckpointHandler(type_handler_registry=_HANDLERS)


def _absolute(path: Path) -> Path:
    return path if is_remote(str(path)) else path.absolute()
