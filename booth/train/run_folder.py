"""The run folder: its layout, its owner, and how files get their final names.

    RUN/manifest.json          the record: backend, settings, the newest saved step; sha256 of every photo, class image
                               and source network, hub commit, library versions
    RUN/config.json            the settings again, for the user to edit and to give back as --config
    RUN/class_images/          generated class images and their manifest (prior.images may point elsewhere)
    RUN/cache/                 VAE moments by content
    RUN/checkpoints/step-000400/   (checkpoint.dir may point elsewhere: to a folder that carries this run's id)
    RUN/samples/step-000400.png    previews; before_after.png, and in base/ the base's pictures that it needs
    RUN/metrics.jsonl, RUN/tensorboard/
    RUN/report.html            a page that shows the run
    RUN/pipeline/              the exported diffusers pipeline; RUN/lora/ if an adapter was trained,
                               RUN/tokens/ has the embeddings of new tokens

A file that has its final name is complete: files are staged beside it, synced to disk, and renamed.
"""

import importlib.metadata
import json
import logging
import platform
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from booth.common.errors import UserError
from booth.common.files import STAGING_PREFIX, remove, write_text
from booth.common.hosts import ALONE, Hosts, from_first
from booth.config import values as settings
from booth.config.changes import changes
from booth.config.sources import Kind
from booth.train.ownership import CLAIM, check_ours, owner, same_run, strangers
from booth.train.run_record import (
    CONFIG,
    MANIFEST,
    ORIGINS,
    RUN,
    SETTINGS,
    Manifest,
    Record,
    find_record,
    read_manifest,
    written_config,
)

