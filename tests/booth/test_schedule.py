"""Schedules against diffusers' own classes, for the scheduler configs that real pipelines carry."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from booth.errors import UserError
from booth.schedule import noise_schedule

SD15 = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False, "prediction_type": "epsilon",
    "skip_prk_steps": True, "_class_name": "PNDMScheduler",
}  # fmt: skip
CONFIGS = {
    "sd15": SD15,
    "v_prediction": SD15 | {"prediction_type": "v_prediction"},
    "linear": {"beta_schedule": "linear", "num_train_timesteps": 500},
    "given betas": {"trained_betas": list(np.linspace(0.001, 0.02, 100)), "num_train_timesteps": 100},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_noise_and_targets_are_diffusers(config):
    theirs, ours = DDPMScheduler.from_config(config), noise_schedule(config)
    random = np.random.default_rng(0)
    latents, noise = random.standard_normal((2, 16, 4, 4, 4)).astype(np.float32)
    timesteps = random.integers(ours.timesteps, size=16)
    column = (slice(None), None, None, None)
    noisy = ours.signal(timesteps)[column] * latents + ours.sigma(timesteps)[column] * noise
    as_torch = torch.from_numpy(latents), torch.from_numpy(noise), torch.from_numpy(timesteps)
    np.testing.assert_allclose(noisy, theirs.add_noise(*as_torch), atol=2e-5)
    on_latents, on_noise = ours.target(timesteps)
    target = on_latents[column] * latents + on_noise[column] * noise
    expected = theirs.get_velocity(*as_torch) if theirs.config.prediction_type == "v_prediction" else noise
    np.testing.assert_allclose(target, expected, atol=2e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights(prediction_type, gamma):
    """Against diffusers' SNR and the formula that its scripts use."""
    config = SD15 | {"prediction_type": prediction_type}
    timesteps = np.arange(1000)
    snr = compute_snr(DDPMScheduler.from_config(config), torch.from_numpy(timesteps)).double().numpy()
    expected = np.minimum(snr, gamma) / (snr if prediction_type == "epsilon" else snr + 1)
    weight = noise_schedule(config).min_snr_weight(timesteps, gamma)
    np.testing.assert_allclose(weight, expected, rtol=1e-4)
    assert weight.min() < 0.1 and weight.max() <= 1
    assert (noise_schedule(config).min_snr_weight(timesteps, 0.0) == 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction_type": "sample"}, "prediction_type='sample' must be one of"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid' must be one of"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=true is not supported"),
    ],
)
def test_what_is_not_supported_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        noise_schedule(SD15 | change)
