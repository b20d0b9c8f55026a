"""The methods behind `solvers.py`: schedule and timesteps -> the columns of the table, by their names there.

A column is an array of all steps, or one number for all. Sources: DDIM (arXiv 2010.02502, eq. 12), DPM-Solver++ (arXiv
2211.01095, algorithm 2), Euler (arXiv 2206.00364, algorithm 1 without its correction), its ancestral form (k-diffusion,
`sample_euler_ancestral`), PNDM (arXiv 2202.09778, eq. 9 and 12, begun as latent-diffusion's PLMS sampler does).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from booth.common.errors import UserError
from booth.diffusion.schedule import NoiseSchedule


def _clean(schedule: NoiseSchedule, signal: np.ndarray, sigma: np.ndarray) -> dict[str, Any]:
    """Return the coefficients of the clean latents as they are predicted at these noise levels."""
    if schedule.prediction_type == "epsilon":
        return {"estimate_x": 1 / signal, "estimate_p": -sigma / signal}
    return {"estimate_x": signal, "estimate_p": -sigma}


def _noise(schedule: NoiseSchedule, signal: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the coefficients of x and of the prediction in the noise as it is predicted."""
    if schedule.prediction_type == "epsilon":
        return np.zeros_like(signal), np.ones_like(signal)
    return sigma, signal


