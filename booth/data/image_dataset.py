"""Photos that are not in a plain folder of files: datasets, local and on the hub, opened with the library `datasets`.

A dataset is unpacked once into a folder of image files and a metadata.jsonl, in ~/.cache/booth/datasets (or below
XDG_CACHE_HOME), under a hash of its content. So the rest of the code sees a plain folder, and a dataset may be moved.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

from booth.common import disk_space
from booth.common.errors import UserError
from booth.common.file_names import listed, printable
from booth.common.files import publish
from booth.common.progress import progress
from booth.config.sources import DATASET, is_id
from booth.data.caption_tables import TABLES, read_table
from booth.data.image_file import image_format, reason
from booth.data.image_folder import IMAGE_SUFFIXES, find_images
from booth.models import hub

log = logging.getLogger("booth")

_VERSION = 2  # the version of the unpacked folder's form; a dataset in another version is unpacked anew
_TABULAR = (".parquet", ".arrow")
_SUFFIXES = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "TIFF": ".tif",
}  # by PIL's name of the format; other formats have their name as suffix


@dataclass(frozen=True)
class Photos:
    """A plain folder of photos, and where on the hub they came from: {} for local photos."""

    folder: Path
    origin: Mapping[str, str] = field(default_factory=dict)


def open_photos(source: str, image_column: str, captions: str = "none", revision: str = "") -> Photos:
    """Return the folder with the photos of `instance.images`: `source` itself if it is a plain folder or empty.

    A dataset is unpacked, with all its columns of text as metadata; if `source` is the id of a dataset on the hub, it
    is first downloaded at `revision`. `captions` is as in `read_captions`. Raise UserError if that fails.
    """
    where, path, origin = f"instance.images={source!r}", Path(source), {}
    if is_id(source):
        path, commit = _download(source, revision)
        origin = {"id": source, "commit": commit}
    elif revision:
        raise UserError(f"instance.revision={revision!r} is for hub ids, and {where} is local; leave it empty")
    if path.is_file() and not _is_tabular(path):
        raise UserError(
            f"{where} is neither a folder nor a dataset; give a folder, a Parquet or Arrow file, or a hub id"
        )
    if path.is_dir() and find_images(path, "instance.images"):
        return Photos(path, origin)
    if not (origin or path.is_file() or _is_dataset(path)):
        return Photos(path)
    if captions in ("text", "names"):
        raise UserError(f"instance.captions={captions!r} is for photos in a folder, 'metadata' for datasets: {where}")
    return Photos(_unpacked(path, image_column, where), origin)


def cache_folder() -> Path:
    """Return the folder that holds the unpacked datasets."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "booth" / "datasets"


def _download(source: str, revision: str) -> tuple[Path, str]:
    """Download a dataset from the hub. Return (its folder in the hub's usual cache, its commit)."""
    from huggingface_hub import snapshot_download  # here: a local folder needs none of it

    commit = hub.commit_of(DATASET, source, source, revision)
    suffixes = [*IMAGE_SUFFIXES, *_TABULAR, ".csv", ".jsonl", ".json", ".txt"]
    either = ("".join(f"[{char}{char.upper()}]" if char.isalpha() else char for char in suffix) for suffix in suffixes)
    patterns = ["README.md", *(f"*{suffix}" for suffix in either)]
    with hub.explained(DATASET, source, source, commit):
        return Path(snapshot_download(source, repo_type="dataset", revision=commit, allow_patterns=patterns)), commit


def _is_tabular(path: Path) -> bool:
    return path.suffix.lower() in _TABULAR


def _is_dataset(folder: Path) -> bool:
    """Return whether a folder without images has a table of images, or has Parquet or Arrow files at most as deep as
    data/train/0.arrow."""
    tabular = (path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(depth) if _is_tabular(path))
    return any((folder / name).is_file() for name in TABLES) or any(tabular)


def _unpacked(source: Path, image_column: str, where: str) -> Path:
    """Return the folder of a dataset's image files; make it if it does not exist."""
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    digest = hashlib.sha256(f"{_VERSION} {image_column}".encode())
    for path in progress(files, desc="hashing the dataset", unit="file", leave=False, delay=2):
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            said = f"{where}: {printable(str(path))} cannot be read ({error.strerror})"
            raise UserError(f"{said}; give files that this user may read") from error
        # Names are hashed too: by them `datasets` decides which rows are for training. The name of a single file is
        # ".", so a single file may be renamed.
        digest.update(content + os.fsencode(path.relative_to(source)) + b"\0")
    folder, size = cache_folder() / digest.hexdigest()[:32], sum(path.stat().st_size for path in files)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(
        folder.parent / ".lock"
    ):  # if two runs start at once, the second finds the folder that the first has made
        if not folder.is_dir():
            with disk_space.explained(folder, size), publish(folder) as staging:
                staging.mkdir(parents=True)
                _unpack(_rows(source, image_column, where), image_column, source.resolve(), staging, where)
            log.info("%s: unpacked into %s", where, folder)
    return folder


