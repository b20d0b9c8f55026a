"""Captions of photos: from text files beside them, from their names, or from a table; and their shuffled variants."""

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from booth import randomness
from booth.errors import UserError

log = logging.getLogger("booth")

SOURCES = ("none", "text", "names", "metadata")
TABLES = ("metadata.jsonl", "metadata.csv")  # as `datasets` has them in image folders
PLACE = "{caption}"  # in instance.prompt
_FIELD = "instance.captions"


def read_captions(folder: Path, paths: Sequence[Path], source: str, column: str, prompt: str) -> list[str]:
    """The caption of each image, put in `prompt` where that has `{caption}`; with the source "none" just `prompt`.

    UserError names images without a caption, captions without an image, and the columns there are.
    """
    if source == "none":
        return [prompt] * len(paths)
    readers: Mapping[str, Callable[[], dict[str, str]]] = {
        "text": lambda: _beside(folder, paths),
        "names": lambda: {path.name: _words(path.stem) for path in paths},
        "metadata": lambda: _table(folder, column),
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
            " or take the lines out"
        )
    return [prompt.replace(PLACE, found[name]) if prompt else found[name] for name in names]


def variants(caption: str, shuffled: int, kept: int, seed: int, name: str) -> list[str]:
    """The caption in so many orders of its comma-separated tags, the first `kept` in their place; [caption] for 0.

    A fixed set, since each is encoded once; drawn from the image's own content (`name`, its sha256).
    """
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    if not shuffled or len(tags) - kept < 2:
        return [caption]
    draw = randomness.generator(seed, "tags", row=int(name[:16], 16))
    orders = [
        tags[:kept] + [tags[kept + place] for place in draw.permutation(len(tags) - kept)] for _ in range(shuffled)
    ]
    return list(dict.fromkeys(", ".join(order) for order in orders))


def _beside(folder: Path, paths: Sequence[Path]) -> dict[str, str]:
    """X.txt beside X.jpg. Other text files are only named: notes are not captions."""
    stems = {path.stem for path in paths}
    if other := sorted(file.name for file in folder.glob("*.txt") if file.stem not in stems):
        log.warning("%s='text': %s belong to no image", _FIELD, listed(other))
    return {
        path.name: " ".join(_text_of(path.with_suffix(".txt")).split())
        for path in paths
        if path.with_suffix(".txt").is_file()
    }


def _words(stem: str) -> str:
    """`red_car-in snow 12` -> `red car in snow`: a number that tells files apart is no part of it."""
    return re.sub(r"\s*\(?\d+\)?$", "", " ".join(re.split(r"[\s_-]+", stem))).strip()


def _table(folder: Path, column: str) -> dict[str, str]:
    """{file name: caption} of the folder's table."""
    path = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(
            f"{_FIELD}='metadata': there is no {' or '.join(TABLES)} in {folder}; write one with the columns file_name"
            f" and {column}, or use 'text' or 'names'"
        )
    rows = _rows(path)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for wanted, field in (("file_name", ""), (column, "instance.caption_column")):
        if wanted not in columns:
            change = f"; set {field} to one of them" if field else "; it is what ties captions to images"
            raise UserError(f"{path} has no column {wanted!r} but {', '.join(map(str, columns)) or 'none'}{change}")
    return {str(row.get("file_name")): " ".join(str(row.get(column) or "").split()) for row in rows}


def _rows(path: Path) -> list[dict[str, Any]]:
    text = _text_of(path)
    if path.suffix == ".csv":
        try:
            return [dict(row) for row in csv.DictReader(io.StringIO(text, newline=""))]
        except csv.Error as error:
            raise UserError(f"{path} cannot be read as a table ({error}); correct it") from error
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                rows.append(dict(json.loads(line)))
            except (ValueError, TypeError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: no JSON object ({error}); correct the line") from error
    return rows


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); save it as UTF-8") from error


def listed(names: Sequence[str], shown: int = 5) -> str:
    """The first names and how many more there are, in one line of a terminal."""
    some = ", ".join(
        name.encode("unicode_escape").decode() if not name.isprintable() else name for name in names[:shown]
    )
    return some if len(names) <= shown else f"{some} and {len(names) - shown} more"
