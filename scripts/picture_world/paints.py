"""The paints of an instance's parts."""

from typing import NamedTuple

from picture_world.identity import Instance
from picture_world.solids import Paint

DARK = Paint((0.09, 0.09, 0.12), gloss=0.6)
WHITE = Paint((0.96, 0.96, 0.94), gloss=0.5)
GLASS = Paint((0.30, 0.42, 0.52), gloss=1.0)
METAL = Paint((0.62, 0.64, 0.68), gloss=0.9)
SKIN = Paint((0.95, 0.62, 0.20), gloss=0.3)  # beaks and birds' feet
LAMP = Paint((1.0, 0.92, 0.60), gloss=1.0)


class Paints(NamedTuple):
    body: Paint  # the main colour, with a pattern in the second colour
    main: Paint
    second: Paint
    accent: Paint


def paints(instance: Instance, gloss: float = 0.35) -> Paints:
    main, second, accent = instance.colours
    frequency = 13 + 17 * instance.fineness
    body = Paint(main, None if instance.pattern == "plain" else second, instance.pattern, frequency, gloss)
    return Paints(body, Paint(main, gloss=gloss), Paint(second, gloss=gloss), Paint(accent, gloss=gloss))
