"""THE training loop: from photos to a pipeline, the same lines for both backends."""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from booth.commands.push import Destination
from booth.common import disk_space
from booth.common.disk_space import Need
from booth.common.errors import UserError
from booth.common.signals import Stopped, StopRequest
from booth.config.auto import with_numbers
from booth.config.concepts import concepts_of
from booth.config.trained import trained_networks
from booth.config.validation import validate, validate_updates
from booth.config.values import is_remote, resolved
from booth.data.doctor import advice
from booth.data.inputs import Inputs, as_trained, check_class_images, check_inputs
from booth.diffusion.backend import Backend
from booth.models import lora_file
from booth.models.adapters import Adapter, adapter_of, as_begun, said_of_unusual
from booth.models.export_folder import check_target, export, export_size, finish_interrupted
from booth.models.hub import DATASET, MODEL
from booth.models.lora_file import write_lora
from booth.models.new_tokens import enlarged, keep_embeddings, new_tokens
from booth.report import write
from booth.train.checkpoints import Checkpoints, checkpoint_size
from booth.train.hosts import Hosts, Leader, feed, follow, leading
from booth.train.metrics import Recorder, read_metrics
from booth.train.preparation import needed_space, prepare
from booth.train.previews import Previews
from booth.train.resume import find_start
from booth.train.run_folder import RunDir
from booth.train.run_record import pinned_revision, recorded_config

log = logging.getLogger("booth")


@dataclass(frozen=True)
class Run:
    """What a finished run left behind."""

    path: Path
    pipeline: Path  # the exported diffusers pipeline, or the folder of the LoRA file
    metrics: list[dict[str, Any]]  # one dict a step, as in metrics.jsonl; numbers, or None where none is finite


def train(
    backend_class: type[Backend],
    config: Any,
    workdir: str | Path,
    from_step: int | None = None,
    meant: Collection[str] | None = None,
    push_to: Destination | None = None,
) -> Run:
    """Runs or resumes the whole job in `workdir`; called again on a finished run it trains no further step.

    `from_step` continues from that checkpoint instead of the newest; `meant` is as in `RunDir.open`.
    With `push_to` the finished run goes to the hub, which is asked first whether it would take it. Where processes on
    several hosts were started together, the first of them leads and has all files; the others have no metrics. Raises
    UserError for what the user can mend, and Stopped, a KeyboardInterrupt, where a signal asked it to stop while it
    trained.
    """
    hosts = backend_class.hosts()
    if hosts and hosts.index:
        follow(backend_class, hosts)
        return Run(Path(workdir), Path(workdir) / "pipeline", [])
    with leading(hosts):
        if push_to:
            push_to.check()
        run = _train(backend_class, hosts, config, workdir, from_step, meant)
        if push_to:
            push_to.push_finished(run.path)
        return run


