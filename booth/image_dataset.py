"""Photos that are no plain folder of files: datasets in Parquet and Arrow files, in saved folders, and on the hub.

A dataset is unpacked once into a folder of image files and a metadata.jsonl, in ~/.cache/booth/datasets (or below
XDG_CACHE_HOME), under a hash of its content. So everything behind sees a plain folder, and a dataset may be moved.
"""

import hashlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
from PIL import Image, UnidentifiedImageError

from booth import hub, space
from booth.captions import TABLES, listed, read_table
from booth.data import IMAGE_SUFFIXES, image_formats, printable
from booth.dataset_layout import DEPTH, TABULAR, Layout, layout
from booth.dataset_rows import Dataset
from booth.errors import UserError
from booth.hub_dataset import fetch
from booth.progress import progress
from booth.rundir import publish, remove
from booth.space import readable

log = logging.getLogger("booth")

_VERSION = 1  # of what an unpacked folder holds; another one is unpacked anew
_RECORD = "dataset.json"  # {"columns": {name: kind}, "sizes": {file: bytes}}
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}  # of PIL's formats; of the others it is their name


@dataclass(frozen=True)
class Photos:
    """A plain folder of photos, and where on the hub it came from: {} for what was here."""

    folder: Path
    origin: Mapping[str, str] = field(default_factory=dict)


def open_photos(
    source: str, image_column: str, captions: str = "none", caption_column: str = "text", revision: str = ""
) -> Photos:
    """The folder with the photos of `instance.images`, which is that itself if it is one.

    A dataset is unpacked, and downloaded before if `source` is the id of one on the hub, at `revision`. `captions` and
    `caption_column` are as in `read_captions`: with "metadata" each row must have a caption. Raises UserError.
    """
    where = f"instance.images={source!r}"
    if hub.is_id(source):
        found = fetch(source, revision, cache_folder() / "listings", IMAGE_SUFFIXES)
        base, kept, origin = found.folder, found.layout, {"id": found.id, "commit": found.commit}
    elif revision:
        raise UserError(f"instance.revision={revision!r} is for hub ids, and {where} is local; leave it empty")
    else:
        (base, kept), origin = _local(Path(source), where), {}
    if kept.kind == "folder":
        return Photos(base / kept.root, origin)
    if captions in ("text", "names"):
        raise UserError(
            f"instance.captions={captions!r} is for photos in a folder, and {where} is a dataset: 'metadata' takes the"
            " column instance.caption_column"
        )
    folder = _unpacked(Dataset(where, base, kept, image_column))
    if captions == "metadata":
        _check_captions(folder, caption_column, where)
    return Photos(folder, origin)


def cache_folder() -> Path:
    """Where unpacked datasets are."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "booth" / "datasets"


def _local(path: Path, where: str) -> tuple[Path, Layout]:
    """What is at a path: the folder that it lies in, and how; a plain folder too if there is no dataset."""
    if path.is_file():
        if path.suffix in TABULAR:
            return path.parent, Layout("rows", "", (path.name,))
        if path.suffix in (".jsonl", ".csv"):
            return path.parent, Layout("table", "", (path.name,))
        raise UserError(
            f"{where} is not a folder and no dataset; give a folder of images, a Parquet or Arrow file, a table of"
            " images (.jsonl, .csv), or the id of a dataset on the hub"
        )
    return path, layout(_names(path), IMAGE_SUFFIXES, where) or Layout("folder", "", ())


def _names(folder: Path) -> Iterator[str]:
    """The files of a folder, and of its subfolders if it has no images itself."""
    for path, folders, files in os.walk(folder):
        below = Path(path).relative_to(folder)
        yield from ((below / name).as_posix() for name in files)
        if len(below.parts) + 1 >= DEPTH or (not below.parts and any(_is_image(name) for name in files)):
            folders.clear()


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def _unpacked(dataset: Dataset) -> Path:
    """The folder of image files of a dataset, which is made if it is not there."""
    folder = cache_folder() / _key(dataset)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.parent / ".lock"):  # of two runs at once, the second finds what the first has made
        if not _is_whole(folder):
            remove(folder)
            _unpack(dataset, folder)
    log.info("%s: %d images in %s", dataset.where, len(_record(folder)["sizes"]), folder)
    return folder


def _key(dataset: Dataset) -> str:
    """Names the content: the files' bytes in their order, and what is taken of them."""
    files = [path for path in dataset.files() if path.is_file()]
    digest = hashlib.sha256(f"{_VERSION} {dataset.layout.kind} {dataset.image_column}".encode())
    total = sum(path.stat().st_size for path in files)
    with progress(total=total, desc="hashing the dataset", unit="B", unit_scale=True, leave=False, delay=2) as bar:
        for path in files:
            content = hashlib.sha256()
            with path.open("rb") as file:
                while piece := file.read(1 << 22):
                    content.update(piece)
                    bar.update(len(piece))
            digest.update(content.digest())
    return digest.hexdigest()[:32]


