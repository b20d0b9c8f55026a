"""Class images: counts what is there, has the frozen base model make what is missing, keeps a manifest.

Image i has its own seed, derived from prior.seed, and its own slot in a batch: it is the same image whether 10 or 200
are asked for, and making it takes nothing from training's randomness.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
from PIL import Image

from booth import pictures, randomness
from booth.backend import Backend
from booth.data import find_images
from booth.errors import UserError
from booth.progress import progress
from booth.rundir import STAGING_PREFIX, remove, write_text
from booth.sampling import ImageRequest, Sampler

log = logging.getLogger("booth")

MANIFEST = "class_images.json"
_OURS = re.compile(r"class-\d{5,}\.png$")


def own_images(folder: Path) -> list[Path]:
    """The images in a class image folder that we did not make, in natural name order."""
    images = find_images(folder, "prior.images") if folder.exists() else []
    return [path for path in images if not _OURS.match(path.name)]


def class_images(
    folder: Path, config: Any, sampler: Sampler, backend: Backend, models: Any, weights: Mapping[str, str]
) -> list[Path]:
    """The `prior.count` images to train on, generated as far as they are missing: existing ones are used first.

    `models` must be the untouched base, `weights` has the sha256 of each of its networks.
    UserError if the folder's images were made for another prompt, base or size.
    """
    recipe = {
        "prompt": config.prior.prompt,
        "seed": config.prior.seed,
        "resolution": config.data.resolution,
        "solver": config.prior.solver,
        "inference_steps": config.prior.inference_steps,
        "guidance": config.prior.guidance,
        **{f"{network}_sha256": sha256 for network, sha256 in weights.items()},
    }
    existing = own_images(folder)[: config.prior.count]
    files = [folder / f"class-{index:05d}.png" for index in range(config.prior.count - len(existing))]
    missing = {index for index, file in enumerate(files) if not file.exists()}
    if len(missing) < len(files):
        _check_recipe(folder, recipe)
    if not missing:
        return existing + files
    with _alone(folder):
        missing = {index for index, file in enumerate(files) if not file.exists()}
        write_text(folder / MANIFEST, json.dumps(recipe, indent=1) + "\n")
        requests = [
            ImageRequest(config.prior.prompt, randomness.derive_seed(config.prior.seed, "class image", index))
            for index in range(len(files))
        ]
        made = sampler.images(backend, models, requests, missing)
        for index, pixels in progress(made, desc="class images", total=len(missing), unit="image"):
            pictures.save(Image.fromarray(pixels), files[index])
    return existing + files


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which runs that share it wait for; then removes what a crash left there."""
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


def _check_recipe(folder: Path, recipe: dict[str, Any]) -> None:
    manifest = folder / MANIFEST
    try:
        before = dict(json.loads(manifest.read_text(encoding="utf-8"))) if manifest.is_file() else {}
    except (RecursionError, TypeError, ValueError):
        before = {}  # damaged: nothing is known about the images
    differing = [
        f"{key} {before.get(key)!r} there, {value!r} here" for key, value in recipe.items() if before.get(key) != value
    ]
    if differing:
        raise UserError(
            f"prior.images={str(folder)!r} holds class images of another recipe ({'; '.join(differing)});"
            " choose another folder, or delete its class-*.png"
        )
