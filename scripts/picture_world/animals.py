"""Fish, bird, cat and rabbit: turn an instance into parts that face the viewer, on the ground, about one unit large."""

from itertools import pairwise

import numpy as np

from picture_world.identity import Instance
from picture_world.paints import DARK, LAMP, METAL, SKIN, WHITE, paints
from picture_world.solids import Part, ball, rod, tilt, tube


def fish(it: Instance) -> list[Part]:
    """Return a fish. Details: tail, back fins, snout. Proportions: length, height, tail, fins."""
    paint = paints(it, gloss=0.7)
    long, high, tail, fin = it.proportions
    length, height = 0.36 + 0.06 * long, 0.27 + 0.06 * high
    tail, fin = 0.20 + 0.05 * tail, 0.17 + 0.04 * fin
    thick = 0.15
    y = height + 0.05
    parts = [ball((0, y, 0.06), (thick, height, length), paint.body)]
    end = 0.06 - length * 0.92
    shapes = {
        0: [((0, tail * 0.75, -0.7 * tail), 0.7), ((0, -tail * 0.75, -0.7 * tail), -0.7)],  # forked
        1: [((0, 0, -0.6 * tail), 0.0)],  # round
        2: [((0, tail * 0.6, -0.5 * tail), 0.5), ((0, -tail * 0.6, -0.5 * tail), -0.5), ((0, 0, -0.9 * tail), 0.0)],
        3: [((0, tail * 1.0, -0.4 * tail), 1.1), ((0, -tail * 1.0, -0.4 * tail), -1.1)],  # a high crescent
    }[it.details[0]]
    for (x, up, back), angle in shapes:
        half = (0.03, tail * (1.05 if angle == 0 and it.details[0] == 1 else 0.5), tail)
        parts.append(ball((x, y + up, end + back), half, paint.second, tilt(x=angle)))
    for place, size, lean in (
        [(0.0, 1.3, 0.5)], [(0.14, 0.9, 0.5), (-0.14, 0.9, 0.5)],
        [(0.17, 0.8, 0.2), (0.02, 1.0, 0.3), (-0.13, 0.8, 0.4)], [(-0.02, 0.8, 1.35)],
    )[it.details[1]]:  # fmt: skip
        long_fin = 1.7 if it.details[1] == 3 else 1.0
        at = (0, y + height * 0.9, place)
        parts.append(ball(at, (0.025, fin * size * long_fin, fin * 0.5), paint.accent, tilt(x=-lean)))
    for side in (-1, 1):
        parts.append(
            ball((side * 0.12, y * 0.42, 0.12), (0.03, fin, fin * 0.5), paint.accent, tilt(x=-0.6, z=side * 0.6))
        )
        parts.append(ball((side * 0.105, y + height * 0.25, 0.06 + length * 0.58), 0.068, WHITE))
        parts.append(ball((side * 0.15, y + height * 0.26, 0.06 + length * 0.63), 0.038, DARK))
    front = 0.06 + length
    if it.details[2] == 1:  # lips
        parts += [ball((0, y + up, front - 0.01), (0.07, 0.035, 0.05), paint.second) for up in (-0.03, 0.03)]
    elif it.details[2] == 2:  # a lantern
        parts.append(rod((0, y + height * 0.8, front * 0.5), (0, y + height * 1.25, front * 0.98), 0.014, paint.second))
        parts.append(ball((0, y + height * 1.25, front), 0.05, LAMP))
    elif it.details[2] == 3:  # a sword
        parts.append(rod((0, y, front - 0.03), (0, y + 0.02, front + 0.24), 0.045, paint.second, taper=0.1))
    return parts


