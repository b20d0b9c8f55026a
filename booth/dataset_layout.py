"""Where the images of a dataset lie: the names of its files -> what is to be read. No file is opened here.

Known are the ways in which the `datasets` library and the hub keep datasets of images: Parquet or Arrow files, perhaps
in shards and parts (train, test), folders of `Dataset.save_to_disk`, and images with a table that names them.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from booth.captions import TABLES
from booth.errors import UserError

DEPTH = 3  # folders deep: default/train/0000.parquet
TABULAR = (".parquet", ".arrow")
_TRAIN, _OTHERS = ("train", "training"), ("validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
_SHARD = re.compile(r"(.*?)-?(\d{5,})-of-(\d{5,})(\.\w+)")


@dataclass(frozen=True)
class Layout:
    """What is to be read of a dataset.

    folder: images with their captions beside them, in `root`; rows: Parquet or Arrow files, in this order; saved: what
    `Dataset.save_to_disk` wrote into `root`; table: images in subfolders that the table `files[0]` names.
    """

    kind: Literal["folder", "rows", "saved", "table"]
    root: str  # "" is the dataset's own folder
    files: tuple[str, ...]


def layout(names: Iterable[str], is_image: Collection[str], where: str, *, images_below: bool = False) -> Layout | None:
    """The layout of a folder or repository with files of these names ("data/train.parquet"); None if it is no dataset.

    `is_image` are the suffixes of images; `images_below`: they may all lie in one subfolder, without a table. Raises
    UserError for shards that are not all there, several datasets in one place, and parts none of which is for training.
    """
    known = sorted(name for name in names if _is_plain(name))
    images = [name for name in known if PurePosixPath(name).suffix.lower() in is_image]
    top = [name for name in known if "/" not in name]
    if any("/" not in name for name in images):
        return Layout("folder", "", tuple(name for name in top if name in images or _is_beside(name)))
    if {"state.json", "dataset_info.json"} <= {*known}:
        return _saved("", known)
    if "dataset_dict.json" in known:
        folders = [name.removesuffix("/state.json") for name in known if re.fullmatch(r"[^/]+/state\.json", name)]
        return _saved(_part({folder: [folder] for folder in folders}, where)[0], known) if folders else None
    for suffix in TABULAR:
        # `datasets` keeps what it computed from an Arrow file beside it, under such names.
        if files := [name for name in known if name.endswith(suffix) and not re.search(r"(^|/)cache-", name)]:
            files = _part(_by_part((name, name) for name in files), where)
            _one_folder(files, where)
            _check_shards(files, where)
            return Layout("rows", _parent(files[0]), tuple(files))
    if table := next((name for name in TABLES if name in top), None):
        return Layout("table", "", (table, *images))
    if images_below and images:
        files = _part(_by_part((name, _parent(name)) for name in images), where)
        root = _one_folder(files, where)
        return Layout("folder", root, tuple(name for name in known if _parent(name) == root
                                            and (name in files or _is_beside(name))))  # fmt: skip
    return None


def _is_plain(name: str) -> bool:
    """Hidden ones are none of a dataset's, and a stranger's listing may have names that lead elsewhere."""
    parts = name.split("/")
    strange = name.startswith("/") or "\\" in name or ":" in name or not name.isprintable()
    return not strange and len(parts) <= DEPTH and not any(part.startswith(".") or not part for part in parts)


def _is_beside(name: str) -> bool:
    return PurePosixPath(name).name in TABLES or name.endswith(".txt")


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _saved(root: str, known: Collection[str]) -> Layout:
    inside = (name for name in known if _parent(name) == root and name.endswith((".arrow", ".json")))
    return Layout("saved", root, tuple(inside))


def _by_part(files: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """{"train" or "test" or ...: files} of (file, what says so); "": it does not."""
    parts: dict[str, list[str]] = {}
    for name, said in files:
        words = re.split(r"[^a-z]+", said.lower())
        part = next((word for word in words if word in (*_TRAIN, *_OTHERS)), "")
        parts.setdefault("train" if part in _TRAIN else part, []).append(name)
    return parts


def _part(parts: Mapping[str, list[str]], where: str) -> list[str]:
    """The part to train on."""
    for name in ("train", ""):
        if name in parts:
            return parts[name]
    if len(parts) > 1:
        raise UserError(
            f"{where} has the parts {', '.join(sorted(parts))}, none of them for training; give one of them"
        )
    return next(iter(parts.values()))


def _one_folder(files: Iterable[str], where: str) -> str:
    folders = sorted({_parent(name) for name in files})
    if len(folders) > 1:
        raise UserError(
            f"{where} holds several datasets, in {', '.join(folder or 'its top folder' for folder in folders)};"
            " give the folder of one of them"
        )
    return folders[0]


def _check_shards(files: Iterable[str], where: str) -> None:
    """UserError if some of train-00000-of-00004.parquet and so on are missing, or belong to another writing."""
    there: dict[tuple[str, str, str], set[int]] = {}
    for name in files:
        if match := _SHARD.fullmatch(name):
            there.setdefault((match[1], match[3], match[4]), set()).add(int(match[2]))
    for (prefix, total, suffix), numbers in there.items():
        if missing := sorted({*range(int(total))} - numbers):
            first = f"{prefix}-{missing[0]:0{len(total)}d}-of-{total}{suffix}".lstrip("-")
            raise UserError(
                f"{where}: {len(missing)} of {int(total)} shards are missing, {first} the first; download or write"
                " the dataset again"
            )
    if len({total for prefix, total, _ in there}) > 1:
        kinds = ", ".join(sorted({f"{prefix}-*-of-{total}" for prefix, total, _ in there}))
        raise UserError(f"{where} holds shards of several datasets ({kinds}); leave those of one")
