"""Grids that compare settings: each axis changes one setting, and all other settings stay the same."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from booth.commands.png_text import Recipe
from booth.common.errors import UserError
from booth.config.choices import SOLVERS
from booth.config.fields import SEED

MANY = 100  # images; a grid with more is made after a warning


@dataclass(frozen=True)
class _Kind:
    """How the values of an axis are read and checked; `rule` completes the sentence "it must be ..."."""

    read: Callable[[str], Any]
    rule: str
    holds: Callable[[Any], bool]
    separator: str = ","


_TEXT = _Kind(str, "text", lambda value: True, separator="|")

# The kinds of axes by the field of Recipe that they change.
AXES = {
    "guidance": _Kind(float, "a finite number, at least 0", lambda value: 0 <= value < math.inf),
    "steps": _Kind(int, "a whole number, at least 1", lambda value: value >= 1),
    "seed": _Kind(int, SEED.text, SEED.holds),
    "solver": _Kind(str, "one of " + ", ".join(SOLVERS), lambda value: value in SOLVERS),
    "checkpoint": _Kind(int, "the step of a checkpoint", lambda value: value >= 0),
    "lora_weight": _Kind(float, "a finite number", math.isfinite),
    "prompt": _TEXT,
    "negative_prompt": _TEXT,
}


@dataclass(frozen=True)
class Axis:
    """One axis of a grid: a field of Recipe and its values."""

    name: str
    values: tuple[Any, ...]

    @property
    def labels(self) -> list[str]:
        shown = (f"{value:g}" if isinstance(value, float) else str(value) for value in self.values)
        return [text if self.name == "prompt" else f"{self.name.replace('_', ' ')} {text}" for text in shown]


def read_axis(option: str, text: str) -> Axis:
    """Return the axis of a text such as `guidance=3,5,7` or `prompt=a photo|a drawing`, which `option` was given.

    Raise UserError if the text cannot be read.
    """
    name, _, values = text.partition("=")
    if name not in AXES:
        known = ", ".join(AXES)
        raise UserError(f"{option} {text!r} must be NAME=VALUE,VALUE,... where NAME is one of {known}")
    kind = AXES[name]
    return Axis(name, tuple(_read(f"{option} {name}", kind, part.strip()) for part in values.split(kind.separator)))


def _read(what: str, kind: _Kind, text: str) -> Any:
    try:
        value = kind.read(text)
    except ValueError:
        value = None
    if value is None or not kind.holds(value):
        raise UserError(f"{what}: {text!r} must be {kind.rule}; values are separated by {kind.separator!r}")
    return value


def read_axes(x: Sequence[str], y: Sequence[str]) -> list[Axis]:
    """Return the axes of --x and --y, in this order. Raise UserError if an axis is given twice."""
    for option, given in (("--x", x), ("--y", y)):
        if len(given) > 1:
            raise UserError(f"{option} is given twice; a grid has one axis across (--x) and one down (--y)")
    axes = [read_axis(option, text) for option, given in (("--x", x), ("--y", y)) for text in given]
    if len({axis.name for axis in axes}) < len(axes):
        raise UserError(f"--x and --y are both {axes[0].name}; give two different names")
    return axes


def varied(base: Recipe, across: Axis | None, down: Axis | None) -> list[Recipe]:
    """Return the recipes of a grid, row by row."""
    rows = [replace(base, **{down.name: value}) for value in down.values] if down else [base]
    if across is None:
        return rows
    return [replace(row, **{across.name: value}) for row in rows for value in across.values]
