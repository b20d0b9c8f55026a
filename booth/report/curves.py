"""Curves over the steps of a run as inline SVG, with scales in HTML, so that they are readable at any width."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from booth.report.markup import element

_WIDTH, _HEIGHT = 1000, 300  # the range of the coordinates; the page stretches them
_POINTS = 400  # the largest number of points of one curve


@dataclass(frozen=True)
class Curve:
    """A curve; `kind` is its class in the page's styles: total, instance, prior or other."""

    label: str
    steps: np.ndarray
    values: np.ndarray
    kind: str = "total"


def smoothed(values: np.ndarray) -> np.ndarray:
    """Return the exponential moving average over about a twentieth of the values, without bias towards 0 at the start
    (Adam, arXiv 1412.6980, section 3)."""
    decay = 1 - 1 / max(1.0, len(values) / 20)
    average, weight, result = 0.0, 0.0, np.empty(len(values))
    for place, value in enumerate(values):
        average = decay * average + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        result[place] = average / weight
    return result


def chart(title: str, curves: Sequence[Curve], behind: Curve | None = None, *, from_zero: bool = True) -> ET.Element:
    """Return a figure of the curves on one scale, with `behind` drawn pale below them. `behind` may exceed the scale.
    Each curve has at least one point.

    With `from_zero` the scale begins at 0, otherwise at the lowest point of the curves.
    """
    every = np.concatenate([curve.values for curve in curves])
    ticks = _ticks(min(0.0, every.min()) if from_zero else every.min(), every.max())
    steps = (min(curve.steps[0] for curve in curves), max(curve.steps[-1] for curve in curves))
    across = (*steps, ticks[0], ticks[-1])
    paths = [element("path", d=_path(*_extremes(behind), across), class_="behind")] if behind else []
    paths += [element("path", d=_path(*_thinned(curve), across), class_=curve.kind) for curve in curves]
    lines = [element("path", d=f"M0 {_y(tick, across):.1f}H{_WIDTH}", class_="grid") for tick in ticks]
    drawing = element(
        "svg", *lines, *paths, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", preserveAspectRatio="none", role="img",
        aria_label=f"{title}: " + "; ".join(map(_said, curves)),
    )  # fmt: skip
    scale = [
        element("span", f"{tick:.3g}", style=f"top:{100 * _y(tick, across) / _HEIGHT:.1f}%", class_="tick")
        for tick in ticks
    ]
    legend = [
        element("li", element("i", class_=curve.kind), f"{curve.label} ", element("b", f"{curve.values[-1]:.4g}"))
        for curve in curves
    ]
    return element(
        "figure", element("h3", title), element("ul", *legend, class_="legend"),
        element("div", *scale, drawing, class_="plot"),
        element("p", element("span", f"step {steps[0]}"), element("span", f"step {steps[1]}"), class_="steps"),
        class_="chart",
    )  # fmt: skip


def _said(curve: Curve) -> str:
    first, last = curve.values[0], curve.values[-1]
    return f"{curve.label} from {first:.4g} at step {curve.steps[0]} to {last:.4g} at step {curve.steps[-1]}"


def _ticks(low: float, high: float) -> np.ndarray:
    """Return three to six round numbers, the first not above `low` and the last not below `high`."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    exact = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(exact))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= exact * (1 - 1e-9))
    return step * np.arange(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)


def _y(value: float, across: tuple[float, ...]) -> float:
    return _HEIGHT * (1 - (value - across[2]) / (across[3] - across[2]))


def _path(steps: np.ndarray, values: np.ndarray, across: tuple[float, ...]) -> str:
    first, last = across[:2]
    points = [
        f"{_WIDTH * (step - first) / max(1, last - first):.1f} {_y(value, across):.1f}"
        for step, value in zip(steps, values, strict=True)
    ]
    return "M" + "L".join(points) + ("h0" if len(points) == 1 else "")


def _thinned(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `_POINTS` points of a curve, including the first and the last."""
    places = np.unique(np.linspace(0, len(curve.steps) - 1, _POINTS).round().astype(int))
    return curve.steps[places], curve.values[places]


def _extremes(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest point of each stretch, which thinning would hide."""
    if len(curve.steps) <= _POINTS:
        return curve.steps, curve.values
    stretches = np.array_split(np.arange(len(curve.steps)), _POINTS // 2)
    places = [
        place
        for one in stretches
        for place in sorted({one[curve.values[one].argmin()], one[curve.values[one].argmax()]})
    ]
    return curve.steps[places], curve.values[places]
