"""The training loop: check, prepare, train, publish. The same lines run for both backends."""

import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from booth.common.errors import UserError
from booth.common.hosts import Hosts
from booth.common.signals import Stopped, StopRequest
from booth.config.values import resolved
from booth.data.doctor import advice
from booth.data.inputs import Inputs
from booth.diffusion.backend import Backend
from booth.models.adapters import Adapter, adapter_of, as_begun, said_of_unusual
from booth.models.export_folder import check_target, finish_interrupted
from booth.train.batches import Batches
from booth.train.checkpoints import Checkpoints, checkpoint_size
from booth.train.checks import checked, require_space
from booth.train.hosts import Leader, feed, follow, leading
from booth.train.metrics import Recorder, read_metrics
from booth.train.preparation import prepare
from booth.train.previews import Previews
from booth.train.result import result_folder, write_result
from booth.train.resume import Start, find_start
from booth.train.run_folder import RunDir

log = logging.getLogger("booth")


@dataclass(frozen=True)
class Run:
    """The results of a finished run."""

    path: Path
    pipeline: Path  # the exported diffusers pipeline, or the folder of the LoRA file
    metrics: list[dict[str, Any]]  # one dict per step, as in metrics.jsonl; a value that is not finite is None


class Publisher(Protocol):
    """The place that a finished run is pushed to."""

    def check(self) -> None:
        """Raise UserError if the place would not accept the run."""
        ...

    def push_finished(self, run: Path) -> None:
        """Push the run in a folder. Raise UserError if anything goes wrong."""
        ...


def train(
    backend_class: type[Backend],
    config: Any,
    workdir: str | Path,
    from_step: int | None = None,
    meant: Collection[str] | None = None,
    *,
    publisher: Publisher | None = None,
    refresh: Callable[[Path], object] = lambda run: None,
) -> Run:
    """Run or resume the whole job in `workdir`; if the run is finished, train no further step.

    `from_step` continues from that checkpoint instead of the newest; `meant` is as in `RunDir.open`. `refresh` is
    called with the run folder whenever there is something new to show. The `publisher` is asked first whether it would
    accept the finished run. If processes on several hosts were started together, the first of them leads and writes all
    files; the others return no metrics. Raise UserError for anything that the user can correct, and Stopped, a
    KeyboardInterrupt, if a signal asked the run to stop while it trained.
    """
    hosts = backend_class.hosts()
    if hosts and hosts.index:
        follow(backend_class, hosts)
        return Run(Path(workdir), Path(workdir) / "pipeline", [])
    with leading(hosts):
        if publisher:
            publisher.check()
        run = _train(backend_class, hosts, config, workdir, from_step, meant, refresh)
        if publisher:
            publisher.push_finished(run.path)
        return run


def _train(
    backend_class: type[Backend],
    hosts: Hosts | None,
    config: Any,
    workdir: str | Path,
    from_step: int | None,
    meant: Collection[str] | None,
    refresh: Callable[[Path], object],
) -> Run:
    began = time.perf_counter()
    config, inputs = checked(backend_class, resolved(config), workdir)
    for line in advice(config, inputs):
        log.info("advice: %s", line)
    with RunDir.open(workdir, backend_class.name, config, meant) as run:
        job = _begin(backend_class, config, inputs, run, from_step)
        if job.start.finished:
            run.record_changes()
            log.info("already at step %d of %d: nothing left to do", job.start.exported, config.train.steps)
            return job.left()

        ready = _prepare(backend_class, job, hosts)
        state = _update(job, ready, hosts, refresh, began)
        if job.config.samples.before_after:
            instances = [image.views for image in ready.batches.images["instance"]]
            ready.previews.write_before_after(ready.backend.models(state), ready.base_images, instances)
        write_result(job.config, inputs, run, job.adapter, ready.backend, state, job.last_step)
        refresh(run.path)
        return job.left()


@dataclass
class _Job:
    """What a run is asked to do, and how much of it is done already."""

    config: Any
    inputs: Inputs
    run: RunDir
    checkpoints: Checkpoints
    adapter: Adapter | None
    start: Start

    @property
    def last_step(self) -> int:
        return max(self.start.step, self.config.train.steps)

    @property
    def result(self) -> Path:
        return result_folder(self.run, self.adapter)

    def left(self) -> Run:
        return Run(self.run.path, self.result, read_metrics(self.run.metrics))