def bird(it: Instance) -> list[Part]:
    """Return a bird. Details: crest, beak, tail. Proportions: fatness, neck, legs, wings."""
    paint = paints(it)
    fat, neck, leg, wing = it.proportions
    radius, neck, leg, wing = 0.23 + 0.035 * fat, 0.06 + 0.06 * neck, 0.15 + 0.07 * leg, 0.22 + 0.04 * wing
    y = leg + radius * 0.92
    head_y, head_z = y + radius * 0.85 + neck + 0.06, 0.17
    parts = [
        ball((0, y, 0), (radius * 0.92, radius, radius * 1.35), paint.body, tilt(x=-0.35)),
        rod((0, y, 0.1), (0, head_y, head_z), 0.115, paint.main, taper=0.85),
        ball((0, head_y, head_z), 0.15, paint.main),
        ball((0, y - radius * 0.22, radius * 0.55), (radius * 0.7, radius * 0.7, radius * 0.68), paint.second),
    ]
    for side in (-1, 1):
        at = (side * radius * 0.88, y + 0.03, -0.06)
        parts.append(ball(at, (0.05, radius * 0.55, wing), paint.accent, tilt(x=-0.45, y=side * 0.12)))
        parts.append(rod((side * 0.08, 0.02, 0.0), (side * 0.08, leg + 0.06, 0.0), 0.022, SKIN))
        parts.append(ball((side * 0.08, 0.018, 0.04), (0.05, 0.02, 0.085), SKIN))
        parts.append(ball((side * 0.105, head_y + 0.04, head_z + 0.09), 0.043, WHITE))
        parts.append(ball((side * 0.122, head_y + 0.04, head_z + 0.12), 0.026, DARK))
    length, width, droop = ((0.14, 0.05, 0.0), (0.22, 0.045, -0.1), (0.16, 0.085, -0.25), (0.2, 0.10, 0.0))[
        it.details[1]
    ]
    start = (0, head_y - 0.01, head_z + 0.11)
    if it.details[1] == 3:  # a duck's beak
        parts.append(ball((0, head_y - 0.02, head_z + 0.17), (0.085, 0.03, 0.12), SKIN))
    else:
        parts.append(rod(start, (0, head_y + droop * 0.5, start[2] + length), width, SKIN, taper=0.08))
    top = (0, head_y + 0.1, head_z - 0.03)
    crest = {
        0: [],
        1: [
            rod(top, (0, top[1] + 0.17 - 0.02 * k, top[2] + 0.09 - 0.1 * k), 0.035, paint.accent, 0.1) for k in range(3)
        ],
        2: [ball((0, top[1] + 0.05, top[2]), (0.07, 0.09, 0.1), paint.accent)],
        3: [
            rod(top, (0, top[1] + 0.14, top[2] - 0.2), 0.04, paint.accent, 0.5),
            ball((0, top[1] + 0.15, top[2] - 0.22), 0.055, paint.second),
        ],
    }
    back = (0, y + 0.02, -radius * 1.15)
    tail = {
        0: [ball((0, back[1], back[2] - 0.06), (0.09, 0.04, 0.14), paint.accent, tilt(x=0.1))],
        1: [ball((0, back[1] - 0.06, back[2] - 0.17), (0.06, 0.03, 0.26), paint.accent, tilt(x=-0.3))],
        2: [
            ball((x, back[1] + 0.08, back[2] - 0.08), (0.04, 0.03, 0.2), paint.accent, tilt(x=0.7, y=-2.2 * x))
            for x in (-0.12, 0.0, 0.12)
        ],
        3: [ball((0, back[1] + 0.13, back[2] - 0.02), (0.05, 0.2, 0.07), paint.accent, tilt(x=-0.3))],
    }
    return parts + crest[it.details[0]] + tail[it.details[2]]


