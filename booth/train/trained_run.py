"""A checkpoint of a run, together with the pipeline that it was trained from."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from booth.common.errors import UserError
from booth.config import values as settings
from booth.data.inputs import as_trained
from booth.diffusion.backend import Backend
from booth.models.adapters import adapter_of, as_begun
from booth.models.open import open_pipeline
from booth.models.pipeline import PipelineDir
from booth.train.checkpoints import Checkpoints
from booth.train.run_folder import checkpoint_folder
from booth.train.run_record import MANIFEST, pinned_revision, read_manifest, read_record

log = logging.getLogger("booth")


@dataclass(frozen=True)
class Trained:
    """A checkpoint of a run, and the pipeline it was trained from, with the run's noise schedule."""

    config: Any
    pipeline: PipelineDir
    checkpoints: Checkpoints
    step: int

    def restore(self, backend_class: type[Backend]) -> tuple[Backend, Any]:
        """Return (backend, state with the trained weights)."""
        backend = backend_class(self.config)
        state = backend.init(backend.load(self.pipeline), training=False)
        return backend, self.checkpoints.restore(backend, state, self.step)

    def tensors(self, backend_class: type[Backend]) -> Iterator[tuple[str, str, np.ndarray]]:
        """Yield (component, name, array) of all trained weights, with adapters merged."""
        backend, state = self.restore(backend_class)
        tensors = backend.tensors(state)
        if adapter := adapter_of(self.config, self.pipeline):
            tensors = adapter.merged(self.pipeline, tensors)
        return tensors


def find_trained(backend_class: type[Backend], run_dir: str, step: int | None, precision: str) -> Trained:
    """Return a run's checkpoint; the newest if `step` is None. Raise UserError if there is none, or if it belongs to
    the other backend."""
    record = read_record(run_dir)
    if record.backend != backend_class.name:
        raise UserError(f"--run {run_dir} was trained with {record.backend}booth; use that command for its checkpoints")
    folder = checkpoint_folder(Path(run_dir), record.config["checkpoint.dir"])
    checkpoints = Checkpoints(folder, record.run_id)
    newest = step is None
    step = checkpoints.find(step)
    if step is None:
        raise UserError(f"--run {run_dir} has no checkpoint in {folder}")
    if newest and record.saved and record.saved > step:
        log.warning("step %d was saved too, but its checkpoint is not in %s any more: using step %d", record.saved,
                    folder, step)  # fmt: skip
    config = settings.with_values(record.config)
    config.train.precision = precision
    config.train.attention = "auto"
    config.mesh.fsdp = 1  # the machine that trained may have had other devices
    config.train.optimizer = "adamw"  # no optimizer is needed, so its package is not needed either
    config.train.compile, config.memory.weights, config.memory.fit = "none", "fp32", ""
    config = as_begun(config, lambda: checkpoints.names(backend_class, step))
    pipeline = open_configured(config, pinned_revision(run_dir, config))
    _check_base(Path(run_dir), pipeline)
    return Trained(config, as_trained(pipeline, config), checkpoints, step)


def _check_base(run_dir: Path, pipeline: PipelineDir) -> None:
    """Raise UserError if the model is not the one that the run was trained from."""
    if not (run_dir / MANIFEST).is_file():
        raise UserError(f"--run {run_dir} has no {MANIFEST}, which says what it was trained from; put it back")
    recorded = read_manifest(run_dir / MANIFEST).get("model weights", {})
    changed = [name for name, sha256 in recorded.items() if pipeline.weights_hash(name) != sha256]
    if changed:
        raise UserError(
            f"model.source={pipeline.where} changed since {run_dir} was trained ({', '.join(changed)}); put it back"
        )


def open_configured(config: Any, revision: str, *, weights: bool = True) -> PipelineDir:
    model = config.model
    return open_pipeline(model.source, model.variant, revision, config=model.config, weights=weights)
