"""Individuals: what all pictures of one robot, cat or mug share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drawn_world.canvas import Colour

COLOURS: dict[str, Colour] = {
    "red": (214, 58, 54), "orange": (240, 140, 44), "yellow": (247, 206, 70), "green": (80, 168, 82),
    "blue": (58, 110, 205), "purple": (134, 82, 180), "pink": (240, 140, 176), "brown": (146, 96, 60),
    "white": (244, 242, 236), "grey": (140, 146, 156),
}  # fmt: skip
# The colours of an individual's body and of its pattern and details go together.
PAIRS = (
    ("red", "yellow"), ("red", "white"), ("red", "grey"), ("orange", "white"), ("orange", "brown"), ("orange", "blue"),
    ("yellow", "orange"), ("yellow", "blue"), ("yellow", "red"), ("green", "yellow"), ("green", "white"),
    ("green", "brown"), ("blue", "white"), ("blue", "yellow"), ("blue", "red"), ("pink", "white"), ("pink", "red"),
    ("pink", "purple"), ("purple", "pink"), ("purple", "white"), ("brown", "white"), ("brown", "orange"),
    ("white", "red"), ("white", "blue"), ("grey", "white"), ("grey", "red"), ("grey", "yellow"),
)  # fmt: skip
ANY = tuple((one, other) for one in COLOURS for other in COLOURS if one != other)
# The example subjects have these, and no picture that the base learns from shows them.
RESERVED = (("purple", "yellow"), ("green", "pink"), ("orange", "green"))
PATTERNS = ("plain", "stripes", "dots")
CLASSES = ("robot", "cat", "fish", "bird", "car", "house", "boat", "mug")
FORMS = 3  # how many forms each of three details of a class has


@dataclass(frozen=True)
class Individual:
    """`details` choose the forms of three details of the class, from 0 to 2 each; `shape` are proportions about 1."""

    class_name: str
    colours: tuple[str, str]
    pattern: str
    details: tuple[int, int, int]
    shape: tuple[float, float]

    @property
    def body(self) -> Colour:
        return COLOURS[self.colours[0]]

    @property
    def accent(self) -> Colour:
        return COLOURS[self.colours[1]]


def drawn_individual(class_name: str, rng: np.random.Generator, pairs: Sequence[tuple[str, str]] = PAIRS) -> Individual:
    """Draw an individual of a class, with one of these pairs of colours."""
    colours = pairs[rng.integers(len(pairs))]
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    first, second, third = (int(form) for form in rng.integers(FORMS, size=3))
    wide, high = (float(value) for value in rng.uniform(0.88, 1.08, 2).round(3))
    return Individual(class_name, colours, pattern, (first, second, third), (wide, high))
