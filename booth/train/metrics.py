"""The metrics of a run: console progress with ETA, metrics.jsonl (one object per step) and tensorboard.

Metrics stay on the device and are read in blocks, so that the host never waits for one step before it sends the next.
"""

import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from booth.common import disk_space
from booth.common.files import write_text
from booth.common.hosts import AgreedError
from booth.common.progress import progress
from booth.train.run_folder import RunDir

log = logging.getLogger("booth")

MOST_SKIPPED_IN_A_ROW = 20  # a loss scale that starts at 65536 has then fallen below 0.1
_DIVERGED = (
    "training diverged; continue from an earlier checkpoint with --from-step and a lower train.learning_rate, or start"
    " again with"
)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all complete lines of a metrics.jsonl; a line that a crash cut off is left out.

    A metric is a number, or None if it was not finite in a skipped update.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    read = []
    for line in lines:
        with suppress(ValueError):
            read.append(json.loads(line))
    return [line for line in read if isinstance(line, dict) and "step" in line]


class Recorder:
    """Collects the metrics of one training session. Steps count finished updates: the first update is step 1."""

    def __init__(self, run: RunDir, start: int, stop: int, rows: int, every: int) -> None:
        self._writes = run.is_written_here
        if self._writes:
            # Each step appears once: lines after the restored checkpoint belong to updates that are computed again.
            kept = [line for line in read_metrics(run.metrics) if line["step"] <= start]
            write_text(run.metrics, "".join(json.dumps(line) + "\n" for line in kept))
            self._tensorboard = _Tensorboard(run.tensorboard, start)
        self._path = run.metrics
        self._progress = progress(total=stop, initial=start, desc="training", unit="step", smoothing=0.1)
        self._rows, self._every = rows, every
        self._pending: list[tuple[int, dict[str, float], dict[str, Any]]] = []
        self._read_any = False
        self._skipped = self._skipped_in_a_row = 0
        self._block_began = time.perf_counter()

    def record(self, step: int, learning_rate: Mapping[str, Any], metrics: dict[str, Any]) -> None:
        """Take the learning rates of a step, by trained component, and its metrics, which are still on the device.

        When `log.every_steps` steps have been taken, read them as one block.
        """
        rates = {
            "learning_rate" if component == "unet" else f"{component}_learning_rate": float(rate)
            for component, rate in learning_rate.items()
        }
        self._pending.append((step, rates, metrics))
        # The very first step is read at once: it shows that training runs, and keeps compilation out of the speeds.
        if not self._read_any:
            self.flush()
        elif len(self._pending) > self._every:
            self.flush(but=1)  # the device computes the newest step while the host reads the others

    def flush(self, but: int = 0) -> None:
        """Wait for all pending steps except the newest `but`, and write them.

        Raise UserError if too many updates in a row were skipped because their loss or gradients were not finite, or if
        the disk is full.
        """
        block, self._pending = self._pending[: len(self._pending) - but], self._pending[len(self._pending) - but :]
        if not block:
            return
        self._read_any = True
        values = [(step, rates, {k: float(v) for k, v in metrics.items()}) for step, rates, metrics in block]
        began, self._block_began = (
            self._block_began,
            time.perf_counter(),
        )  # the time of writing counts for the next block
        speed = self._rows * len(values) / (self._block_began - began)
        lines = [
            {
                # JSON has no NaN, so null is written
                name: value if math.isfinite(value) else None
                for name, value in {"step": step, **metrics, **rates, "samples_per_s": round(speed, 3)}.items()
            }
            for step, rates, metrics in values
        ]
        if self._writes:
            content = "".join(json.dumps(line) + "\n" for line in lines).encode()
            with disk_space.explained(self._path, len(content)), self._path.open("ab") as file:
                file.write(content)
            self._tensorboard.write(lines)
        for step, _, metrics in values:
            if metrics["skipped"]:
                self._report_skipped(step, metrics)
            else:
                self._skipped_in_a_row = 0
        self._progress.set_postfix_str(f"loss {values[-1][2]['loss']:.4f}, {speed:.3g} samples/s", refresh=False)
        self._progress.update(len(values))

    def _report_skipped(self, step: int, metrics: dict[str, float]) -> None:
        # Every process of a run counts skipped updates, so that all give up together.
        self._skipped += 1
        self._skipped_in_a_row += 1
        too_many = self._skipped_in_a_row == MOST_SKIPPED_IN_A_ROW
        if "loss_scale" in metrics:
            scale = metrics["loss_scale"]
            log.warning(
                "step %d: gradients overflowed at loss scale %g: nothing was updated, the scale is halved", step, scale
            )
            if too_many:
                raise AgreedError(
                    f"{MOST_SKIPPED_IN_A_ROW} updates in a row overflowed, down to loss scale {scale:g}: {_DIVERGED}"
                    " train.precision=bf16 or fp32"
                )
        else:
            loss, norm = metrics["loss"], metrics["grad_norm"]
            log.warning("step %d: loss %g, norm of the gradients %g: nothing was updated", step, loss, norm)
            if too_many:
                raise AgreedError(
                    f"{MOST_SKIPPED_IN_A_ROW} updates in a row had no finite loss and gradients: {_DIVERGED}"
                    " train.precision=fp32"
                )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """First read the pending steps. The time of the block (saving, sampling) does not count as training time."""
        self.flush()
        yield
        self._block_began = time.perf_counter()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()
        if self._writes:
            self._tensorboard.close()
        if self._skipped:
            log.warning("%d skipped updates in this session", self._skipped)


class _Tensorboard:
    """Scalars for tensorboard, written as they come. metrics.jsonl has them too, so an error here never ends a run.

    tensorboardX's own SummaryWriter writes from a thread, whose errors are tracebacks that cannot be caught.
    """

    def __init__(self, folder: Path, start: int) -> None:
        # This imports torch if it is installed, so it happens only when training.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        self._event, self._scalar = Event, scalar
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".from{start}")
        # This hides what an earlier session wrote about the steps that are computed again.
        self._write([Event(step=start + 1, session_log=SessionLog(status=SessionLog.START))])

    def write(self, lines: Sequence[Mapping[str, float | None]]) -> None:
        """Write lines of metrics.jsonl as scalars."""
        self._write(
            self._event(step=line["step"], summary=self._scalar(f"train/{name}", value))
            for line in lines
            for name, value in line.items()
            if value is not None
        )

    def _write(self, events: Iterable[Any]) -> None:
        if self._writer is None:
            return
        try:
            for event in events:
                event.wall_time = time.time()
                self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            log.warning("nothing more is written for tensorboard (%s); metrics.jsonl has everything", error)
            self.close()

    def close(self) -> None:
        writer, self._writer = self._writer, None
        with suppress(OSError):
            if writer:
                writer.close()
