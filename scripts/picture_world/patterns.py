"""Patterns on surfaces: compute how much of a pixel is ink."""

import numpy as np

PATTERNS = ("plain", "stripes", "bands", "dots", "checks", "patches")


def coverage(pattern: str, own: np.ndarray, sizes: np.ndarray, frequency: float, flat: bool) -> np.ndarray:
    """Return the ink from 0 to 1, float32 [n], at points of a solid.

    `own` float32 [3, n] are the points in the solid's own space, from -1 to 1; `sizes` [3] are its half sizes.
    A pattern is wrapped around a round solid and laid on the sides of a flat one. Raise ValueError for an unknown
    pattern.
    """
    sx, sy, sz = sizes.tolist()
    along = own[1] * (sy * frequency)
    if flat:
        across = own[0] * (sx * frequency) + own[2] * (sz * frequency)
    else:  # a whole number of periods, so that there is no seam
        across = np.arctan2(own[0], own[2]) * max(2, round(frequency * (sx + sz) / 2))
    if pattern == "stripes":
        value = np.sin(across)
    elif pattern == "bands":
        value = np.sin(along)
    elif pattern == "dots":
        value = np.cos(across) * np.cos(along) * 2 - 0.75
    elif pattern == "checks":
        value = np.sin(across) * np.sin(along) * 2.5
    elif pattern == "patches":
        value = (
            np.sin(0.55 * across + 1.3 * np.sin(0.5 * along))
            + np.sin(0.6 * along + 1.1 * np.sin(0.45 * across + 2))
            - 0.2
        )
    else:
        raise ValueError(f"no pattern {pattern!r}")
    return np.clip(value * 3 + 0.5, 0, 1)
