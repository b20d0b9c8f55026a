"""Noise schedules as NumPy float64 tables, from the pipeline's own scheduler_config.json.

Everything that depends on the timestep or on what the model predicts is here turned into coefficients of a row, so
that no framework code knows a beta or a prediction type. Sources: DDPM (arXiv 2006.11239), v-prediction (arXiv
2202.00512, appendix D). Sampling has its tables in `solvers.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
