"""How each class is drawn: an individual, seen from the side that shows it best, in the units of `canvas.Pen`."""

from collections.abc import Callable

from drawn_world.canvas import INK, Colour, Pen
from drawn_world.individuals import Individual

WHITE: Colour = (250, 250, 248)
DARK: Colour = (70, 72, 84)
GLASS: Colour = (176, 220, 240)


def robot(pen: Pen, it: Individual) -> None:
    head, antennas, feet = it.details
    wide, high = it.shape
    for side in (-1, 1):
        pen.line([(side * 0.5 * wide, 0.05), (side * 0.88, 0.2), (side * 0.86, 0.5)], 0.17, INK)
        pen.ellipse(side * 0.86, 0.54, 0.13, 0.13, it.accent)
        if feet == 0:
            pen.box(side * 0.28 - 0.14, 0.6, side * 0.28 + 0.14, 1.0, it.accent, 0.05)
        elif feet == 1:
            pen.ellipse(side * 0.3, 0.86, 0.2, 0.15, it.accent)
    if feet == 2:
        pen.box(-0.5, 0.74, 0.5, 1.0, DARK, 0.13)
    pen.patterned(lambda p, c: p.box(-0.56 * wide, -0.1, 0.56 * wide, 0.76, c, 0.1), (it.body, it.accent), it.pattern)
    xs = {0: (0.0,), 1: (-0.26, 0.26), 2: ()}[antennas]
    for x in xs:
        pen.line([(x, -0.7), (x * 1.3, -0.92)], 0.07, INK)
        pen.ellipse(x * 1.3, -0.92, 0.1, 0.1, it.accent)
    if antennas == 2:
        for side in (-1, 1):
            pen.box(side * 0.56 - 0.1, -0.5, side * 0.56 + 0.1, -0.22, it.accent, 0.03)
    top = -0.74 * high
    if head == 0:
        pen.box(-0.5, top, 0.5, -0.04, it.body, 0.06)
    elif head == 1:
        pen.ellipse(0, (top - 0.04) / 2, 0.52, (-0.04 - top) / 2, it.body)
    else:
        pen.polygon([(-0.36, top), (0.36, top), (0.54, -0.04), (-0.54, -0.04)], it.body)
    for side in (-1, 1):
        pen.eye(side * 0.22, -0.45, 0.15)
    pen.box(-0.22, -0.24, 0.22, -0.14, WHITE, 0.02)


def cat(pen: Pen, it: Individual) -> None:
    ears, tail, face = it.details
    wide, high = it.shape
    if tail == 0:
        pen.arc(0.62, 0.55, 0.3, 0.42, -90, 120, 0.2, INK)
        pen.arc(0.62, 0.55, 0.27, 0.39, -85, 115, 0.11, it.body)
    elif tail == 1:
        pen.line([(0.4, 0.8), (0.8, 0.6), (0.86, 0.05)], 0.22, INK)
        pen.line([(0.4, 0.8), (0.8, 0.6), (0.86, 0.08)], 0.12, it.body)
    else:
        pen.ellipse(0.62, 0.72, 0.22, 0.17, it.accent)
    pen.patterned(lambda p, c: p.ellipse(0, 0.5, 0.55 * wide, 0.52, c), (it.body, it.accent), it.pattern)
    for side in (-1, 1):
        pen.ellipse(side * 0.26, 0.92, 0.2, 0.12, it.accent)
        tip = {0: (side * 0.56, -1.0), 1: (side * 0.74, -0.82), 2: (side * 0.4, -0.92)}[ears]
        pen.polygon([(side * 0.1, -0.62), tip, (side * 0.62, -0.28)], it.body)
        inner = (0.65 * tip[0] + 0.35 * side * 0.36, 0.65 * tip[1] - 0.35 * 0.45)
        pen.polygon([(side * 0.26, -0.58), inner, (side * 0.5, -0.42)], it.accent, outlined=False)
    pen.ellipse(0, -0.26, 0.62 * wide, 0.46 * high, it.body)
    if face == 0:
        pen.ellipse(0, -0.06, 0.3, 0.2, WHITE, outlined=False)
    elif face == 1:
        for side in (-1, 1):
            pen.line([(side * 0.62, -0.12), (side * 0.9, -0.2)], 0.05)
            pen.line([(side * 0.62, -0.04), (side * 0.9, 0.02)], 0.05)
    else:
        pen.polygon([(-0.16, -0.66), (0.16, -0.66), (0, -0.36)], it.accent, outlined=False)
    for side in (-1, 1):
        pen.eye(side * 0.27, -0.32, 0.16)
    pen.polygon([(-0.09, -0.13), (0.09, -0.13), (0, -0.03)], (232, 110, 130), outlined=False)
    pen.line([(-0.12, 0.06), (0, -0.02), (0.12, 0.06)], 0.05)


