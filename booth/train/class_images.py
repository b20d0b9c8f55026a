"""Class images: count the existing ones, let the frozen base model make the missing ones, keep a manifest.

Image i has its own seed, derived from prior.seed, and its own slot in a batch. So it is the same image whether 10 or
200 are asked for, and it uses none of training's random numbers.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import filelock
from PIL import Image

from booth.common import randomness
from booth.common.errors import UserError
from booth.common.files import STAGING_PREFIX, remove, write_text
from booth.common.hosts import ALONE, Hosts, from_first
from booth.common.progress import progress
from booth.config.values import get
from booth.data import pictures
from booth.data.class_image_files import _OURS, RECIPE, own_images, to_make
from booth.data.image_file import load_image
from booth.data.images import Size
from booth.diffusion.backend import Backend
from booth.diffusion.sampling import ImageRequest, Sampler

log = logging.getLogger("booth")

RECIPE_FILE = "class_images.json"


def class_images(
    folder: Path,
    config: Any,
    samplers: Mapping[Size, Sampler],
    shares: Mapping[Size, int],
    backend: Backend,
    models: Any,
    weights: Mapping[str, str],
    recorded: Mapping[str, str] = MappingProxyType({}),
    hosts: Hosts = ALONE,
) -> list[Path]:
    """Return the `prior.count` images to train on. Existing images are used first, and the missing ones are generated.

    `shares` says how many instance images each size has; class images get the same proportions, at least one of each
    size. `models` must be the untouched base, and `weights` are the sha256 of its networks. `recorded` are the sha256
    of the images that the run has trained with, by file name, wherever the folder is now.

    Of several `hosts` all take part in the sampling, and process 0 alone reads and writes the folder.

    Raise UserError if the folder's images were made for another prompt, base or size, or are too few for all sizes.
    Raise it also if one of the user's own images, which cannot be made again, is missing.
    """
    recipe = {
        "resolution": config.data.resolution,
        **{name.partition(".")[2]: get(config, name) for name in RECIPE},
        **{f"{network}_sha256": sha256 for network, sha256 in weights.items()},
    }
    found = from_first(hosts, lambda: _found(folder, config, shares, recipe, recorded))
    square, existing = (config.data.resolution,) * 2, [Path(path) for path in found["existing"]]
    files = {
        (width, height): [folder / _name((width, height), square, index) for index in range(count)]
        for width, height, count in found["counts"]
    }
    every = [file for of_size in files.values() for file in of_size]
    if found["complete"]:
        return existing + every
    writes = hosts.index == 0
    with _alone(folder) if writes else nullcontext():
        if writes and not found["known"]:
            write_text(folder / RECIPE_FILE, json.dumps(recipe, indent=1) + "\n")
        missing = from_first(hosts, lambda: [_missing(of_size) for of_size in files.values()])
        made = (
            (of_size[index], pixels)
            for (size, of_size), absent in zip(files.items(), missing, strict=True)
            for index, pixels in samplers[size].images(backend, models, _requests(config, of_size), set(absent))
        )
        for file, pixels in progress(made, desc="class images", total=sum(map(len, missing)), unit="image"):
            if writes:
                pictures.save(Image.fromarray(pixels), file)
    return existing + every


def _found(
    folder: Path, config: Any, shares: Mapping[Size, int], recipe: Mapping[str, Any], recorded: Mapping[str, str]
) -> dict[str, Any]:
    """Return what the folder holds, as plain data: the user's own images (`existing`), how many must be there of each
    size (`counts`: width, height, number), whether all are there (`complete`), and whether the manifest says how they
    were made (`known`). Raise UserError as `class_images`."""
    own = own_images(folder)
    names = {path.name for path in own}
    if gone := sorted(name for name in recorded if name not in names and not _OURS.match(name)):
        raise UserError(
            f"prior.images={str(folder)!r} lacks class images that this run has trained with ({', '.join(gone[:3])});"
            " put them back, or start a new run in another --workdir"
        )
    counts = to_make(config.prior.count, shares, [load_image(path).size for path in own])
    square, some = (config.data.resolution,) * 2, any(counts.values())
    made_before = [path for path in folder.iterdir() if _OURS.match(path.name)] if some and folder.exists() else []
    known = bool(made_before) and _check_recipe(folder, recipe, made_before, recorded)
    there = {path.name for path in made_before}
    missing = any(_name(size, square, index) not in there for size, count in counts.items() for index in range(count))
    return {
        "existing": [str(path) for path in own[: config.prior.count]],
        "counts": [[*size, count] for size, count in counts.items()],
        "complete": not missing and (known or not some),
        "known": known,
    }


def _name(size: Size, square: Size, index: int) -> str:
    return f"class-{index:05d}.png" if size == square else f"class-{size[0]}x{size[1]}-{index:05d}.png"


def _requests(config: Any, files: Sequence[Path]) -> list[ImageRequest]:
    return [
        ImageRequest(config.prior.prompt, randomness.derive_seed(config.prior.seed, "class image", index))
        for index in range(len(files))
    ]


def _missing(files: Sequence[Path]) -> list[int]:
    """Return the indices of missing files. Call it only while no other run makes any."""
    return [index for index, file in enumerate(files) if not file.exists()]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that other runs wait; first remove the files that a crash left in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        log.info("another run is making class images in %s: waiting for it", folder)
        lock.acquire()
    try:
        for stale in folder.glob(STAGING_PREFIX + "*"):
            remove(stale)
        yield
    finally:
        lock.release()


def _check_recipe(folder: Path, recipe: Mapping[str, Any], made: Sequence[Path], recorded: Mapping[str, str]) -> bool:
    """Return whether the folder's manifest says that the generated images were made by this recipe. Raise UserError if
    they were made by another.

    If the manifest is lost, images are still known if a run has recorded their hashes. Then the result is False, and
    the manifest must be written again.
    """
    manifest = folder / RECIPE_FILE
    try:
        before = dict(json.loads(manifest.read_text(encoding="utf-8")))
    except (OSError, RecursionError, TypeError, ValueError) as error:
        if all(recorded.get(path.name) == hashlib.sha256(path.read_bytes()).hexdigest() for path in made):
            return False
        lost = "damaged" if manifest.is_file() else "not there"
        raise UserError(
            f"prior.images={str(folder)!r} holds class images, but {RECIPE_FILE}, which says how they were made, is"
            f" {lost}; put it back, or give another folder"
        ) from error
    differing = [
        f"{key} {before.get(key)!r} there, {value!r} here" for key, value in recipe.items() if before.get(key) != value
    ]
    if differing:
        raise UserError(
            f"prior.images={str(folder)!r} holds class images of another recipe ({'; '.join(differing)});"
            " give another folder"
        )
    return True