log = logging.getLogger("booth")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the run in a folder. Raise UserError if another process holds it."""
    try:
        # The operating system releases the lock when the process ends, so a crash leaves nothing to clean up.
        with filelock.FileLock(path / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise UserError(f"--workdir {path}: another process is using this run; wait for it or choose another") from None


class RunDir:
    """One run's folder, locked while it is open.

    Of several `hosts`, process 0 alone reads and writes there, but for the checkpoints; the others know its paths.
    """

    def __init__(self, path: Path, backend: str, config: Any, hosts: Hosts) -> None:
        self.path = path
        self.hosts = hosts
        self.id = ""
        self._flat = json.loads(json.dumps(settings.flatten(config)))  # tuples become lists, as they are when read back
        self._before: Record | None = None
        self._backend = backend
        self.class_images = path / "class_images"
        self.cache = path / "cache"
        self.samples = path / "samples"
        self.base_samples = self.samples / "base"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.pipeline = path / "pipeline"
        self.lora = path / "lora"
        self.tokens = path / "tokens"
        self._elsewhere = bool(config.checkpoint.dir)
        self.checkpoints = checkpoint_folder(path, config.checkpoint.dir)

    @classmethod
    @contextmanager
    def open(
        cls,
        workdir: str | Path,
        backend: str,
        config: Any,
        meant: Collection[str] | None = None,
        hosts: Hosts = ALONE,
    ) -> Iterator["RunDir"]:
        """Create the folder, or open that of the same run again; hold its lock until the block ends.

        `meant` are the fields that the user changes on purpose, of those that change a run's result; None means all
        that may change. Raise UserError for a folder of another run, a folder that is no run, and a run that another
        process is using.
        """
        if hosts.count > 1:  # the working folders of the processes may differ
            workdir = from_first(hosts, lambda: str(Path(workdir).expanduser().absolute()))
        run = cls(Path(workdir).expanduser(), backend, config, hosts)
        with ExitStack() as lock:
            run.id = from_first(hosts, lambda: run._take(lock, meant))
            yield run

    def _take(self, lock: ExitStack, meant: Collection[str] | None) -> str:
        """Lock the folder, make it this run's, and remove what a crash left. Return the run's id."""
        check_ours(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        lock.enter_context(locked(self.path))
        self._before = same_run(self.path, self._backend, self._flat, meant)
        self.id = self._before.run_id if self._before else uuid.uuid4().hex
        self._check_owner()
        if self._before is None:
            self._write_record()
        self._claim()
        written_to = [self.path, self.cache, self.class_images, self.samples, self.base_samples]
        if not settings.is_remote(str(self.checkpoints)):
            written_to.append(self.checkpoints)
        for folder in written_to:
            for stale in folder.glob(STAGING_PREFIX + "*"):
                remove(stale)
        return self.id

    @property
    def is_written_here(self) -> bool:
        """Whether this process writes the run's files."""
        return self.hosts.index == 0

    @property
    def saved(self) -> int | None:
        """The newest step that was saved; None if an older version of booth, which did not record it, made the run."""
        record = find_record(self.path)
        return record.saved if record else 0

    def record_saved(self, step: int) -> None:
        """Record the newest saved step. If its checkpoint is missing later, it is known to be lost."""
        manifest = self._manifest()
        if manifest[RUN].get("saved") != step:
            self._write_manifest({**manifest, RUN: {**manifest[RUN], "saved": step}})

    def record_changes(self) -> None:
        """Write changed fields into the record. Call it after all checks that can refuse the run."""
        changed = changes(self._before.config, self._flat) if self._before else {}
        for name, (old, new) in changed.items():
            log.warning("resuming with %s=%r (was %r)", name, new, old)
        self._say_what_was_edited()
        self._write_record()

    def _say_what_was_edited(self) -> None:
        """Warn of settings in config.json that are neither those of the record nor those given now."""
        written = written_config(self.path)
        if not self._before or not written:
            return
        recorded, now = changes(written, self._before.config), changes(written, self._flat)
        if edited := [f"{name}={now[name][1]!r}, not {now[name][0]!r}" for name in recorded if name in now]:
            log.warning("%s is restored, since values edited there were not given to this command: %s",
                        self.path / CONFIG, ", ".join(edited))  # fmt: skip

    def _write_record(self) -> None:
        manifest = self._manifest()
        run = {"backend": self._backend, "id": self.id, **({} if self._before else {"saved": 0})}
        after = {**manifest, RUN: {**run, **manifest.get(RUN, {})}, SETTINGS: self._flat}
        if after != manifest:
            self._write_manifest(after)
        record = {"backend": self._backend, "run_id": self.id, "config": self._flat}
        text, path = json.dumps(record, indent=1) + "\n", self.path / CONFIG
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)

    def _manifest(self) -> Manifest:
        path = self.path / MANIFEST
        return read_manifest(path) if path.is_file() else {"versions": _versions()}

    def _write_manifest(self, manifest: Manifest) -> None:
        write_text(self.path / MANIFEST, json.dumps(manifest, indent=1) + "\n")

    def _check_owner(self) -> None:
        """Raise UserError if the checkpoint folder does not belong to this run, which writes and deletes there."""
        name, found = f"checkpoint.dir={str(self.checkpoints)!r}", owner(self.checkpoints)
        if found is not None:
            if found != self.id:
                raise UserError(f"{name} holds checkpoints of another run; give an empty folder")
        elif self._elsewhere and (self.metrics.exists() if self.saved is None else self.saved):
            raise UserError(
                f"{name} does not hold this run's checkpoints; put them there (is its disk mounted?), or give the"
                " checkpoint.dir that does"
            )
        elif self._elsewhere and strangers(self.checkpoints):
            raise UserError(f"{name} holds other files than this run's checkpoints; give a new or empty folder")

    def _claim(self) -> None:
        """Mark a checkpoint folder outside the run folder as this run's; if two runs do so at once, one gets it."""
        if self._elsewhere:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            claim = self.checkpoints / CLAIM
            if settings.is_remote(str(claim)):
                if not claim.exists():
                    claim.write_bytes(self.id.encode())
            else:
                with suppress(FileExistsError), claim.open("x", encoding="utf-8", newline="") as file:
                    file.write(self.id)
            self._check_owner()

    def check_manifest(self, inputs: Mapping[str, Mapping[str, str]], may_grow: bool = False) -> None:
        """Record the hashes of the run's inputs, or compare them with those recorded. Raise UserError if one changed.

        With `may_grow`, only inputs that are in both are compared, and new ones are recorded.
        """
        before = self._manifest()
        after = dict(before)
        for name, value in inputs.items():
            old = before.get(name, value)
            compared = old.keys() & value.keys() if may_grow else old.keys() | value.keys()
            if changed := sorted(key for key in compared if old.get(key) != value.get(key)):
                raise UserError(
                    f"--workdir {self.path}: {name} changed since this run began ({', '.join(changed)});"
                    " put them back, or start a new run in another --workdir"
                )
            after[name] = {**old, **value}
        if after != before:
            self._write_manifest(after)

    def recorded(self, name: str) -> dict[str, str]:
        """Return the hashes that `check_manifest` has recorded under a name, {} if there are none."""
        return self._manifest().get(name, {})

    def record_origin(self, kind: Kind, origin: Mapping[str, str]) -> None:
        """Record in manifest.json where a hub model or dataset came from ({}: not from the hub).

        Unlike the hashes of `check_manifest`, this may change: only the content must stay the same.
        """
        manifest, name = self._manifest(), ORIGINS[kind]
        if manifest.get(name, {}) != origin:
            self._write_manifest({**manifest, name: dict(origin)})


def checkpoint_folder(workdir: Path, checkpoint_dir: str) -> Path:
    """Return the folder of a run's checkpoints: in the run folder, or `checkpoint.dir`, which may be in a bucket."""
    if settings.is_remote(checkpoint_dir):
        from etils import epath  # Orbax installs it; checkpoints in a bucket need Orbax too

        return epath.Path(checkpoint_dir)
    return Path(checkpoint_dir) if checkpoint_dir else workdir / "checkpoints"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("booth", "numpy", "pillow", "transformers", "jax", "flax", "optax", "torch", "diffusers"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
