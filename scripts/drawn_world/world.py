"""Captioned pictures: (individual, scene) -> picture. Integers alone determine every example.

individual, scene = example(seed=0, index=17)
picture = render(individual, scene)[..., :3]
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from drawn_world.canvas import Pen
from drawn_world.individuals import CLASSES, PAIRS, Individual, drawn_individual
from drawn_world.objects import DRAW
from drawn_world.settings import SETTINGS, draw_setting

SIDE, SUPERSAMPLING = 64, 4


@dataclass(frozen=True)
class Scene:
    """Where and how an object is seen. `scale` is its side and `x` its centre, relative to the side of the picture."""

    setting: str
    mirrored: bool
    scale: float
    x: float
    seed: int  # for what is random in the setting


def example(seed: int, index: int, pairs: Sequence[tuple[str, str]] = PAIRS) -> tuple[Individual, Scene]:
    """Return example number `index` of world `seed`, with one of these pairs of colours.

    Classes and settings are equally frequent.
    """
    rng = np.random.default_rng([seed, index])
    individual = drawn_individual(CLASSES[rng.integers(len(CLASSES))], rng, pairs)
    return individual, drawn_scene(rng)


def drawn_scene(rng: np.random.Generator, setting: str | None = None) -> Scene:
    """Draw a scene, in a given setting or in any."""
    names = list(SETTINGS)
    return Scene(
        setting or names[rng.integers(len(names))],
        bool(rng.integers(2)),
        float(rng.uniform(0.66, 0.84)),
        float(rng.uniform(0.44, 0.56)),
        int(rng.integers(2**31)),
    )


def render(individual: Individual, scene: Scene, side: int = SIDE) -> np.ndarray:
    """Return the picture, uint8 [side, side, 4]: red, green, blue, and the object's share of each pixel."""
    size = SUPERSAMPLING * side
    picture = draw_setting(scene.setting, size, np.random.default_rng(scene.seed))
    half = scene.scale * size / 2
    centre = (scene.x * size, SETTINGS[scene.setting].ground * size - half)
    pen = Pen(size, centre, half, scene.mirrored)
    DRAW[individual.class_name](pen, individual)
    picture.paste(pen.picture, mask=pen.picture)
    picture.putalpha(pen.picture.getchannel("A"))
    # Each channel is averaged by itself: alpha is no transparency here.
    return np.dstack([np.asarray(channel.resize((side, side), Image.Resampling.BOX)) for channel in picture.split()])