def fish(pen: Pen, it: Individual) -> None:
    tail, fin, mouth = it.details
    wide, high = it.shape
    points = {
        0: [(-0.45, 0), (-1.0, -0.45), (-0.86, 0), (-1.0, 0.45)],
        1: [(-0.45, -0.06), (-0.98, -0.36), (-0.98, 0.36), (-0.45, 0.06)],
        2: [(-0.4, 0), (-0.9, -0.62), (-0.74, -0.05), (-1.0, 0.3)],
    }[tail]
    pen.polygon(points, it.accent)
    top = -0.5 * high
    if fin == 0:
        pen.polygon([(-0.3, top + 0.12), (0.0, top - 0.36), (0.36, top + 0.1)], it.accent)
    elif fin == 1:
        pen.box(-0.28, top - 0.22, 0.3, top + 0.2, it.accent, 0.1)
    else:
        for x in (-0.24, 0.04, 0.32):
            pen.polygon([(x - 0.14, top + 0.14), (x, top - 0.22), (x + 0.14, top + 0.14)], it.accent)
    pen.polygon([(-0.06, 0.38), (0.08, 0.78), (0.34, 0.36)], it.accent)
    pen.patterned(lambda p, c: p.ellipse(0.12, 0, 0.76 * wide, 0.52 * high, c), (it.body, it.accent), it.pattern)
    pen.polygon([(-0.1, 0.02), (-0.38, 0.26), (0.02, 0.28)], it.accent)
    pen.eye(0.48, -0.14, 0.17)
    if mouth == 0:
        pen.arc(0.66, 0.12, 0.18, 0.16, 30, 150, 0.07, INK)
    elif mouth == 1:
        pen.ellipse(0.84 * wide, 0.08, 0.11, 0.13, (232, 110, 130))
    else:
        pen.line([(0.54, 0.2), (0.82, 0.16)], 0.07)


def bird(pen: Pen, it: Individual) -> None:
    crest, beak, tail = it.details
    wide, high = it.shape
    for x in (-0.08, 0.2):
        pen.line([(x, 0.6), (x, 0.96), (x + 0.2, 0.96)], 0.08, INK)
    points = {
        0: [(-0.4, 0.1), (-1.0, -0.14), (-0.96, 0.2), (-0.4, 0.4)],
        1: [(-0.4, 0.1), (-0.98, 0.42), (-0.8, 0.66), (-0.3, 0.46)],
        2: [(-0.3, 0.0), (-0.86, -0.5), (-1.0, -0.1), (-0.4, 0.4)],
    }[tail]
    pen.polygon(points, it.accent)
    pen.patterned(lambda p, c: p.ellipse(-0.04, 0.2, 0.56 * wide, 0.48 * high, c), (it.body, it.accent), it.pattern)
    if crest == 0:
        for x in (0.2, 0.38, 0.56):
            pen.ellipse(x, -0.84 + abs(x - 0.38) * 0.5, 0.11, 0.15, it.accent)
    elif crest == 1:
        pen.polygon([(0.18, -0.66), (0.1, -1.0), (0.5, -0.74)], it.accent)
    tip = {0: 0.98, 1: 0.86, 2: 0.92}[beak]
    if beak == 2:
        pen.polygon([(0.62, -0.52), (tip, -0.4), (tip - 0.08, -0.06), (0.6, -0.2)], (244, 160, 40))
    else:
        pen.polygon([(0.6, -0.5), (tip, -0.3 if beak == 0 else -0.36), (0.6, -0.16)], (244, 160, 40))
    pen.ellipse(0.38, -0.4, 0.36, 0.36, it.body)
    pen.eye(0.46, -0.46, 0.14)
    pen.polygon([(-0.34, 0.02), (0.26, 0.1), (-0.1, 0.5), (-0.42, 0.42)], it.accent)


