"""Samplers as one linear table, from the pipeline's own scheduler_config.json.

Whatever the solver and whatever the model predicts, a denoising step is

    x        = scale * latents                                   what the model sees
    estimate = clip(estimate_x * x + estimate_p * prediction)    of the clean latents; of PNDM the prediction itself
    latents  = next_x * x + sum over k of next_estimates[k] * (the estimate of k steps ago)
               + next_p * prediction + next_noise * fresh noise

with numbers that depend on the schedule alone. They are computed here, so that framework code knows neither solvers
nor prediction types. Latents are always sqrt(alpha_bar) clean + sqrt(1 - alpha_bar) noise; those of k-diffusion's and
diffusers' Euler samplers, clean + sigma * noise, are the same times sqrt(sigma^2 + 1), by which these divide what the
model sees. The methods are in `solver_methods.py`. Sources: v-prediction (arXiv 2202.00512, appendix D), the spacings
(arXiv 2305.08891, table 2).
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

# What diffusers' DPMSolverMultistep-, DDIM-, EulerDiscrete-, EulerAncestralDiscrete- and PNDMScheduler take for keys
# that a scheduler_config.json leaves out. Defaults of the class that the file names do not count: `from_config` passes
# on only what the file itself says.
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

# Keys that would make it another sampler, and the values with which it is ours. UniPC's and DEIS' solver types are
# here because diffusers' class takes them for its own "midpoint". PNDM that begins with Runge-Kutta steps is one too; a
# config that says nothing of it, as other classes' do, is taken for one without.
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
    """What one denoising step needs, named as in the formulas above; `clip` is infinite where nothing is clipped.

    Plain Python numbers: they take on the type and the device of the arrays that they meet. The timestep may lie
    between two of the schedule's. `scale` is 1 but for Euler's first step, which may begin with less noise than given.
    """

    timestep: float
    scale: float
    estimate_x: float
    estimate_p: float
    clip: float
    next_x: float
    next_estimates: tuple[float, ...]  # HISTORY + 1 of them: this step's, then those before it
    next_p: float
    next_noise: float


SamplingTable = tuple[SamplingStep, ...]  # first step to last; PNDM has one step more than asked for
History = tuple[Any, ...]  # the estimates of the HISTORY steps before, the newest first


def solver_step(step: SamplingStep, x: Any, history: History, prediction: Any, noise: Any) -> tuple[Any, History]:
    """(latents of the next, less noisy timestep; the next step's `history`).

    `x` is what the model saw: the latents times `step.scale`. The first step's `history` may be anything finite, such
    as zeros, and so may `noise` where the step adds none. Operators only, so that NumPy, JAX and torch arrays go
    through the same lines.
    """
    estimates = ((step.estimate_x * x + step.estimate_p * prediction).clip(-step.clip, step.clip), *history)
    latents = step.next_x * x
    for coefficient, estimate in zip(step.next_estimates, estimates, strict=True):
        latents = latents + coefficient * estimate
    return latents + step.next_p * prediction + step.next_noise * noise, estimates[:HISTORY]


def needs_noise(table: SamplingTable) -> bool:
    """Return whether steps add fresh noise."""
    return any(step.next_noise for step in table)


def is_guided(guidance: float) -> bool:
    """Return whether classifier-free guidance (arXiv 2207.12598, eq. 6) needs the negative prompt; at 1 it cancels
    out."""
    return guidance > 1


def solver_table(config: Mapping[str, Any], solver: str, steps: int) -> SamplingTable:
    """As diffusers' scheduler of that name is made from this config (DDIM with eta 0, PNDM with `skip_prk_steps`).

    `config` is the content of scheduler_config.json, of whichever scheduler class. Raise UserError for more steps than
    the schedule has room for, and for what a config may ask for that is not supported.
    """
    schedule = noise_schedule(config)
    if solver in ("dpm++", *_EULER) and schedule.alpha_bar[-1] == 0:
        # A little signal, as diffusers' classes have it: without any, the last timestep's noise would be infinite.
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
    timestep = timestep.astype(np.float32) if solver in _EULER else np.round(timestep).astype(np.int32)
    columns = {"scale": 1.0, "clip": np.inf, "next_p": 0.0, "next_noise": 0.0, "timestep": timestep}
    columns |= METHODS[solver](settings, schedule, timestep)
    return _rows(columns)


def _rows(columns: Mapping[str, Any]) -> SamplingTable:
    """Return a step for each timestep; what is the same for all may be a single number, and the oldest estimates left
    out."""
    count = len(columns["timestep"])
    lists = {name: np.broadcast_to(column, [count, *np.shape(column)[1:]]).tolist() for name, column in columns.items()}
    lists["timestep"] = [float(timestep) for timestep in lists["timestep"]]
    lists["next_estimates"] = [(*used, *[0.0] * (HISTORY + 1 - len(used))) for used in lists["next_estimates"]]
    return tuple(SamplingStep(*(lists[name][place] for name in SamplingStep._fields)) for place in range(count))


def as_in_pipeline(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scheduler config after diffusers' StableDiffusionPipeline loaded it.

    The pipeline takes a file's own `steps_offset` other than 1 and `clip_sample` true for mistakes and mends them; keys
    that the file leaves out stay left out.
    """
    mended = {"steps_offset": 1, "clip_sample": False}
    return {**config, **{key: value for key, value in mended.items() if key in config}}


def _timesteps(settings: Mapping[str, Any], total: int, steps: int, spread: int) -> np.ndarray:
    """[steps], falling; only those of linspace may be no whole numbers.

    `spread`: how many are spread over the schedule, of which the last are left out.
    """
    most = total - (spread - steps)
    if not 1 <= steps <= most:
        raise UserError(f"inference steps {steps} must be from 1 to {most}: the model was trained with {total}")
    spacing, offset = settings["timestep_spacing"], settings["steps_offset"]
    if spacing == "leading":
        timestep = np.arange(spread)[::-1] * (total // spread) + offset
    elif spacing == "trailing":
        timestep = np.round(np.arange(total, 0, -total / steps)) - 1  # may end with a -1 more, by rounding
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
