"""Checkpoints through Orbax: trainable tensors and Adam moments, restored to any number of devices."""

from dataclasses import replace
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from jaxbooth.step import State

_NAME = "state"


def save(state: State, folder: Path) -> None:
    """Writes into an existing folder; returns when everything is on disk."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute() / _NAME, _tree(state))


def restore(state: State, folder: Path) -> State:
    """The saved state, bit for bit, placed as `state` is."""
    with ocp.StandardCheckpointer() as checkpointer:
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, _tree(state))
        saved = checkpointer.restore(folder.absolute() / _NAME, like)
    return replace(state, **saved)


def _tree(state: State) -> dict:
    return {"trainable": state.trainable, "optimizer": state.optimizer}
