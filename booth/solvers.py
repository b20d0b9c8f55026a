"""Samplers as one linear table, from the pipeline's own scheduler_config.json.

Whatever the solver and whatever the model predicts, a denoising step is

    clean   = clip(clean_x * x + clean_p * prediction)       the clean latents as predicted from this step
    x_next  = next_x * x + next_clean * clean + next_previous * previous_clean + next_p * prediction

with numbers that depend on the schedule alone. They are computed here, so that framework code knows neither solvers
nor prediction types. Sources: DDIM (arXiv 2010.02502, eq. 12), DPM-Solver++ (arXiv 2211.01095, algorithm 2),
v-prediction (arXiv 2202.00512, appendix D), the spacings (arXiv 2305.08891, table 2).
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from booth.errors import UserError
from booth.schedule import NoiseSchedule, noise_schedule

SOLVERS = ("dpm++", "ddim")
_SPACINGS = ("leading", "trailing", "linspace")

# What diffusers' DPMSolverMultistepScheduler and DDIMScheduler take for keys that a scheduler_config.json leaves out.
# Defaults of the class that the file names do not count: `from_config` passes on only what the file itself says.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "dpm++": {
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "lower_order_final": True,
        "euler_at_final": False,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -np.inf,
    },
    "ddim": {
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "set_alpha_to_one": True,
    },
}

# Keys that would make it another sampler, and the values with which it is ours. UniPC's and DEIS' solver types are
# here because diffusers' class takes them for its own "midpoint".
_OFF = (False, None)
_SUPPORTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "dpm++": {
        "thresholding": _OFF,
        "algorithm_type": ("dpmsolver++",),
        "solver_order": (2,),
        "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
        "final_sigmas_type": ("zero", "sigma_min"),
        "use_karras_sigmas": _OFF,
        "use_exponential_sigmas": _OFF,
        "use_beta_sigmas": _OFF,
        "use_lu_lambdas": _OFF,
        "use_flow_sigmas": _OFF,
        "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    },
    "ddim": {"thresholding": _OFF},
}


class SamplingStep(NamedTuple):
    """What one denoising step needs, named as in the formulas above; `clip` is infinite where nothing is clipped.

    Plain Python numbers: they take on the type and the device of the arrays that they meet.
    """

    timestep: int
    clean_x: float
    clean_p: float
    clip: float
    next_x: float
    next_clean: float
    next_previous: float
    next_p: float


SamplingTable = tuple[SamplingStep, ...]  # first step to last


def solver_step(step: SamplingStep, latents: Any, previous_clean: Any, prediction: Any) -> tuple[Any, Any]:
    """(latents of the next, less noisy timestep; predicted clean latents, the next step's `previous_clean`).

    `previous_clean` of the first step may be anything finite, such as zeros. Operators only, so that NumPy, JAX and
    torch arrays go through the same lines.
    """
    clean = (step.clean_x * latents + step.clean_p * prediction).clip(-step.clip, step.clip)
    latents = (
        step.next_x * latents + step.next_clean * clean + step.next_previous * previous_clean + step.next_p * prediction
    )
    return latents, clean


def is_guided(guidance: float) -> bool:
    """Whether classifier-free guidance (arXiv 2207.12598, eq. 6) needs the negative prompt; at 1 it cancels out."""
    return guidance > 1


def solver_table(config: Mapping[str, Any], solver: str, steps: int) -> SamplingTable:
    """As diffusers' DPMSolverMultistepScheduler ("dpm++") or DDIMScheduler ("ddim", eta 0) is made from this config.

    `config` is the content of scheduler_config.json, of whichever scheduler class. Raises UserError for more steps than
    the schedule has room for, and for what a config may ask for that is not supported.
    """
    schedule = noise_schedule(config)
    if solver == "dpm++" and schedule.alpha_bar[-1] == 0:
        # A little signal, as diffusers' class has it: without any, lambda of the last timestep would be infinite.
        schedule = replace(schedule, alpha_bar=np.append(schedule.alpha_bar[:-1], 2.0**-24))
    for key, allowed in _SUPPORTED[solver].items():
        if (value := config.get(key, allowed[0])) not in allowed:
            other = "" if solver == "ddim" or key in _SUPPORTED["ddim"] else "; or take the solver ddim"
            said, wanted = json.dumps(value), json.dumps(allowed[0])  # as it stands in the file
            raise UserError(f"scheduler: {key}={said} must be {wanted} for the solver {solver}{other}")
    settings = _DEFAULTS[solver] | {key: config[key] for key in _DEFAULTS[solver] if key in config}
    # DPM-Solver++ spreads one timestep more and leaves the last out: the step there is the one to the clean image.
    spread = steps + (solver == "dpm++")
    timestep = _timesteps(settings, schedule.timesteps, steps, spread)
    signal, sigma = schedule.signal(timestep), schedule.sigma(timestep)
    if schedule.prediction_type == "epsilon":
        clean = 1 / signal, -sigma / signal
    else:
        clean = signal, -sigma
    columns = clean + (_ddim if solver == "ddim" else _dpm_plus_plus)(settings, schedule, timestep)
    columns = (timestep, *(np.broadcast_to(column, [steps]) for column in columns))
    return tuple(SamplingStep(*step) for step in zip(*(column.tolist() for column in columns), strict=True))


def as_in_pipeline(config: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler config after diffusers' StableDiffusionPipeline loaded it.

    The pipeline takes a file's own `steps_offset` other than 1 and `clip_sample` true for mistakes and mends them; keys
    that the file leaves out stay left out.
    """
    mended = {"steps_offset": 1, "clip_sample": False}
    return {**config, **{key: value for key, value in mended.items() if key in config}}


def _timesteps(settings: Mapping[str, Any], total: int, steps: int, spread: int) -> np.ndarray:
    """int32 [steps], falling; `spread`: how many are spread over the schedule, of which the last are left out."""
    most = total - (spread - steps)
    if not 1 <= steps <= most:
        raise UserError(f"inference steps {steps} must be from 1 to {most}: the model was trained with {total}")
    spacing, offset = settings["timestep_spacing"], settings["steps_offset"]
    if spacing == "leading":
        timestep = np.arange(spread)[::-1] * (total // spread) + offset
    elif spacing == "trailing":
        timestep = np.round(np.arange(total, 0, -total / steps)) - 1  # may end with a -1 more, by rounding
    elif spacing == "linspace":
        timestep = np.round(np.linspace(0, total - 1, spread))[::-1]
    else:
        raise UserError(f"scheduler: timestep_spacing={spacing!r} must be one of {', '.join(_SPACINGS)}")
    if timestep[0] >= total:
        raise UserError(
            f"inference steps {steps} with the scheduler's steps_offset={offset} begin beyond the last of"
            f" {total} timesteps; take fewer steps"
        )
    return timestep[:steps].astype(np.int32)


def _ddim(settings: Mapping[str, Any], schedule: NoiseSchedule, timestep: np.ndarray) -> tuple[Any, ...]:
    """The columns from `clip` on: the noise is predicted too, and mixed in again at the next level.

    As in diffusers, the noise is the one that belongs to the clean latents before they are clipped.
    """
    following = timestep - schedule.timesteps // len(timestep)
    last = 1.0 if settings["set_alpha_to_one"] else schedule.alpha_bar[0]
    alpha_bar = np.where(following >= 0, schedule.alpha_bar[following.clip(0)], last)
    next_signal, next_sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    clip = settings["clip_sample_range"] if settings["clip_sample"] else np.inf
    if schedule.prediction_type == "epsilon":
        noise_x, noise_p = np.zeros(len(timestep)), np.ones(len(timestep))
    else:
        noise_x, noise_p = schedule.sigma(timestep), schedule.signal(timestep)
    return clip, next_sigma * noise_x, next_signal, 0.0, next_sigma * noise_p


def _dpm_plus_plus(settings: Mapping[str, Any], schedule: NoiseSchedule, timestep: np.ndarray) -> tuple[Any, ...]:
    """The columns from `clip` on, of DPM-Solver++ (2M): arXiv 2211.01095, algorithm 2.

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
    return np.inf, sigma[1:] / sigma[:-1], weight * (1 + ahead), -weight * ahead, 0.0
