"""The step that a run continues from, and whether anything is left to do. Saved work is never redone unasked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from booth.common.errors import UserError
from booth.models import lora_file
from booth.models.export_folder import exported_step
from booth.models.new_tokens import file_names, new_tokens
from booth.models.open import open_pipeline
from booth.train.checkpoints import Checkpoints
from booth.train.run_folder import RunDir


@dataclass(frozen=True)
class Start:
    """`step` is that of the checkpoint that a run continues from, or 0; `finished` says whether everything asked for
    exists already; `exported` is the step of the existing export."""

    step: int
    exported: int | None
    finished: bool


def find_start(
    run: RunDir, checkpoints: Checkpoints, exported: Path, config: Any, from_step: int | None = None
) -> Start:
    """Return the start from the newest checkpoint, or from that of `from_step`.

    Raise UserError if the newest checkpoint is older than the newest saved step: to continue from it would replace the
    result by one with fewer steps. `from_step` says that this is meant.
    """
    step = checkpoints.find(from_step) or 0
    before = exported_step(exported)
    whole = exported_step(exported, config.export.precision) is not None and _is_whole(run, exported, config)
    saved = _saved(run, before)
    if from_step is None and step < saved:
        if whole and before == config.train.steps:
            return Start(step, before, True)
        there = f"the newest there is of step {step}" if step else "there is none"
        older = f", continue from step {step} with --from-step {step}" if step else ""
        raise UserError(
            f"--workdir {run.path} was saved at step {saved}, but that checkpoint is not in {checkpoints.folder} any"
            f" more ({there}); put it back{older}, or give another --workdir to start again"
        )
    return Start(step, before, step >= config.train.steps and whole and before == step)


def _saved(run: RunDir, exported: int | None) -> int:
    """Return the newest step that is known to have been saved. Older versions did not record it; then it is the step of
    the export."""
    return (exported or 0) if run.saved is None else run.saved


def _is_whole(run: RunDir, exported: Path, config: Any) -> bool:
    """Return whether all files of a finished run exist."""
    if not all((run.tokens / name).is_file() for name in file_names(new_tokens(config))):
        return False
    if exported == run.lora:
        return (exported / lora_file.FILE).is_file()
    try:
        open_pipeline(exported.absolute())  # "run/pipeline" might be an id on the hub
    except UserError:
        return False
    return True
