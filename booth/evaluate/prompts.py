"""The prompts of an evaluation: the subject in several settings, and the same texts about its class.

`OBJECTS` and `LIVE_SUBJECTS` have the 25 prompts each of DreamBench (DreamBooth, arXiv 2208.12242, section 4; its
`prompts_and_classes.txt`); `WORLD` has the settings of the drawn world, which `booth.evaluate.yardstick` recognises.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from booth.common.errors import UserError

log = logging.getLogger("booth")

WORLD = {
    "beach": "on the beach",
    "snow": "in the snow",
    "night": "at night",
    "forest": "in the forest",
    "water": "under water",
    "kitchen": "in the kitchen",
    "bed": "on the bed",
    "garden": "in the garden",
    "city": "in the city",
    "rain": "in the rain",
    "mountain": "on the mountain",
    "moon": "on the moon",
}  # by the yardstick's name of the setting

_PLACES = (
    "a {} in the jungle", "a {} in the snow", "a {} on the beach", "a {} on a cobblestone street",
    "a {} on top of pink fabric", "a {} on top of a wooden floor", "a {} with a city in the background",
    "a {} with a mountain in the background", "a {} with a blue house in the background",
    "a {} on top of a purple rug in a forest",
)  # fmt: skip
_CHANGED = ("a red {}", "a purple {}", "a shiny {}", "a wet {}", "a cube shaped {}")

OBJECTS = (
    *_PLACES, "a {} with a wheat field in the background", "a {} with a tree and autumn leaves in the background",
    "a {} with the Eiffel Tower in the background", "a {} floating on top of water",
    "a {} floating in an ocean of milk", "a {} on top of green grass with sunflowers around it",
    "a {} on top of a mirror", "a {} on top of the sidewalk in a crowded street", "a {} on top of a dirt road",
    "a {} on top of a white rug", *_CHANGED,
)  # fmt: skip
LIVE_SUBJECTS = (
    *_PLACES, "a {} wearing a red hat", "a {} wearing a santa hat", "a {} wearing a rainbow scarf",
    "a {} wearing a black top hat and a monocle", "a {} in a chef outfit", "a {} in a firefighter outfit",
    "a {} in a police outfit", "a {} wearing pink glasses", "a {} wearing a yellow shirt",
    "a {} in a purple wizard outfit", *_CHANGED,
)  # fmt: skip

_LISTS = {
    "objects": OBJECTS,
    "live": LIVE_SUBJECTS,
    "world": tuple(f"a photo of a {{}} {phrase}" for phrase in WORLD.values()),
}
_ALIVE = """
animal creature pet beast mammal reptile dog puppy hound corgi poodle terrier retriever labrador beagle bulldog
pug husky dachshund chihuahua shepherd spaniel dalmatian collie cat kitten kitty tabby horse pony foal donkey
mule zebra cow bull calf ox cattle pig piglet sheep lamb goat deer moose elk giraffe camel llama alpaca elephant
rhino hippo lion tiger leopard cheetah jaguar panther lynx wolf fox bear panda koala kangaroo sloth raccoon
badger otter beaver squirrel chipmunk hedgehog hamster gerbil mouse rat rabbit bunny hare ferret monkey ape
gorilla chimpanzee orangutan lemur bird parrot parakeet budgie cockatiel canary pigeon dove crow raven eagle
hawk falcon owl duck duckling goose swan chicken hen rooster chick turkey peacock flamingo penguin ostrich fish
goldfish shark whale dolphin seal octopus turtle tortoise lizard gecko iguana chameleon snake crocodile
alligator frog toad dinosaur dragon person people human face man men woman women lady gentleman guy child
children kid baby toddler infant teenager boy girl mother father sister brother daughter son grandmother
grandfather bride groom actor actress athlete mice geese oxen wolves calves
"""  # nouns of animals and people
_LIKENESS = """
toy statue statuette sculpture figure figurine plush plushie stuffed doll teddy puppet cartoon emoji drawing
painting origami lego wooden ceramic porcelain
"""  # words of what only looks like one


@dataclass(frozen=True)
class EvaluationPrompts:
    """The prompts of one model's pictures. The model gets `settings`; `texts` say the same about the class."""

    instance: str
    of_class: str
    settings: tuple[str, ...]
    texts: tuple[str, ...]


def evaluation_prompts(instance: str, of_class: str, templates: tuple[str, ...]) -> EvaluationPrompts:
    """Return the prompts, and the templates filled with their subjects.

    "a photo of sks dog" and "a photo of dog" give "a sks dog in the jungle", and the text "a dog in the jungle", since
    CLIP does not know sks.
    """
    settings, texts = ([template.replace("{}", subject_of(prompt)) for template in templates]
                       for prompt in (instance, of_class))  # fmt: skip
    return EvaluationPrompts(instance, of_class, tuple(settings), tuple(texts))


def subject_of(prompt: str) -> str:
    """Return the subject of a prompt: "sks dog" for "a photo of a sks dog"; the whole prompt if it has another form."""
    return re.sub(r"(?i)^\s*((an?|the)\s+)?((photo(graph)?|picture|image) of\s+)?((an?|the)\s+)?", "", prompt).strip()


def is_alive(of_class: str) -> bool:
    """Return whether a class prompt names people or animals, by its head noun: the last word before a word such as
    "with"."""
    named = re.split(r"[^\w\s'-]|\s(?:with|without|in|on|at|by|of|from|wearing)\s", subject_of(of_class).lower())[0]
    words = re.findall(r"[\w'-]+", named)
    if not words or set(_LIKENESS.split()).intersection(words):
        return False
    head = words[-1]
    singular = (head.removesuffix("s"), head.removesuffix("es"), re.sub("ies$", "y", head))
    return not set(_ALIVE.split()).isdisjoint((head, *singular))


def templates_of(name: str, of_class: str) -> tuple[str, ...]:
    """Return the templates of a list by its name, of the list that fits the class (`auto`), or of a file with one
    template per line. Raise UserError for a file without any, or with a line that has no {}."""
    if name == "auto":
        name, shown, other = (
            ("live", "live subjects", "objects") if is_alive(of_class) else ("objects", "objects", "live")
        )
        log.info("settings: DreamBench's for %s; --settings %s for the other", shown, other)
    if name in _LISTS:
        return _LISTS[name]
    try:
        lines = Path(name).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"--settings {name} must be auto, {', '.join(_LISTS)}, or a file in UTF-8 ({error})") from error
    found = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not found or (without := [line for line in found if "{}" not in line]):
        said = f"the line {without[0]!r}" if found else "no line"
        raise UserError(f"--settings {name} has {said}: write one prompt per line, with {{}} in place of the subject")
    return found
