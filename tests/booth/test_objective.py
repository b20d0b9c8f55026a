"""The loss on NumPy, JAX and torch arrays, against the formula written out."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from booth.diffusion.backend import ROW_FIELDS, Batch
from booth.diffusion.objective import dreambooth_loss, noisy_latents


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    latents, noise = random.standard_normal((2, 4, 8, 8, 4)).astype(np.float32)
    column = {
        name: random.random(4).astype(np.float32) for name in ("signal", "sigma", "target_latent", "target_noise")
    }
    return Batch(latents=latents, noise=noise, timestep=np.arange(4, dtype=np.int32), **column,
                 weight=np.array([0.5, 0.5, 0.15, 0.15], np.float32),
                 instance_weight=np.array([0.5, 0.5, 0, 0], np.float32),
                 prior_weight=np.array([0, 0, 0.5, 0.5], np.float32),
                 huber_delta=np.array([0.1, 0.3, 1, 2], np.float32), mask=np.ones((4, 1, 1, 1), np.float32),
                 prompt_index=np.array([0, 0, 1, 1], np.int32), prompts=np.zeros((2, 77, 8), np.float32),
                 learning_rate={})  # fmt: skip


every_framework = pytest.mark.parametrize(
    "convert", [np.asarray, jnp.asarray, torch.from_numpy], ids=["numpy", "jax", "torch"]
)


@every_framework
@pytest.mark.parametrize("channels", [4, 8], ids=["mean only", "learned variance"])
def test_loss_is_mean_of_instances_plus_lambda_times_mean_of_class(batch, convert, channels):
    prediction = np.random.default_rng(1).standard_normal((4, 8, 8, channels)).astype(np.float32)
    target = [batch.target_latent[i] * batch.latents[i] + batch.target_noise[i] * batch.noise[i] for i in range(4)]
    row = [np.mean((prediction[i, ..., :4].astype(np.float64) - target[i]) ** 2) for i in range(4)]
    instance, prior = (row[0] + row[1]) / 2, (row[2] + row[3]) / 2
    arrays = {name: convert(getattr(batch, name)) for name in ROW_FIELDS}
    loss, metrics = dreambooth_loss(convert(prediction), replace(batch, **arrays))
    assert float(loss) == pytest.approx(instance + 0.3 * prior, rel=1e-5)
    assert float(metrics["instance_loss"]) == pytest.approx(instance, rel=1e-5)
    assert float(metrics["prior_loss"]) == pytest.approx(prior, rel=1e-5)
    z = noisy_latents(replace(batch, **arrays))
    assert np.allclose(z[2], batch.signal[2] * batch.latents[2] + batch.sigma[2] * batch.noise[2], atol=1e-6)


@every_framework
@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_a_mask_weighs_each_latent(batch, convert, loss):
    """Of every channel, before the mean over the row; where it is 0 nothing is learned."""
    random = np.random.default_rng(2)
    prediction = random.standard_normal((4, 8, 8, 4)).astype(np.float32)
    mask = random.random((4, 8, 8, 1)).astype(np.float32)
    mask[:, :3] = 0
    delta, target = (
        batch.huber_delta[:, None, None, None],
        [batch.target_latent[i] * batch.latents[i] + batch.target_noise[i] * batch.noise[i] for i in range(4)],
    )
    x = prediction.astype(np.float64) - target
    error = x**2 if loss == "mse" else 2 * delta * (np.sqrt(x**2 + delta**2) - delta)
    arrays = {name: convert(getattr(replace(batch, mask=mask), name)) for name in ROW_FIELDS}
    ours, _ = dreambooth_loss(convert(prediction), replace(batch, **arrays, loss=loss))
    assert float(ours) == pytest.approx(batch.weight @ (mask * error).mean((1, 2, 3)), rel=1e-5)
    prediction[:, :3] = 9
    same, _ = dreambooth_loss(convert(prediction), replace(batch, **arrays, loss=loss))
    assert float(same) == float(ours)


def pseudo_huber(kind, factor=2.0):
    """As kohya-ss and diffusers' research scripts write them, float64."""

    def error(x, delta):
        return factor * (np.sqrt(x**2 + delta**2) - delta) * (delta if kind == "huber" else 1)

    return error