def _ddim(settings: Mapping[str, Any], schedule: NoiseSchedule, timestep: np.ndarray) -> dict[str, Any]:
    """Return the noise is predicted too, and mixed in again at the next level.

    As in diffusers, the noise is the one that belongs to the clean latents before they are clipped.
    """
    signal, sigma = schedule.signal(timestep), schedule.sigma(timestep)
    last = 1.0 if settings["set_alpha_to_one"] else schedule.alpha_bar[0]
    next_alpha_bar = _alpha_bar(schedule, timestep - schedule.timesteps // len(timestep), last)
    next_signal, next_sigma = np.sqrt(next_alpha_bar), np.sqrt(1 - next_alpha_bar)
    noise_x, noise_p = _noise(schedule, signal, sigma)
    return _clean(schedule, signal, sigma) | {
        "clip": settings["clip_sample_range"] if settings["clip_sample"] else np.inf,
        "next_x": next_sigma * noise_x,
        "next_estimates": next_signal[:, None],
        "next_p": next_sigma * noise_p,
    }


def _dpm_plus_plus(settings: Mapping[str, Any], schedule: NoiseSchedule, timestep: np.ndarray) -> dict[str, Any]:
    """DPM-Solver++ (2M): arXiv 2211.01095, algorithm 2.

    With h = lambda_next - lambda and lambda = log(signal / sigma), the paper's r is the previous h over this one, and
    D = clean + (clean - previous_clean) / 2r. The first step has no previous one; the last has none to trust.
    """
    steps = len(timestep)
    least = np.log(schedule.alpha_bar[-1] / (1 - schedule.alpha_bar[-1])) / 2
    if (clipped := settings["lambda_min_clipped"]) > least:
        raise UserError(f"scheduler: lambda_min_clipped={clipped!r} must be below {least:.2f}; or take the solver ddim")
    end = 1.0 if settings["final_sigmas_type"] == "zero" else schedule.alpha_bar[0]
    alpha_bar = np.append(schedule.alpha_bar[timestep], end)
    signal, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    noise = sigma / signal
    decay = noise[1:] / noise[:-1]  # e^-h
    first_order_last = (
        settings["euler_at_final"]
        or settings["final_sigmas_type"] == "zero"
        or (settings["lower_order_final"] and steps < 15)
    )
    stop = steps - 1 if first_order_last else steps
    ahead = np.zeros(steps)  # 1 / 2r; 0: first order
    ahead[1:stop] = np.log(decay[1:stop]) / (2 * np.log(decay[: stop - 1]))
    weight = signal[1:] * (1 - decay)
    return _clean(schedule, signal[:-1], sigma[:-1]) | {
        "next_x": sigma[1:] / sigma[:-1],
        "next_estimates": np.stack([weight * (1 + ahead), -weight * ahead], axis=1),
    }


def _euler(
    settings: Mapping[str, Any], schedule: NoiseSchedule, timestep: np.ndarray, *, ancestral: bool = False
) -> dict[str, Any]:
    """Euler's method from one noise over signal to the next, between timesteps too; DPM-Solver++ of first order.

    The ancestral one goes on to less noise than the next level has, and adds what is missing.
    """
    levels = np.sqrt(1 / schedule.alpha_bar - 1)
    level = np.interp(timestep, np.arange(schedule.timesteps), levels)
    end = 0.0 if ancestral or settings["final_sigmas_type"] == "zero" else levels[0]
    following = np.append(level[1:], end)
    down = following**2 / level if ancestral else following
    signal = 1 / np.hypot(1, level)
    next_signal = np.append(signal[1:], 1.0)  # what is decoded is clean + sigma * noise as it is, should noise be left
    scale = np.ones(len(timestep))
    if settings["timestep_spacing"] != "leading":  # then diffusers begins with the first level's noise and no image
        scale[0] = level[0] * signal[0]
    return _clean(schedule, signal, level * signal) | {
        "scale": scale,
        "next_x": next_signal / signal * down / level,
        "next_estimates": (next_signal * (1 - down / level))[:, None],
        "next_noise": next_signal * np.sqrt(following**2 - down**2),
    }


def _pndm(settings: Mapping[str, Any], schedule: NoiseSchedule, timestep: np.ndarray) -> dict[str, Any]:
    """PNDM's transfer (eq. 9) of a linear multistep's prediction (eq. 12), of lower order while there are fewer.

    The first step is made twice: once to see what is predicted at its end, and again from where it began, with the mean
    of both predictions, the second of which later steps pass over.
    """
    span = schedule.timesteps // len(timestep)
    timestep = np.insert(timestep, 1, timestep[1:2])
    begin = timestep.copy()
    begin[1:2] += span
    last = 1.0 if settings["set_alpha_to_one"] else schedule.alpha_bar[0]
    next_alpha_bar = _alpha_bar(schedule, begin - span, last)
    signal, sigma = schedule.signal(begin), schedule.sigma(begin)
    ratio = np.sqrt(next_alpha_bar) / signal
    of_noise = np.sqrt(1 - next_alpha_bar) - ratio * sigma
    noise_x, noise_p = _noise(schedule, signal, sigma)
    next_x, next_p = ratio + of_noise * noise_x, of_noise * noise_p
    used = next_p[:, None] * _MULTISTEP[np.arange(len(timestep)).clip(max=len(_MULTISTEP) - 1)]
    # Where the first step began follows from where it ended: latents = (x - next_p * prediction) / next_x.
    again = next_x[1:2] / next_x[:1]
    used[1:2, 1] -= again * next_p[:1]
    next_x[1:2] = again
    return {"timestep": timestep, "estimate_x": 0.0, "estimate_p": 1.0, "next_x": next_x, "next_estimates": used}


# How the predictions of a step of PNDM and of those before it are combined, of the first steps and of all later ones;
# Adams-Bashforth (eq. 12) but for the second. The second's own prediction is what later steps pass over.
_MULTISTEP = np.array(
    [
        [1, 0, 0, 0, 0],
        [1 / 2, 1 / 2, 0, 0, 0],
        [3 / 2, 0, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 0, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, 0, -9 / 24],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24, 0],
    ]
)


def _alpha_bar(schedule: NoiseSchedule, timestep: np.ndarray, last: float) -> np.ndarray:
    """`last` beyond the schedule's end."""
    return np.where(timestep >= 0, schedule.alpha_bar[timestep.clip(0)], last)


METHODS: dict[str, Callable[..., dict[str, Any]]] = {
    "dpm++": _dpm_plus_plus,
    "ddim": _ddim,
    "euler": _euler,
    "euler_a": partial(_euler, ancestral=True),
    "pndm": _pndm,
}
