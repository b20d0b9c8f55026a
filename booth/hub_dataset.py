"""Datasets from the Hugging Face hub: `owner/name` and a revision -> the files of one commit, in the hub's usual cache.

Only what is trained on is fetched: the part for training, as images or as Parquet or Arrow files; never a script.
"""

import json
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from booth import hub
from booth.dataset_layout import Layout, layout
from booth.errors import UserError
from booth.rundir import write_text

log = logging.getLogger("booth")


@dataclass(frozen=True)
class HubDataset:
    """One commit of a dataset on the hub, whose files are in the cache."""

    id: str
    commit: str  # 40 hexadecimal digits
    folder: Path  # the commit's folder in the cache
    layout: Layout


def fetch(source: str, revision: str, listings: Path, is_image: Collection[str]) -> HubDataset:
    """The dataset of an id at a branch, tag or commit ("": its default branch), downloaded as far as it was not.

    `listings` is the folder that remembers which files a commit has: in the hub's cache, half a dataset looks like a
    whole one. So what is there entirely serves when the hub cannot be asked. Raises UserError.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    commit = hub.commit_of(hub.DATASET, source, source, revision)
    where = f"{hub.DATASET.source}={source}"
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=source, repo_type="dataset") / "snapshots" / commit
    sizes = _listing(source, revision, commit, listings / f"{commit}.json")
    found = layout(sizes, is_image, where, images_below=True)
    if not found:
        raise UserError(f"{where}: neither images nor Parquet nor Arrow files in it; give another dataset")
    missing = {name: sizes[name] for name in found.files if not (folder / name).is_file()}
    hub.fetch(hub.DATASET, source, source, commit, folder, missing)
    return HubDataset(source, commit, folder, found)


def _listing(source: str, revision: str, commit: str, remembered: Path) -> dict[str, int]:
    """{file: bytes} of all files of the commit."""
    from huggingface_hub import HfApi

    try:
        return {str(name): int(size) for name, size in json.loads(remembered.read_text(encoding="utf-8")).items()}
    except (OSError, AttributeError, RecursionError, TypeError, ValueError):
        pass  # not there, or damaged
    with hub.explained(hub.DATASET, source, source, revision or commit):
        info = HfApi().dataset_info(source, revision=commit, files_metadata=True, timeout=30)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    write_text(remembered, json.dumps(sizes, indent=1) + "\n")
    return sizes