@every_framework
@pytest.mark.parametrize("loss", ["huber", "smooth_l1"])
def test_pseudo_huber_losses(batch, convert, loss):
    """Each row with its own delta; a tenth of the differences are a hundred times larger, as outliers are."""
    random = np.random.default_rng(1)
    target = np.stack([batch.target_latent[i] * batch.latents[i] + batch.target_noise[i] * batch.noise[i]
                       for i in range(4)])  # fmt: skip
    off = random.standard_normal(target.shape) * np.where(random.random(target.shape) < 0.1, 10, 0.1)
    prediction = (target + off).astype(np.float32)
    difference, deltas = prediction.astype(np.float64) - target, batch.huber_delta.astype(np.float64)
    arrays = {name: convert(getattr(batch, name)) for name in ROW_FIELDS}
    ours, metrics = dreambooth_loss(convert(prediction), replace(batch, **arrays, loss=loss))

    def expected(error, deltas=deltas):
        row = [error(x, delta).mean() for x, delta in zip(difference, deltas, strict=True)]
        return batch.weight @ row

    assert float(ours) == pytest.approx(expected(pseudo_huber(loss)), rel=2e-6)
    assert float(metrics["instance_loss"] + 0.3 * metrics["prior_loss"]) == pytest.approx(float(ours), rel=1e-5)
    other = "smooth_l1" if loss == "huber" else "huber"
    for wrong in (expected(pseudo_huber(loss, 1.0)), expected(pseudo_huber(other)), expected(lambda x, _: x**2),
                  expected(pseudo_huber(loss), np.full(4, 0.1))):  # fmt: skip
        assert float(ours) != pytest.approx(wrong, rel=1e-2)


def test_a_huber_loss_is_exact_and_smooth_where_the_error_is_small(batch):
    """x^2 up to (x / delta)^2 / 4 of it, where sqrt(x^2 + delta^2) - delta in float32 would be mostly rounding."""
    huber = replace(batch, loss="huber", target_latent=np.zeros(4, np.float32), huber_delta=np.ones(4, np.float32))
    target = np.ones(4, np.float32)[:, None, None, None] * batch.target_noise[:, None, None, None] * batch.noise
    near = target + np.float32(1e-3)
    squared = dreambooth_loss(near, replace(huber, loss="mse"))[0]
    assert dreambooth_loss(near, huber)[0] == pytest.approx(squared, rel=1e-6)
    prediction = torch.from_numpy(target).requires_grad_()
    arrays = {name: torch.from_numpy(getattr(huber, name)) for name in ROW_FIELDS}
    loss, _ = dreambooth_loss(prediction, replace(huber, **arrays))
    loss.backward()
    assert loss == 0 and not prediction.grad.any(), "and no NaN"


def test_any_shard_is_right_alone_and_padding_weighs_nothing(batch):
    prediction = np.random.default_rng(1).standard_normal((4, 8, 8, 4)).astype(np.float32)
    whole = dreambooth_loss(prediction, batch)[0]
    order = [2, 0, 3, 1, 1]  # shuffled, and one row twice: the second time without weight
    rows = {name: getattr(batch, name)[order] for name in ROW_FIELDS}
    rows["weight"][-1] = rows["instance_weight"][-1] = 0
    spread = replace(batch, **rows)
    parts = [replace(spread, **{name: value[part] for name, value in rows.items()}) for part in ([0, 1], [2, 3, 4])]
    shards = [
        dreambooth_loss(prediction[order][part], shard)[0]
        for part, shard in zip(([0, 1], [2, 3, 4]), parts, strict=True)
    ]
    assert sum(shards) == pytest.approx(whole, rel=1e-6)
    assert dreambooth_loss(prediction[order], spread)[1]["instance_loss"] == pytest.approx(
        dreambooth_loss(prediction, batch)[1]["instance_loss"], rel=1e-6
    )


def test_without_class_rows_the_prior_loss_is_zero(batch):
    only = replace(batch, prior_weight=np.zeros(4, np.float32))
    assert dreambooth_loss(batch.noise, only)[1]["prior_loss"] == 0
