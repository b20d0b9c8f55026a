"""Where an object is: calm backgrounds of two or three large areas and one or two big shapes."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from drawn_world.canvas import Colour


class Setting(NamedTuple):
    """`phrase` names it in a caption. `draw(canvas, size, rng)` draws it. Objects stand on `ground`, from the top."""

    phrase: str
    draw: Callable[[ImageDraw.ImageDraw, int, np.random.Generator], None]
    ground: float = 0.88


def _varied(colour: Colour, rng: np.random.Generator, by: int = 12) -> Colour:
    red, green, blue = np.clip(np.array(colour) + rng.integers(-by, by + 1, 3), 0, 255).tolist()
    return red, green, blue


def _area(draw: ImageDraw.ImageDraw, size: int, top: float, bottom: float, colour: Colour) -> None:
    draw.rectangle((0, top * size, size, bottom * size), colour)


def _disc(draw: ImageDraw.ImageDraw, size: int, x: float, y: float, radius: float, colour: Colour) -> None:
    draw.ellipse(((x - radius) * size, (y - radius) * size, (x + radius) * size, (y + radius) * size), colour)


def _side(rng: np.random.Generator) -> float:
    """Return the x of something big at one side."""
    x = rng.uniform(0.08, 0.2)
    return float(x if rng.uniform() < 0.5 else 1 - x)


def beach(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator) -> None:
    _area(draw, size, 0, 0.5, _varied((150, 214, 246), rng))
    _disc(draw, size, _side(rng), 0.14, 0.1, (255, 224, 90))
    _area(draw, size, 0.44, 0.66, _varied((44, 140, 200), rng))
    _area(draw, size, 0.66, 1, _varied((240, 212, 150), rng))


def snow(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator) -> None:
    _area(draw, size, 0, 0.7, _varied((176, 196, 220), rng))
    x = _side(rng)
    for top, half in ((0.2, 0.11), (0.34, 0.15), (0.48, 0.19)):
        points = ((x, top), (x - half, top + 0.2), (x + half, top + 0.2))
        draw.polygon([(size * a, size * b) for a, b in points], (58, 110, 96))
    _area(draw, size, 0.64, 1, _varied((246, 248, 252), rng, 5))
    for _ in range(9):
        _disc(draw, size, rng.uniform(0, 1), rng.uniform(0, 0.6), 0.022, (255, 255, 255))


def night(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator) -> None:
    _area(draw, size, 0, 1, _varied((26, 30, 76), rng, 8))
    x = _side(rng)
    _disc(draw, size, x, 0.16, 0.1, (250, 244, 200))
    for _ in range(8):
        _disc(draw, size, rng.uniform(0, 1), rng.uniform(0, 0.6), 0.016, (255, 250, 220))
    _area(draw, size, 0.72, 1, _varied((44, 52, 60), rng, 6))


def forest(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator) -> None:
    _area(draw, size, 0, 0.7, _varied((116, 172, 120), rng))
    for x in (_side(rng), float(rng.uniform(0.3, 0.45)), float(rng.uniform(0.62, 0.75)), _side(rng)):
        draw.rectangle(((x - 0.045) * size, 0.1 * size, (x + 0.045) * size, 0.76 * size), (104, 72, 50))
        _disc(draw, size, x, rng.uniform(0.06, 0.16), 0.17, _varied((40, 112, 62), rng))
    _area(draw, size, 0.7, 1, _varied((70, 116, 60), rng))


def under_water(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator) -> None:
    for step in range(4):
        _area(
            draw,
            size,
            step / 4,
            1,
            tuple(int(value) for value in np.array((70, 176, 214)) - step * np.array((13, 26, 18))),
        )
    for x in (_side(rng), _side(rng)):
        points = [(x + 0.03 * (-1) ** n, 1 - 0.09 * n) for n in range(5)]
        draw.line([(size * a, size * b) for a, b in points], (44, 150, 92), round(0.045 * size), joint="curve")
    for _ in range(6):
        x, y, radius = rng.uniform(0, 1), rng.uniform(0, 0.8), rng.uniform(0.018, 0.04)
        box = ((x - radius) * size, (y - radius) * size, (x + radius) * size, (y + radius) * size)
        draw.ellipse(box, outline=(214, 244, 252), width=max(1, round(0.012 * size)))
    _area(draw, size, 0.92, 1, (206, 188, 140))


def kitchen(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator) -> None:
    wall = _varied((250, 236, 206), rng, 6)
    _area(draw, size, 0, 0.74, wall)
    line = tuple(value - 26 for value in wall)
    for step in range(1, 5):
        draw.line((0, step * 0.16 * size, size, step * 0.16 * size), line, max(1, round(0.014 * size)))
        draw.line((step * 0.2 * size, 0, step * 0.2 * size, 0.74 * size), line, max(1, round(0.014 * size)))
    x = _side(rng)
    draw.rectangle(((x - 0.15) * size, 0.08 * size, (x + 0.15) * size, 0.36 * size), (150, 210, 240), (150, 100, 66),
                   round(0.03 * size))  # fmt: skip
    _area(draw, size, 0.74, 1, _varied((176, 118, 74), rng))


def garden(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator) -> None:
    _area(draw, size, 0, 0.5, _varied((190, 228, 250), rng, 8))
    for step in range(8):
        x = (step + 0.5) / 8
        draw.rectangle(((x - 0.042) * size, 0.34 * size, (x + 0.042) * size, 0.62 * size), (250, 250, 244))
    _area(draw, size, 0.42, 0.46, (250, 250, 244))
    _area(draw, size, 0.6, 1, _varied((124, 196, 84), rng))
    for _ in range(8):
        x, y = rng.uniform(0.02, 0.98), rng.uniform(0.66, 0.97)
        _disc(draw, size, x, y, 0.034, [(240, 90, 110), (250, 214, 70), (250, 250, 250)][rng.integers(3)])


def city(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator) -> None:
    _area(draw, size, 0, 0.7, _varied((206, 214, 226), rng, 8))
    left = -0.06
    while left < 1:
        width, top = rng.uniform(0.18, 0.28), rng.uniform(0.06, 0.32)
        shade = int(rng.integers(100, 140))
        draw.rectangle((left * size, top * size, (left + width) * size, 0.74 * size), (shade, shade + 6, shade + 20))
        for row in range(4):
            for column in (0.28, 0.68):
                x, y = left + column * width, top + 0.08 + 0.13 * row
                draw.rectangle(((x - 0.02) * size, y * size, (x + 0.02) * size, (y + 0.055) * size), (250, 226, 140))
        left += width + 0.015
    _area(draw, size, 0.72, 1, (86, 88, 96))
    for step in range(4):
        draw.rectangle(
            ((0.06 + 0.27 * step) * size, 0.93 * size, (0.19 + 0.27 * step) * size, 0.955 * size), (244, 240, 220)
        )


SETTINGS: dict[str, Setting] = {
    "beach": Setting("on the beach", beach),
    "snow": Setting("in the snow", snow),
    "night": Setting("at night", night),
    "forest": Setting("in the forest", forest),
    "water": Setting("under water", under_water, 0.87),
    "kitchen": Setting("in the kitchen", kitchen, 0.9),
    "garden": Setting("in the garden", garden),
    "city": Setting("in the city", city, 0.9),
}


def draw_setting(name: str, size: int, rng: np.random.Generator) -> Image.Image:
    """Return a picture of a setting alone."""
    picture = Image.new("RGB", (size, size))
    SETTINGS[name].draw(ImageDraw.Draw(picture), size, rng)
    return picture
