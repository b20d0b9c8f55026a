"""Captioned pictures of drawn objects: (instance, scene) -> picture. Integers alone determine every example.

instance, scene = example(seed=0, index=17)
picture = render(instance, scene, 64)
words = example_caption(instance, scene)  # of picture_world.captions
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from picture_world import animals, things, vehicles
from picture_world.canvas import Canvas
from picture_world.identity import Instance, sample_instance
from picture_world.settings import SETTINGS
from picture_world.shading import shade
from picture_world.solids import FAR, Part, Placed, view_matrix

CLASSES: dict[str, Callable[[Instance], list[Part]]] = {
    "robot": things.robot,
    "fish": animals.fish,
    "house": things.house,
    "car": vehicles.car,
    "mug": things.mug,
    "bird": animals.bird,
    "boat": vehicles.boat,
    "cat": animals.cat,
    "castle": things.castle,
    "clock": things.clock,
    "plane": vehicles.plane,
}
# The angle in degrees by which a class is turned from the viewer if `facing` is 0 and if it is 1; these show a side.
TURNS = {"fish": (38, 90), "car": (32, 85), "bird": (30, 85), "boat": (35, 90), "plane": (20, 70)}
FRONTAL = (0, 52)
SUPERSAMPLING = 2
MARGIN = 0.03  # free space around an object, relative to the side of the picture


@dataclass(frozen=True)
class Scene:
    """Where and how an object is seen. Lengths are relative to the side of the picture.

    `facing` is the direction of the object: -1 is left, 0 towards the viewer, 1 right. `elevation` is the angle from
    which it is seen from above, in radians. `scale` is the length of one model unit. `x` and `y` are where the object
    stands, from the top left. `light` is the side that the light comes from, from -1 to 1. `seed` is for everything
    random in the setting.
    """

    setting: str
    facing: float
    elevation: float
    scale: float
    x: float
    y: float
    light: float
    seed: int


class Rendering(NamedTuple):
    """A picture, uint8 [size, size, 3], and the object's share of each pixel, float32 [size, size]."""

    picture: np.ndarray
    mask: np.ndarray


def generator(seed: int, index: int) -> np.random.Generator:
    """Return the random generator of example `index` of world `seed`."""
    return np.random.Generator(np.random.Philox(key=[seed, index]))


def sample_scene(rng: np.random.Generator, setting: str | None = None) -> Scene:
    """Return a random scene, in this setting or in any."""
    return Scene(
        setting or tuple(SETTINGS)[rng.integers(len(SETTINGS))],
        facing=float(rng.uniform(-1, 1)),
        elevation=float(rng.uniform(0.14, 0.42)),
        scale=float(rng.uniform(0.48, 0.86)),
        x=float(rng.uniform(0.34, 0.66)),
        y=float(rng.uniform(0.80, 0.93)),
        light=float(rng.choice((-1, 1)) * rng.uniform(0.5, 1)),
        seed=int(rng.integers(2**31)),
    )


def example(seed: int, index: int, class_name: str | None = None, setting: str | None = None) -> tuple[Instance, Scene]:
    """Return example `index` of world `seed`: an instance of any class in any setting, or of the given ones."""
    rng = generator(seed, index)
    class_name = class_name or tuple(CLASSES)[rng.integers(len(CLASSES))]
    return sample_instance(class_name, rng), sample_scene(rng, setting)


def render(instance: Instance, scene: Scene, size: int) -> np.ndarray:
    """Return the picture, uint8 [size, size, 3]; other sizes show the same picture."""
    return render_with_truth(instance, scene, size).picture


