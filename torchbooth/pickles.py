"""Checkpoints that are pickles (.ckpt, .pt, .bin) -> safetensors, once and on request; nothing else reads them."""

import logging
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from booth import space
from booth.errors import UserError
from booth.rundir import publish

log = logging.getLogger("booth")

OLDEST = (2, 6)  # up to 2.5.1, weights_only could be got around (CVE-2025-32434)


def convert(source: Path, out: Path) -> None:
    """Writes the tensors of a pickle to `out`; what else is in it, such as an optimizer's settings, is left out.

    It is read by `torch.load(weights_only=True)`, which makes tensors and runs nothing. Raises UserError, also for a
    pickle that has anything else to run.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST:
        raise UserError(f"torch {torch.__version__} cannot read pickles safely; install torch 2.6 or newer")
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out} must end with .safetensors")
    if out.exists():
        raise UserError(f"--out {out} exists; choose another name")
    if not source.is_file():
        raise UserError(f"{source}: no such file; give a checkpoint (.ckpt, .pt, .bin)")
    if source.suffix.lower() == ".safetensors":
        raise UserError(
            f"{source} is named as safetensors, which need no converting; give a checkpoint (.ckpt, .pt, .bin)"
        )
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"{source} is broken, or has more than tensors in it, which is not run"
            f" ({' '.join(str(error).split())[:200]}); get the model as safetensors"
        ) from error
    tensors = tensors_of(content)
    if not tensors:
        raise UserError(f"{source} has no tensors by name; give a checkpoint (.ckpt, .pt, .bin)")
    size = sum(tensor.nbytes for tensor in tensors.values())
    space.require([space.Need("the checkpoint", out, size)], "make room, or convert to another disk")
    with space.explained(out, size), publish(out) as staging:
        save_file(tensors, staging, metadata={"format": "pt"})
    log.info("%d tensors of %s written to %s", len(tensors), source, out)


def tensors_of(content: Any) -> dict[str, torch.Tensor]:
    """The tensors by name, each in memory of its own; those of `state_dict`, where Lightning puts them, if there."""
    while isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        return {}
    return {
        name: tensor.detach().clone().contiguous()
        for name, tensor in content.items()
        if isinstance(name, str) and isinstance(tensor, torch.Tensor)
    }