def car(pen: Pen, it: Individual) -> None:
    roof, extra, wheels = it.details
    wide, high = it.shape
    top = -0.5 * high
    cabin = {
        0: [(-0.5, 0.06), (-0.34, top), (0.26, top), (0.5, 0.06)],
        1: [(-0.86, 0.06), (-0.82, top - 0.1), (0.2, top - 0.1), (0.46, 0.06)],
        2: [(-0.62, 0.06), (-0.24, top + 0.04), (0.1, top + 0.04), (0.5, 0.06)],
    }[roof]
    if extra == 0:
        pen.box(-0.4, top - 0.26, 0.2, top - 0.04, it.accent, 0.06)
    elif extra == 1:
        pen.line([(-0.84, -0.02), (-0.9, -0.4)], 0.07, INK)
        pen.ellipse(-0.9, -0.42, 0.1, 0.1, it.accent)
    pen.polygon(cabin, it.body)
    pen.polygon([(-0.42, 0.0), (-0.3, top + 0.16), (-0.08, top + 0.16), (-0.08, 0.0)], GLASS)
    pen.polygon([(0.04, 0.0), (0.04, top + 0.16), (0.2, top + 0.16), (0.36, 0.0)], GLASS)
    pen.patterned(lambda p, c: p.box(-0.98, 0.02, 0.98, 0.56, c, 0.14), (it.body, it.accent), it.pattern)
    pen.ellipse(0.86, 0.24, 0.11, 0.11, (255, 236, 150))
    size = {0: 0.28, 1: 0.32, 2: 0.25}[wheels] * wide
    for x in (-0.52, 0.52):
        pen.ellipse(x, 0.66, size, size, DARK)
        if wheels == 1:
            pen.ellipse(x, 0.66, 0.17, 0.17, it.accent, outlined=False)
        else:
            pen.ellipse(x, 0.66, 0.11, 0.11, WHITE, outlined=False)


def house(pen: Pen, it: Individual) -> None:
    roof, door, windows = it.details
    wide, high = it.shape
    w, top = 0.68 * wide, -0.16 * high
    pen.box(0.34, -0.86, 0.56, -0.2, DARK)
    pen.patterned(lambda p, c: p.box(-w, top, w, 1.0, c), (it.body, it.accent), it.pattern)
    if roof == 0:
        pen.polygon([(-w - 0.22, top), (0, -0.96), (w + 0.22, top)], it.accent)
    elif roof == 1:
        pen.polygon([(-w - 0.2, top), (-0.4, -0.72), (0.4, -0.72), (w + 0.2, top)], it.accent)
    else:
        pen.polygon([(-w - 0.14, top), (-w - 0.14, -0.52), (w + 0.14, -0.84), (w + 0.14, top)], it.accent)
    x = {0: -0.3, 1: 0.0, 2: 0.3}[door]
    pen.box(x - 0.17, 0.36, x + 0.17, 1.0, (112, 70, 48))
    pen.ellipse(x + 0.08, 0.7, 0.04, 0.04, (255, 220, 90), outlined=False)
    places = {0: (0.32, 0.32), 1: (-0.44, 0.44), 2: (-0.34, -0.34)}[door]
    for place in places:
        if windows == 0:
            pen.box(place - 0.16, 0.14, place + 0.16, 0.46, GLASS)
        elif windows == 1:
            pen.ellipse(place, 0.3, 0.17, 0.17, GLASS)
        else:
            pen.box(place - 0.16, 0.1, place + 0.16, 0.48, (255, 226, 120))
            pen.line([(place, 0.1), (place, 0.48)], 0.05)


