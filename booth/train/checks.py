"""The checks before a run does any work: settings, inputs, and the space on its disks."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from booth.common import disk_space
from booth.common.disk_space import Need
from booth.common.errors import UserError
from booth.common.hosts import Hosts, from_first, on_all
from booth.config.auto import with_numbers
from booth.config.concepts import concepts_of
from booth.config.sources import DATASET, MODEL
from booth.config.trained import trained_networks
from booth.config.validation import validate_updates
from booth.config.values import flatten, is_remote, with_values
from booth.data.images import Example
from booth.data.input_rules import validate
from booth.data.inputs import Inputs, check_class_images, check_inputs
from booth.diffusion.backend import Backend
from booth.models.adapters import Adapter
from booth.models.export_folder import export_size
from booth.models.new_tokens import new_tokens
from booth.models.open import open_pipeline
from booth.models.tokenizer import load_tokenizer
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


def checked_by_first(
    hosts: Hosts, backend_class: type[Backend], config: Any, workdir: str | Path | None
) -> tuple[Any, Inputs]:
    """Return what `checked` returns on process 0, on every process. The others see no photo: only that process has
    them. Each opens the model by itself. Raise UserError if it is not the same everywhere."""
    if hosts.count == 1:
        return checked(backend_class, config, workdir)
    found: list[tuple[Any, Inputs]] = []

    def told_by_first() -> dict[str, Any]:
        found.append(checked(backend_class, config, workdir))
        config_there, inputs = found[0]
        return {
            "config": flatten(config_there),
            "commit": inputs.pipeline.model.commit if inputs.pipeline.model else "",
            "hashes": inputs.pipeline.hashes(),
            "instances": [example.as_plain() for example in inputs.instances],
            "sizes": inputs.sizes,
        }

    told = from_first(hosts, told_by_first)
    return on_all(hosts, lambda: found[0] if found else _as_told(told))


def _as_told(told: dict[str, Any]) -> tuple[Any, Inputs]:
    """Return config and inputs as process 0 has them. Raise UserError if the model here is another."""
    config = with_values(told["config"])
    source = config.model
    pipeline = open_pipeline(source.source, source.variant, told["commit"] or source.revision, config=source.config)
    here = pipeline.hashes()
    if changed := [name for name, sha256 in told["hashes"].items() if here.get(name) != sha256]:
        raise UserError(
            f"model.source={source.source!r} is a different model on this host ({', '.join(changed)}); give all hosts"
            " the same"
        )
    instances = [Example.of_plain(example) for example in told["instances"]]
    sizes = tuple((width, height) for width, height in told["sizes"])
    return config, Inputs(pipeline, load_tokenizer(pipeline, new_tokens(config)), instances, concepts_of(config), sizes)


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
