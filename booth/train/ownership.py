"""The owner of a folder: whether a run may begin there, continue there, or keep its checkpoints there."""

import json
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from booth.common.errors import UserError
from booth.common.files import STAGING_PREFIX
from booth.config import values as settings
from booth.config.changes import changes
from booth.train.run_record import (
    CONFIG,
    MANIFEST,
    Record,
    find_record,
)

log = logging.getLogger("booth")


_JUNK = frozenset([".DS_Store", "Thumbs.db", "desktop.ini"])  # files that desktops add to a folder when it is opened


CLAIM = ".run-id"


def check_ours(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"--workdir {path} is a file; give a folder")
    # A run that was killed before it wrote its record leaves only these files.
    if strangers(path, ".lock", STAGING_PREFIX + MANIFEST, STAGING_PREFIX + CONFIG) and not _is_run(path):
        raise UserError(f"--workdir {path} holds other files and is no run folder; give a new or empty folder")


def _is_run(path: Path) -> bool:
    if (path / CONFIG).is_file():
        return True
    try:
        return find_record(path) is not None
    except UserError:  # a manifest.json of something else
        return False


def owner(folder: Path) -> str | None:
    """Return the id of the run whose checkpoints are in a folder, by the folder's mark or else by a checkpoint; None if
    there is neither."""
    if (folder / CLAIM).is_file():
        return str((folder / CLAIM).read_text(encoding="utf-8"))
    for record in folder.glob("step-*/checkpoint.json") if folder.is_dir() else ():
        with suppress(KeyError, OSError, RecursionError, TypeError, ValueError):  # a damaged checkpoint: try another
            return str(json.loads(record.read_text(encoding="utf-8"))["run_id"])
    return None


def strangers(path: Path, *ours: str) -> bool:
    """Return whether a folder holds anything except `ours` and the files that desktops and locks leave everywhere."""
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    return any(name not in _JUNK.union(ours) and not name.startswith(".filelock-") for name in names)


def same_run(workdir: Path, backend: str, config: Mapping[str, Any], meant: Collection[str] | None) -> Record | None:
    """Return the record of the run in a folder, if there is one. Raise UserError if it is a different run."""
    before = find_record(workdir)
    if before is None:
        return None
    if before.backend != backend:
        raise UserError(f"--workdir {workdir} is a run of {before.backend}booth; give {backend}booth another one")
    # A field that a newer version added had its default before.
    defaults = json.loads(json.dumps(settings.flatten(settings.default_config())))
    before = replace(before, config={**defaults, **before.config})
    changed = changes(before.config, config)
    fixed = [f"{name} was {old!r}, is {new!r}" for name, (old, new) in changed.items() if not settings.may_change(name)]
    if fixed:
        raise UserError(
            f"--workdir {workdir} belongs to another run: {'; '.join(fixed)};"
            " restore these values, or choose another --workdir"
        )
    asked = [f"{name} was {old!r}, is {new!r}" for name, (old, new) in changed.items()
             if meant is not None and name not in meant and settings.must_be_meant(name)]  # fmt: skip
    if asked:
        raise UserError(
            f"--workdir {workdir} began with other values: {'; '.join(asked)}; put them back, or say that the new ones"
            " are meant, with --config.NAME=VALUE or for all of them with --accept-changes"
        )
    if (workdir / MANIFEST).is_file():
        return before
    if not _has_trained(workdir):
        return None  # only a config.json, perhaps copied from another run: this run begins now, with its own id
    if meant is not None:
        raise UserError(
            f"--workdir {workdir} has no {MANIFEST} any more, which says what the run was made from; put it back from a"
            " copy, or if photos, model and settings are still the same give --accept-changes"
        )
    log.warning("%s is missing: photos and model are taken to be those the run began with", workdir / MANIFEST)
    return before


def _has_trained(workdir: Path) -> bool:
    """Return whether a run has done so much that it must have had a manifest."""
    return any((workdir / name).exists() for name in ("metrics.jsonl", "checkpoints", "pipeline", "lora"))
