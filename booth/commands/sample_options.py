"""Read the options of `sample`: prompts, seeds and settings, or a grid of settings."""

import argparse
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from booth.commands.png_text import Recipe
from booth.commands.xy_grid import MANY, Axis, read_axes, varied
from booth.common.errors import UserError
from booth.config.fields import SEED

log = logging.getLogger("booth")

_DEFAULTS = {
    "negative_prompt": "",
    "solver": "dpm++",
    "steps": 25,
    "guidance": 7.5,
    "seeds": [0],
}  # the values of options that are not given
_AUTO_BATCH = 8  # `--batch-size auto` begins with this many images at once


@dataclass(frozen=True)
class Asked:
    """The images that the options ask for; `recipes` are in the order of the grid."""

    recipes: list[Recipe]
    across: Axis | None
    down: Axis | None
    columns: int
    batch_size: int
    by_memory: bool  # if memory runs out, continue with fewer images at once

    @property
    def is_xy(self) -> bool:
        return bool(self.across or self.down)


def read_options(options: argparse.Namespace) -> Asked:
    """Return what the options ask for. Raise UserError for options with which no model could make images."""
    axes = read_axes(options.x, options.y)
    _check_not_both(options, axes)
    for name, value in _DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for seed in options.seeds:
        if not SEED.holds(seed):
            raise UserError(f"--seeds {seed} must be {SEED.text}")
    if not 0 <= options.guidance < math.inf:
        raise UserError(f"--guidance {options.guidance} must be a finite number, at least 0")
    weight = options.lora_weight
    if weight is not None and not math.isfinite(weight):
        raise UserError(f"--lora-weight {weight} must be a finite number")
    batch = {"batch_size": _batch_size(options.batch_size), "by_memory": options.batch_size == "auto"}
    across, down = (axes.pop(0) if given else None for given in (options.x, options.y))
    prompts, seeds, names = _prompts(options), options.seeds, [axis.name for axis in (across, down) if axis]
    if not prompts and "prompt" not in names:
        raise UserError("the following arguments are required: --prompt (or --prompts FILE)")
    if "checkpoint" in names and (options.step is not None or not options.run_dir):
        raise UserError("the axis checkpoint names checkpoints of --run; give --run, and no --step")
    recipes = [
        Recipe(
            prompt, options.negative_prompt, seed, options.solver, options.steps, options.guidance, options.step, weight
        )
        for prompt in prompts or [""]
        for seed in seeds
    ]  # fmt: skip
    if not names:
        return Asked(recipes, None, None, len(seeds), **batch)
    for name, option, given in (("prompt", "--prompt", prompts), ("seed", "--seeds", seeds)):
        if name not in names and len(given) > 1:
            raise UserError(f"a grid of --x and --y has one {name}: give one with {option}, or make {name} an axis")
    grid = varied(recipes[0], across, down)
    if len(grid) > MANY:
        log.warning("--x and --y ask for %d images", len(grid))
    return Asked(grid, across, down, len(across.values) if across else 1, **batch)


def _check_not_both(options: argparse.Namespace, axes: Sequence[Axis]) -> None:
    """Raise UserError if an option and an axis set the same value."""
    by_axis = {"seed": ["seeds"], "prompt": ["prompt", "prompts"], "checkpoint": []}
    for axis in axes:
        for name in by_axis.get(axis.name, [axis.name]):
            if getattr(options, name) not in (None, []):
                option = f"--{name.replace('_', '-')}"
                raise UserError(
                    f"{option} is given beside the axis {axis.name}, which sets the same; give only one of them"
                )


def _batch_size(text: str) -> int:
    if text == "auto":
        return _AUTO_BATCH
    if not re.fullmatch(r"\d+", text) or int(text) < 1:
        raise UserError(f"--batch-size {text} must be at least 1, or auto")
    return int(text)


def _prompts(options: argparse.Namespace) -> list[str]:
    """Return the prompts of --prompt, then those of the file. Raise UserError if the file has none or is not UTF-8."""
    prompts = list(options.prompt)
    if options.prompts:
        try:
            lines = Path(options.prompts).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"--prompts {options.prompts} is not all UTF-8; save it as UTF-8") from error
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise UserError(f"--prompts {options.prompts} contains no prompt; write one on each line")
        prompts += found
    return prompts
