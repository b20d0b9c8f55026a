"""kohya's folders: `10_sks dog` holds photos that are shown ten times an epoch, with the prompt "sks dog"."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from booth.common.errors import UserError
from booth.common.file_names import composed, listed, printable
from booth.data.image_folder import find_images, folders_in

_NAME = re.compile(r"(0|[1-9]\d*)_(.*)", re.DOTALL)
_ORDERED = re.compile(r"0\d+_.*", re.DOTALL)  # 01_front, 02_side: such numbers give an order
_MOST = 1_000  # a larger number is a year or the like, not a number of repeats


@dataclass(frozen=True)
class Subfolder:
    """A folder of photos that are shown `repeats` times an epoch; `words`, which may be "", are their prompt if none is
    given."""

    path: Path
    repeats: int
    words: str

    @property
    def name(self) -> str:
        """The folder's name, for messages."""
        return printable(self.path.name)


def repeated_folders(folder: str | Path, field: str = "instance.images", but: Collection[Path] = ()) -> list[Subfolder]:
    """Return the subfolders `<repeats>_<words>` of a folder that has no images itself, fewest repeats first; or [].

    `but` are images in the folder that do not count. Other subfolders are never read. Class images that kohya's scripts
    keep in such a folder (`1_dog`) look the same as photos: they must be in another folder. Raise UserError, which
    names `field`, if images lie beside such folders or in folders inside them, if a number cannot be a number of
    repeats (0, one that begins with 0, one above 1,000), or if a folder has no words or no images.
    """
    parent = Path(folder)
    if not parent.is_dir():
        return []
    inside = folders_in(parent, field)
    found = [
        Subfolder(path, int(match[1]), " ".join(match[2].split()))
        for path in inside
        if (match := _NAME.fullmatch(path.name))
    ]
    images = [path for path in find_images(parent, field) if path not in but]
    with_images = [sub for sub in found if find_images(sub.path, field)]
    if images:
        # Raise only if repeats were clearly meant: a folder of photos may have any other subfolders, which are ignored.
        if with_images:
            raise UserError(
                f"{field}={str(folder)!r} holds images ({_names(images)}) and folders with repeats"
                f" ({_names(sub.path for sub in with_images)}); move the images into one of those, or give one of them"
            )
        return []
    if ordered := [path for path in inside if _ORDERED.fullmatch(path.name) and find_images(path, field)]:
        raise UserError(
            f"{field}: the numbers of {_names(ordered)} are no repeats, as they begin with 0; put all photos into one"
            " folder, or write how often those of each count: '1_sks dog'"
        )
    for sub in found:
        _check(sub, sub in with_images, field)
    return sorted(found, key=lambda sub: (sub.repeats, composed(sub.path.name)))


def may_be_an_order(folders: Sequence[Subfolder]) -> bool:
    """Return whether the numbers are 1, 2, 3, ..., which may give an order instead of repeats."""
    return len(folders) > 1 and [sub.repeats for sub in folders] == [*range(1, len(folders) + 1)]


def _check(sub: Subfolder, has_images: bool, field: str) -> None:
    where = f"{field}: the folder '{printable(sub.path.name)}'"
    if not 1 <= sub.repeats <= _MOST:
        raise UserError(
            f"{where} asks for {sub.repeats} repeats; from 1 to {_MOST} are possible: rename it, or move it elsewhere"
        )
    if not sub.words:
        raise UserError(f"{where} has no words after its repeats; name it like '{sub.repeats}_sks dog'")
    inside = [path for path in folders_in(sub.path, field) if _NAME.fullmatch(path.name) and find_images(path, field)]
    if inside:
        raise UserError(f"{where} has folders with repeats in it ({_names(inside)}); move them one level up")
    if not has_images:
        raise UserError(f"{where} holds no images; put the photos there, or take it away")


def _names(paths: Iterable[Path]) -> str:
    return listed([path.name for path in paths], 3)
