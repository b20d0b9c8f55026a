"""A dataset of images, whatever it is kept in: its files, its columns, and its rows one after another."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from booth import arrow_rows
from booth.captions import listed, read_table
from booth.data import printable
from booth.dataset_layout import Layout
from booth.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """A dataset's rows, read alike whatever it is kept in."""

    where: str  # for messages
    base: Path
    layout: Layout
    image_column: str

    def files(self) -> list[Path]:
        """What it is made of, in the order of its rows; of a table also the images."""
        if self.layout.kind == "saved":
            return self._saved_files()
        paths = [self.base / name for name in self.layout.files]
        return [paths[0], *(path for path, _ in self._table_rows())] if self.layout.kind == "table" else paths

    def _saved_files(self) -> list[Path]:
        """As state.json has them: files of an earlier saving may lie beside them."""
        folder = self.base / self.layout.root
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            names = [str(entry["filename"]) for entry in state["_data_files"]]
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{self.where}: {folder / 'state.json'} is damaged; save the dataset again") from error
        if state.get("_indices_data_files") or any(Path(name).name != name or "\\" in name for name in names):
            raise UserError(f"{self.where} was saved by another version of `datasets` or was altered; save it again")
        if lost := [name for name in names if not (folder / name).is_file()]:
            raise UserError(f"{self.where}: {listed(lost)} of the saved dataset is missing; save it again")
        return [folder / name for name in names]

    def columns(self) -> dict[str, arrow_rows.Kind]:
        """{name: what it holds}, the same in all files."""
        if self.layout.kind == "table":
            columns: dict[str, arrow_rows.Kind] = {name: "text" for row in read_table(self._table) for name in row}
            return columns | {self.image_column: "image"}
        files = self.files()
        if not files:
            raise UserError(f"{self.where} has no rows; give a dataset with 3 to 12 photos")
        columns = arrow_rows.columns(files[0], self.where)
        for file in files[1:]:
            if arrow_rows.columns(file, self.where) != columns:
                raise UserError(f"{self.where}: {files[0].name} and {file.name} have other columns; give one of them")
        return columns

    def rows(self, texts: list[str]) -> Iterator[tuple[bytes | str, dict[str, Any]]]:
        """(an image's bytes, or why it has none, and its row's texts)."""
        if self.layout.kind == "table":
            for path, row in self._table_rows():
                content = path.read_bytes() if path.is_file() else f"there is no {printable(str(row['file_name']))}"
                yield content, {name: row.get(name) for name in texts}
            return
        for file in self.files():
            for row in arrow_rows.rows(file, [self.image_column, *texts], self.where):
                yield _content(row[self.image_column]), {name: row[name] for name in texts}

    @property
    def _table(self) -> Path:
        return self.base / self.layout.files[0]

    def _table_rows(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """(image, row) of the table. UserError for names that lead out of the folder."""
        for number, row in enumerate(read_table(self._table)):
            name = row.get("file_name")
            if not isinstance(name, str) or not name:
                columns = ", ".join(map(str, row)) or "none"
                raise UserError(f"{self._table}, row {number}: no file_name among its columns {columns}; add it")
            if Path(name).is_absolute() or ".." in Path(name.replace("\\", "/")).parts or "\0" in name:
                raise UserError(f"{self._table}, row {number}: {name!r} leads out of the folder; correct it")
            yield self.base / name, row


def _content(value: Any) -> bytes | str:
    """Of an image as `datasets` stores it."""
    if isinstance(value, dict):
        path, value = value.get("path"), value.get("bytes")
        if value is None and path:
            return f"only the path {printable(str(path))}, not the image"
    return value or "none"
