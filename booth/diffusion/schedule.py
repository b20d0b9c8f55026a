"""Noise schedules as NumPy float64 tables, from the pipeline's own scheduler_config.json.

Everything that depends on the timestep or on the prediction type becomes the coefficients of a row here, so that no
framework code knows a beta or a prediction type. Sources: DDPM (arXiv 2006.11239), v-prediction (arXiv 2202.00512,
appendix D), zero terminal SNR (arXiv 2305.08891). The tables for sampling are in `solvers.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from booth.common.errors import UserError

PREDICTION_TYPES = ("epsilon", "v_prediction")

# Schedulers of diffusers that have `rescale_betas_zero_snr`; any other would ignore it.
_RESCALING = (
    "DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "UniPCMultistepScheduler",
)  # fmt: skip


@dataclass(frozen=True)
class NoiseSchedule:
    """z_t = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps; alpha_bar: the cumulative product of 1 - beta, [timesteps]."""

    alpha_bar: np.ndarray
    prediction_type: str

    @property
    def timesteps(self) -> int:
        return len(self.alpha_bar)

    def signal(self, timestep: np.ndarray) -> np.ndarray:
        """Return alpha_t, float64, in the timestep's shape."""
        return np.sqrt(self.alpha_bar[timestep])

    def sigma(self, timestep: np.ndarray) -> np.ndarray:
        """Return sigma_t, float64, in the timestep's shape."""
        return np.sqrt(1.0 - self.alpha_bar[timestep])

    def target(self, timestep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the coefficients (of the latents, of the noise) of the model's target.

        The target is eps for epsilon, and alpha_t eps - sigma_t z for v_prediction (arXiv 2202.00512, appendix D).
        """
        signal, sigma = self.signal(timestep), self.sigma(timestep)
        if self.prediction_type == "epsilon":
            return np.zeros_like(signal), np.ones_like(signal)
        return -sigma, signal

    def min_snr_weight(self, timestep: np.ndarray, gamma: float) -> np.ndarray:
        """Return the loss weight of a timestep by Min-SNR-gamma (arXiv 2303.09556, section 3.4); all 1 for gamma 0.

        The paper's min(SNR, gamma) is the weight of an error of the clean latents. An error of eps is SNR times that
        error, and an error of v is SNR + 1 times that error.
        """
        if gamma == 0:
            return np.ones(np.shape(timestep))
        snr = self._snr(timestep)
        return np.minimum(snr, gamma) / (snr if self.prediction_type == "epsilon" else snr + 1.0)

    def debiased_weight(self, timestep: np.ndarray) -> np.ndarray:
        """Return the loss weight of a timestep by debiased estimation (arXiv 2310.08442), float64, in its shape.

        For epsilon it is 1 / sqrt(SNR), as in the paper. For v_prediction it is 1 / (SNR + 1): then an error of the
        clean latents has the same weight at all timesteps, also at the last one of a schedule that ends without signal.
        The SNR is limited to 1000. All of this is as in kohya-ss/sd-scripts, `apply_debiased_estimation`.
        """
        snr = np.minimum(self._snr(timestep), 1000.0)
        return 1.0 / (np.sqrt(snr) if self.prediction_type == "epsilon" else snr + 1.0)

    def huber_delta(self, timestep: np.ndarray, delta: float, kind: str) -> np.ndarray:
        """Return the delta of a timestep's pseudo-Huber loss, float64, in the timestep's shape (arXiv 2403.16728).

        `kind` is "constant", or a way from 1 at the first timestep towards `delta` at the last: "exponential" for
        delta^(t / timesteps), or "snr" for (1 - delta) / (1 + sigma_t / alpha_t)^2 + delta.
        """
        if kind == "exponential":
            return delta ** (timestep / self.timesteps)
        if kind == "snr":
            signal = self.signal(timestep)
            return (1.0 - delta) * (signal / (signal + self.sigma(timestep))) ** 2 + delta
        return np.full(np.shape(timestep), delta)

    def _snr(self, timestep: np.ndarray) -> np.ndarray:
        return self.alpha_bar[timestep] / (1.0 - self.alpha_bar[timestep])


def zero_terminal_snr(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scheduler config of a model that is trained with zero terminal SNR (arXiv 2305.08891, sections 3.1 and
    3.3).

    The class becomes DDIM if the config's own class would ignore the setting. Raise UserError for a model that does not
    predict the velocity.
    """
    if config.get("prediction_type", "epsilon") != "v_prediction":
        raise UserError(
            "train.zero_terminal_snr=true needs a model with prediction_type='v_prediction', not"
            f" {config.get('prediction_type', 'epsilon')!r}: in pure noise, the noise says nothing about the image;"
            " set it to false"
        )
    name = config.get("_class_name")
    return {
        **config,
        "_class_name": name if name in _RESCALING else "DDIMScheduler",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }


def noise_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """Read a diffusers scheduler config. Raise UserError for a schedule or prediction type that is not supported."""
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise UserError(f"scheduler: prediction_type={prediction_type!r} must be one of {', '.join(PREDICTION_TYPES)}")
    alpha_bar = np.cumprod(1.0 - _betas(config))
    if config.get("rescale_betas_zero_snr"):
        # arXiv 2305.08891, algorithm 1: the signal is shifted and scaled so that the first value stays the same and the
        # last is 0.
        signal = np.sqrt(alpha_bar)
        alpha_bar = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2
    if prediction_type == "epsilon" and alpha_bar[-1] == 0:
        raise UserError(
            "scheduler: a schedule that ends without signal (rescale_betas_zero_snr=true) needs"
            " prediction_type='v_prediction', not 'epsilon': in pure noise, the noise says nothing about the image"
        )
    return NoiseSchedule(alpha_bar, prediction_type)


def _betas(config: Mapping[str, Any]) -> np.ndarray:
    # A key that a scheduler_config.json leaves out has the default of diffusers' schedulers.
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], np.float64)
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    count, kind = config.get("num_train_timesteps", 1000), config.get("beta_schedule", "linear")
    if kind == "linear":
        return np.linspace(start, end, count)
    if kind == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, count) ** 2
    raise UserError(f"scheduler: beta_schedule={kind!r} must be one of linear, scaled_linear")
