"""Several hosts in one run: one host leads, the others follow.

The leader runs the loop as if it were alone: only the leader reads photos, decides, and writes. It announces each call
of its backend to the other hosts, which make the same call on their own devices. So all hosts take part in every
collective in the same order, whatever the leader decides. Batches are not sent: each host gets the data that they are
made from, and makes the rows of its own devices.
"""

import logging
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from booth.common.errors import UserError
from booth.common.files import STAGING_PREFIX
from booth.common.hosts import Hosts
from booth.common.signals import Stopped, StopRequest
from booth.config.values import is_remote
from booth.diffusion.backend import Backend, Batch, Metrics
from booth.diffusion.solvers import SamplingTable
from booth.models.open import open_pipeline
from booth.models.pipeline import PipelineDir
from booth.train.batches import Batches, made_ahead
from booth.train.learning_rate import learning_rates

log = logging.getLogger("booth")


def feed(backend: Backend, config: Any, batches: Batches, start: int, stop: int) -> Iterator[tuple[int, Batch]]:
    """Yield (step, batch) of the updates from `start` to `stop`, made ahead of time, with the rows that this process
    computes on."""
    if isinstance(backend, Leader):
        backend.announce("feed", config, batches, start, stop)
    rows = backend.own_rows(batches.rows)
    return made_ahead(lambda step: batches(step, learning_rates(config, step), rows), start, stop)


@contextmanager
def leading(hosts: Hosts | None) -> Iterator[None]:
    """Tell the other hosts how the block ended, so that they end too."""
    try:
        yield
    except BaseException as error:
        if hosts:
            hosts.fail(_reason(error), _exit_code(error))
            with suppress(Exception):  # the first error is the one that matters
                hosts.send(("end", _reason(error)))
                hosts.end()
        raise
    if hosts:
        hosts.send(("end", ""))
        hosts.end()


def _reason(error: BaseException) -> str:
    interrupted = isinstance(error, KeyboardInterrupt) and not isinstance(error, Stopped)
    return "interrupted" if interrupted else str(error) or type(error).__name__


def _exit_code(error: BaseException) -> int:
    """Return the exit code that the command line gives this error."""
    if isinstance(error, KeyboardInterrupt):
        return error.code if isinstance(error, Stopped) else 130
    return 2 if isinstance(error, UserError | OSError) else 1


