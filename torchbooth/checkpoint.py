"""Checkpoints as safetensors: trainable tensors and Adam moments, by diffusers name; no pickles."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from torchbooth.step import State

_TRAINABLE, _OPTIMIZER = "trainable.safetensors", "optimizer.safetensors"


def save(state: State, folder: Path) -> None:
    """Writes the two files into an existing folder."""
    assert state.optimizer is not None
    save_file({name: tensor.detach() for name, tensor in state.trainable.items()}, folder / _TRAINABLE)
    moments = {
        f"{name}/{key}": value
        for name, parameter in state.trainable.items()
        for key, value in state.optimizer.state[parameter].items()
    }
    save_file(moments, folder / _OPTIMIZER)


def restore(state: State, folder: Path) -> State:
    """Copies the saved tensors into the state's own, bit for bit."""
    device = str(next(iter(state.trainable.values())).device)
    saved = load_file(folder / _TRAINABLE, device=device)
    assert saved.keys() == state.trainable.keys(), "the manifest ties a run to its model"
    with torch.no_grad():
        for name, parameter in state.trainable.items():
            parameter.copy_(saved.pop(name))
    if state.optimizer is None:
        return state
    for key, value in load_file(folder / _OPTIMIZER, device=device).items():
        name, _, moment = key.rpartition("/")
        state.optimizer.state[state.trainable[name]][moment] = value
    return state
