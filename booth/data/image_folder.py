"""What lies in a folder of images, by its name: images, masks beside them, and what is passed over."""

import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from booth.common.errors import UserError
from booth.common.file_names import FileLookup, listed, natural, printable

log = logging.getLogger("booth")

# What a photo folder may hold; anything else (notes, .DS_Store, Thumbs.db) is passed over. HEIC is in the list so that
# an iPhone's folder is not silently halved: without a decoder such a file is refused by name.
IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".hif", ".avif"]
)
MASK_END = "-mask"  # of the name of a mask that lies beside its photo
_BESIDE_IMAGES = frozenset([".txt", ".json", ".jsonl", ".csv", ".db", ".ini"])  # passed over without a word


def find_images(folder: str | Path, field: str) -> list[Path]:
    """Return the image files of a folder in natural name order (2.jpg before 10.jpg). UserError names the config
    field."""
    entries = _entries(folder, field)
    if entries is None:
        raise UserError(f"{field}={str(folder)!r} is not a folder; give the folder that holds the images")
    return sorted(filter(_is_image, entries), key=lambda path: natural(path.name))


def is_mask(path: Path) -> bool:
    """Return whether an image is named as the mask of another: X-mask.png."""
    return path.stem.lower().endswith(MASK_END)


def masks_in(folder: Path) -> FileLookup:
    """Return the masks in a folder, by the stems of their photos."""
    masks = filter(is_mask, find_images(folder, "instance.masks"))
    return FileLookup(masks, lambda path: path.stem[: -len(MASK_END)])


def folders_in(folder: str | Path, field: str) -> list[Path]:
    """Return those that are not hidden, in natural name order."""
    folders = [path for path in _entries(folder, field) or () if not path.name.startswith(".") and _is(path, S_ISDIR)]
    return sorted(folders, key=lambda path: natural(path.name))


def folders_with_images(folder: str | Path, field: str, but: Collection[Path] = ()) -> str:
    """Return those in a folder that hold images themselves, with how many, in one line; empty if there are none."""
    counted = []
    for path in folders_in(folder, field):
        with suppress(UserError):  # what may not be read says nothing
            if path not in but and (images := find_images(path, field)):
                counted.append(f"{path.name} ({len(images)})")
    return listed(counted)


def log_lost_masks(folder: str | Path, photos: Collection[Path]) -> None:
    """Name masks that are no photo's: they are not trained on as photos either."""
    lookup = masks_in(Path(folder))
    used = {mask for photo in photos for mask in lookup.find(photo.stem)}
    if lost := [path.name for path in find_images(folder, "instance.masks") if is_mask(path) and path not in used]:
        log.warning("instance.masks: %s belong to no photo, and are passed over", listed(lost))


def log_passed_over(folder: str | Path, field: str, taken: Collection[Path] = ()) -> None:
    """Name what in an image folder is neither an image, nor `taken`, nor known to lie beside images.

    Folders with images in them are worth a warning of their own.
    """
    rest = sorted(
        printable(path.name)
        for path in _entries(folder, field) or ()
        if not (_is_image(path) or path in taken or path.name.startswith(".") or path.suffix.lower() in _BESIDE_IMAGES)
    )
    if rest:
        log.info("%s: passed over, not taken for images: %s", field, ", ".join(rest))
    if lost := folders_with_images(folder, field, taken):
        log.warning("%s: the images in these folders are passed over: %s", field, lost)


def _entries(folder: str | Path, field: str) -> list[Path] | None:
    """Return what lies in a folder; None if it is no folder, UserError if it cannot be looked into."""
    try:
        return list(Path(folder).iterdir()) if Path(folder).is_dir() else None
    except OSError as error:
        raise UserError(
            f"{field}={str(folder)!r} cannot be read: {error.strerror}; give a folder that this user may read"
        ) from error


def _is_image(path: Path) -> bool:
    """By its name. A link to nowhere or in a circle is one too: it is refused later by name, not silently left out."""
    if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
        return False
    return _is(path, S_ISREG, otherwise=True)


def _is(path: Path, kind: Callable[[int], bool], *, otherwise: bool = False) -> bool:
    """Return whether a file is of a kind; `otherwise` for what cannot be looked at."""
    try:
        return kind(path.stat().st_mode)
    except OSError:
        return otherwise
