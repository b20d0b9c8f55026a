"""metrics.jsonl: every step once, whatever happened; updates that are not finite are skipped, too many end the run."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from fake_backend import TRAINED, FakeBackend
from safetensors.numpy import load_file

from booth.common.errors import UserError
from booth.config.values import default_config
from booth.train import loop
from booth.train.metrics import MOST_SKIPPED_IN_A_ROW, Recorder, read_metrics
from booth.train.run_folder import RunDir


@pytest.fixture
def run(tmp_path):
    with RunDir.open(tmp_path / "run", "numpy", default_config()) as run:
        yield run


def metrics_of(loss):
    finite = math.isfinite(loss)
    return {"loss": np.float32(loss), "grad_norm": np.float32(2.0), "skipped": np.float32(not finite)}


def record(run, start, stop, *, last=None, every=3, loss=lambda step: 1.0 / step):
    """A session that trains steps start + 1 to stop; killed after step `last`, if given."""
    recorder = Recorder(run, start, stop, 4, every)
    for step in range(start + 1, (last or stop) + 1):
        recorder.record(step, {"unet": 1e-4}, metrics_of(loss(step)))
    if last is None:
        recorder.flush()
    recorder.__exit__()


def steps(run):
    return [line["step"] for line in read_metrics(run.metrics)]


def test_one_line_a_step(run):
    record(run, 0, 7)
    lines = read_metrics(run.metrics)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert lines[3].keys() == {"step", "loss", "grad_norm", "skipped", "learning_rate", "samples_per_s"}
    assert (lines[3]["loss"], lines[3]["grad_norm"], lines[3]["learning_rate"]) == (0.25, 2.0, 1e-4)
    assert all(line["samples_per_s"] > 0 for line in lines)
    assert any(run.tensorboard.iterdir())


def test_metrics_are_read_in_blocks(run):
    """The host must not wait for the device after every step; the first step shows early that training runs."""
    read = []

    class OnDevice:
        def __init__(self, step):
            self.step = step

        def __float__(self):
            read.append(self.step)
            return 1.0

    with Recorder(run, 0, 20, 4, every=5) as recorder:
        known = []  # how many steps the host knows after each that it sent
        for step in range(1, 20):
            recorder.record(step, {"unet": 1e-4}, {"loss": OnDevice(step), "skipped": 0})
            known.append(len(read))
        assert known[0] == 1 and len(set(known)) <= 5, "after the first step, then every five"
        assert all(step - 6 <= count <= step for step, count in enumerate(known, 1)), "never far behind"
        with recorder.paused():
            assert read == list(range(1, 20)), "before a checkpoint all is known"


def test_each_step_once_after_a_crash_and_a_resume(run):
    record(run, 0, 20, last=14)
    assert steps(run)[-1] > 10
    record(run, 10, 20)
    assert steps(run) == list(range(1, 21))


def test_going_back_further_than_the_last_session(run):
    record(run, 0, 8)
    record(run, 8, 12)
    record(run, 4, 6, loss=lambda step: 100.0)
    assert steps(run) == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in read_metrics(run.metrics)][3:] == [0.25, 100.0, 100.0]


@pytest.mark.parametrize("rest", ['{"step": 5, "lo', '{"step"', "{", "\0\0\0", ""])
def test_a_line_cut_off_by_a_crash(run, rest):
    record(run, 0, 4)
    with run.metrics.open("a") as file:
        file.write(rest)
    assert steps(run) == [1, 2, 3, 4]
    record(run, 4, 6)
    assert steps(run) == [1, 2, 3, 4, 5, 6]
    assert all(json.loads(line) for line in run.metrics.read_text().splitlines())


def test_no_metrics_yet(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_said_and_counted(run, value, caplog):
    with caplog.at_level("WARNING", "booth"):
        record(run, 0, 9, loss=lambda step: value if step in (4, 6) else 1.0)
    assert [line["skipped"] for line in read_metrics(run.metrics)] == [0, 0, 0, 1, 0, 1, 0, 0, 0]
    assert [line["loss"] for line in read_metrics(run.metrics)][2:5] == [1.0, None, 1.0]
    assert caplog.messages == [
        f"step 4: loss {value}, norm of the gradients 2: nothing was updated",
        f"step 6: loss {value}, norm of the gradients 2: nothing was updated",
        "2 skipped updates in this session",
    ]


def test_too_many_in_a_row_end_the_run(run):
    with pytest.raises(UserError) as caught, Recorder(run, 0, 99, 4, 3) as recorder:
        for step in range(1, 100):
            recorder.record(step, {"unet": 1e-4}, metrics_of(math.nan if step > 40 else 1.0))
    said = str(caught.value)
    assert said.startswith("20 updates in a row had no finite loss and gradients: training diverged; ")
    assert "--from-step" in said and "train.learning_rate" in said and "\n" not in said
    assert 60 <= steps(run)[-1] < 63, "and they are in the log"


class Diverging(FakeBackend):
    """What it is given is not finite from the third step on."""

    steps = 0

    def train_step(self, state, batch):
        self.steps += 1
        latents = batch.latents.copy()
        if self.steps >= 3:
            latents[0, 0, 0, 0] = math.nan
        return super().train_step(state, replace(batch, latents=latents))


@pytest.mark.parametrize("every", [1, 4, 100])
def test_weights_stay_as_they_were_when_training_diverges(tiny_config, tmp_path, every):
    tiny_config.train.steps, tiny_config.checkpoint.every_steps, tiny_config.log.every_steps = 50, 10, every
    with pytest.raises(UserError, match="20 updates in a row had no finite loss"):
        loop.train(Diverging, tiny_config, tmp_path / "run")
    assert not (tmp_path / "run" / "pipeline").exists()
    saved = sorted((tmp_path / "run" / "checkpoints").iterdir())
    with np.load(saved[-1] / "state.npz") as checkpoint:
        bias = checkpoint["bias"]
    tiny_config.train.steps = 2
    whole = loop.train(FakeBackend, tiny_config, tmp_path / "two steps")
    assert np.array_equal(bias, load_file(whole.pipeline / "unet" / "diffusion_pytorch_model.safetensors")[TRAINED])


def scaled(run, start, stop, skipped):
    """A session with loss scaling that skips the given steps."""
    with Recorder(run, start, stop, 4, 3) as recorder:
        for step in range(start + 1, stop + 1):
            metrics = {"loss": 1.0, "grad_norm": 2.0, "loss_scale": 1024.0, "skipped": 0.0}
            if step in skipped:
                metrics |= {"grad_norm": math.inf, "skipped": 1.0}
            recorder.record(step, {"unet": 1e-4, "text_encoder": 1e-5}, metrics)
        recorder.flush()


def test_a_skipped_update_is_said_and_logged_and_training_goes_on(run, caplog):
    with caplog.at_level("WARNING", "booth"):
        scaled(run, 0, 6, {2})
    assert caplog.messages == [
        "step 2: gradients overflowed at loss scale 1024: nothing was updated, the scale is halved",
        "1 skipped updates in this session",
    ]
    text = run.metrics.read_text()
    assert "Infinity" not in text and "NaN" not in text, "no JSON reader takes those"
    lines = read_metrics(run.metrics)
    assert [line["skipped"] for line in lines] == [0, 1, 0, 0, 0, 0]
    assert lines[1]["grad_norm"] is None and lines[2]["grad_norm"] == 2.0
    assert lines[0]["text_encoder_learning_rate"] == 1e-5


def test_too_many_skipped_updates_in_a_row_end_the_run(run):
    others = set(range(1, 60)) - set(range(MOST_SKIPPED_IN_A_ROW, 60, MOST_SKIPPED_IN_A_ROW))
    scaled(run, 0, 59, others)  # never quite as many in a row
    with pytest.raises(UserError, match="20 updates in a row overflowed, down to loss scale 1024: training diverged"):
        scaled(run, 59, 90, set(range(61, 90)))
