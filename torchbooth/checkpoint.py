"""Checkpoints as safetensors: trainable tensors, moments and the average, by diffusers name. The loss scale is in JSON;
nothing is pickled."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from booth.common.errors import not_finite
from torchbooth.memory import TensorwiseOptimizer
from torchbooth.optim import read_moments, read_numbers, write_moments, write_numbers
from torchbooth.sharding import leads, placed_as, whole
from torchbooth.step import State

_LAST_NORM = "last_norm"  # an entry for all tensors, beside the moments, whose names all contain a "/"
_UPDATES = "updates"  # an entry beside the averages, whose names all contain a "."
_TRAINABLE, _OPTIMIZER, _LOSS_SCALE = "trainable.safetensors", "optimizer.safetensors", "loss_scale.json"
_AVERAGE = "average.safetensors"


def save(state: State, folder: Path) -> None:
    """Write the files into an existing folder. Only one of several processes writes, but all must call this.

    Raise UserError, before anything is written, if a trainable tensor is not finite.
    """
    assert state.optimizer is not None
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # states may still be copied to the host's memory
    if state.average:
        state.average.take_out()
    averages = _of_average(state)
    trainable: dict[str, torch.Tensor] = {}
    moments: dict[str, torch.Tensor] = {}
    for name, parameter in state.trainable.items():
        weights, states = whole(parameter.detach()), read_moments(state.optimizer, parameter)
        if leads():  # so no GPU has to hold all of them if they are split
            trainable[name] = weights.cpu().contiguous()
            moments |= {f"{name}/{key}": value.cpu().contiguous() for key, value in states.items()}
    for name, value in averages.items():
        averages[name] = whole(value)
    if isinstance(state.optimizer, TensorwiseOptimizer):
        moments[_LAST_NORM] = state.optimizer.last_norm
    moments |= read_numbers(state.optimizer)
    if not leads():
        return
    for name, weights in trainable.items():
        if not weights.isfinite().all():
            raise not_finite(name)
    save_file(trainable, folder / _TRAINABLE)
    save_file(moments, folder / _OPTIMIZER)
    if averages:
        save_file({name: value.cpu().contiguous() for name, value in averages.items()}, folder / _AVERAGE)
    if state.scaler.is_enabled():
        (folder / _LOSS_SCALE).write_text(json.dumps(state.scaler.state_dict()), encoding="utf-8", newline="\n")


def restore(state: State, folder: Path) -> State:
    """Copy the saved tensors into the state's own, bit for bit. A state that is not training gets the average, if there
    is one."""
    device = str(next(iter(state.trainable.values())).device)
    if state.optimizer is None:
        averaged = folder / _AVERAGE
        _copy(averaged if averaged.exists() else folder / _TRAINABLE, state.trainable, device)
        return state
    _copy(folder / _TRAINABLE, state.trainable, device)
    if state.average:
        _copy(folder / _AVERAGE, _of_average(state), device)
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
            else:
                write_numbers(state.optimizer, values)
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(json.loads((folder / _LOSS_SCALE).read_text(encoding="utf-8")))
    return state


def saved_names(folder: Path) -> list[str]:
    """Return the names of the trainable tensors in a checkpoint."""
    with safe_open(folder / _TRAINABLE, framework="pt") as file:
        return list(file.keys())


def _of_average(state: State) -> dict[str, torch.Tensor]:
    """Return the tensors of the average by their names in its file; none if there is no average."""
    return {**state.average.weights, _UPDATES: state.average.updates} if state.average else {}


@torch.no_grad()
def _copy(path: Path, into: Mapping[str, torch.Tensor], device: str) -> None:
    """Copy a file's tensors into those of the same names. Raise ValueError if the names or the shapes differ."""
    missing = set(into)
    for name, value in _read(path, device):
        if name == _UPDATES and name not in into:
            continue
        if name not in into:
            raise ValueError(f"{name} is not trained here")
        if value.shape != into[name].shape:
            raise ValueError(f"{name} is {list(value.shape)} there and {list(into[name].shape)} here")
        into[name].copy_(placed_as(value, into[name]))
        missing.remove(name)
    if missing:
        raise ValueError(f"it has no {min(missing)}")


def _read(path: Path, device: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor), one at a time. They are copies: safetensors' own tensors keep the file open, and Windows
    could not delete an open file when the checkpoint is rotated."""
    with safe_open(path, framework="pt", device=device) as file:
        for name in file.keys():  # noqa: SIM118 (it is no dict)
            yield name, file.get_tensor(name).clone()