def boat(pen: Pen, it: Individual) -> None:
    kind, flag, band = it.details
    wide, high = it.shape
    hull = [(-0.98, 0.42), (0.98, 0.42), (0.66, 0.98), (-0.66, 0.98)]
    if kind < 2:
        pen.line([(0.0, -0.96), (0.0, 0.44)], 0.1, (112, 70, 48))
        pen.polygon([(0.08, -0.86 * high), (0.08, 0.3), (0.8 * wide, 0.3)], WHITE if kind == 0 else it.accent)
        pen.polygon([(-0.08, -0.6 * high), (-0.08, 0.3), (-0.66 * wide, 0.3)], it.accent if kind == 0 else WHITE)
        if flag == 0:
            pen.polygon([(0.0, -0.98), (0.34, -0.88), (0.0, -0.76)], (214, 58, 54))
        elif flag == 1:
            pen.ellipse(0.0, -0.92, 0.13, 0.08, (255, 220, 90))
    else:
        pen.box(-0.5 * wide, -0.2, 0.4 * wide, 0.46, WHITE)
        for x in (-0.3, 0.02):
            pen.ellipse(x, 0.1, 0.12, 0.12, GLASS)
        pen.box(-0.2, -0.8 * high, 0.12, -0.18, it.accent)
        if flag < 2:
            pen.box(-0.2, -0.66 * high, 0.12, -0.5 * high, WHITE, outlined=False)
    pen.patterned(lambda p, c: p.polygon(hull, c), (it.body, it.accent), it.pattern)
    if band == 0:
        pen.box(-0.88, 0.42, 0.88, 0.56, it.accent)
    elif band == 1:
        for x in (-0.42, 0.0, 0.42):
            pen.ellipse(x, 0.68, 0.1, 0.1, WHITE)


def mug(pen: Pen, it: Individual) -> None:
    handle, extra, face = it.details
    wide, high = it.shape
    w, top = 0.58 * wide, -0.5 * high
    if handle == 0:
        pen.arc(w, 0.24, 0.36, 0.42, -100, 100, 0.24, INK)
        pen.arc(w, 0.24, 0.32, 0.38, -100, 100, 0.12, it.accent)
    elif handle == 1:
        pen.box(w - 0.2, -0.14, w + 0.38, 0.62, it.accent, 0.06)
        pen.box(w - 0.1, 0.08, w + 0.18, 0.4, WHITE, 0.03)
    else:
        pen.arc(w, 0.3, 0.26, 0.28, -100, 100, 0.24, INK)
        pen.arc(w, 0.3, 0.22, 0.24, -100, 100, 0.12, it.body)
    if extra == 0:
        for x in (-0.22, 0.16):
            pen.line([(x, -0.6), (x + 0.12, -0.72), (x, -0.84), (x + 0.12, -0.98)], 0.09, WHITE)
    elif extra == 1:
        pen.ellipse(0, top - 0.08, 0.44, 0.26, WHITE)
    pen.patterned(lambda p, c: p.box(-w, top, w, 1.0, c, 0.12), (it.body, it.accent), it.pattern)
    pen.ellipse(0, top + 0.04, w, 0.15, (104, 62, 40))
    if face == 0:
        for side in (-1, 1):
            pen.eye(side * 0.22, 0.24, 0.13)
        pen.arc(0, 0.42, 0.2, 0.18, 20, 160, 0.08, INK)
    elif face == 1:
        pen.polygon([(0, 0.66), (-0.34, 0.3), (-0.17, 0.12), (0, 0.26), (0.17, 0.12), (0.34, 0.3)], (226, 70, 90))


DRAW: dict[str, Callable[[Pen, Individual], None]] = {
    "robot": robot, "cat": cat, "fish": fish, "bird": bird, "car": car, "house": house, "boat": boat, "mug": mug,
}  # fmt: skip
