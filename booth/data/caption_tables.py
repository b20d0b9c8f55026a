"""Tables of captions in image folders, in the form of the library `datasets`: metadata.jsonl and metadata.csv.

A line that could be read in part or only by a guess is refused: a caption with a comma outside quotes, a row with too
few cells, a file that is named twice.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from booth.common.errors import UserError
from booth.common.file_names import FileLookup, listed, printable

TABLES = ("metadata.jsonl", "metadata.csv")
_NAME = "file_name"


@dataclass(frozen=True)
class Row:
    line: int  # in the file, from 1
    cells: dict[str, Any]


def captions_of_table(folder: Path, images: Sequence[Path], column: str) -> dict[str, str]:
    """Return the captions by the image's name; by the name in the row if there is no such image. Raise UserError if the
    table has an error."""
    path = _find(folder, column)
    columns, rows = read_table(path)
    _check_columns(path, columns, column)
    lookup, captions, lines = FileLookup(images), dict[str, str](), dict[str, int]()
    for row in rows:
        name = _text(path, row, _NAME)
        if not name:
            raise UserError(f"{path}, line {row.line}: no {_NAME}; correct the line")
        found = lookup.find(name) or lookup.find(str(PurePosixPath(name)))
        if len(found) > 1:
            which = listed([image.name for image in found])
            raise UserError(f"{path}, line {row.line}: {printable(name)!r} may be {which}; write the one that is meant")
        key = found[0].name if found else name
        if key in lines:
            raise UserError(
                f"{path}: {printable(key)} is in line {lines[key]} and in line {row.line}; keep one of them"
            )
        captions[key], lines[key] = _text(path, row, column), row.line
    return captions


def read_table(path: Path) -> tuple[list[str], list[Row]]:
    """Return the columns and the rows. Raise UserError with the line in which something would be lost."""
    return (_read_csv if path.suffix.lower() == ".csv" else _read_json)(path)


def read_text(path: Path) -> str:
    """Return the text of a file. Raise UserError if it is not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give one that this user may read") from error
    except ValueError as error:
        raise UserError(f"{path} is not in UTF-8; save it as UTF-8") from error
    if "\0" in text:  # as in UTF-16 without a byte order mark
        raise UserError(f"{path} is not text in UTF-8, since it contains zero bytes; save it as UTF-8")
    return text


def _find(folder: Path, column: str) -> Path:
    lookup = FileLookup(folder.iterdir())
    found = [path for name in TABLES for path in lookup.find(name)]
    if not found:
        raise UserError(
            f"instance.captions='metadata': there is no {' or '.join(TABLES)} in {folder}; write one with the columns"
            f" {_NAME} and {column}, or use 'text' or 'names'"
        )
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise UserError(f"instance.captions='metadata': {names} are both in {folder}; keep the one that is meant")
    return found[0]


def _read_csv(path: Path) -> tuple[list[str], list[Row]]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), skipinitialspace=True, strict=True)
    header: list[str] = []
    rows: list[Row] = []
    line = 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not header:
                header = cells
                _check_header(path, header)
                continue
            if any(cells[len(header) :]):
                raise UserError(
                    f"{path}, line {start}: {len(cells)} cells and {len(header)} columns; put a value with a comma"
                    ' in double quotes: "a dog, sitting"'
                )
            if len(cells) < len(header):
                raise UserError(
                    f"{path}, line {start}: {len(cells)} cells and {len(header)} columns; add the missing cells, even"
                    " if they are empty"
                )
            rows.append(Row(start, dict(zip(header, cells, strict=False))))
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}: {error}; put a value with commas in double quotes, and write a quote in it twice"
        ) from error
    return header, rows


def _check_header(path: Path, header: list[str]) -> None:
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise UserError(f"{path} has several columns {listed(twice)}; give each a name of its own")
    for separator, named in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            raise UserError(f"{path} has {named} between its columns; save it with commas")


def _read_json(path: Path) -> tuple[list[str], list[Row]]:
    rows: list[Row] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # splitlines() would also split inside strings
        if line.strip():
            try:
                cells = json.loads(line, object_pairs_hook=_once)
                if not isinstance(cells, dict):
                    raise ValueError(f"but a {type(cells).__name__}")
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: no JSON object ({error}); correct the line") from error
            rows.append(Row(number, cells))
    return list(dict.fromkeys(name for row in rows for name in row.cells)), rows


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        raise ValueError("a key is in it twice")
    return cells


def _check_columns(path: Path, columns: list[str], column: str) -> None:
    there = listed(columns, 20) or "none"
    for wanted, change in ((_NAME, "it is what ties captions to images"),
                           (column, "set instance.caption_column to one of them")):  # fmt: skip
        if wanted not in columns:
            raise UserError(f"{path} has no column {wanted!r} but {there}; {change}")


def _text(path: Path, row: Row, column: str) -> str:
    """Return a cell as one line; a number as it is written, and "" for no value."""
    value = row.cells.get(column)
    if value is None or value != value:  # NaN, which pandas writes for a missing value
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(
            f"{path}, line {row.line}: {column} is {printable(repr(value))[:60]}, and must be text; correct the line"
        )
    return str(value).strip() if column == _NAME else " ".join(str(value).split())
