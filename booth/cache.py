"""Computed once: the VAE moments of every view of every image, kept in the run folder by content.

Moments (mean and standard deviation) are kept, not one sample of them: each step draws its own latents.
"""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from booth.backend import Backend
from booth.data import View, pixels
from booth.errors import UserError
from booth.progress import progress
from booth.rundir import write_bytes


def moments(
    folder: Path, backend: Backend, models: Any, views: Sequence[View], vae_hash: str, batch_size: int
) -> dict[View, np.ndarray]:
    """{view: float32 [2, h, w, c], mean and standard deviation}; encodes what the folder does not hold yet.

    View i always sits in slot i % batch_size of a full batch, so an interrupted run continues to the same bits.
    UserError if the VAE gives something that is not finite, or if the disk is full.
    """
    files = [folder / f"{_key(view, vae_hash)}.npz" for view in views]
    groups = range(0, len(views), batch_size)
    held = [_read(file) for file in files]
    missing = [first for first in groups if any(array is None for array in held[first : first + batch_size])]
    for first in progress(missing, desc="encoding images", unit="batch", disable=not missing, leave=False):
        images = [pixels(view) for view in views[first : first + batch_size]]
        images += [np.zeros_like(images[0])] * (batch_size - len(images))
        mean, std = backend.encode_images(models, np.stack(images))
        for slot, file in enumerate(files[first : first + batch_size]):
            held[first + slot] = array = np.stack([mean[slot], std[slot]])
            if not np.isfinite(array).all():
                raise UserError(
                    f"{views[first + slot].example.path}: this model's VAE makes no finite latents of it; take another"
                    " image in its place, or a model whose VAE is sound"
                )
            write_bytes(file, _packed(array))
    return {view: array for view, array in zip(views, held, strict=True) if array is not None}


def _packed(array: np.ndarray) -> bytes:
    """As .npz, which unlike .npy has a checksum."""
    buffer = io.BytesIO()
    np.savez(buffer, moments=array)
    return buffer.getvalue()


def _read(file: Path) -> np.ndarray | None:
    """A file's moments; None if it is not there, or damaged."""
    try:
        with np.load(file) as content:
            moments: np.ndarray = content["moments"]
            return moments
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile):
        return None


def _key(view: View, vae_hash: str) -> str:
    name = f"{view.example.sha256} {vae_hash} {view.resolution} {view.left} {view.top} {view.flip}"
    return hashlib.sha256(name.encode()).hexdigest()[:32]
