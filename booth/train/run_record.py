"""Reading the record of a run folder: the run's id, the settings it began with and the newest saved step.

RUN/manifest.json is the record, which no user edits. RUN/config.json has the same settings for the user: to read, to
edit, and to give back as --config. So a config is compared with the manifest, never with the file that it may come
from. Only for runs of older versions, whose manifests have no settings, config.json is the record.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from booth.common.errors import UserError
from booth.config import values as settings
from booth.config.changes import of_record
from booth.config.sources import DATASET, MODEL, Kind

CONFIG, MANIFEST = "config.json", "manifest.json"
RUN, SETTINGS = "run", "config"  # entries of the manifest: which run it is, and its flat config
ORIGINS = {MODEL: "model from the hub", DATASET: "images from the hub"}  # further entries of the manifest

Manifest = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Record:
    """The identity and the settings of a run."""

    backend: str
    run_id: str
    config: dict[str, Any]  # flat, as `booth.config.values.flatten` gives it
    saved: int | None = (
        None  # the newest step that was saved; None for a run of an older version, which did not record it
    )


def find_record(workdir: Path) -> Record | None:
    """Return the record of the run in a folder; None if no run has begun there. Raise UserError for a folder of
    something else."""
    manifest = read_manifest(workdir / MANIFEST) if (workdir / MANIFEST).is_file() else {}
    if RUN in manifest:
        try:
            run, config = manifest[RUN], manifest[SETTINGS]
            return Record(
                str(run["backend"]),
                str(run["id"]),
                of_record(config),
                int(run["saved"]) if "saved" in run else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(workdir / MANIFEST) from error
    if not (workdir / CONFIG).exists():
        return None
    try:
        record = json.loads((workdir / CONFIG).read_text(encoding="utf-8"))
        return Record(record["backend"], record["run_id"], of_record(record["config"]))
    except (KeyError, RecursionError, TypeError, ValueError) as error:  # other keys, no object, no JSON
        raise UserError(f"{workdir} is not a run folder: its {CONFIG} is of something else") from error


def read_record(workdir: str | Path) -> Record:
    """Return the record of an existing run, but with the paths in config.json, since files may have been moved.

    Raise UserError if the folder is not a run folder.
    """
    path = Path(workdir)
    record = find_record(path)
    if record is None:
        raise UserError(f"{workdir} is not a run folder: it has no {CONFIG}")
    places = {name: value for name, value in written_config(path).items() if settings.is_place(name)}
    return Record(record.backend, record.run_id, {**record.config, **places}, record.saved)


def written_config(workdir: Path) -> dict[str, Any]:
    """Return the settings in config.json, which a user may have edited; {} if they cannot be read."""
    try:
        return dict(json.loads((workdir / CONFIG).read_text(encoding="utf-8"))["config"])
    except (KeyError, OSError, RecursionError, TypeError, ValueError):
        return {}


def recorded_config(workdir: str | Path) -> dict[str, Any] | None:
    """Return the flat config that the run in a folder began with; None if no run has begun there.

    Raise UserError for a folder of something else.
    """
    record = find_record(Path(workdir).expanduser())
    return record.config if record else None


def read_manifest(path: Path) -> Manifest:
    """Return the content of a manifest.json. Raise UserError if it is damaged."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return {name: dict(value) for name, value in manifest.items()}
    except (AttributeError, RecursionError, TypeError, ValueError) as error:  # no JSON, no object, or wrong values
        raise _damaged(path) from error


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path} is damaged; put it back from a copy, or if photos, model and settings are still the same move it away"
        " and give --accept-changes"
    )


def pinned_revision(workdir: str | Path, config: Any, kind: Kind = MODEL) -> str:
    """Return the commit that the run in a folder took its model or dataset from, if source and revision in the config
    are still the same; otherwise return that revision. So a run keeps its model when a branch moves on."""
    path = Path(workdir).expanduser() / MANIFEST
    origin = read_manifest(path).get(ORIGINS[kind], {}) if path.is_file() else {}
    source, revision = settings.get(config, kind.source), str(settings.get(config, kind.revision))
    same = (origin.get("source"), origin.get("revision")) == (source, revision)
    return str(origin.get("commit", "")) if same else revision
