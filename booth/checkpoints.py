"""Checkpoints on disk or in a bucket: found, written whole, rotated only after the next one is complete."""

import json
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from booth import space
from booth.adapters import adapter_of
from booth.backend import Backend
from booth.config import is_remote, trained_components
from booth.errors import UserError
from booth.pipeline_dir import PipelineDir
from booth.rundir import STAGING_PREFIX, publish, remove, rename
from booth.space import readable

log = logging.getLogger("booth")

_STEP = re.compile(r"step-(\d{6,})$")
_RECORD = "checkpoint.json"


# Bytes of optimizer states for a trained number: one or two moments, in float32 or in 8 bits with a scale for each 256.
_STATES = {"adamw": 8.0, "adamw8bit": 2.04, "lion": 4.0, "lion8bit": 1.02, "adafactor": 0.1}


def checkpoint_size(config: Any, pipeline: PipelineDir) -> int:
    """Bytes of a checkpoint, at most: trained weights and optimizer states."""
    if adapter := adapter_of(config, pipeline):
        shapes = list(adapter.tensor_shapes().values())
    else:
        files = [specs for name in trained_components(config) for specs in pipeline.weights[name].specs.values()]
        shapes = [spec.shape for specs in files for spec in specs.values()]
    count = sum(map(math.prod, shapes))
    return int(count * ((2 if config.memory.weights == "bf16" else 4) + _STATES[config.train.optimizer]))


class Checkpoints:
    """The checkpoints of one run in `folder`; `run_id` tells them from another run's in a shared folder.

    On a disk a checkpoint gets its name once it is whole. A bucket renames nothing: there one is whole once it has its
    record, which is written last and deleted first.
    """

    def __init__(self, folder: Path, run_id: str, size: int = 0) -> None:
        """`size` is that of one checkpoint in bytes, if new ones are to be written."""
        self.folder, self.size = folder, size
        self._run_id = run_id
        self._in_bucket = is_remote(str(folder))

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        named = [(_STEP.match(path.name), path) for path in self.folder.iterdir()] if self.folder.is_dir() else []
        whole = [match for match, path in named if match and (not self._in_bucket or (path / _RECORD).exists())]
        return sorted(int(match[1]) for match in whole)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def find(self, step: int | None = None) -> int | None:
        """The step asked for, else the newest, else None. UserError if it is not there or of another run."""
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

    def save(self, backend: Backend, state: Any, step: int, keep: int) -> None:
        """Writes the checkpoint of a step, then deletes all but the newest `keep`: never the other way round.

        UserError if it cannot be written, before anything is if the disk has too little space.
        """
        if not self._in_bucket:
            space.require(
                [space.Need(f"the checkpoint of step {step}", self.folder, self.size)],
                "make room there and give the same command again; earlier checkpoints are untouched",
            )
        try:
            with self._new(self.path(step)) as folder:
                backend.save(state, folder)
                (folder / _RECORD).write_bytes(json.dumps({"step": step, "run_id": self._run_id}).encode())
        except UserError:  # another host's reason
            raise
        except (OSError, SafetensorError, ValueError) as error:  # what the libraries raise for a full disk
            raise UserError(
                f"the checkpoint of step {step} cannot be written to {self.folder} ({' '.join(str(error).split())})"
                f"{self._room()}; make room there and give the same command again; earlier checkpoints are untouched"
            ) from error
        for old in self.steps()[:-keep]:
            self._delete(old)

    def _room(self) -> str:
        if self._in_bucket:
            return ""
        return f": {readable(self.size)} are needed and {readable(space.free(self.folder))} are free"

    @contextmanager
    def _new(self, path: Path) -> Iterator[Path]:
        """An empty folder that becomes a checkpoint if the block succeeds."""
        if self._in_bucket:
            path.rmtree(missing_ok=True)  # type: ignore[attr-defined]  # what a crash left
            yield path
        else:
            with publish(path) as staging:
                staging.mkdir()
                yield staging

    def _delete(self, step: int) -> None:
        """Half a deleted folder must not count as a checkpoint."""
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
        """The state saved at a step, as `Backend.restore` gives it. UserError if its files are damaged."""
        try:
            return backend.restore(state, self.path(step))
        except RecursionError as error:
            raise self._damaged(step, error) from error
        except (AssertionError, MemoryError, RuntimeError, UserError):  # a full device is a RuntimeError
            raise
        except Exception as error:  # safetensors, Orbax and JSON raise what they like, Orbax Exception itself
            raise self._damaged(step, error) from error

    def _damaged(self, step: int, error: Exception) -> UserError:
        older = [found for found in self.steps() if found < step]
        way = f"go on from an older one with --from-step {older[-1]}, or delete it" if older else "delete it"
        return UserError(f"checkpoint {self.path(step)} is damaged ({' '.join(str(error).split())[:200]}); {way}")

    def set_aside_after(self, step: int) -> None:
        """Moves newer checkpoints out of the way, so that the run goes on from `step`; deletes nothing."""
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
