"""The methods behind `solvers.py`: schedule and timesteps -> the columns of its table, by name.

A column is an array for all steps, or one number for all. Sources: DDIM (arXiv 2010.02502, eq. 12), DPM-Solver++ (arXiv
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
    """Return the coefficients of the predicted clean latents at these noise levels."""
    if schedule.prediction_type == "epsilon":
        return {"estimate_x": 1 / signal, "estimate_p": -sigma / signal}
    return {"estimate_x": signal, "estimate_p": -sigma}


def _noise(schedule: NoiseSchedule, signal: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the coefficients of x and of the model's prediction in the predicted noise."""
    if schedule.prediction_type == "epsilon":
        return np.zeros_like(signal), np.ones_like(signal)
    return sigma, signal


def _ddim(settings: Mapping[str, Any], schedule: NoiseSchedule, timestep: np.ndarray) -> dict[str, Any]:
    """Return the columns of DDIM: the noise is predicted too, and mixed with the clean latents at the next level.

    As in diffusers, the predicted noise belongs to the clean latents from before they are clipped.
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
    """Return the columns of DPM-Solver++ (2M): arXiv 2211.01095, algorithm 2.

    With h = lambda_next - lambda and lambda = log(signal / sigma), the paper's r is the previous h divided by this one,
    and D = clean + (clean - previous_clean) / 2r. The first step has no previous one, and the last step uses none.
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
    """Return the columns of Euler's method, which steps along the ratio of noise to signal, also between timesteps. It
    equals DPM-Solver++ of first order.

    The ancestral method steps to less noise than the next level has, and adds the difference as fresh noise.
    """
    levels = np.sqrt(1 / schedule.alpha_bar - 1)
    level = np.interp(timestep, np.arange(schedule.timesteps), levels)
    end = 0.0 if ancestral or settings["final_sigmas_type"] == "zero" else levels[0]
    following = np.append(level[1:], end)
    down = following**2 / level if ancestral else following
    signal = 1 / np.hypot(1, level)
    next_signal = np.append(signal[1:], 1.0)  # clean + sigma * noise is decoded, without scaling, if noise is left
    scale = np.ones(len(timestep))
    if settings["timestep_spacing"] != "leading":  # then diffusers begins with noise of the first level and no signal
        scale[0] = level[0] * signal[0]
    return _clean(schedule, signal, level * signal) | {
        "scale": scale,
        "next_x": next_signal / signal * down / level,
        "next_estimates": (next_signal * (1 - down / level))[:, None],
        "next_noise": next_signal * np.sqrt(following**2 - down**2),
    }


def _pndm(settings: Mapping[str, Any], schedule: NoiseSchedule, timestep: np.ndarray) -> dict[str, Any]:
    """Return the columns of PNDM: its transfer (eq. 9) of a linear multistep prediction (eq. 12), whose order is lower
    while there are fewer earlier predictions.

    The first step is made twice: once to get the prediction at its end, and again from its beginning with the mean of
    both predictions. Later steps ignore the second of these predictions.
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
    # The beginning of the first step is computed from its end: latents = (x - next_p * prediction) / next_x.
    again = next_x[1:2] / next_x[:1]
    used[1:2, 1] -= again * next_p[:1]
    next_x[1:2] = again
    return {"timestep": timestep, "estimate_x": 0.0, "estimate_p": 1.0, "next_x": next_x, "next_estimates": used}


# The coefficients of a step's own prediction and of the predictions before it: one row for each of PNDM's first steps,
# and the last row for all later ones. They are Adams-Bashforth's (eq. 12), except in the second step, whose own
# prediction later steps ignore.
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
    """Return alpha_bar at the timesteps; `last` beyond the schedule's end."""
    return np.where(timestep >= 0, schedule.alpha_bar[timestep.clip(0)], last)


METHODS: dict[str, Callable[..., dict[str, Any]]] = {
    "dpm++": _dpm_plus_plus,
    "ddim": _ddim,
    "euler": _euler,
    "euler_a": partial(_euler, ancestral=True),
    "pndm": _pndm,
}