def _train(
    backend_class: type[Backend],
    hosts: Hosts | None,
    config: Any,
    workdir: str | Path,
    from_step: int | None,
    meant: Collection[str] | None,
) -> Run:
    began = time.perf_counter()
    config, inputs = checked(backend_class, resolved(config), workdir)
    for line in advice(config, inputs):
        log.info("advice: %s", line)
    adapter = adapter_of(config, inputs.pipeline)
    with RunDir.open(workdir, backend_class.name, config, meant) as run:
        finish_interrupted(run.pipeline)
        checkpoints = Checkpoints(run.checkpoints, run.id, checkpoint_size(config, inputs.pipeline))
        exported = run.lora if adapter else run.pipeline
        begin = find_start(run, checkpoints, exported, config, from_step)
        start = begin.step
        if not adapter:
            check_target(inputs.pipeline, exported)
        log.info("%d photos, model %s: reading and hashing its weights", len(inputs.instances), config.model.source)
        run.check_manifest(inputs.fingerprint())
        for kind, origin in inputs.origins(config).items():
            run.record_origin(kind, origin)
        if begin.finished:
            run.record_changes()
            log.info("already at step %d of %d: nothing left to do", begin.exported, config.train.steps)
            return Run(run.path, exported, read_metrics(run.metrics))

        if start:
            config = as_begun(config, lambda: checkpoints.names(backend_class, start))
            adapter, checkpoints.size = adapter_of(config, inputs.pipeline), checkpoint_size(config, inputs.pipeline)
        if adapter and (line := said_of_unusual(adapter.shapes)):
            log.info(line)
        _require_space(config, inputs, run, checkpoints, start, adapter)
        run.record_changes()
        backend: Backend = backend_class(config)
        if hosts:
            backend = Leader(backend, hosts, config, run.checkpoints)
        models = backend.load(inputs.pipeline)
        # Before init: the optimizer is not in memory yet, and these images must come from the untouched base.
        batches = prepare(config, inputs, run, backend, models)
        previews = Previews(config, inputs, backend, run)
        base_images = previews.base_images(models) if config.samples.before_after else []
        state = backend.init(models)
        del models  # the state owns the weights from here on
        if start:
            state = checkpoints.restore(backend, state, start)
            checkpoints.set_aside_after(start)
            log.info("resumed from step %d", start)
            if _due(start, config.samples.every_steps) and not previews.grid_file(start).exists():
                previews.write_grid(backend.models(state), start)  # it was saved, and then ended in the middle of them
        run.record_saved(start)
        if begin.exported is not None and begin.exported > max(start, config.train.steps):
            log.warning("%s is of step %d; in the end that of step %d takes its place", exported, begin.exported,
                        max(start, config.train.steps))  # fmt: skip

        def save_checkpoint(state: Any, done: int) -> None:
            checkpoints.save(backend, state, done, config.checkpoint.keep)
            run.record_saved(done)

        stop = config.train.steps
        with Recorder(run, start, stop, batches.rows, config.log.every_steps) as recorder, StopRequest() as request:
            for step, batch in feed(backend, config, batches, start, stop):
                state, metrics = backend.train_step(state, batch)
                done = step + 1
                recorder.record(done, batch.learning_rate, metrics)
                if step == start:
                    request.arm()
                    if hosts:
                        hosts.pass_on(request)
                    log.info("first step finished %.1f s after the start", time.perf_counter() - began)
                save = partial(save_checkpoint, state, done)
                # Where one of several hosts cannot make its pictures, none can save any more.
                previewed = _due(done, config.samples.every_steps) and hosts is not None
                asked = request.number
                saved = _due(done, config.checkpoint.every_steps) or done == stop or previewed or asked > 0
                if saved:
                    with recorder.paused():
                        save()
                        write.refresh(run.path)
                if asked:
                    raise Stopped(done, asked)
                if _due(done, config.samples.every_steps):
                    pictures = nullcontext() if hosts else request.at_once()  # of several hosts all finish them
                    with recorder.paused():
                        with _keeping(None if saved else save, done, request), pictures:
                            previews.write_grid(backend.models(state), done)
                        write.refresh(run.path)

        if config.samples.before_after:
            previews.write_before_after(
                backend.models(state), base_images, [image.views for image in batches.images["instance"]]
            )
        last, precision = max(start, config.train.steps), config.export.precision
        tensors, added = backend.tensors(state), new_tokens(config)
        if added:
            tensors = keep_embeddings(run.tokens, added, tensors)
        if adapter:
            write_lora(exported, adapter, tensors, precision, last)
            log.info(
                "LoRA written to %s, for diffusers; WebUIs (ComfyUI would load half of this one) get theirs by"
                " `export --format kohya`, and `export` makes a pipeline with it",
                exported / lora_file.FILE,
            )
            if config.train.zero_terminal_snr:
                log.info(lora_file.ZERO_SNR)
        else:
            tensors = enlarged(inputs.pipeline, tensors) if added else tensors
            export(as_trained(inputs.pipeline, config), exported, tensors, precision, last, added)
            log.info("pipeline written to %s", exported)
        write.refresh(run.path)
        log.info("to look at: %s", run.path / write.FILE)
        return Run(run.path, exported, read_metrics(run.metrics))


def checked(backend_class: type[Backend], config: Any, workdir: str | Path | None) -> tuple[Any, Inputs]:
    """The resolved config with all that is chosen for the run in `workdir`, and what that is made from.

    Starts no device and writes nothing. UserError for all that can be refused by then.
    """
    validate(config, backend_class.name, backend_class.capabilities)
    backend_class.check(config)
    kept = [pinned_revision(workdir, config, kind) for kind in (MODEL, DATASET)] if workdir else []
    inputs = check_inputs(config, *kept)
    config = with_numbers(config, len(inputs.instances))
    validate_updates(config)
    config = backend_class.fit(config, inputs.pipeline, recorded_config(workdir) if workdir else None)
    inputs = replace(inputs, concepts=concepts_of(config))  # with what was chosen
    check_class_images(inputs)
    return config, inputs


@contextmanager
def _keeping(save: Callable[[], None] | None, done: int, request: StopRequest) -> Iterator[None]:
    """Loses no update if pictures cannot be made, such as for want of memory, or are not waited for."""
    try:
        yield
    except (UserError, KeyboardInterrupt) as error:
        if save:
            save()
        if isinstance(error, KeyboardInterrupt) and request.number:
            raise Stopped(done, request.number) from None
        raise


def _require_space(
    config: Any, inputs: Inputs, run: RunDir, checkpoints: Checkpoints, start: int, adapter: Adapter | None
) -> None:
    """UserError if what the run has yet to write does not fit on its disks."""
    exported = export_size(inputs.pipeline, config.export.precision, trained_networks(config))
    if adapter:
        exported = 4 * sum(map(math.prod, adapter.tensor_shapes().values()))
    needs = [*needed_space(config, inputs, run), Need("the LoRA" if adapter else "the pipeline", run.path, exported)]
    if not is_remote(str(run.checkpoints)) and start < config.train.steps:
        every = config.checkpoint.every_steps
        more = 1 + ((config.train.steps - start - 1) // every if every else 0)
        there = len(checkpoints.steps())
        # One more than are kept: the oldest is deleted when the newest is complete.
        most = max(1, min(there + more, config.checkpoint.keep + 1) - there)
        needs.append(Need(f"{most} checkpoints", run.checkpoints, most * checkpoints.size))
    disk_space.require(needs, "make room, lower checkpoint.keep, or choose another --workdir or checkpoint.dir")


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
