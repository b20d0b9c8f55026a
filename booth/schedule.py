"""Noise schedules as NumPy float64 tables, from the pipeline's own scheduler_config.json.

Everything that depends on the timestep or on what the model predicts is here turned into coefficients of a row, so
that no framework code knows a beta or a prediction type. Sources: DDPM (arXiv 2006.11239), v-prediction (arXiv
2202.00512, appendix D), DDIM (arXiv 2010.02502, eq. 12).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from booth.errors import UserError

PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class NoiseSchedule:
    """z_t = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps; alpha_bar: the cumulated product of 1 - beta, [timesteps]."""

    alpha_bar: np.ndarray
    prediction_type: str

    @property
    def timesteps(self) -> int:
        return len(self.alpha_bar)

    def signal(self, timestep: np.ndarray) -> np.ndarray:
        """alpha_t, float64, of the timestep's shape."""
        return np.sqrt(self.alpha_bar[timestep])

    def sigma(self, timestep: np.ndarray) -> np.ndarray:
        """sigma_t, float64, of the timestep's shape."""
        return np.sqrt(1.0 - self.alpha_bar[timestep])

    def target(self, timestep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(on latents, on noise): the coefficients of what the model is to predict.

        epsilon: eps; v_prediction: alpha_t eps - sigma_t z (arXiv 2202.00512, appendix D).
        """
        signal, sigma = self.signal(timestep), self.sigma(timestep)
        if self.prediction_type == "epsilon":
            return np.zeros_like(signal), np.ones_like(signal)
        return -sigma, signal

    def min_snr_weight(self, timestep: np.ndarray, gamma: float) -> np.ndarray:
        """Min-SNR-gamma (arXiv 2303.09556, section 3.4): the loss weight of a timestep; all 1 for gamma 0.

        The paper's min(SNR, gamma) weighs an error of the clean latents; an error of eps is SNR times that, an error
        of v is SNR + 1 times that.
        """
        if gamma == 0:
            return np.ones(np.shape(timestep))
        snr = self.alpha_bar[timestep] / (1.0 - self.alpha_bar[timestep])
        return np.minimum(snr, gamma) / (snr if self.prediction_type == "epsilon" else snr + 1.0)


def noise_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """Reads a diffusers scheduler config. Raises UserError for a schedule or prediction type that is not supported."""
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise UserError(f"scheduler: prediction_type={prediction_type!r} must be one of {', '.join(PREDICTION_TYPES)}")
    if config.get("rescale_betas_zero_snr"):
        raise UserError("scheduler: rescale_betas_zero_snr=true is not supported yet; it must be false")
    return NoiseSchedule(np.cumprod(1.0 - _betas(config)), prediction_type)


def _betas(config: Mapping[str, Any]) -> np.ndarray:
    # The defaults are those of diffusers' schedulers, for keys that a scheduler_config.json leaves out.
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], np.float64)
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    count, kind = config.get("num_train_timesteps", 1000), config.get("beta_schedule", "linear")
    if kind == "linear":
        return np.linspace(start, end, count)
    if kind == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, count) ** 2
    raise UserError(f"scheduler: beta_schedule={kind!r} must be one of linear, scaled_linear")


class DDIMRule(NamedTuple):
    """What is the same in every step; hashable, so that it can be a static argument of a compiled function."""

    predicts_v: bool
    clip: float  # 0: the predicted clean latents are not clipped


class DDIMTable(NamedTuple):
    """One entry a denoising step, first to last: float32 [steps], the timesteps int32 [steps]."""

    rule: DDIMRule
    timestep: np.ndarray
    signal: np.ndarray
    sigma: np.ndarray
    next_signal: np.ndarray
    next_sigma: np.ndarray

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        """The five arrays; one entry of each makes the `row` of `ddim_step`."""
        return self[1:]


def ddim_table(config: Mapping[str, Any], steps: int) -> DDIMTable:
    """Deterministic DDIM (eta 0), as diffusers' `DDIMScheduler.from_config` builds it from this scheduler config.

    Raises UserError for more steps than the schedule has timesteps, and for an unknown timestep_spacing.
    """
    schedule = noise_schedule(config)
    total = schedule.timesteps
    if not 1 <= steps <= total:
        raise UserError(f"inference steps {steps} must be from 1 to {total}, the timesteps the model was trained with")
    spacing, offset = config.get("timestep_spacing", "leading"), config.get("steps_offset", 0)
    if spacing == "leading":
        timestep = np.arange(steps)[::-1] * (total // steps) + offset
    elif spacing == "trailing":
        timestep = np.round(np.arange(total, 0, -total / steps)) - 1
    elif spacing == "linspace":
        timestep = np.round(np.linspace(0, total - 1, steps))[::-1]
    else:
        raise UserError(f"scheduler: timestep_spacing={spacing!r} must be one of leading, trailing, linspace")
    timestep = timestep.astype(np.int32).clip(0, total - 1)
    following = timestep - total // steps
    last = 1.0 if config.get("set_alpha_to_one", True) else schedule.alpha_bar[0]
    next_alpha_bar = np.where(following >= 0, schedule.alpha_bar[following.clip(0)], last)
    float32 = (
        schedule.signal(timestep),
        schedule.sigma(timestep),
        np.sqrt(next_alpha_bar),
        np.sqrt(1 - next_alpha_bar),
    )
    rule = DDIMRule(
        predicts_v=schedule.prediction_type == "v_prediction",
        clip=config.get("clip_sample_range", 1.0) if config.get("clip_sample", True) else 0.0,
    )
    return DDIMTable(rule, timestep, *(column.astype(np.float32) for column in float32))


def ddim_step(rule: DDIMRule, latents: Any, prediction: Any, row: tuple[Any, ...]) -> Any:
    """The latents of the next, less noisy timestep (arXiv 2010.02502, eq. 12 with eta 0).

    Operators only, so that NumPy, JAX and torch arrays go through the same lines; `row` holds
    one entry of each of `table.columns`.
    """
    _, signal, sigma, next_signal, next_sigma = row
    if rule.predicts_v:
        clean = signal * latents - sigma * prediction
        noise = signal * prediction + sigma * latents
    else:
        clean = (latents - sigma * prediction) / signal
        noise = prediction
    if rule.clip:
        clean = clean.clip(-rule.clip, rule.clip)
    return next_signal * clean + next_sigma * noise
