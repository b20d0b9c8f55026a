"""Checkpoints through Orbax: trainable tensors and Adam moments, restored to any number of devices."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxbooth.step import State

_TRAINABLE, _OPTIMIZER = "trainable", "optimizer"


def save(state: State, folder: Path) -> None:
    """Writes into an existing folder; returns when everything is on disk."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute() / _TRAINABLE, state.trainable)
        checkpointer.save(folder.absolute() / _OPTIMIZER, state.optimizer)


def restore(state: State, folder: Path) -> State:
    """The saved state, bit for bit, placed as `state` is; a state that is not training gets its tensors only."""
    state = replace(state, trainable=_read(folder / _TRAINABLE, state.trainable))
    return replace(state, optimizer=_read(folder / _OPTIMIZER, state.optimizer)) if state.optimizer else state


def _read(path: Path, like: Any) -> Any:
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path.absolute(), jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
