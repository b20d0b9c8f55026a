"""Captions that say what is in a picture, in words that the tokenizer of make_pipeline knows."""

from picture_world.identity import Instance
from picture_world.settings import SETTINGS
from picture_world.world import Scene, generator

TEMPLATES = ("a photo of {}", "a photo of {}", "a picture of {}", "a good photo of {}", "an image of {}", "{}")


def caption(
    class_name: str, setting: str | None = None, colour: str | None = None, template: str = TEMPLATES[0]
) -> str:
    """Return a caption such as "a photo of a red robot on the beach"; setting and colour are named if given."""
    words = f"{colour} {class_name}" if colour else class_name
    words = template.format(("an " if words[0] in "aeiou" else "a ") + words)
    return f"{words} {SETTINGS[setting].phrase}" if setting else words


def example_caption(instance: Instance, scene: Scene) -> str:
    """Return one of the true captions of an example, always the same one.

    Most captions name the setting, and half of them the colour.
    """
    rng = generator(scene.seed, 1)
    template = TEMPLATES[rng.integers(len(TEMPLATES))]
    setting = scene.setting if rng.uniform() < 0.85 else None
    colour = instance.colour_names[0] if rng.uniform() < 0.5 else None
    return caption(instance.class_name, setting, colour, template)
