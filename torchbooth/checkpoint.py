"""Checkpoints as safetensors: trainable tensors and moments, by diffusers name; the loss scale as JSON; no pickles."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from torchbooth.optim import read_moments, write_moments
from torchbooth.step import State

_TRAINABLE, _OPTIMIZER, _LOSS_SCALE = "trainable.safetensors", "optimizer.safetensors", "loss_scale.json"


def save(state: State, folder: Path) -> None:
    """Writes the files into an existing folder."""
    assert state.optimizer is not None
    save_file({name: tensor.detach() for name, tensor in state.trainable.items()}, folder / _TRAINABLE)
    moments = {
        f"{name}/{key}": value
        for name, parameter in state.trainable.items()
        for key, value in read_moments(state.optimizer, parameter).items()
    }
    save_file(moments, folder / _OPTIMIZER)
    if state.scaler.is_enabled():
        (folder / _LOSS_SCALE).write_text(json.dumps(state.scaler.state_dict()), encoding="utf-8")


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
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in load_file(folder / _OPTIMIZER, device=device).items():
        name, _, moment = key.rpartition("/")
        moments.setdefault(name, {})[moment] = value
    for name, values in moments.items():
        write_moments(state.optimizer, state.trainable[name], values)
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(json.loads((folder / _LOSS_SCALE).read_text(encoding="utf-8")))
    return state
