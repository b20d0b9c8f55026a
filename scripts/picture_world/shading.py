"""Light on a surface: soft key light, light from sky and ground, a rim, highlights, and darkening near the ground."""

from typing import NamedTuple

import numpy as np

from picture_world.solids import Colour, Paint, Surface


class Light(NamedTuple):
    """The light of a setting, linear RGB: `key` comes from one side, `sky` from above and `ground` from below.

    `haze`, from 0 to 1, is how much colour `air` covers the object: water, rain or night air.
    """

    key: Colour
    sky: Colour
    ground: Colour
    air: Colour = (0.0, 0.0, 0.0)
    haze: float = 0.0


DAY = Light((0.95, 0.90, 0.80), (0.42, 0.48, 0.58), (0.26, 0.24, 0.20))


def shade(
    surface: Surface, paints: list[Paint], light: Light, side: float, heights: np.ndarray, reach: int
) -> np.ndarray:
    """Return the sRGB colours of a surface, float32 [3, h, w] from 0 to 1.

    `side`, from -1 to 1, is where the key light stands. `heights` float32 [h, w] are the heights of the pixels over the
    ground, in model units. Creases are darkened over a width of `reach` pixels.
    """
    normal = surface.normal * (1 / np.sqrt(np.maximum((surface.normal**2).sum(axis=0), 1e-12)))
    key = np.array((0.75 * side, 0.72, -0.62), np.float32)
    key /= np.linalg.norm(key)
    half = key + np.array((0, 0, -1), np.float32)
    half /= np.linalg.norm(half)
    facing = np.tensordot(np.stack([key, half]), normal, 1)
    diffuse = np.maximum((facing[0] + 0.25) * 0.8, 0)  # wrapped around, so that the shadow side fades softly
    occlusion = _openness(surface.depth, reach) * np.clip(0.55 + 2.2 * heights, 0, 1)
    upwards = 0.5 + 0.5 * normal[1]
    rim = np.maximum(1 + normal[2], 0)
    rim = rim * rim * rim

    looks = np.array([(*paint.colour, *(paint.ink or paint.colour), paint.gloss) for paint in paints], np.float32)
    colour, ink, gloss = looks[:, :3], looks[:, 3:6] - looks[:, :3], looks[:, 6] * 0.55
    sharp = np.maximum(facing[1], 0)
    for _ in range(3):
        sharp *= sharp
    highlight = sharp * sharp * sharp * gloss[surface.part]  # to the power of 24
    out = np.empty_like(normal)
    for k in range(3):
        sky, ground = light.sky[k], light.ground[k]
        albedo = colour[:, k][surface.part] + ink[:, k][surface.part] * surface.ink
        glow = (ground + (sky - ground) * upwards) * occlusion
        # squares and square roots convert between sRGB and nearly linear light
        lit = albedo * albedo * (diffuse * light.key[k] + glow) + highlight * light.key[k] + rim * (0.22 * sky)
        out[k] = np.sqrt(lit) * (1 - light.haze) + light.air[k] * light.haze
    return np.minimum(out, 1)


def _openness(depth: np.ndarray, reach: int) -> np.ndarray:
    """Return how open each point is, float32 [h, w]: 1 in the open, less in creases that neighbours hide."""
    total = np.zeros_like(depth)
    down, right = depth[reach:] - depth[:-reach], depth[:, reach:] - depth[:, :-reach]
    for step, one, other in (
        (down, total[reach:], total[:-reach]),
        (right, total[:, reach:], total[:, :-reach]),
    ):
        step[np.abs(step) > 2] = 0  # outside the object nothing can hide a point
        one += np.clip(step - 0.02, 0, 0.12)
        other += np.clip(-0.02 - step, 0, 0.12)
    return 1 - np.minimum(total * 2.0, 0.6)
