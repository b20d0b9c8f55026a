"""Checkpoints as safetensors: trainable tensors and moments, by diffusers name; the loss scale as JSON; no pickles."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from booth.errors import not_finite
from torchbooth.memory import TensorwiseOptimizer
from torchbooth.optim import read_moments, write_moments
from torchbooth.sharding import leads, placed_as, whole
from torchbooth.step import State

_LAST_NORM = "last_norm"  # beside the moments, which all have a "/" in their names
_TRAINABLE, _OPTIMIZER, _LOSS_SCALE = "trainable.safetensors", "optimizer.safetensors", "loss_scale.json"


def save(state: State, folder: Path) -> None:
    """Writes the files into an existing folder; of several processes one does, but all must ask.

    UserError, before anything is written, if a trainable tensor is not finite.
    """
    assert state.optimizer is not None
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # states may be on their way to the host's memory
    trainable: dict[str, torch.Tensor] = {}
    moments: dict[str, torch.Tensor] = {}
    for name, parameter in state.trainable.items():
        weights, states = whole(parameter.detach()), read_moments(state.optimizer, parameter)
        if leads():  # where they are split, no GPU need hold all of them
            trainable[name] = weights.cpu().contiguous()
            moments |= {f"{name}/{key}": value.cpu().contiguous() for key, value in states.items()}
    if isinstance(state.optimizer, TensorwiseOptimizer):
        moments[_LAST_NORM] = state.optimizer.last_norm
    if not leads():
        return
    for name, weights in trainable.items():
        if not weights.isfinite().all():
            raise not_finite(name)
    save_file(trainable, folder / _TRAINABLE)
    save_file(moments, folder / _OPTIMIZER)
    if state.scaler.is_enabled():
        (folder / _LOSS_SCALE).write_text(json.dumps(state.scaler.state_dict()), encoding="utf-8", newline="\n")


def restore(state: State, folder: Path) -> State:
    """Copies the saved tensors into the state's own, bit for bit."""
    device = str(next(iter(state.trainable.values())).device)
    missing = set(state.trainable)
    with torch.no_grad():
        for name, value in _read(folder / _TRAINABLE, device):
            state.trainable[name].copy_(placed_as(value, state.trainable[name]))
            missing.remove(name)
    assert not missing, "the manifest ties a run to its model"
    if state.optimizer is None:
        return state
    tensorwise = state.optimizer if isinstance(state.optimizer, TensorwiseOptimizer) else None
    if tensorwise and tensorwise.on_host:
        device = "cpu"
    with safe_open(folder / _OPTIMIZER, framework="pt", device=device) as file:
        keys: dict[str, list[str]] = {}
        for key in file.keys():  # noqa: SIM118
            keys.setdefault(key.rpartition("/")[0], []).append(key)
        for name, own in keys.items():
            values = {key.rpartition("/")[2]: file.get_tensor(key).clone() for key in own}
            if name:
                write_moments(state.optimizer, state.trainable[name], values)
            elif tensorwise:
                tensorwise.last_norm.copy_(values[_LAST_NORM])
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(json.loads((folder / _LOSS_SCALE).read_text(encoding="utf-8")))
    return state


def _read(path: Path, device: str) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor), one at a time. They are copies: safetensors' own are the file itself, which then stays open and
    which Windows would not let go when the checkpoint is rotated."""
    with safe_open(path, framework="pt", device=device) as file:
        for name in file.keys():  # noqa: SIM118 (it is no dict)
            yield name, file.get_tensor(name).clone()
