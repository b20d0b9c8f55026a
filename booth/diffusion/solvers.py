"""Samplers as one linear table, from the pipeline's own scheduler_config.json.

With any solver and any prediction type, a denoising step is

    x        = scale * latents                                   the model's input
    estimate = clip(estimate_x * x + estimate_p * prediction)    the clean latents; for PNDM the prediction itself
    latents  = next_x * x + sum over k of next_estimates[k] * (the estimate of k steps ago)
               + next_p * prediction + next_noise * fresh noise

with numbers that depend only on the schedule. They are computed here, so that framework code knows neither solvers nor
prediction types. Latents are always sqrt(alpha_bar) clean + sqrt(1 - alpha_bar) noise. The Euler samplers of
k-diffusion and diffusers have clean + sigma * noise, which is the same multiplied by sqrt(sigma^2 + 1); they divide the
model's input by this factor. The methods are in `solver_methods.py`. Sources: v-prediction (arXiv 2202.00512, appendix
D), the spacings (arXiv 2305.08891, table 2).
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from booth.common.errors import UserError
from booth.diffusion.schedule import noise_schedule
from booth.diffusion.solver_methods import METHODS

HISTORY = 4  # earlier estimates that a step may use
_EULER = ("euler", "euler_a")
_SPACINGS = ("leading", "trailing", "linspace")

# The defaults of diffusers' DPMSolverMultistep-, DDIM-, EulerDiscrete-, EulerAncestralDiscrete- and PNDMScheduler for
# keys that a scheduler_config.json leaves out. The defaults of the class that the file names are not used:
# `from_config` passes on only the keys in the file.
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
    "euler": {"timestep_spacing": "linspace", "steps_offset": 0, "final_sigmas_type": "zero"},
    "euler_a": {"timestep_spacing": "linspace", "steps_offset": 0},
    "pndm": {"timestep_spacing": "leading", "steps_offset": 0, "set_alpha_to_one": False},
}

# Keys that could ask for a different sampler, and the values that do not. The solver types of UniPC and DEIS are here
# because diffusers' class takes them for its own "midpoint". PNDM that begins with Runge-Kutta steps would be a
# different sampler; a config without that key, such as one of another class, is taken for PNDM without these steps.
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
    "euler": {
        "interpolation_type": ("linear",),
        "timestep_type": ("discrete",),
        "final_sigmas_type": ("zero", "sigma_min"),
        "use_karras_sigmas": _OFF,
        "use_exponential_sigmas": _OFF,
        "use_beta_sigmas": _OFF,
    },
    "euler_a": {},
    "pndm": {"skip_prk_steps": (True,), "rescale_betas_zero_snr": _OFF},
}


class SamplingStep(NamedTuple):
    """The numbers of one denoising step, named as in the formulas above; `clip` is infinite if nothing is clipped.

    They are plain Python numbers, which adopt the type and the device of the arrays that they are combined with. The
    timestep may lie between two of the schedule's. `scale` is 1 except in Euler's first step, which may begin with less
    noise than the given latents have.
    """

    timestep: float
    scale: float
    estimate_x: float
    estimate_p: float
    clip: float
    next_x: float
    next_estimates: tuple[float, ...]  # HISTORY + 1 numbers: for this step's estimate, then for the earlier ones
    next_p: float
    next_noise: float


SamplingTable = tuple[SamplingStep, ...]  # first step to last; PNDM has one step more than asked for
History = tuple[Any, ...]  # the estimates of the HISTORY steps before, the newest first


def solver_step(step: SamplingStep, x: Any, history: History, prediction: Any, noise: Any) -> tuple[Any, History]:
    """Return (the latents of the next, less noisy timestep; the next step's `history`).

    `x` was the model's input: the latents times `step.scale`. The first step's `history` may be anything finite, such
    as zeros, and so may `noise` if the step adds none. Only operators are used, so that NumPy, JAX and torch arrays go
    through the same lines.
    """
    estimates = ((step.estimate_x * x + step.estimate_p * prediction).clip(-step.clip, step.clip), *history)
    latents = step.next_x * x
    for coefficient, estimate in zip(step.next_estimates, estimates, strict=True):
        latents = latents + coefficient * estimate
    return latents + step.next_p * prediction + step.next_noise * noise, estimates[:HISTORY]


def needs_noise(table: SamplingTable) -> bool:
    """Return whether any step adds fresh noise."""
    return any(step.next_noise for step in table)


def is_guided(guidance: float) -> bool:
    """Return whether classifier-free guidance (arXiv 2207.12598, eq. 6) needs the negative prompt; at 1 it cancels
    out."""
    return guidance > 1


def solver_table(config: Mapping[str, Any], solver: str, steps: int) -> SamplingTable:
    """Return the table of diffusers' scheduler for this solver, made from this config (DDIM with eta 0, PNDM with
    `skip_prk_steps`).

    `config` is the content of scheduler_config.json, of any scheduler class. Raise UserError for more steps than the
    schedule has room for, and for anything in the config that is not supported.
    """
    schedule = noise_schedule(config)
    if solver in ("dpm++", *_EULER) and schedule.alpha_bar[-1] == 0:
        # diffusers' classes keep a little signal: without any, the last timestep's ratio of noise would be infinite.
        schedule = replace(schedule, alpha_bar=np.append(schedule.alpha_bar[:-1], 2.0**-24))
    for key, allowed in _SUPPORTED[solver].items():
        if (value := config.get(key, allowed[0])) not in allowed:
            other = "" if solver == "ddim" or key in _SUPPORTED["ddim"] else "; or take the solver ddim"
            said, wanted = json.dumps(value), json.dumps(allowed[0])  # as it is written in the file
            raise UserError(f"scheduler: {key}={said} must be {wanted} for the solver {solver}{other}")
    settings = _DEFAULTS[solver] | {key: config[key] for key in _DEFAULTS[solver] if key in config}
    # DPM-Solver++ spreads one timestep more and leaves the last one out: the step from there leads to the clean image.
    spread = steps + (solver == "dpm++")
    timestep = _timesteps(settings, schedule.timesteps, steps, spread)
    timestep = timestep.astype(np.float32) if solver in _EULER else np.round(timestep).astype(np.int32)
    columns = {"scale": 1.0, "clip": np.inf, "next_p": 0.0, "next_noise": 0.0, "timestep": timestep}
    columns |= METHODS[solver](settings, schedule, timestep)
    return _rows(columns)


def _rows(columns: Mapping[str, Any]) -> SamplingTable:
    """Return a step for each timestep. A column may be a single number for all steps, and the columns of the oldest
    estimates may be missing."""
    count = len(columns["timestep"])
    lists = {name: np.broadcast_to(column, [count, *np.shape(column)[1:]]).tolist() for name, column in columns.items()}
    lists["timestep"] = [float(timestep) for timestep in lists["timestep"]]
    lists["next_estimates"] = [(*used, *[0.0] * (HISTORY + 1 - len(used))) for used in lists["next_estimates"]]
    return tuple(SamplingStep(*(lists[name][place] for name in SamplingStep._fields)) for place in range(count))


def as_in_pipeline(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scheduler config after diffusers' StableDiffusionPipeline loaded it.

    If the file has a `steps_offset` other than 1 or a true `clip_sample`, the pipeline takes this for a mistake and
    corrects it; keys that are not in the file are not added.
    """
    corrected = {"steps_offset": 1, "clip_sample": False}
    return {**config, **{key: value for key, value in corrected.items() if key in config}}


def _timesteps(settings: Mapping[str, Any], total: int, steps: int, spread: int) -> np.ndarray:
    """Return the timesteps, [steps], in falling order; only those of linspace need not be whole numbers.

    `spread` is how many timesteps are spread over the schedule; the last ones beyond `steps` are left out.
    """
    most = total - (spread - steps)
    if not 1 <= steps <= most:
        raise UserError(f"inference steps {steps} must be from 1 to {most}: the model was trained with {total}")
    spacing, offset = settings["timestep_spacing"], settings["steps_offset"]
    if spacing == "leading":
        timestep = np.arange(spread)[::-1] * (total // spread) + offset
    elif spacing == "trailing":
        timestep = np.round(np.arange(total, 0, -total / steps)) - 1  # rounding may add a -1 at the end
    elif spacing == "linspace":
        timestep = np.linspace(0, total - 1, spread)[::-1]
    else:
        raise UserError(f"scheduler: timestep_spacing={spacing!r} must be one of {', '.join(_SPACINGS)}")
    if timestep[0] >= total:
        raise UserError(
            f"inference steps {steps} with the scheduler's steps_offset={offset} begin beyond the last of"
            f" {total} timesteps; take fewer steps"
        )
    return timestep[:steps]
