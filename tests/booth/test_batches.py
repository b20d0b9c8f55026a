"""What a batch is made of, beyond the defects it must not have."""

import numpy as np
import pytest

from booth.common import randomness
from booth.data.images import Example
from booth.data.views import View
from booth.diffusion.schedule import noise_schedule
from booth.train.batches import Batches, TrainingImage


@pytest.fixture
def make(tmp_path):
    view = View(Example(tmp_path / "a.png", "a photo", "instance", "sha", (64, 64)), (64, 64), 0, 0, False)
    moments = {view: np.zeros((2, 8, 8, 4), np.float32)}

    def make(**fields):
        return Batches({"instance": [TrainingImage([view], [0])]}, moments, np.zeros((1, 77, 8), np.float32),
                       noise_schedule({}), 1.0, 0.0, 64, 0, **fields)  # fmt: skip

    return make


def test_a_noise_offset_moves_whole_channels(make):
    plain, moved = make()(5, {}), make(noise_offset=0.3)(5, {})
    offset = moved.noise - plain.noise
    assert offset.dtype == np.float32
    np.testing.assert_allclose(offset, np.broadcast_to(offset[:, :1, :1], offset.shape), atol=1e-6)
    channels = offset[:, 0, 0]
    assert channels.std() == pytest.approx(0.3, rel=0.15) and abs(channels.mean()) < 0.05
    assert len(np.unique(channels.round(6))) == channels.size, "drawn for each row and channel"
    drawn = randomness.normal(0, "noise offset", 5, 3, (4,))
    np.testing.assert_allclose(channels[3], 0.3 * drawn, atol=1e-6)
    assert (moved.timestep == plain.timestep).all() and (moved.latents == plain.latents).all()


def test_what_a_timestep_counts_and_where_its_loss_turns(make):
    plain = make()(5, {})
    schedule = noise_schedule({})
    assert plain.loss == "mse" and (plain.weight == np.float32(1 / 64)).all()
    debiased = make(debiased_estimation=True)(5, {})
    np.testing.assert_allclose(debiased.weight * 64, schedule.debiased_weight(plain.timestep), rtol=1e-6)
    assert (debiased.instance_weight == debiased.weight).all()
    huber = make(loss="huber", huber_delta=0.2, huber_schedule="snr")(5, {})
    assert huber.loss == "huber" and huber.huber_delta.dtype == np.float32
    np.testing.assert_allclose(huber.huber_delta, schedule.huber_delta(plain.timestep, 0.2, "snr"), rtol=1e-6)
    assert (huber.timestep == plain.timestep).all() and (huber.latents == plain.latents).all()


def test_learning_rates_and_prompts_pass_through(make):
    batch = make()(0, {"unet": 1e-4, "text_encoder": 1e-5})
    assert batch.learning_rate == {"unet": np.float32(1e-4), "text_encoder": np.float32(1e-5)}
    assert all(rate.dtype == np.float32 and rate.shape == () for rate in batch.learning_rate.values())
