"""The settings: where an object stands, how it is lit, and what is in front of it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from picture_world import indoors, outdoors, weather
from picture_world.canvas import Canvas
from picture_world.shading import DAY, Light


class Setting(NamedTuple):
    """One setting of the picture world.

    `phrase` follows the object's name in a caption, and `shadow` is the darkness of the object's shadow. `paint` paints
    what is behind the object. `veil`, if there is one, paints something in front of the object into the finished
    picture, float32 [size, size, 3], in place.
    """

    phrase: str
    paint: Callable[[Canvas], None]
    light: Light
    shadow: float = 0.5
    veil: Callable[[np.ndarray, np.random.Generator], None] | None = None


SETTINGS = {
    "beach": Setting("on the beach", outdoors.beach, Light((1.05, 0.95, 0.78), (0.42, 0.50, 0.62), (0.40, 0.34, 0.24))),
    "snow": Setting(
        "in the snow",
        outdoors.snow,
        Light((0.85, 0.88, 0.92), (0.48, 0.54, 0.64), (0.46, 0.50, 0.58)),
        0.35,
        weather.snowfall,
    ),
    "night": Setting(
        "at night",
        outdoors.night,
        Light((0.82, 0.88, 1.10), (0.20, 0.25, 0.42), (0.10, 0.12, 0.20), (0.05, 0.07, 0.18), 0.10),
        0.6,
    ),
    "forest": Setting(
        "in the forest", outdoors.forest, Light((1.0, 0.98, 0.70), (0.38, 0.46, 0.32), (0.20, 0.19, 0.10))
    ),
    "water": Setting(
        "under water",
        outdoors.water,
        Light((0.72, 0.94, 0.96), (0.30, 0.52, 0.60), (0.24, 0.36, 0.36), (0.10, 0.42, 0.58), 0.13),
        0.4,
        weather.bubbles,
    ),
    "kitchen": Setting(
        "in the kitchen", indoors.kitchen, Light((0.98, 0.86, 0.68), (0.44, 0.42, 0.40), (0.30, 0.22, 0.15))
    ),
    "bed": Setting("on the bed", indoors.bed, Light((0.90, 0.80, 0.74), (0.46, 0.40, 0.46), (0.36, 0.28, 0.34)), 0.4),
    "garden": Setting("in the garden", outdoors.garden, DAY),
    "city": Setting("in the city", outdoors.city, Light((0.92, 0.88, 0.84), (0.42, 0.46, 0.54), (0.24, 0.24, 0.26))),
    "rain": Setting(
        "in the rain",
        outdoors.rain,
        Light((0.66, 0.70, 0.75), (0.42, 0.46, 0.52), (0.24, 0.26, 0.30), (0.48, 0.52, 0.57), 0.07),
        0.35,
        weather.rainfall,
    ),
    "mountain": Setting(
        "on the mountain", outdoors.mountain, Light((1.0, 0.94, 0.84), (0.42, 0.50, 0.66), (0.24, 0.24, 0.24))
    ),
    "moon": Setting(
        "on the moon", outdoors.moon, Light((1.15, 1.12, 1.05), (0.12, 0.13, 0.17), (0.22, 0.22, 0.23)), 0.75
    ),
}
