"""Schedules against diffusers' own classes, for the scheduler configs that real pipelines carry."""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from diffusers.training_utils import compute_snr

from booth.common.errors import UserError
from booth.diffusion.schedule import _RESCALING, noise_schedule, zero_terminal_snr

SD15 = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False, "prediction_type": "epsilon",
    "skip_prk_steps": True, "_class_name": "PNDMScheduler",
}  # fmt: skip
CONFIGS = {
    "sd15": SD15,
    "v_prediction": SD15 | {"prediction_type": "v_prediction"},
    "zero terminal SNR": SD15 | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "linear": {"beta_schedule": "linear", "num_train_timesteps": 500},
    "given betas": {"trained_betas": list(np.linspace(0.001, 0.02, 100)), "num_train_timesteps": 100},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_noise_and_targets_are_diffusers(config):
    theirs, ours = DDPMScheduler.from_config(config), noise_schedule(config)
    random = np.random.default_rng(0)
    latents, noise = random.standard_normal((2, 16, 4, 4, 4)).astype(np.float32)
    timesteps = random.integers(ours.timesteps, size=16)
    timesteps[0] = ours.timesteps - 1
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


def test_debiased_weights():
    """Against diffusers' SNR and the formulas of kohya-ss/sd-scripts."""
    timesteps = np.arange(1000)
    for prediction_type in ("epsilon", "v_prediction"):
        config = SD15 | {"prediction_type": prediction_type}
        snr = compute_snr(DDPMScheduler.from_config(config), torch.from_numpy(timesteps)).double().numpy()
        assert snr[0] > 1000, "the bound is met"
        weight = noise_schedule(config).debiased_weight(timesteps)
        capped = np.minimum(snr, 1000)
        right, *wrong = (
            (capped**-0.5, snr**-0.5, capped**-1, capped**0.5, (capped + 1) ** -0.5)
            if prediction_type == "epsilon"
            else (1 / (capped + 1), 1 / (snr + 1), capped**-0.5, (capped + 1) ** -0.5, capped / (capped + 1))
        )
        np.testing.assert_allclose(weight, right, rtol=1e-4)
        assert not any(np.allclose(weight, other, rtol=1e-4) for other in wrong)
    # In the units of clean latents, of which an error of eps is SNR and one of v SNR + 1 times as large.
    np.testing.assert_allclose(weight * (snr + 1), 1, atol=0.2)


@pytest.mark.parametrize("kind", ["constant", "exponential", "snr"])
def test_huber_deltas(kind):
    """Against the formulas of kohya-ss/sd-scripts on diffusers' schedule."""
    timesteps, alpha_bar = np.arange(1000), DDPMScheduler.from_config(SD15).alphas_cumprod.double().numpy()
    sigma = ((1 - alpha_bar) / alpha_bar) ** 0.5
    expected = {
        "constant": np.full(1000, 0.1),
        "exponential": np.exp(np.log(0.1) / 1000 * timesteps),
        "snr": 0.9 / (1 + sigma) ** 2 + 0.1,
    }
    delta = noise_schedule(SD15).huber_delta(timesteps, 0.1, kind)
    np.testing.assert_allclose(delta, expected.pop(kind), rtol=1e-5)
    assert not any(np.allclose(delta, other, rtol=1e-2) for other in expected.values())
    zero = noise_schedule(CONFIGS["zero terminal SNR"]).huber_delta(timesteps, 0.1, kind)
    assert zero[-1] == pytest.approx(0.1, rel=3e-3) and (zero > 0.099).all()


@pytest.mark.parametrize("name", ["v_prediction", "linear"])
def test_zero_terminal_snr_is_diffusers_in_float64(name):
    config = CONFIGS[name] | {"prediction_type": "v_prediction"}
    count = config["num_train_timesteps"]
    given = (
        torch.linspace(1e-4, 0.02, count, dtype=torch.float64)
        if name == "linear"
        else torch.linspace(0.00085**0.5, 0.012**0.5, count, dtype=torch.float64) ** 2
    )
    expected = torch.cumprod(1 - rescale_zero_terminal_snr(given), dim=0).numpy()
    ours = noise_schedule(config | {"rescale_betas_zero_snr": True})
    np.testing.assert_allclose(ours.alpha_bar, expected, rtol=1e-10, atol=1e-15)
    assert ours.alpha_bar[-1] == 0 and np.all(np.diff(ours.alpha_bar) < 0)
    assert not np.allclose(ours.alpha_bar, noise_schedule(config).alpha_bar, atol=1e-4)


def test_the_last_timestep_without_signal_has_a_target_and_weights():
    schedule, last = noise_schedule(CONFIGS["zero terminal SNR"]), np.array([999])
    assert (schedule.signal(last), schedule.sigma(last)) == (0, 1)
    assert schedule.target(last) == (-1, 0), "of noise alone the image is asked for"
    assert schedule.min_snr_weight(last, 5.0) == 0
    assert schedule.debiased_weight(last) == 1


def test_the_scheduler_of_a_model_trained_with_zero_terminal_snr():
    for name, wanted in (("PNDMScheduler", "DDIMScheduler"), ("EulerDiscreteScheduler", "EulerDiscreteScheduler")):
        config = zero_terminal_snr(CONFIGS["v_prediction"] | {"_class_name": name})
        assert config["_class_name"] == wanted
        theirs = getattr(diffusers, wanted).from_config(config)
        assert theirs.config.rescale_betas_zero_snr and theirs.config.timestep_spacing == "trailing"
        assert config.items() >= (CONFIGS["v_prediction"] | {"_class_name": wanted}).items()
    for name in _RESCALING:
        assert "rescale_betas_zero_snr" in inspect.signature(getattr(diffusers, name)).parameters
    with pytest.raises(UserError, match=r"^train.zero_terminal_snr=true needs a model with prediction_type='v_pred"):
        zero_terminal_snr(SD15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction_type": "sample"}, "prediction_type='sample' must be one of"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid' must be one of"),
        (
            {"rescale_betas_zero_snr": True},
            r"ends without signal \(rescale_betas_zero_snr=true\) needs prediction_type",
        ),
        ({"trained_betas": [0.5, 1.0]}, "ends without signal"),
    ],
)
def test_what_is_not_supported_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        noise_schedule(SD15 | change)
