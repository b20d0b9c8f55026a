"""What a run is, what it was begun with and how far it is saved: the record of a run folder, read.

RUN/manifest.json is the record, and nobody edits it. RUN/config.json has the same settings for people: to read, to
edit, to give back as --config. So a config is compared with the manifest, never with the file that it may come from.
Only runs of older versions, whose manifests have no settings, are known by their config.json.
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
RUN, SETTINGS = "run", "config"  # entries of the manifest: whose it is, and its flat config
ORIGINS = {MODEL: "model from the hub", DATASET: "images from the hub"}  # further ones

Manifest = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Record:
    """Whose run this is."""

    backend: str
    run_id: str
    config: dict[str, Any]  # flat, as `booth.config.values.flatten` gives it
    saved: int | None = None  # the newest step that was saved; None: of an older version, which did not note it


def find_record(workdir: Path) -> Record | None:
    """Return what the run in a folder was begun with; None where none has begun. Raise UserError for a folder of
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
    """Return the record of an existing run; but where things are is what config.json says, as they may have been moved
    since.

    Raise UserError if the folder is none.
    """
    path = Path(workdir)
    record = find_record(path)
    if record is None:
        raise UserError(f"{workdir} is not a run folder: it has no {CONFIG}")
    places = {name: value for name, value in written_config(path).items() if settings.is_place(name)}
    return Record(record.backend, record.run_id, {**record.config, **places}, record.saved)


def written_config(workdir: Path) -> dict[str, Any]:
    """Return the settings in config.json, whoever wrote them; {} if they cannot be read."""
    try:
        return dict(json.loads((workdir / CONFIG).read_text(encoding="utf-8"))["config"])
    except (KeyError, OSError, RecursionError, TypeError, ValueError):
        return {}


def recorded_config(workdir: str | Path) -> dict[str, Any] | None:
    """Return the flat config that the run in a folder was begun with; None where none has begun.

    Raise UserError for a folder of something else.
    """
    record = find_record(Path(workdir).expanduser())
    return record.config if record else None


def read_manifest(path: Path) -> Manifest:
    """Return a manifest.json; UserError if it is damaged."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return {name: dict(value) for name, value in manifest.items()}
    except (AttributeError, RecursionError, TypeError, ValueError) as error:  # no JSON, no object, other values
        raise _damaged(path) from error


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path} is damaged; put it back from a copy, or if photos, model and settings are still the same move it away"
        " and give --accept-changes"
    )


def pinned_revision(workdir: str | Path, config: Any, kind: Kind = MODEL) -> str:
    """Return the commit that the run in a folder took its model or dataset from, while source and revision in the
    config are the same; else that revision. So a run keeps what it began with when a branch moves on."""
    path = Path(workdir).expanduser() / MANIFEST
    origin = read_manifest(path).get(ORIGINS[kind], {}) if path.is_file() else {}
    source, revision = settings.get(config, kind.source), str(settings.get(config, kind.revision))
    same = (origin.get("source"), origin.get("revision")) == (source, revision)
    return str(origin.get("commit", "")) if same else revision