def cat(it: Instance) -> list[Part]:
    """Return a sitting cat. Details: ears, tail, neck. Proportions: fatness, head, height, ears."""
    paint = paints(it, gloss=0.15)
    fat, head, tall, ear = it.proportions
    wide, head, tall, ear = 0.21 + 0.04 * fat, 0.185 + 0.025 * head, 0.27 + 0.05 * tall, 0.14 + 0.04 * ear
    top = tall * 1.75 + head * 0.75
    parts = [
        ball((0, tall * 0.95, -0.04), (wide, tall, wide * 1.1), paint.body, tilt(x=0.1)),
        ball((0, tall * 0.95, wide * 0.55), (wide * 0.6, tall * 0.6, wide * 0.5), paint.second),
        ball((0, top, 0.04), (head * 1.12, head, head), paint.body),
        ball((0, top - head * 0.42, 0.04 + head * 0.82), (0.035, 0.025, 0.03), paint.accent),
    ]
    for side in (-1, 1):
        parts.append(ball((side * wide * 0.75, 0.12, 0.04), (0.12, 0.13, 0.17), paint.main))
        parts.append(rod((side * 0.085, 0.03, 0.2), (side * 0.085, tall, 0.14), 0.06, paint.main))
        parts.append(ball((side * 0.09, 0.04, 0.24), (0.075, 0.045, 0.09), paint.second))
        parts.append(ball((side * 0.055, top - head * 0.5, 0.04 + head * 0.72), (0.075, 0.055, 0.06), paint.second))
        parts.append(ball((side * head * 0.45, top + head * 0.12, 0.04 + head * 0.80), (0.052, 0.06, 0.04), LAMP))
        parts.append(ball((side * head * 0.45, top + head * 0.12, 0.04 + head * 0.95), (0.022, 0.045, 0.025), DARK))
        at = np.array((side * head * 0.68, top + head * 0.62, 0.02))
        if it.details[0] == 1:  # round
            parts.append(ball(np.add(at, (0, 0.05, 0)), (ear * 0.6, ear * 0.6, 0.04), paint.second))
        else:
            out = (0.25, 0, 0.45, 0.9)[it.details[0]]
            size = (1.0, 0, 1.5, 1.0)[it.details[0]]
            parts.append(
                rod(at, np.add(at, (side * out * ear * size, ear * 1.25 * size, 0.0)), 0.09, paint.main, taper=0.05)
            )
    curves = {
        0: [(0.0, 0.05, -0.2), (0.30, 0.08, -0.26), (0.40, 0.28, -0.24), (0.36, 0.46, -0.2)],
        1: [(0.0, 0.05, -0.2), (0.26, 0.05, -0.1), (0.36, 0.06, 0.1), (0.28, 0.06, 0.26)],
        2: [(0.0, 0.05, -0.2), (0.22, 0.2, -0.34), (0.30, 0.44, -0.34), (0.44, 0.56, -0.3)],
        3: [(0.0, 0.1, -0.2), (0.2, 0.16, -0.28), (0.32, 0.2, -0.26)],
    }[it.details[1]]
    thick = 0.07 if it.details[1] == 3 else 0.048
    parts += [rod(a, b, thick, paint.main) for a, b in pairwise(curves)]
    parts += [ball(point, thick * 1.04, paint.main) for point in curves[1:-1]]
    parts.append(ball(curves[-1], thick * 1.35, paint.second))
    neck = top - head * 0.95
    if it.details[2] in (1, 2):  # a collar, with a bell or a bow
        parts.append(tube((0, neck, 0.02), (wide * 0.78, 0.035, wide * 0.82), paint.accent))
    if it.details[2] == 1:
        parts.append(ball((0, neck - 0.05, wide * 0.9), 0.05, METAL))
    elif it.details[2] == 2:
        parts += [
            ball((s * 0.09, neck - 0.02, wide * 0.85), (0.09, 0.06, 0.04), paint.accent, tilt(z=s * 0.4))
            for s in (-1, 1)
        ]
    elif it.details[2] == 3:  # a hat
        parts.append(tube((0, top + head * 0.98, 0.02), (0.17, 0.02, 0.17), paint.accent))
        parts.append(tube((0, top + head * 0.98 + 0.09, 0.02), (0.1, 0.09, 0.1), paint.accent))
    return parts
