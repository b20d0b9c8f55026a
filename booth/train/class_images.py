"""Class images: counts what is there, has the frozen base model make what is missing, keeps a manifest.

Image i has its own seed, derived from prior.seed, and its own slot in a batch: it is the same image whether 10 or 200
are asked for, and making it takes nothing from training's randomness.
"""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import filelock
from PIL import Image

from booth.common import randomness
from booth.common.errors import UserError
from booth.common.file_names import listed
from booth.common.progress import progress
from booth.config.values import get
from booth.data import pictures
from booth.data.image_file import load_image
from booth.data.image_folder import find_images
from booth.data.kohya_folders import Subfolder, repeated_folders
from booth.data.views import Size, nearest
from booth.diffusion.backend import Backend
from booth.diffusion.sampling import ImageRequest, Sampler
from booth.train.run_folder import STAGING_PREFIX, remove, write_text

log = logging.getLogger("booth")

# What class images depend on, beside the base and their size.
RECIPE = ("prior.prompt", "prior.seed", "prior.solver", "prior.inference_steps", "prior.guidance")
MANIFEST = "class_images.json"
_FIELD = "prior.images"
_OURS = re.compile(r"class-(\d+x\d+-)?\d{5,}\.png$")


def own_images(folder: Path) -> list[Path]:
    """The images in a class image folder, or in kohya's folders in it, that we did not make; in natural name order."""
    images = find_images(folder, _FIELD) if folder.exists() else []
    own = [path for path in images if not _OURS.match(path.name)]
    return own + [path for sub in class_folders(folder) for path in find_images(sub.path, _FIELD)]


def class_folders(folder: Path) -> list[Subfolder]:
    """kohya's folders (`1_dog`) in a class image folder that holds no other images but those we made.

    UserError if their numbers differ: all class images are shown equally often.
    """
    images = find_images(folder, _FIELD) if folder.exists() else []
    found = repeated_folders(folder, _FIELD, but=[path for path in images if _OURS.match(path.name)])
    if len({sub.repeats for sub in found}) > 1:
        raise UserError(
            f"{_FIELD}={str(folder)!r} has folders with several repeats ({listed([sub.name for sub in found])}), and"
            " class images are all shown equally often; give all the same number, or put the images into one folder"
        )
    return found


def class_images(
    folder: Path,
    config: Any,
    samplers: Mapping[Size, Sampler],
    shares: Mapping[Size, int],
    backend: Backend,
    models: Any,
    weights: Mapping[str, str],
    recorded: Mapping[str, str] = MappingProxyType({}),
) -> list[Path]:
    """The `prior.count` images to train on, generated as far as they are missing: existing ones are used first.

    `shares`: how many instance images there are of each size; class images come in the same proportions, at least one
    of each size. `models` must be the untouched base, `weights` has the sha256 of each of its networks. `recorded`: the
    sha256 of those that the run has trained with, by the names of the files, wherever the folder is now.
    UserError if the folder's images were made for another prompt, base or size, or are too few for all sizes; also if
    one of the user's own, which cannot be made again, is not there any more.
    """
    recipe = {
        "resolution": config.data.resolution,
        **{name.partition(".")[2]: get(config, name) for name in RECIPE},
        **{f"{network}_sha256": sha256 for network, sha256 in weights.items()},
    }
    own = own_images(folder)
    names = {path.name for path in own}
    if gone := sorted(name for name in recorded if name not in names and not _OURS.match(name)):
        raise UserError(
            f"prior.images={str(folder)!r} does not have all class images any more that this run has trained with"
            f" ({', '.join(gone[:3])}); put them back, or start a new run in another --workdir"
        )
    existing = own[: config.prior.count]
    counts = to_make(config.prior.count, shares, [load_image(path).size for path in own])
    square = (config.data.resolution, config.data.resolution)
    files = {size: [folder / _name(size, square, index) for index in range(count)] for size, count in counts.items()}
    every = [file for of_size in files.values() for file in of_size]
    missing = [file for file in every if not file.exists()]
    made_before = [path for path in folder.iterdir() if _OURS.match(path.name)] if every and folder.exists() else []
    known = bool(made_before) and _check_recipe(folder, recipe, made_before, recorded)
    if not missing and (known or not every):
        return existing + every
    with _alone(folder):
        if not known:
            write_text(folder / MANIFEST, json.dumps(recipe, indent=1) + "\n")
        made = (
            (of_size[index], pixels)
            for size, of_size in files.items()
            for index, pixels in samplers[size].images(backend, models, _requests(config, of_size), _missing(of_size))
        )
        for file, pixels in progress(made, desc="class images", total=len(missing), unit="image"):
            pictures.save(Image.fromarray(pixels), file)
    return existing + every


def to_make(count: int, shares: Mapping[Size, int], own: Sequence[Size]) -> dict[Size, int]:
    """How many images of each size are to be made, so that with the first `count` of one's own there are `count` in the
    proportions of `shares`. UserError if a size gets none."""
    nearest_to = [nearest(size, tuple(shares)) for size in own]
    have = dict.fromkeys(shares, 0) | Counter(nearest_to[:count])
    made = dict.fromkeys(shares, 0)
    for _ in range(count - len(own)):
        wanted = {size: (have[size] == 0, share * count / sum(shares.values()) - have[size])
                  for size, share in shares.items()}  # fmt: skip
        size = max(wanted, key=lambda size: wanted[size])
        made[size] += 1
        have[size] += 1
    if empty := [f"{width}x{height}" for (width, height), number in have.items() if number == 0]:
        least = len(own) + len(shares.keys() - set(nearest_to))
        raise UserError(
            f"prior.count={count} must be at least {least}: photos are in buckets of {len(shares)} sizes, and there is"
            f" no class image for {', '.join(empty)}"
        )
    return made


def _name(size: Size, square: Size, index: int) -> str:
    return f"class-{index:05d}.png" if size == square else f"class-{size[0]}x{size[1]}-{index:05d}.png"


def _requests(config: Any, files: Sequence[Path]) -> list[ImageRequest]:
    return [
        ImageRequest(config.prior.prompt, randomness.derive_seed(config.prior.seed, "class image", index))
        for index in range(len(files))
    ]


def _missing(files: Sequence[Path]) -> set[int]:
    """Looked for once no other run makes any."""
    return {index for index, file in enumerate(files) if not file.exists()}


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


def _check_recipe(folder: Path, recipe: Mapping[str, Any], made: Sequence[Path], recorded: Mapping[str, str]) -> bool:
    """Whether the folder's manifest says that images we made are of this recipe; UserError if they are of another.

    Where it is lost, they are still known if a run has recorded their hashes: then it is to be written again.
    """
    manifest = folder / MANIFEST
    try:
        before = dict(json.loads(manifest.read_text(encoding="utf-8")))
    except (OSError, RecursionError, TypeError, ValueError) as error:
        if all(recorded.get(path.name) == hashlib.sha256(path.read_bytes()).hexdigest() for path in made):
            return False
        lost = "damaged" if manifest.is_file() else "not there"
        raise UserError(
            f"prior.images={str(folder)!r} holds class images, but {MANIFEST}, which says how they were made, is"
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
