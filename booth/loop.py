"""THE training loop: from photos to a pipeline, the same lines for both backends."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from booth.backend import Backend
from booth.checkpoints import Checkpoints
from booth.config import resolved
from booth.errors import UserError
from booth.export import export, exported_step
from booth.hosts import Hosts, Leader, feed, follow, leading
from booth.metrics import Recorder, read_metrics
from booth.preparation import check_inputs, prepare
from booth.previews import Previews
from booth.rundir import RunDir, pinned_revision, recorded_config
from booth.stopping import Stopped, StopRequest
from booth.validation import validate

log = logging.getLogger("booth")


@dataclass(frozen=True)
class Run:
    """What a finished run left behind."""

    path: Path
    pipeline: Path  # the exported diffusers pipeline
    metrics: list[dict[str, Any]]  # one dict a step, as in metrics.jsonl; numbers, or None where none is finite


def train(backend_class: type[Backend], config: Any, workdir: str | Path, from_step: int | None = None) -> Run:
    """Runs or resumes the whole job in `workdir`; called again on a finished run it trains no further step.

    `from_step` continues from that checkpoint instead of the newest. Where processes on several hosts were started
    together, the first of them leads and has all files; the others have no metrics. Raises UserError for what the user
    can mend, and Stopped, a KeyboardInterrupt, where a signal asked it to stop while it trained.
    """
    hosts = backend_class.hosts()
    if hosts and hosts.index:
        follow(backend_class, hosts)
        return Run(Path(workdir), Path(workdir) / "pipeline", [])
    with leading(hosts):
        return _train(backend_class, hosts, config, workdir, from_step)


def _train(
    backend_class: type[Backend], hosts: Hosts | None, config: Any, workdir: str | Path, from_step: int | None
) -> Run:
    began = time.perf_counter()
    config = resolved(config)
    validate(config, backend_class.name, backend_class.capabilities)
    backend_class.check(config)
    inputs = check_inputs(config, pinned_revision(workdir, config))
    config = backend_class.fit(config, inputs.pipeline, recorded_config(workdir))
    with RunDir.open(workdir, backend_class.name, config) as run:
        checkpoints = Checkpoints(run.checkpoints, run.id)
        start = checkpoints.find(from_step) or 0
        log.info("%d photos, model %s: reading and hashing its weights", len(inputs.instances), config.model.source)
        run.check_manifest(inputs.fingerprint())
        run.record_origin(inputs.origin(config))
        run.record_changes()
        if start >= config.train.steps and exported_step(run.pipeline, config.export.precision) == start:
            log.info("already at step %d of %d: nothing left to do", start, config.train.steps)
            return Run(run.path, run.pipeline, read_metrics(run.metrics))

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

        stop = config.train.steps
        with Recorder(run, start, stop, batches.rows, config.log.every_steps) as recorder, StopRequest() as request:
            for step, batch in feed(backend, config, batches, start, stop):
                state, metrics = backend.train_step(state, batch)
                done = step + 1
                recorder.record(done, batch.learning_rate, metrics)
                if step == start:
                    request.arm()
                    log.info("first step finished %.1f s after the start", time.perf_counter() - began)
                # Where one of several hosts cannot make its pictures, none can save any more.
                previewed = _due(done, config.samples.every_steps) and hosts is not None
                if _due(done, config.checkpoint.every_steps) or done == stop or previewed or request.number:
                    with recorder.paused():
                        checkpoints.save(backend, state, done, config.checkpoint.keep)
                if request.number and done < stop:
                    raise Stopped(done, request.number)
                if _due(done, config.samples.every_steps):
                    with recorder.paused(), _keeping(checkpoints, backend, state, done, config.checkpoint.keep):
                        previews.write_grid(backend.models(state), done)

        if config.samples.before_after:
            previews.write_before_after(backend.models(state), base_images, batches.views["instance"])
        last = max(start, config.train.steps)
        export(inputs.pipeline, run.pipeline, backend.tensors(state), config.export.precision, step=last)
        log.info("pipeline written to %s", run.pipeline)
        return Run(run.path, run.pipeline, read_metrics(run.metrics))


@contextmanager
def _keeping(checkpoints: Checkpoints, backend: Backend, state: Any, done: int, keep: int) -> Iterator[None]:
    """Loses no update if pictures cannot be made, such as for want of memory."""
    try:
        yield
    except UserError:
        if checkpoints.find(None) != done:
            checkpoints.save(backend, state, done, keep)
        raise


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
