"""kohya's folders: `10_sks dog` holds photos that count ten times, with the prompt "sks dog"."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from booth.data import find_images, printable
from booth.errors import UserError

_NAME = re.compile(r"(\d+)_(.*)", re.DOTALL)
_MOST = 1_000  # more is a year or a number of something, not of repeats


@dataclass(frozen=True)
class Subfolder:
    """Photos that count `repeats` times in an epoch; `words` are their prompt where none is given, and may be ""."""

    path: Path
    repeats: int
    words: str

    @property
    def name(self) -> str:
        """For messages."""
        return printable(self.path.name)


def repeated_folders(folder: str | Path, field: str = "instance.images") -> list[Subfolder]:
    """The subfolders `<repeats>_<words>` of a folder that has no images itself, fewest repeats first; or [].

    Other subfolders are never looked into. Class images that kohya's scripts keep in such a folder (`1_dog`) look the
    same as photos: they belong into another folder. UserError names `field` where images lie beside such folders, or in
    folders inside them, and for repeats of 0, folders without words or images, and more repeats than anyone means.
    """
    parent = Path(folder)
    if not parent.is_dir():
        return []
    found = [
        Subfolder(path, int(match[1]), " ".join(match[2].split()))
        for path in _folders(parent, field)
        if (match := _NAME.fullmatch(path.name))
    ]
    images = find_images(parent, field)
    with_images = [sub for sub in found if find_images(sub.path, field)]
    if images:
        # Only what was clearly meant: a folder of photos may have any subfolders, which are passed over.
        if with_images:
            raise UserError(
                f"{field}={str(folder)!r} holds images ({_names(images)}) and folders with repeats"
                f" ({_names(sub.path for sub in with_images)}); move the images into one of those, or give one of them"
            )
        return []
    for sub in found:
        _check(sub, sub in with_images, field)
    return sorted(found, key=lambda sub: (sub.repeats, sub.path.name))


def _check(sub: Subfolder, has_images: bool, field: str) -> None:
    where = f"{field}: the folder '{printable(sub.path.name)}'"
    if not 1 <= sub.repeats <= _MOST:
        raise UserError(
            f"{where} asks for {sub.repeats} repeats; from 1 to {_MOST} are possible: rename it, or move it elsewhere"
        )
    if not sub.words:
        raise UserError(f"{where} has no words after its repeats; name it like '{sub.repeats}_sks dog'")
    inside = [path for path in _folders(sub.path, field) if _NAME.fullmatch(path.name) and find_images(path, field)]
    if inside:
        raise UserError(f"{where} has folders with repeats in it ({_names(inside)}); move them one level up")
    if not has_images:
        raise UserError(f"{where} holds no images; put the photos there, or take it away")


def _folders(parent: Path, field: str) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise UserError(
            f"{field}={str(parent)!r} cannot be read: {error.strerror}; give one that may be read"
        ) from error


def _names(paths: Iterable[Path], shown: int = 3) -> str:
    names = [printable(path.name) for path in paths]
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
