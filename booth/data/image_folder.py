"""The files in a folder of images, told apart by name: images, masks beside them, and files that are ignored."""

import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from booth.common.errors import UserError
from booth.common.file_names import FileLookup, listed, natural, printable

log = logging.getLogger("booth")

# The suffixes of images; any other file (notes, .DS_Store, Thumbs.db) is ignored. HEIC is in the list so that no photo
# of an iPhone is left out silently: without a decoder such a file is refused by name.
IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".hif", ".avif"]
)
MASK_END = "-mask"  # the end of the name of a mask beside its photo
_BESIDE_IMAGES = frozenset([".txt", ".json", ".jsonl", ".csv", ".db", ".ini"])  # ignored without a message


def find_images(folder: str | Path, field: str) -> list[Path]:
    """Return the image files of a folder in natural name order (2.jpg before 10.jpg). Raise UserError, which names the
    config field, if it cannot be read."""
    entries = _entries(folder, field)
    if entries is None:
        raise UserError(f"{field}={str(folder)!r} is not a folder; give the folder that holds the images")
    return sorted(filter(_is_image, entries), key=lambda path: natural(path.name))


def is_mask(path: Path) -> bool:
    """Return whether an image has the name of another's mask: X-mask.png."""
    return path.stem.lower().endswith(MASK_END)


def masks_in(folder: Path) -> FileLookup:
    """Return the masks in a folder, by the stems of their photos."""
    masks = filter(is_mask, find_images(folder, "instance.masks"))
    return FileLookup(masks, lambda path: path.stem[: -len(MASK_END)])


def folders_in(folder: str | Path, field: str) -> list[Path]:
    """Return the folders in a folder that are not hidden, in natural name order."""
    folders = [path for path in _entries(folder, field) or () if not path.name.startswith(".") and _is(path, S_ISDIR)]
    return sorted(folders, key=lambda path: natural(path.name))


def folders_with_images(folder: str | Path, field: str, but: Collection[Path] = ()) -> str:
    """Return, as one line, the folders in a folder that hold images, with their numbers; "" if there are none."""
    counted = []
    for path in folders_in(folder, field):
        with suppress(UserError):  # a folder that may not be read is left out
            if path not in but and (images := find_images(path, field)):
                counted.append(f"{path.name} ({len(images)})")
    return listed(counted)


def log_lost_masks(folder: str | Path, photos: Collection[Path]) -> None:
    """Warn of masks without a photo: they are not used as photos either."""
    lookup = masks_in(Path(folder))
    used = {mask for photo in photos for mask in lookup.find(photo.stem)}
    if lost := [path.name for path in find_images(folder, "instance.masks") if is_mask(path) and path not in used]:
        log.warning("instance.masks: %s belong to no photo, and are ignored", listed(lost))


def log_passed_over(folder: str | Path, field: str, taken: Collection[Path] = ()) -> None:
    """Log the entries of an image folder that are neither images, nor `taken`, nor files of a kind that belongs there.

    Warn of folders with images in them.
    """
    rest = sorted(
        printable(path.name)
        for path in _entries(folder, field) or ()
        if not (_is_image(path) or path in taken or path.name.startswith(".") or path.suffix.lower() in _BESIDE_IMAGES)
    )
    if rest:
        log.info("%s: ignored, since they are not images: %s", field, ", ".join(rest))
    if lost := folders_with_images(folder, field, taken):
        log.warning("%s: the images in these folders are ignored: %s", field, lost)


def _entries(folder: str | Path, field: str) -> list[Path] | None:
    """Return the entries of a folder, or None if it is no folder. Raise UserError if it cannot be read."""
    try:
        return list(Path(folder).iterdir()) if Path(folder).is_dir() else None
    except OSError as error:
        raise UserError(
            f"{field}={str(folder)!r} cannot be read: {error.strerror}; give a folder that this user may read"
        ) from error


def _is_image(path: Path) -> bool:
    """Return whether a file is an image, by its name. A broken link is one too: it is refused later by name instead of
    being left out silently."""
    if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
        return False
    return _is(path, S_ISREG, otherwise=True)


def _is(path: Path, kind: Callable[[int], bool], *, otherwise: bool = False) -> bool:
    """Return whether a file is of a kind; `otherwise` if the file cannot be examined."""
    try:
        return kind(path.stat().st_mode)
    except OSError:
        return otherwise
