"""Snow, bubbles and rain in front of everything, painted into a picture, float32 [size, size, 3], in place."""

import numpy as np
from PIL import Image, ImageDraw

from picture_world.canvas import REFERENCE


def snowfall(picture: np.ndarray, rng: np.random.Generator) -> None:
    _discs(picture, (*rng.uniform(0, 1, (2, 40)), rng.uniform(0.005, 0.012, 40)), (1.0, 1.0, 1.0), 0.9)


def bubbles(picture: np.ndarray, rng: np.random.Generator) -> None:
    x, y, radius = rng.uniform(0, 1, 12), rng.uniform(0, 0.9, 12), rng.uniform(0.008, 0.022, 12)
    _discs(picture, (x, y, radius), (0.75, 0.95, 1.0), 0.4)
    _discs(picture, (x - radius * 0.3, y - radius * 0.3, radius * 0.45), (1.0, 1.0, 1.0), 0.8)


def rainfall(picture: np.ndarray, rng: np.random.Generator) -> None:
    size = len(picture)
    layer = Image.new("L", (size * REFERENCE, size * REFERENCE))
    draw, side = ImageDraw.Draw(layer), size * REFERENCE
    for x, y, length, light in zip(*rng.uniform(0, 1, (4, 46)), strict=True):
        x, reach = x * 1.3, 0.05 + 0.08 * length
        ends = (x * side, y * side, (x - 0.22 * reach) * side, (y + reach) * side)
        draw.line(ends, fill=int(60 + 80 * light), width=max(1, round(0.008 * side)))
    _cover(picture, layer, (0.92, 0.95, 1.0), 1.0)


def _discs(picture: np.ndarray, discs, colour, strength: float) -> None:
    """Paint discs; `discs` [3, n] holds x, y and radius of each, relative to the picture's side."""
    side = len(picture) * REFERENCE
    layer = Image.new("L", (side, side))
    draw = ImageDraw.Draw(layer)
    for x, y, radius in (np.stack(discs, axis=1) * side).tolist():
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    _cover(picture, layer, colour, strength)


def _cover(picture: np.ndarray, layer: Image.Image, colour, strength: float) -> None:
    share = np.asarray(layer.reduce(REFERENCE), np.float32)[..., None] * np.float32(strength / 255)
    picture += share * (np.asarray(colour, np.float32) - picture)
