"""The identity of an individual, such as one robot: colours, pattern, proportions and details."""

import colorsys
from dataclasses import dataclass

import numpy as np

from picture_world.patterns import PATTERNS

Colour = tuple[float, float, float]

# name -> hue, saturation, value; every name is one token of make_pipeline's tokenizer
COLOURS = {
    "red": (0.995, 0.78, 0.84),
    "orange": (0.075, 0.82, 0.94),
    "yellow": (0.140, 0.72, 0.96),
    "green": (0.370, 0.60, 0.66),
    "blue": (0.590, 0.70, 0.80),
    "purple": (0.760, 0.52, 0.68),
    "pink": (0.925, 0.42, 0.95),
    "brown": (0.065, 0.60, 0.50),
    "white": (0.120, 0.05, 0.95),
    "black": (0.650, 0.22, 0.20),
}
JITTER = (0.016, 0.06, 0.05)  # the largest distance from the named hue, saturation and value

# (main, second) colours that no sampled instance has; they are kept for subjects that training never sees.
RESERVED = frozenset({("purple", "yellow"), ("orange", "blue"), ("green", "pink")})

PROPORTIONS, DETAILS, CHOICES = 4, 3, 4


@dataclass(frozen=True)
class Instance:
    """One individual: its class and everything that all its pictures share.

    `colours` are the main, second and accent colour, sRGB from 0 to 1, near `colour_names` in `COLOURS`. `proportions`
    are four numbers from -1 to 1 and `details` three choices from 0 to 3; their meaning depends on the class.
    """

    class_name: str
    colour_names: tuple[str, str, str]
    colours: tuple[Colour, Colour, Colour]
    pattern: str
    fineness: float  # fineness of the pattern, from 0 to 1
    proportions: tuple[float, float, float, float]
    details: tuple[int, int, int]


def sample_instance(class_name: str, rng: np.random.Generator) -> Instance:
    """Return a random instance of a class, without reserved colours."""
    names = tuple(COLOURS)
    while True:
        main, second, accent = (names[i] for i in rng.permutation(len(names))[:3])
        if (main, second) not in RESERVED:
            break
    return Instance(
        class_name,
        (main, second, accent),
        tuple(_colour(name, rng.uniform(-1, 1, 3)) for name in (main, second, accent)),
        PATTERNS[rng.integers(len(PATTERNS))],
        float(rng.uniform(0, 1)),
        tuple(rng.uniform(-1, 1, PROPORTIONS).tolist()),
        tuple(rng.integers(0, CHOICES, DETAILS).tolist()),
    )


def make_instance(
    class_name: str, names: tuple[str, str, str], pattern: str, fineness: float, proportions, details
) -> Instance:
    """Return an instance with the given values, in exactly the named colours."""
    colours = tuple(_colour(name, (0.0, 0.0, 0.0)) for name in names)
    return Instance(class_name, names, colours, pattern, fineness, tuple(proportions), tuple(details))


def is_reserved(instance: Instance) -> bool:
    """Return whether an instance has reserved colours, which `sample_instance` never gives."""
    return instance.colour_names[:2] in RESERVED


def identity_vector(instance: Instance) -> np.ndarray:
    """Return the identity as float32 [32]: colours 9, pattern 6, fineness 1, proportions 4, details 12; no class."""
    pattern = np.eye(len(PATTERNS))[PATTERNS.index(instance.pattern)]
    details = np.eye(CHOICES)[list(instance.details)]
    parts = (np.ravel(instance.colours), pattern, [instance.fineness], instance.proportions, details.ravel())
    return np.concatenate(parts).astype(np.float32)


def _colour(name: str, jitter) -> Colour:
    hue, saturation, value = (base + reach * by for base, reach, by in zip(COLOURS[name], JITTER, jitter, strict=True))
    return colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
