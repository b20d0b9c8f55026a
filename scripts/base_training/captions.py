"""The captions that the base learns from."""

import string

import numpy as np
from picture_world.captions import TEMPLATES, caption
from picture_world.world import example

TELLS_SETTING, TELLS_COLOUR, HAS_MADE_UP_WORD = 0.85, 0.4, 0.15


def training_caption(world_seed: int, index: int, rng: np.random.Generator) -> str:
    """Return a true caption of an example, a different one each time.

    Some captions have a made-up word without meaning before the noun. They teach the base that such a word changes
    nothing, so that it is not confused by an identifier such as sks, which it has never read.
    """
    instance, scene = example(world_seed, index)
    template = TEMPLATES[rng.integers(len(TEMPLATES))]
    setting = scene.setting if rng.uniform() < TELLS_SETTING else None
    colour = instance.colour_names[0] if rng.uniform() < TELLS_COLOUR else None
    noun = instance.class_name
    if rng.uniform() < HAS_MADE_UP_WORD:
        noun = "".join(rng.choice(list(string.ascii_lowercase), rng.integers(2, 5))) + f" {noun}"
    return caption(noun, setting, colour, template)