def _unpack(dataset: Dataset, folder: Path) -> None:
    columns = dataset.columns()
    _check_image_column(dataset, columns)
    texts = [name for name, kind in columns.items() if kind == "text" and name != "file_name"]
    size = sum(path.stat().st_size for path in dataset.files() if path.is_file())
    space.require([space.Need("images of the dataset", folder, size)], "make room, or set XDG_CACHE_HOME")
    sizes, table, bad = {}, [], []
    with space.explained(folder, size), publish(folder) as staging:
        staging.mkdir(parents=True)
        shown = progress(dataset.rows(texts), desc="unpacking the dataset", unit="image", leave=False, delay=2)
        for number, (content, row) in enumerate(shown):
            try:
                if isinstance(content, str):
                    raise ValueError(content)
                name = f"{number:05d}{_suffix(content)}"
            except ValueError as error:
                bad.append(f"row {number} ({error})")
                continue
            (staging / name).write_bytes(content)
            sizes[name] = len(content)
            table.append({"file_name": name, **row})
        if bad:
            raise UserError(
                f"{dataset.where}: {len(bad)} of {number + 1} rows have no image in {dataset.image_column!r} that can"
                f" be read: {listed(bad)}; take them out, or write the dataset anew, images and all"
            )
        if not sizes:
            raise UserError(f"{dataset.where} has no rows; give a dataset with 3 to 12 photos")
        lines = "".join(json.dumps(row, default=str) + "\n" for row in table)
        (staging / TABLES[0]).write_text(lines, encoding="utf-8")
        record = {"columns": columns, "sizes": sizes}
        (staging / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    log.info("%s: unpacked, %s", dataset.where, readable(sum(sizes.values())))


def _suffix(content: bytes) -> str:
    """By what an image is, whatever its file was called. ValueError if it is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content), formats=image_formats()) as image:
                kind = image.format or ""
        except UnidentifiedImageError:
            raise ValueError("no image in a format that can be read here") from None
        except Exception as error:  # PIL raises many types
            raise ValueError(printable(" ".join(str(error).split())) or type(error).__name__) from error
    return _SUFFIXES.get(kind, f".{kind.lower()}")


def _check_image_column(dataset: Dataset, columns: Mapping[str, str]) -> None:
    name = dataset.image_column
    if columns.get(name) == "image":
        return
    images = [column for column, kind in columns.items() if kind == "image"]
    if name in columns:
        said = f"{dataset.where}: the column {name!r} holds no images"
    else:
        said = f"{dataset.where} has no column {name!r}"
    fix = f"set instance.image_column={images[0]!r}" if images else "give a dataset of images"
    raise UserError(f"{said}; its columns are {_names_of(columns)}; with images: {_names_of(images) or 'none'}; {fix}")


def _check_captions(folder: Path, column: str, where: str) -> None:
    """UserError if there is no such column of text, or a row has none in it."""
    columns = _record(folder)["columns"]
    texts = [name for name, kind in columns.items() if kind == "text" and name != "file_name"]
    if column not in texts:
        raise UserError(
            f"{where} has no column {column!r} of text; its columns are {_names_of(columns)}; of text:"
            f" {_names_of(texts) or 'none'}; set instance.caption_column, or instance.captions='none'"
        )
    rows = read_table(folder / TABLES[0])
    if without := [f"row {number}" for number, row in enumerate(rows) if not str(row[column] or "").strip()]:
        raise UserError(
            f"{where}: no caption in the column {column!r} of {listed(without)}; write them, or take the rows out"
        )


def _names_of(columns: Mapping[str, Any] | list[str]) -> str:
    return ", ".join(printable(name) for name in columns)


def _record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    return record


def _is_whole(folder: Path) -> bool:
    """Whether it is there, and nobody took away, added or cut one of its files."""
    try:
        sizes = _record(folder)["sizes"]
        there = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        same = all((folder / name).stat().st_size == size for name, size in sizes.items())
        return same and there == {*sizes, TABLES[0], _RECORD}
    except (OSError, AttributeError, KeyError, TypeError, ValueError):
        return False
