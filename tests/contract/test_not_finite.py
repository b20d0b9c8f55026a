"""One NaN in one pixel: the update is left out as if it had never been asked for, and nothing not finite is saved."""

import math
from dataclasses import replace

import numpy as np
import pytest

from booth.common.errors import UserError
from booth.data.inputs import check_inputs
from booth.train.learning_rate import learning_rates
from booth.train.preparation import prepare
from booth.train.run_folder import RunDir


@pytest.fixture
def job(backend_class, tiny_config, tmp_path):
    """(a new backend and state, step -> batch)."""
    inputs = check_inputs(tiny_config)
    backend = backend_class(tiny_config)
    with RunDir.open(tmp_path / "run", backend.name, tiny_config) as run:
        batches = prepare(tiny_config, inputs, run, backend, backend.load(inputs.pipeline))
    return backend, inputs.pipeline, lambda step: batches(step, learning_rates(tiny_config, step))


def poisoned(batch, value):
    latents = batch.latents.copy()
    latents[1, 2, 3, 0] = value
    return replace(batch, latents=latents)


def trained(backend, pipeline, batches):
    """(weights by name, metrics of each update)."""
    state, metrics = backend.init(backend.load(pipeline)), []
    for batch in batches:
        state, made = backend.train_step(state, batch)
        metrics.append({name: float(value) for name, value in made.items()})
    return state, {name: np.array(array) for _, name, array in backend.tensors(state)}, metrics


@pytest.mark.parametrize(("value", "first"), [
    (math.nan, True), (math.inf, False),
    *(pytest.param(*more, marks=pytest.mark.full) for more in ((math.nan, False), (math.inf, True))),
])  # fmt: skip
def test_the_update_is_left_out(job, value, first):
    """Weights, moments and the count of updates: what comes after it is the same to the bit."""
    backend, pipeline, batch = job
    before = [] if first else [batch(0)]
    _, weights, metrics = trained(backend, pipeline, [*before, poisoned(batch(1), value), batch(2)])
    _, wanted, _ = trained(backend, pipeline, [*before, batch(2)])
    assert all(np.array_equal(weights[name], wanted[name]) for name in wanted)
    assert [line["skipped"] for line in metrics] == [0.0] * len(before) + [1.0, 0.0]
    assert not math.isfinite(metrics[len(before)]["loss"]) and math.isfinite(metrics[-1]["loss"])


def test_gradients_that_overflow_where_the_loss_does_not(job):
    backend, pipeline, batch = job
    huge = replace(batch(1), weight=batch(1).weight * np.float32(1e37))
    _, weights, metrics = trained(backend, pipeline, [batch(0), huge, batch(2)])
    _, wanted, _ = trained(backend, pipeline, [batch(0), batch(2)])
    assert math.isfinite(metrics[1]["loss"]) and metrics[1]["skipped"] == 1
    assert all(np.array_equal(weights[name], wanted[name]) for name in wanted)


def test_weights_that_are_not_finite_are_not_saved(job, tmp_path):
    """They can only come from a learning rate beyond all reason."""
    backend, pipeline, batch = job
    mad = replace(batch(0), learning_rate={"unet": np.float32(math.inf)})
    state, _, _ = trained(backend, pipeline, [mad])
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(UserError, match=r"^unet\.\S+ is not finite any more: training diverged and nothing is saved"):
        backend.save(state, tmp_path / "checkpoint")
    assert not any((tmp_path / "checkpoint").iterdir())