def _unpack(rows: Iterator[dict[str, Any]], image_column: str, source: Path, folder: Path, where: str) -> None:
    table: list[dict[str, Any]] = []
    bad: list[str] = []
    for row in progress(rows, desc="unpacking the dataset", unit="image", leave=False, delay=2):
        number = len(table) + len(bad)
        try:
            content = _content(row.pop(image_column), source)
            name = f"{number:05d}{_suffix(content)}"
        except ValueError as error:
            bad.append(f"row {number} ({error})")
        else:
            (folder / name).write_bytes(content)
            table.append({**row, "file_name": name})
    if bad:
        _check_tables(source)
        lack = f"{len(bad)} of {len(bad) + len(table)} rows have no image in {image_column!r} that can be read"
        raise UserError(f"{where}: {lack}: {listed(bad)}; remove them, or write the dataset again with its images")
    if not table:
        raise UserError(f"{where} has no rows; give a dataset with 3 to 12 photos")
    (folder / TABLES[0]).write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8", newline="\n")


def _rows(source: Path, image_column: str, where: str) -> Iterator[dict[str, Any]]:
    """Yield the rows for training: all columns of text, and the image as {"bytes": ..., "path": ...}. Raise UserError
    if `datasets` cannot read them."""
    import datasets  # here: it takes a while, and photos in a folder need none of it

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)  # it warns of a README.md without YAML
    try:
        with tempfile.TemporaryDirectory() as scratch:  # when streaming, it copies no data but makes a lock file
            found = _split(_opened(source, scratch, where), where)
            features = found.features or {}
            images = [name for name, feature in features.items() if _is_image(feature)]
            if image_column not in images:
                fix = f"set instance.image_column={images[0]!r}" if images else "give a dataset of images"
                has = f"its columns are {listed([*features], 20) or 'none'}; with images: {listed(images) or 'none'}"
                raise UserError(f"{where} has no images in a column {image_column!r}; {has}; {fix}")
            texts = [name for name in features if getattr(features[name], "dtype", "") in ("string", "large_string")]
            found = found.select_columns([image_column, *texts])
            yield from found.cast_column(image_column, datasets.Image(decode=False))
    except UserError:
        raise
    except Exception as error:  # the library raises many types
        _check_tables(source)
        said = printable(" ".join(str(error).split())[:200]) or type(error).__name__
        fix = "write or download it again, or give the file or folder of one dataset of images"
        raise UserError(f"{where}: `datasets` cannot read it ({said}); {fix}") from error


def _check_tables(source: Path) -> None:
    """Raise UserError if a line of the dataset's table is wrong: this message is clearer than that of `datasets`."""
    for table in TABLES if source.is_dir() else ():
        if (source / table).is_file():
            read_table(source / table)


def _opened(source: Path, scratch: str, where: str) -> Any:
    """Open a file or folder with `datasets`. Return rows, or splits with rows."""
    from datasets import load_dataset, load_from_disk

    if any((source / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return load_from_disk(str(source))
    folder, file = (source, None) if source.is_dir() else (source.parent, source.name)
    if file and source.suffix != source.suffix.lower():
        raise UserError(f"{where}: `datasets` takes suffixes in lower case only; rename it to *{source.suffix.lower()}")
    if set("*?[") & set(str(source.resolve())):
        raise UserError(f"{where}: `datasets` takes *, ? and [ in a path for patterns; rename the folder or file")
    return load_dataset(str(folder), data_files=file, streaming=True, cache_dir=scratch)


def _split(found: Any, where: str) -> Any:
    """Return the rows of the split train, or of the only split, to be read one after another."""
    from datasets import Dataset

    if isinstance(found, dict):
        if "train" not in found and len(found) != 1:
            raise UserError(f"{where} has the splits {', '.join(found)} and none is train; give the folder of one")
        found = found["train"] if "train" in found else next(iter(found.values()))
    return found.with_format(None).to_iterable_dataset() if isinstance(found, Dataset) else found


def _is_image(feature: Any) -> bool:
    """Return whether a column has images, also in the form of plain bytes, as other libraries write them."""
    from datasets import Image

    feature = feature.get("bytes") if isinstance(feature, dict) else feature
    return isinstance(feature, Image) or getattr(feature, "dtype", "") in ("binary", "large_binary")


def _content(image: Mapping[str, Any] | None, source: Path) -> bytes:
    """Return the bytes of an image in a row, or in a file of the dataset's folder. Raise ValueError if it has none."""
    content, path = (image or {}).get("bytes"), (image or {}).get("path")
    if content is None and path and Path(os.path.normpath(path)).is_relative_to(source) and Path(path).is_file():
        return Path(path).read_bytes()
    if not content:
        raise ValueError(f"only the path {printable(str(path))}, not the image" if path else "none")
    return bytes(content)


def _suffix(content: bytes) -> str:
    """Return the suffix for an image by its content, not by its file's name. Raise ValueError if it is no image."""
    try:
        name = image_format(content)
    except Exception as error:  # PIL raises many types
        raise ValueError(reason(error)) from error
    return _SUFFIXES.get(name, f".{name}".lower())
