"""Captions of photos: from text files beside them, from their names, or from a table; and their shuffled variants."""

import logging
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path

from booth.common import randomness
from booth.common.errors import UserError
from booth.common.file_names import FileLookup, listed
from booth.config.choices import PLACE
from booth.data.caption_names import captions_from_names
from booth.data.caption_tables import captions_of_table, read_text

log = logging.getLogger("booth")

_FIELD = "instance.captions"


def read_captions(folder: Path, paths: Sequence[Path], source: str, column: str, prompt: str) -> list[str]:
    """Return the caption of each image, put in the place of `{caption}` in `prompt` if it has one; with the source
    "none" return `prompt` itself.

    Raise UserError with the names of images without a caption, captions without an image, or the columns of the table.
    """
    if source == "none":
        return [prompt] * len(paths)
    readers: Mapping[str, Callable[[], dict[str, str]]] = {
        "text": lambda: _beside(folder, paths),
        "names": lambda: _from_names(paths),
        "metadata": lambda: captions_of_table(folder, paths, column),
    }
    found = readers[source]()
    names = [path.name for path in paths]
    if without := [name for name in names if not found.get(name)]:
        mend = "give it a name that says what it shows" if source == "names" else "write one"
        raise UserError(
            f"{_FIELD}={source!r}: no caption for {listed(without)} in {folder}; {mend}, or move the image away"
        )
    if lost := [name for name in found if name not in names]:
        raise UserError(
            f"{_FIELD}={source!r}: captions of {listed(lost)}, but no such images lie in {folder}; correct the names,"
            " or remove the lines"
        )
    return [prompt.replace(PLACE, found[name]) if prompt else found[name] for name in names]


def variants(caption: str, shuffled: int, kept: int, seed: int, name: str) -> list[str]:
    """Return the caption in `shuffled` orders of its comma-separated tags, with the first `kept` tags in their place;
    [caption] for 0.

    The set is fixed, since each caption is encoded once. It is drawn from the image's own content (`name`, its sha256).
    """
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    if not shuffled or len(tags) - kept < 2:
        return [caption]
    draw = randomness.generator(seed, "tags", row=int(name[:16], 16))
    orders = [
        tags[:kept] + [tags[kept + place] for place in draw.permutation(len(tags) - kept)] for _ in range(shuffled)
    ]
    return list(dict.fromkeys(", ".join(order) for order in orders))


def text_files(folder: Path) -> list[Path]:
    """Return the files of a folder that may hold captions, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".txt")


def _beside(folder: Path, paths: Sequence[Path]) -> dict[str, str]:
    """Return the captions in X.txt beside X.jpg. Other text files are only named in a warning: they may be notes."""
    texts = text_files(folder)
    lookup, captions, taken = FileLookup(texts, attrgetter("stem")), {}, set()
    for path in paths:
        found = lookup.find(path.stem)
        if len(found) > 1:
            which = " and ".join(text.name for text in found)
            raise UserError(f"{_FIELD}='text': {path.name} has {which} beside it in {folder}; keep one of them")
        for text in found:
            captions[path.name] = " ".join(read_text(text).split())
            taken.add(text)
    if other := sorted(text.name for text in texts if text not in taken):
        log.warning("%s='text': %s belong to no image", _FIELD, listed(other))
    return captions


def _from_names(paths: Sequence[Path]) -> dict[str, str]:
    """Return the captions from the names, and log some of them, first those that leave out a part of a name."""
    captions = dict(zip((path.name for path in paths), captions_from_names([path.stem for path in paths]), strict=True))
    told = sorted(paths, key=lambda path: len(captions[path.name]) == len(path.stem))
    log.info("%s='names': %s", _FIELD, listed([f"{path.name!r} -> {captions[path.name]!r}" for path in told]))
    return captions
