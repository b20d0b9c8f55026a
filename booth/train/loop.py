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
from booth.common.hosts import Hosts, ended_together, from_first, on_all, stop_asked
from booth.common.signals import Stopped, StopRequest
from booth.config.values import resolved
from booth.data.doctor import advice
from booth.data.inputs import Inputs
from booth.diffusion.backend import Backend, Batch
from booth.models.adapters import Adapter, adapter_of, as_begun, said_of_unusual
from booth.models.export_folder import check_target, finish_interrupted
from booth.train.batches import Batches, made_ahead
from booth.train.checkpoints import Checkpoints, checkpoint_size
from booth.train.checks import checked_by_first, require_space
from booth.train.learning_rate import learning_rates
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
    accept the finished run. If several processes were started together for the run, all come here: the first has the
    photos and writes all files, and the others return no metrics. Raise UserError for anything that the user can
    correct, and Stopped, a KeyboardInterrupt, if a signal asked the run to stop while it trained.
    """
    hosts = backend_class.hosts()
    with ended_together(hosts):
        if publisher:
            from_first(hosts, publisher.check)
        shown = refresh if hosts.index == 0 else _nothing
        run = _train(backend_class, hosts, config, workdir, from_step, meant, shown)
        if publisher:
            from_first(hosts, partial(publisher.push_finished, run.path))
        return run


def _nothing(run: Path) -> None:
    """Show nothing: another process does."""


def _train(
    backend_class: type[Backend],
    hosts: Hosts,
    config: Any,
    workdir: str | Path,
    from_step: int | None,
    meant: Collection[str] | None,
    refresh: Callable[[Path], object],
) -> Run:
    began = time.perf_counter()
    config, inputs = checked_by_first(hosts, backend_class, resolved(config), workdir)
    for line in advice(config, inputs) if hosts.index == 0 else ():
        log.info("advice: %s", line)
    with RunDir.open(workdir, backend_class.name, config, meant, hosts) as run:
        job = _begin(backend_class, config, inputs, run, from_step)
        if job.start.finished:
            log.info("already at step %d of %d: nothing left to do", job.start.exported, config.train.steps)
            return job.left()

        ready = _prepare(backend_class, job)
        state = _update(job, ready, refresh, began)
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
        metrics = read_metrics(self.run.metrics) if self.run.is_written_here else []
        return Run(self.run.path, self.result, metrics)


def _begin(backend_class: type[Backend], config: Any, inputs: Inputs, run: RunDir, from_step: int | None) -> _Job:
    """Compare what the user asks for with the run folder. Raise UserError if they do not fit together."""
    adapter = adapter_of(config, inputs.pipeline)
    checkpoints = Checkpoints(run.checkpoints, run.id, checkpoint_size(config, inputs.pipeline), run.hosts)
    log.info("%d photos, model %s: reading and hashing its weights", len(inputs.instances), config.model.source)
    start = Start(*from_first(run.hosts, partial(_find, config, inputs, run, checkpoints, adapter, from_step)))
    if start.finished:
        return _Job(config, inputs, run, checkpoints, adapter, start)

    if start.step:
        config = as_begun(config, lambda: checkpoints.names(backend_class, start.step))
        adapter, checkpoints.size = adapter_of(config, inputs.pipeline), checkpoint_size(config, inputs.pipeline)
    if adapter and (line := said_of_unusual(adapter.shapes)):
        log.info(line)

    def record() -> None:
        require_space(config, inputs, run, checkpoints, start.step, adapter)
        run.record_changes()

    from_first(run.hosts, record)
    return _Job(config, inputs, run, checkpoints, adapter, start)


def _find(
    config: Any, inputs: Inputs, run: RunDir, checkpoints: Checkpoints, adapter: Adapter | None, from_step: int | None
) -> list[Any]:
    """Return the fields of the run's `Start`, after the run folder and what is recorded there were compared with what
    the user asks for."""
    finish_interrupted(run.pipeline)
    start = find_start(run, checkpoints, result_folder(run, adapter), config, from_step)
    if not adapter:
        check_target(inputs.pipeline, run.pipeline)
    run.check_manifest(inputs.fingerprint())
    for kind, origin in inputs.origins(config).items():
        run.record_origin(kind, origin)
    if start.finished:
        run.record_changes()
    return [start.step, start.exported, start.finished]


@dataclass
class _Ready:
    """Everything that training works with, on the device and on the host."""

    backend: Backend
    state: Any
    batches: Batches
    previews: Previews
    base_images: list[Any]  # the pictures of the untouched base, for the picture of before and after


def _prepare(backend_class: type[Backend], job: _Job) -> _Ready:
    """Load the model, make the data for training, and restore the checkpoint that the run continues from."""
    config, start, hosts = job.config, job.start.step, job.run.hosts
    backend: Backend = backend_class(config)
    job.checkpoints.check_shared()
    models = on_all(hosts, lambda: backend.load(job.inputs.pipeline))
    # This comes before init: the optimizer is not in memory yet, and these images must come from the untouched base.
    batches = prepare(config, job.inputs, job.run, backend, models)
    previews = Previews(config, job.inputs, backend, job.run)
    base_images = previews.base_images(models) if config.samples.before_after else []
    state = backend.init(models)
    del models  # from here on the state owns the weights
    if start:
        state = job.checkpoints.restore(backend, state, start)
        from_first(hosts, partial(job.checkpoints.set_aside_after, start))
        log.info("resumed from step %d", start)
        # If the run ended after it had saved the step, but before its previews were complete, they are made now.
        grid = previews.grid_file(start)
        if _due(start, config.samples.every_steps) and from_first(hosts, lambda: not grid.exists()):
            previews.write_grid(backend.models(state), start)
    from_first(hosts, partial(job.run.record_saved, start))
    if job.start.exported is not None and job.start.exported > job.last_step:
        log.warning("%s is of step %d; at the end, that of step %d replaces it", job.result, job.start.exported,
                    job.last_step)  # fmt: skip
    return _Ready(backend, state, batches, previews, base_images)


def _update(job: _Job, ready: _Ready, refresh: Callable[[Path], object], began: float) -> Any:
    """Train up to the last step, with checkpoints and previews on the way, and return the state. Raise Stopped if a
    signal asked the run to stop."""
    config, run, backend, state, batches = job.config, job.run, ready.backend, ready.state, ready.batches
    ready.state = None  # an update consumes it
    start, stop, several = job.start.step, config.train.steps, run.hosts.count > 1
    own_rows = backend.own_rows(batches.rows)

    def save_checkpoint(state: Any, done: int) -> None:
        job.checkpoints.save(backend, state, done, config.checkpoint.keep)
        if run.is_written_here:
            run.record_saved(done)

    def make_batch(step: int) -> Batch:
        return batches(step, learning_rates(config, step), own_rows)

    with Recorder(run, start, stop, batches.rows, config.log.every_steps) as recorder, StopRequest() as request:
        asked_by_any = stop_asked(run.hosts, request)
        for step, batch in made_ahead(make_batch, start, stop):
            state, metrics = backend.train_step(state, batch)
            done = step + 1
            recorder.record(done, batch.learning_rate, metrics)
            if step == start:
                request.arm()
                log.info("first step finished %.1f s after the start", time.perf_counter() - began)
            save = partial(save_checkpoint, state, done)
            previewed = _due(done, config.samples.every_steps)
            asked = asked_by_any()
            # If one of several hosts cannot make its pictures, no host can save after that.
            before_pictures = previewed and several
            saved = _due(done, config.checkpoint.every_steps) or done == stop or before_pictures or asked > 0
            if saved:
                with recorder.paused():
                    save()
                    refresh(run.path)
            if asked:
                raise Stopped(done, asked)
            if previewed:
                # Several hosts always finish their pictures together.
                pictures = nullcontext() if several else request.at_once()
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
