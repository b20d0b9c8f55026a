"""Checkpoints on disk or in a bucket: they are written as a whole, and old ones are deleted only after that."""

import hashlib
import json
import logging
import math
import re
import uuid
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from booth.common import disk_space
from booth.common.disk_space import readable
from booth.common.errors import ENDS, UserError, reading, said_by
from booth.common.files import STAGING_PREFIX, publish, remove, rename
from booth.common.hosts import ALONE, Hosts, from_first, on_all
from booth.config.trained import trained_networks
from booth.config.values import is_remote
from booth.diffusion.backend import Backend
from booth.diffusion.optimizers import state_bytes
from booth.models.adapters import adapter_of
from booth.models.pipeline import PipelineDir

log = logging.getLogger("booth")

_STEP = re.compile(r"step-(\d{6,})$")
_RECORD = "checkpoint.json"


_HEADER = 600  # bytes for the names of a tensor and of its states


def checkpoint_size(config: Any, pipeline: PipelineDir) -> int:
    """Return the largest size of a checkpoint in bytes: trained weights, optimizer states and the average."""
    size = 0
    if adapter := adapter_of(config, pipeline):
        size = sum(_tensor_size(config, shape, 4) for shape in adapter.tensor_shapes().values())
    else:
        for component in trained_networks(config):
            width = 2 if component == "unet" and config.memory.weights == "bf16" else 4
            for specs in pipeline.weights[component].specs.values():
                size += sum(_tensor_size(config, spec.shape, width) for spec in specs.values())
    if config.tokens.add:
        features = pipeline.component_config("unet")["cross_attention_dim"]
        size += _tensor_size(config, (len(config.tokens.add), features), 4)
    return size


def _tensor_size(config: Any, shape: tuple[int, ...], width: int) -> int:
    """Return the bytes of one trained tensor, kept in `width` bytes per number, with its states and its average."""
    count = math.prod(shape)
    average = 4 * count + _HEADER if config.ema.decay > 0 else 0
    return width * count + state_bytes(config.train.optimizer, shape) + _HEADER + average