def _begin(backend_class: type[Backend], config: Any, inputs: Inputs, run: RunDir, from_step: int | None) -> _Job:
    """Compare what the user asks for with the run folder. Raise UserError if they do not fit together."""
    adapter = adapter_of(config, inputs.pipeline)
    finish_interrupted(run.pipeline)
    checkpoints = Checkpoints(run.checkpoints, run.id, checkpoint_size(config, inputs.pipeline))
    start = find_start(run, checkpoints, result_folder(run, adapter), config, from_step)
    if not adapter:
        check_target(inputs.pipeline, run.pipeline)
    log.info("%d photos, model %s: reading and hashing its weights", len(inputs.instances), config.model.source)
    run.check_manifest(inputs.fingerprint())
    for kind, origin in inputs.origins(config).items():
        run.record_origin(kind, origin)
    if start.finished:
        return _Job(config, inputs, run, checkpoints, adapter, start)

    if start.step:
        config = as_begun(config, lambda: checkpoints.names(backend_class, start.step))
        adapter, checkpoints.size = adapter_of(config, inputs.pipeline), checkpoint_size(config, inputs.pipeline)
    if adapter and (line := said_of_unusual(adapter.shapes)):
        log.info(line)
    require_space(config, inputs, run, checkpoints, start.step, adapter)
    run.record_changes()
    return _Job(config, inputs, run, checkpoints, adapter, start)


@dataclass
class _Ready:
    """Everything that training works with, on the device and on the host."""

    backend: Backend
    state: Any
    batches: Batches
    previews: Previews
    base_images: list[Any]  # the pictures of the untouched base, for the picture of before and after


def _prepare(backend_class: type[Backend], job: _Job, hosts: Hosts | None) -> _Ready:
    """Load the model, make the data for training, and restore the checkpoint that the run continues from."""
    config, start = job.config, job.start.step
    backend: Backend = backend_class(config)
    if hosts:
        backend = Leader(backend, hosts, config, job.run.checkpoints)
    models = backend.load(job.inputs.pipeline)
    # This comes before init: the optimizer is not in memory yet, and these images must come from the untouched base.
    batches = prepare(config, job.inputs, job.run, backend, models)
    previews = Previews(config, job.inputs, backend, job.run)
    base_images = previews.base_images(models) if config.samples.before_after else []
    state = backend.init(models)
    del models  # from here on the state owns the weights
    if start:
        state = job.checkpoints.restore(backend, state, start)
        job.checkpoints.set_aside_after(start)
        log.info("resumed from step %d", start)
        if _due(start, config.samples.every_steps) and not previews.grid_file(start).exists():
            previews.write_grid(
                backend.models(state), start
            )  # the run ended after it had saved the step, but before its previews were complete
    job.run.record_saved(start)
    if job.start.exported is not None and job.start.exported > job.last_step:
        log.warning("%s is of step %d; at the end, that of step %d replaces it", job.result, job.start.exported,
                    job.last_step)  # fmt: skip
    return _Ready(backend, state, batches, previews, base_images)


def _update(job: _Job, ready: _Ready, hosts: Hosts | None, refresh: Callable[[Path], object], began: float) -> Any:
    """Train up to the last step, with checkpoints and previews on the way, and return the state. Raise Stopped if a
    signal asked the run to stop."""
    config, run, backend, state = job.config, job.run, ready.backend, ready.state
    ready.state = None  # an update consumes it
    start, stop = job.start.step, config.train.steps

    def save_checkpoint(state: Any, done: int) -> None:
        job.checkpoints.save(backend, state, done, config.checkpoint.keep)
        run.record_saved(done)

    with Recorder(run, start, stop, ready.batches.rows, config.log.every_steps) as recorder, StopRequest() as request:
        for step, batch in feed(backend, config, ready.batches, start, stop):
            state, metrics = backend.train_step(state, batch)
            done = step + 1
            recorder.record(done, batch.learning_rate, metrics)
            if step == start:
                request.arm()
                if hosts:
                    hosts.pass_on(request)
                log.info("first step finished %.1f s after the start", time.perf_counter() - began)
            save = partial(save_checkpoint, state, done)
            previewed = _due(done, config.samples.every_steps)
            asked = request.number
            # If one of several hosts cannot make its pictures, no host can save after that.
            before_pictures = previewed and hosts is not None
            saved = _due(done, config.checkpoint.every_steps) or done == stop or before_pictures or asked > 0
            if saved:
                with recorder.paused():
                    save()
                    refresh(run.path)
            if asked:
                raise Stopped(done, asked)
            if previewed:
                pictures = (
                    nullcontext() if hosts else request.at_once()
                )  # several hosts always finish their pictures together
                with recorder.paused():
                    with _keeping(None if saved else save, done, request), pictures:
                        ready.previews.write_grid(backend.models(state), done)
                    refresh(run.path)
    return state


@contextmanager
def _keeping(save: Callable[[], None] | None, done: int, request: StopRequest) -> Iterator[None]:
    """Save the current update if pictures cannot be made, for example for lack of memory, or if a signal ends them."""
    try:
        yield
    except (UserError, KeyboardInterrupt) as error:
        if save:
            save()
        if isinstance(error, KeyboardInterrupt) and request.number:
            raise Stopped(done, request.number) from None
        raise


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
