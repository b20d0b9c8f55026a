"""Checkpoints that are pickles (.ckpt, .pt, .bin) -> safetensors, once and on request; nothing else reads them."""

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from booth.common import disk_space, host_memory
from booth.common.errors import UserError, reading, said_by
from booth.common.files import publish

log = logging.getLogger("booth")

OLDEST = (2, 6)  # up to 2.5.1, weights_only could be bypassed (CVE-2025-32434)


def convert(source: Path, out: Path) -> None:
    """Write the tensors of a pickle to `out`; other content, such as an optimizer's settings, is left out.

    `torch.load(weights_only=True)` reads it, which only makes tensors and runs no code. Raise UserError if it cannot be
    converted, also if it contains code.
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
    what = f"{source} is broken, or contains code besides tensors, which is never run"
    with reading(what, "get the model as safetensors"):
        host_memory.require(_content_size(source), str(source))
        content = torch.load(source, map_location="cpu", weights_only=True)
        tensors = tensors_of(content)
        # Each tensor gets its own memory, since tensors in the file may share some.
        host_memory.require(sum(tensor.nbytes for tensor in tensors.values()), f"{source}, converted,")
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    if not tensors:
        raise UserError(f"{source} has no tensors by name; give a checkpoint (.ckpt, .pt, .bin)")
    size = sum(tensor.nbytes for tensor in tensors.values())
    disk_space.require([disk_space.Need("the checkpoint", out, size)], "make room, or convert to another disk")
    with disk_space.explained(out, size), publish(out) as staging:
        try:
            save_file(tensors, staging, metadata={"format": "pt"})
        except (KeyError, ValueError) as error:  # sparse tensors, and types that safetensors has no name for
            raise UserError(
                f"{source} has tensors that safetensors cannot hold ({said_by(error)}); get the model as safetensors"
            ) from error
    log.info("%d tensors of %s written to %s", len(tensors), source, out)


def tensors_of(content: Any) -> dict[str, torch.Tensor]:
    """Return the tensors by name; those in `state_dict`, where Lightning puts them, if it exists."""
    while isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        return {}
    named = content.items()
    return {name: item for name, item in named if isinstance(name, str) and isinstance(item, torch.Tensor)}


def _content_size(source: Path) -> int:
    """Return the size of the file's content in bytes; except for old ones, the file is a zip archive."""
    if not zipfile.is_zipfile(source):
        return source.stat().st_size
    with zipfile.ZipFile(source) as archive:
        return sum(entry.file_size for entry in archive.infolist())