class Checkpoints:
    """The checkpoints of one run in `folder`; `run_id` distinguishes them from another run's in the same folder.

    On a disk a checkpoint gets its name when it is complete. A bucket cannot rename: there a checkpoint is complete if
    it has its record, which is written last and deleted first.
    """

    def __init__(self, folder: Path, run_id: str, size: int = 0, hosts: Hosts = ALONE) -> None:
        """Take the folder. `size` is the size of one checkpoint in bytes, if new ones will be written.

        Of several `hosts` all save and restore, and process 0 does the rest.
        """
        self.folder, self.size, self._hosts = folder, size, hosts
        self._run_id = run_id
        self._in_bucket = is_remote(str(folder))

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, ascending."""
        named = [(_STEP.match(path.name), path) for path in self.folder.iterdir()] if self.folder.is_dir() else []
        whole = [match for match, path in named if match and (not self._in_bucket or (path / _RECORD).exists())]
        return sorted(int(match[1]) for match in whole)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def find(self, step: int | None = None) -> int | None:
        """Return `step` if it is given, else the newest step, or None if there is none. Raise UserError if the
        checkpoint does not exist or belongs to another run."""
        steps = self.steps()
        if step is None and not steps:
            return None
        if step is None:
            step = steps[-1]
        if step not in steps:
            have = ", ".join(map(str, steps)) or "none"
            raise UserError(f"step {step} has no checkpoint in {self.folder}; there are: {have}")
        try:
            owner = json.loads((self.path(step) / _RECORD).read_text(encoding="utf-8"))["run_id"]
        except (OSError, RecursionError, ValueError, TypeError, KeyError) as error:
            raise self._damaged(step, error) from error
        if owner != self._run_id:
            raise UserError(
                f"checkpoint.dir={str(self.folder)!r} holds checkpoints of another run; give an empty folder"
            )
        return step

    def identity(self, step: int) -> str:
        """Return a text that distinguishes this checkpoint from any other that the same run has, or had, at this step.

        It is made from the record, which has the hashes of the files. In a bucket the record has no hashes, so the time
        of the record is used too.
        """
        record = self.path(step) / _RECORD
        written = str(record.stat().mtime).encode() if self._in_bucket else b""  # type: ignore[attr-defined]  # epath's
        return hashlib.sha256(record.read_bytes() + written).hexdigest()

    def save(self, backend: Backend, state: Any, step: int, keep: int) -> None:
        """Write the checkpoint of a step, and only then delete all but the newest `keep`.

        Raise UserError if it cannot be written; if the disk has too little space, before anything is written.
        """
        first = self._hosts.index == 0
        try:
            with ExitStack() as published:
                # On all processes of a run this folder has the same name.
                name = from_first(self._hosts, lambda: published.enter_context(self._new(self.path(step), step)).name)
                folder = self.folder / name
                backend.save(state, folder)
                if first:
                    record = {"step": step, "run_id": self._run_id, "sha256": self._hashes(folder)}
                    (folder / _RECORD).write_bytes(json.dumps(record).encode())
        except UserError:
            raise
        except (OSError, SafetensorError, ValueError) as error:  # what the libraries raise for a full disk
            raise UserError(
                f"the checkpoint of step {step} cannot be written to {self.folder} ({' '.join(str(error).split())})"
                f"{self._room()}; make room there and give the same command again; earlier checkpoints are untouched"
            ) from error
        for old in self.steps()[:-keep] if first else ():
            self._delete(old)

    def _room(self) -> str:
        if self._in_bucket:
            return ""
        return f": {readable(self.size)} are needed and {readable(disk_space.free(self.folder))} are free"

    @contextmanager
    def _new(self, path: Path, step: int) -> Iterator[Path]:
        """Yield an empty folder that becomes a checkpoint if the block succeeds. Raise UserError if the disk has too
        little space."""
        if not self._in_bucket:
            disk_space.require(
                [disk_space.Need(f"the checkpoint of step {step}", self.folder, self.size)],
                "make room there and give the same command again; earlier checkpoints are untouched",
            )
        if self._in_bucket:
            path.rmtree(missing_ok=True)  # type: ignore[attr-defined]  # what a crash left
            yield path
        else:
            with publish(path) as staging:
                staging.mkdir()
                yield staging

    def _delete(self, step: int) -> None:
        """Delete a checkpoint so that a folder which is deleted only in part never counts as a checkpoint."""
        path = self.path(step)
        if self._in_bucket:
            (path / _RECORD).unlink()
            path.rmtree()  # type: ignore[attr-defined]
        else:
            doomed = self.folder / f"{STAGING_PREFIX}deleted-{step:06d}"
            remove(doomed)
            rename(path, doomed)
            remove(doomed)

    def restore(self, backend: Backend, state: Any, step: int) -> Any:
        """Return the state saved at a step, as `Backend.restore` does. Raise UserError if its files are damaged or do
        not fit."""
        whole = from_first(self._hosts, lambda: self._is_whole(step))
        try:
            return backend.restore(state, self.path(step))
        except (AssertionError, MemoryError, RuntimeError, UserError) as error:  # a full device raises RuntimeError
            if not isinstance(error, RecursionError):
                raise
            raise self._unfit(step, error, whole) from error
        except Exception as error:  # safetensors, Orbax and JSON raise many types, Orbax even Exception itself
            raise self._unfit(step, error, whole) from error
        except ENDS:
            raise
        except BaseException as error:  # a panic, for example when memory runs out
            raise UserError(
                f"checkpoint {self.path(step)} cannot be read ({said_by(error)}); if there is memory enough for it,"
                " continue from an older one with --from-step"
            ) from error

    def _is_whole(self, step: int) -> bool:
        """Return whether the files of a checkpoint are known to be those saved. Raise UserError if they are others."""
        wanted = json.loads((self.path(step) / _RECORD).read_text(encoding="utf-8")).get("sha256") or {}
        here = self._hashes(self.path(step)) if wanted else {}
        if changed := sorted(name for name, sha256 in wanted.items() if here.get(name) != sha256):
            raise self._damaged(step, ValueError(f"{', '.join(changed[:3])}: not what was saved"))
        return bool(wanted)

    def check_shared(self) -> None:
        """Raise UserError if a process does not see the folder, which all of them write to."""
        if self._hosts.count == 1:
            return
        name = from_first(self._hosts, self._probe)
        try:
            on_all(self._hosts, lambda: self._require(name))
        finally:
            if self._hosts.index == 0:
                (self.folder / name).unlink()

    def _probe(self) -> str:
        name = f"{STAGING_PREFIX}{uuid.uuid4().hex}"
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(b"")
        return name

    def _require(self, name: str) -> None:
        if not (self.folder / name).exists():
            raise UserError(
                f"this process does not see the checkpoint folder {self.folder}, which all write to; give a"
                " checkpoint.dir on a disk that they share"
            )

    def names(self, backend_class: type[Backend], step: int) -> Collection[str]:
        """Return the names of the trainable tensors saved at a step. Raise UserError if they cannot be read."""
        path = self.path(step)
        with reading(f"checkpoint {path} cannot be read", "put it back from a copy, or take an older one"):
            return backend_class.saved_names(path)

    def _hashes(self, folder: Path) -> dict[str, str]:
        """Return the sha256 of each file of a checkpoint; none in a bucket, which has checksums of its own."""
        hashes: dict[str, str] = {}
        for path in sorted(folder.rglob("*")) if not self._in_bucket else ():
            if path.is_file() and path.name != _RECORD:
                with path.open("rb") as file:
                    hashes[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
        return hashes

    def _damaged(self, step: int, error: Exception) -> UserError:
        older = [found for found in self.steps() if found < step]
        way = (
            f"continue from an older one with --from-step {older[-1]}" if older else "start again in another --workdir"
        )
        return UserError(f"checkpoint {self.path(step)} is damaged ({_line(error)}); put it back from a copy, or {way}")

    def _unfit(self, step: int, error: Exception, whole: bool) -> UserError:
        """Return the error for a checkpoint that does not fit; `whole`: its files are known to be those saved."""
        what = "is whole, but was saved" if whole else "cannot be read: it is damaged, or was saved"
        return UserError(
            f"checkpoint {self.path(step)} {what} with other settings, another model or other versions of the libraries"
            f" ({_line(error)}); continue with those"
        )

    def set_aside_after(self, step: int) -> None:
        """Rename newer checkpoints, so that the run continues from `step`; delete nothing."""
        for newer in (found for found in self.steps() if found > step):
            target, number = self.folder / f"superseded-{newer:06d}", 1
            while target.exists():
                number += 1
                target = target.with_name(f"superseded-{newer:06d}-{number}")
            if self._in_bucket:
                self.path(newer).rename(target)
            else:
                rename(self.path(newer), target)
            log.warning("step %d was trained before; its checkpoint is now %s", newer, target)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