class Leader:
    """The backend of the leader: every host makes the calls that it makes."""

    def __init__(self, backend: Backend, hosts: Hosts, config: Any, checkpoints: Path) -> None:
        """Raise UserError if the other hosts do not see the checkpoint folder, which all hosts write to."""
        self._backend, self._hosts = backend, hosts
        self.name, self.survives_out_of_memory = backend.name, backend.survives_out_of_memory
        checkpoints.mkdir(parents=True, exist_ok=True)
        probe = checkpoints / f"{STAGING_PREFIX}{uuid.uuid4().hex}"
        if not is_remote(str(probe)):
            probe = probe.absolute()  # the working folder of another host may differ
        probe.write_bytes(b"")
        try:
            self._all("start", config, probe)
        finally:
            probe.unlink()

    def announce(self, call: str, *arguments: Any) -> None:
        """Make all other hosts call this method of `_Follower`."""
        self._hosts.send((call, *arguments))

    def _all(self, call: str, *arguments: Any, here: Callable[[], Any] = lambda: None) -> Any:
        """Make the call on all other hosts, and return the result of `here` on this one. Raise UserError if the call
        failed on another host."""
        self.announce(call, *arguments)
        result = here()
        failures = [(index, failure) for index, failure in enumerate(self._hosts.confirmed(), start=1) if failure]
        for index, failure in failures:
            raise UserError(f"host {index} of {self._hosts.count}: {failure}")
        return result

    @staticmethod
    def check(config: Any) -> None:
        """Do nothing: this is called on the backend's own class, before there is a leader."""

    @staticmethod
    def fit(config: Any, pipeline: PipelineDir, recorded: Mapping[str, Any] | None) -> Any:
        """Return the same."""

    @staticmethod
    def saved_names(folder: Path) -> Collection[str]:
        """Return the same."""
        return ()

    @staticmethod
    def hosts() -> None:
        """Do nothing: the hosts are joined already."""

    def load(self, pipeline: PipelineDir) -> Any:
        commit = pipeline.model.commit if pipeline.model else ""
        return self._all("load", commit, pipeline.hashes(), here=lambda: self._backend.load(pipeline))

    def encode_images(self, models: Any, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        result: tuple[np.ndarray, np.ndarray] = self._all(
            "encode_images", pixels, here=lambda: self._backend.encode_images(models, pixels)
        )
        return result

    def encode_prompts(self, models: Any, token_ids: np.ndarray) -> np.ndarray:
        context: np.ndarray = self._all(
            "encode_prompts", token_ids, here=lambda: self._backend.encode_prompts(models, token_ids)
        )
        return context

    def sample(
        self,
        models: Any,
        noise: np.ndarray,
        context: np.ndarray,
        negative_context: np.ndarray,
        table: SamplingTable,
        guidance: float,
        step_noise: np.ndarray | None = None,
    ) -> np.ndarray:
        arguments = (noise, context, negative_context, table, guidance, step_noise)
        images: np.ndarray = self._all("sample", *arguments, here=lambda: self._backend.sample(models, *arguments))
        return images

    def init(self, models: Any, *, training: bool = True) -> Any:
        return self._all("init", training, here=lambda: self._backend.init(models, training=training))

    def models(self, state: Any) -> Any:
        return self._backend.models(state)

    def with_lora_weight(self, state: Any, weight: float) -> Any:
        """Not used: only the `sample` command calls it, which runs on one host."""
        return self._backend.with_lora_weight(state, weight)

    def own_rows(self, rows: int) -> Set[int] | None:
        return self._backend.own_rows(rows)

    def train_step(self, state: Any, batch: Batch) -> tuple[Any, Metrics]:
        self.announce("train_step")  # no confirmation: nobody waits for an update to finish
        return self._backend.train_step(state, batch)

    def save(self, state: Any, folder: Path) -> None:
        self._all("save", folder, here=lambda: self._backend.save(state, folder))

    def restore(self, state: Any, folder: Path) -> Any:
        return self._all("restore", folder, here=lambda: self._backend.restore(state, folder))

    def tensors(self, state: Any) -> Iterator[tuple[str, str, np.ndarray]]:
        self.announce("tensors")
        tensors = self._backend.tensors(state)
        while True:
            # One tensor at a time: if this host stops here, the others wait for a message and not in a collective.
            if (tensor := self._all("next_tensor", here=lambda: next(tensors, None))) is None:
                return
            yield tensor


class _Follower:
    """Makes the calls that the leader announces, with its own models and state."""

    def __init__(self, backend_class: type[Backend], hosts: Hosts, request: StopRequest) -> None:
        self._backend_class, self._hosts, self._request = backend_class, hosts, request
        self._steps = 0
        self._backend: Any = None
        self._models: Any = None
        self._state: Any = None

    def start(self, config: Any, probe: Path) -> None:
        if not probe.exists():
            raise UserError(
                f"does not see the checkpoint folder {probe.parent}, which all hosts write to; give a checkpoint.dir"
                " on a disk that they share"
            )
        self._config = config
        self._backend = self._backend_class(config)

    def load(self, commit: str, hashes: dict[str, str]) -> None:
        source = self._config.model
        pipeline = open_pipeline(source.source, source.variant, commit or source.revision, config=source.config)
        here = pipeline.hashes()
        if changed := [name for name, sha256 in hashes.items() if here.get(name) != sha256]:
            raise UserError(f"model.source={source.source!r} is a different model here ({', '.join(changed)})")
        self._models = self._backend.load(pipeline)

    def encode_images(self, pixels: np.ndarray) -> None:
        self._backend.encode_images(self._current_models(), pixels)

    def encode_prompts(self, token_ids: np.ndarray) -> None:
        self._backend.encode_prompts(self._current_models(), token_ids)

    def sample(self, *arguments: Any) -> None:
        self._backend.sample(self._current_models(), *arguments)

    def _current_models(self) -> Any:
        return self._models if self._state is None else self._backend.models(self._state)

    def init(self, training: bool) -> None:
        # From here on the state owns the weights.
        self._state, self._models = self._backend.init(self._models, training=training), None

    def restore(self, folder: Path) -> None:
        self._state = self._backend.restore(self._state, folder)

    def feed(self, config: Any, batches: Batches, start: int, stop: int) -> None:
        self._batches = feed(self._backend, config, batches, start, stop)

    def train_step(self) -> None:
        _, batch = next(self._batches)
        self._state, _ = self._backend.train_step(self._state, batch)
        self._steps += 1
        if self._steps == 1:
            # The leader decides: if any host is asked to stop, all stop after the same update.
            self._request.arm()
            self._hosts.pass_on(self._request)

    def save(self, folder: Path) -> None:
        self._backend.save(self._state, folder)

    def tensors(self) -> None:
        self._tensors = self._backend.tensors(self._state)

    def next_tensor(self) -> None:
        next(self._tensors, None)


_UNCONFIRMED = ("feed", "train_step", "tensors")


def follow(backend_class: type[Backend], hosts: Hosts) -> None:
    """Make the calls that the leader announces until it ends. Raise UserError with the leader's reason if it failed."""
    log.info("host %d of %d: follows host 0", hosts.index, hosts.count)
    with StopRequest() as request:
        message = _obey(_Follower(backend_class, hosts, request), hosts)
    if reason := message[1]:
        raise UserError(f"host 0 has stopped: {reason}")


def _obey(follower: _Follower, hosts: Hosts) -> Any:
    """Make the calls of the leader's messages until its last one. Return that message."""
    try:
        while (message := hosts.receive())[0] != "end":
            call, *arguments = message
            try:
                getattr(follower, call)(*arguments)
            except (UserError, OSError) as error:
                if call not in _UNCONFIRMED:
                    hosts.confirm(str(error))
                hosts.fail(str(error), _exit_code(error))
            else:
                if call not in _UNCONFIRMED:
                    hosts.confirm("")
    except BaseException as error:
        hosts.fail(_reason(error), _exit_code(error))
        raise
    hosts.confirm("")
    hosts.end()
    return message
