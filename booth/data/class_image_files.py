"""The files in a folder of class images: which are the user's own, and how many must be made."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from booth.common.errors import UserError
from booth.common.file_names import listed
from booth.data.image_folder import find_images
from booth.data.images import Size
from booth.data.kohya_folders import Subfolder, repeated_folders
from booth.data.views import nearest

# The settings that class images depend on, besides the base model and the image size.
RECIPE = ("prior.prompt", "prior.seed", "prior.solver", "prior.inference_steps", "prior.guidance")


_FIELD = "prior.images"


_OURS = re.compile(r"class-(\d+x\d+-)?\d{5,}\.png$")


def own_images(folder: Path) -> list[Path]:
    """Return the images in a class image folder, or in kohya's folders in it, that booth did not make, in natural name
    order."""
    images = find_images(folder, _FIELD) if folder.exists() else []
    own = [path for path in images if not _OURS.match(path.name)]
    return own + [path for sub in class_folders(folder) for path in find_images(sub.path, _FIELD)]


def class_folders(folder: Path) -> list[Subfolder]:
    """Return kohya's folders (`1_dog`) in a class image folder that holds no images itself except those booth made.

    Raise UserError if their repeats differ: all class images are shown equally often.
    """
    images = find_images(folder, _FIELD) if folder.exists() else []
    found = repeated_folders(folder, _FIELD, but=[path for path in images if _OURS.match(path.name)])
    if len({sub.repeats for sub in found}) > 1:
        raise UserError(
            f"{_FIELD}={str(folder)!r} has folders with several repeats ({listed([sub.name for sub in found])}), and"
            " class images are all shown equally often; give all the same number, or put the images into one folder"
        )
    return found


def to_make(count: int, shares: Mapping[Size, int], own: Sequence[Size]) -> dict[Size, int]:
    """Return how many images of each size must be made so that, with the first `count` of the user's own, there are
    `count` images in the proportions of `shares`. Raise UserError if a size gets none."""
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
