"""Captions that say what is in a picture, in words that are one token each to the base's tokenizer."""

import string

import numpy as np

from drawn_world.settings import SETTINGS
from drawn_world.world import example

TEMPLATES = ("a photo of {}", "a photo of {}", "a picture of {}", "a good photo of {}", "an image of {}", "{}")
TELLS_SETTING, TELLS_COLOUR, HAS_MADE_UP_WORD = 0.85, 0.4, 0.15


def caption(noun: str, setting: str | None = None, template: str = TEMPLATES[0]) -> str:
    """Return a caption such as "a photo of a red robot on the beach"; the setting is named if it is given."""
    words = template.format(("an " if noun[0] in "aeiou" else "a ") + noun)
    return f"{words} {SETTINGS[setting].phrase}" if setting else words


def training_caption(world_seed: int, index: int, rng: np.random.Generator) -> str:
    """Return a true caption of an example, a different one each time.

    Some captions have a made-up word without meaning before the noun. They teach the base that such a word changes
    nothing, so that it is not confused by an identifier such as sks, which it has never read.
    """
    individual, scene = example(world_seed, index)
    template = TEMPLATES[rng.integers(len(TEMPLATES))]
    setting = scene.setting if rng.uniform() < TELLS_SETTING else None
    noun = individual.class_name
    if rng.uniform() < HAS_MADE_UP_WORD:
        noun = "".join(rng.choice(list(string.ascii_lowercase), rng.integers(2, 5))) + f" {noun}"
    elif rng.uniform() < TELLS_COLOUR:
        noun = f"{individual.colours[0]} {noun}"
    return caption(noun, setting, template)
