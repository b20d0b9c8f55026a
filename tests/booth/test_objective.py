"""The loss on NumPy, JAX and torch arrays, against the formula written out."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from booth.backend import ROW_FIELDS, Batch
from booth.objective import dreambooth_loss, noisy_latents


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
                 prompt_index=np.array([0, 0, 1, 1], np.int32), prompts=np.zeros((2, 77, 8), np.float32),
                 learning_rate={})  # fmt: skip


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray, torch.from_numpy], ids=["numpy", "jax", "torch"])
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
