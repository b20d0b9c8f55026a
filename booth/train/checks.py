"""The checks before a run does any work: settings, inputs, and the space on its disks."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from booth.common import disk_space
from booth.common.disk_space import Need
from booth.config.auto import with_numbers
from booth.config.concepts import concepts_of
from booth.config.sources import DATASET, MODEL
from booth.config.trained import trained_networks
from booth.config.validation import validate_updates
from booth.config.values import is_remote
from booth.data.input_rules import validate
from booth.data.inputs import Inputs, check_class_images, check_inputs
from booth.diffusion.backend import Backend
from booth.models.adapters import Adapter
from booth.models.export_folder import export_size
from booth.train.checkpoints import Checkpoints
from booth.train.preparation import needed_space
from booth.train.run_folder import RunDir
from booth.train.run_record import pinned_revision, recorded_config


def checked(backend_class: type[Backend], config: Any, workdir: str | Path | None) -> tuple[Any, Inputs]:
    """Return the complete config of the run in `workdir`, with all automatic choices made, and the run's inputs.

    Start no device and write nothing. Raise UserError for anything that can be refused by then.
    """
    validate(config, backend_class.name)
    backend_class.check(config)
    kept = [pinned_revision(workdir, config, kind) for kind in (MODEL, DATASET)] if workdir else []
    inputs = check_inputs(config, *kept)
    config = with_numbers(config, len(inputs.instances))
    validate_updates(config)
    config = backend_class.fit(config, inputs.pipeline, recorded_config(workdir) if workdir else None)
    inputs = replace(inputs, concepts=concepts_of(config))  # with the choices made
    check_class_images(inputs)
    return config, inputs


def require_space(
    config: Any, inputs: Inputs, run: RunDir, checkpoints: Checkpoints, start: int, adapter: Adapter | None
) -> None:
    """Raise UserError if the files that the run will still write do not fit on its disks."""
    exported = export_size(inputs.pipeline, config.export.precision, trained_networks(config))
    if adapter:
        exported = 4 * sum(map(math.prod, adapter.tensor_shapes().values()))
    needs = [*needed_space(config, inputs, run), Need("the LoRA" if adapter else "the pipeline", run.path, exported)]
    if not is_remote(str(run.checkpoints)) and start < config.train.steps:
        every = config.checkpoint.every_steps
        more = 1 + ((config.train.steps - start - 1) // every if every else 0)
        there = len(checkpoints.steps())
        # One more checkpoint than is kept: the oldest is deleted only when the newest is complete.
        most = max(1, min(there + more, config.checkpoint.keep + 1) - there)
        needs.append(Need(f"{most} checkpoints", run.checkpoints, most * checkpoints.size))
    disk_space.require(needs, "make room, lower checkpoint.keep, or choose another --workdir or checkpoint.dir")
