"""The VAE moments of every view of every image, computed once and kept in the run folder by content.

Moments (mean and standard deviation) are kept instead of samples: each step draws its own latents.
"""

import hashlib
import io
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from booth.common.errors import UserError
from booth.common.files import write_bytes
from booth.common.hosts import ALONE, Hosts, from_first
from booth.common.progress import progress
from booth.data.views import View, pixels
from booth.diffusion.backend import Backend


def moments(
    folder: Path,
    backend: Backend,
    models: Any,
    views: Sequence[View],
    vae_hash: str,
    batch_size: int,
    hosts: Hosts = ALONE,
) -> dict[View, np.ndarray]:
    """Return {view: mean and standard deviation, float32 [2, h, w, c]}. Encode only what the folder does not hold yet.

    Views of one size are encoded together. View i of a size always has slot i % batch_size of a full batch, so an
    interrupted run gets the same bits when it continues. Of several `hosts` all encode, and process 0 alone reads the
    images and the folder. Raise UserError if the VAE gives a number that is not finite, or if the disk is full.
    """
    views = sorted(views, key=lambda view: view.size)  # views of one size keep their order
    files = [folder / f"{_key(view, vae_hash)}.npz" for view in views]
    groups = _groups(views, batch_size)
    held = from_first(hosts, lambda: [_read(file) for file in files])
    missing = [group for group in groups if any(held[place] is None for place in group)]
    for group in progress(missing, desc="encoding images", unit="batch", disable=not missing, leave=False):
        images = from_first(hosts, partial(_full_batch, [views[place] for place in group], batch_size))
        mean, std = backend.encode_images(models, images)
        for slot, place in enumerate(group):
            held[place] = array = np.stack([mean[slot], std[slot]])
            if not np.isfinite(array).all():
                raise UserError(
                    f"{views[place].example.path}: this model's VAE makes no finite latents of it; take another"
                    " image in its place, or another model"
                )
            if hosts.index == 0:
                write_bytes(files[place], _packed(array))
    return {view: array for view, array in zip(views, held, strict=True) if array is not None}


def _full_batch(views: Sequence[View], batch_size: int) -> np.ndarray:
    """Return the pixels of the views, filled up with black, float32 [batch_size, H, W, 3]."""
    images = [pixels(view) for view in views]
    return np.stack(images + [np.zeros_like(images[0])] * (batch_size - len(images)))


def _groups(views: Sequence[View], batch_size: int) -> list[range]:
    """Return the positions of views in batches; those of a batch are consecutive and have one size."""
    groups, first = [], 0
    for _, same in groupby(views, key=lambda view: view.size):
        stop = first + len(list(same))
        groups += [range(start, min(start + batch_size, stop)) for start in range(first, stop, batch_size)]
        first = stop
    return groups


def _packed(array: np.ndarray) -> bytes:
    """Return the array as .npz, which has a checksum, unlike .npy."""
    buffer = io.BytesIO()
    np.savez(buffer, moments=array)
    return buffer.getvalue()


def _read(file: Path) -> np.ndarray | None:
    """Return a file's moments, or None if it is missing or damaged."""
    try:
        with np.load(file) as content:
            moments: np.ndarray = content["moments"]
            return moments
    except Exception:  # NumPy and zipfile raise many types
        return None


def _key(view: View, vae_hash: str) -> str:
    name = f"{view.example.sha256} {vae_hash} {view.size[0]}x{view.size[1]} {view.left} {view.top} {view.flip}"
    return hashlib.sha256(name.encode()).hexdigest()[:32]