def render_with_truth(instance: Instance, scene: Scene, size: int) -> Rendering:
    """Return the picture with the truth about it: the object's share of each pixel."""
    setting = SETTINGS[scene.setting]
    rng = generator(scene.seed, 0)
    canvas = Canvas(size, rng)
    setting.paint(canvas)
    picture = canvas.finish()

    parts = CLASSES[instance.class_name](instance)
    near, far = TURNS.get(instance.class_name, FRONTAL)
    turn = np.radians(near + (far - near) * abs(scene.facing)) * (1 if scene.facing >= 0 else -1)
    placed = Placed(parts, view_matrix(turn, scene.elevation))
    scale, x, y = _fit(placed.bounds, scene)
    _cast_shadow(picture, parts, turn, scene, scale, x, y, setting.shadow)

    side, ppu = size * SUPERSAMPLING, scale * size * SUPERSAMPLING
    surface = placed.draw(ppu, x * side, y * side, side)
    left, bottom, right, top = placed.bounds
    rows = slice(*np.clip(np.array((y - top * scale, y - bottom * scale)) * size + (0, 1), 0, size).astype(int))
    columns = slice(*np.clip(np.array((x + left * scale, x + right * scale)) * size + (0, 1), 0, size).astype(int))
    inner = (..., _times(rows), _times(columns))
    surface = type(surface)(*(layer[inner] for layer in surface))
    upwards = (y * side - 0.5 - np.arange(side, dtype=np.float32)[inner[1], None]) / ppu
    heights = upwards * np.float32(np.cos(scene.elevation)) - surface.depth * np.float32(np.sin(scene.elevation))
    colours = shade(
        surface, [part.paint for part in parts], setting.light, scene.light, heights, max(1, round(0.03 * ppu))
    )
    solid = (surface.depth < FAR).astype(np.float32)
    colours = _reduce(colours * solid)
    covered = _reduce(solid)
    window = picture[rows, columns]
    window *= 1 - covered[..., None]
    window += np.moveaxis(colours, 0, -1)
    mask = np.zeros((size, size), np.float32)
    mask[rows, columns] = covered
    if setting.veil:
        setting.veil(picture, rng)
    picture = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Rendering(picture, mask)


def _fit(bounds, scene: Scene) -> tuple[float, float, float]:
    """Return (scale, x, y) with which an object with these bounds lies inside the picture."""
    left, bottom, right, top = bounds
    room = 1 - 2 * MARGIN
    scale = min(scene.scale, room / (right - left), room / (top - bottom))
    x = min(max(scene.x, MARGIN - left * scale), 1 - MARGIN - right * scale)
    y = min(max(scene.y, MARGIN + top * scale), 1 - MARGIN + bottom * scale)
    return scale, x, y


def _cast_shadow(picture, parts, turn: float, scene: Scene, scale: float, x: float, y: float, strength: float) -> None:
    """Darken the ground in place: where the object stands, and more softly on the side away from the light."""
    centres, axes = np.stack([part.centre for part in parts]), np.stack([part.axes.T for part in parts])
    points = np.concatenate([centres[:, None] - axes, centres[:, None] + axes]).reshape(-1, 3)  # the ends of all axes
    low = points[points[:, 1] < 0.22]
    (left, back), (right, front) = low[:, ::2].min(axis=0), low[:, ::2].max(axis=0)
    cx, cz, hx, hz = (left + right) / 2, (back + front) / 2, (right - left) / 2, (front - back) / 2
    c, s, squash = np.cos(turn), np.sin(turn), np.sin(scene.elevation)
    size = len(picture)
    places = ((np.arange(size) + 0.5) / size).astype(np.float32)
    # the ground coordinates of each pixel in the object's frame
    across = (places[None] - np.float32(x)) / np.float32(scale)
    towards = (places[:, None] - np.float32(y)) / np.float32(scale * squash)
    drift = -0.22 * np.sign(scene.light)
    shade = np.zeros((size, size), np.float32)
    for shift, grow, share in ((0.0, 0.03, 0.75), (drift, 0.16, 0.6)):  # the contact shadow, then the cast shadow
        dx, dz = across - np.float32(shift), towards
        own_x = (dx * np.float32(c) - dz * np.float32(s) - np.float32(cx)) * np.float32(1 / (hx + grow))
        own_z = (dx * np.float32(s) + dz * np.float32(c) - np.float32(cz)) * np.float32(1 / (hz + grow))
        distance = own_x * own_x + own_z * own_z
        inside = np.float32(share) / (1 + distance * (distance if shift else distance * distance))
        shade = shade + inside - shade * inside
    picture *= 1 - np.float32(strength) * shade[..., None]


def _times(span: slice) -> slice:
    return slice(span.start * SUPERSAMPLING, span.stop * SUPERSAMPLING)


def _reduce(layer: np.ndarray) -> np.ndarray:
    """Return the mean of each square of supersampled pixels."""
    n = SUPERSAMPLING
    *others, height, width = layer.shape
    return layer.reshape(*others, height // n, n, width // n, n).mean(axis=(-3, -1))
