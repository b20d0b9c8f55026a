"""Car, boat, plane and train: turn an instance into parts that face the viewer, on the ground, about one unit large."""

from dataclasses import replace

from picture_world.identity import Instance
from picture_world.paints import DARK, GLASS, LAMP, METAL, WHITE, paints
from picture_world.solids import Paint, Part, ball, box, rod, roof, tilt, tube

AXLE = tilt(z=1.5708)  # turns a tube's axis to x
AHEAD = tilt(x=1.5708)  # turns it to z


def _wheel(x: float, z: float, radius: float, hub: Paint) -> list[Part]:
    out = 0.045 if x > 0 else -0.045
    return [
        tube((x, radius, z), (radius, 0.05, radius), DARK, AXLE),
        tube((x + out, radius, z), (radius * 0.55, 0.02, radius * 0.55), hub, AXLE),
    ]


def car(it: Instance) -> list[Part]:
    """Return a car. Details: body, load on the roof, back. Proportions: length, height, wheels, cabin."""
    paint = paints(it, gloss=0.9)
    long, high, wheel, cabin = it.proportions
    length, height = 0.46 + 0.05 * long, 0.115 + 0.03 * high
    wheel, cabin, wide = 0.115 + 0.025 * wheel, 0.15 + 0.03 * cabin, 0.22
    y = wheel + height * 0.75
    top = y + height
    parts = [box((0, y, 0), (wide, height, length), paint.body, roundness=0.8)]
    # the cabin: where its middle is, half its length, and how much narrower it is on top
    middle, half, narrow = ((-0.05, 0.28, 0.72), (-0.10, 0.34, 0.95), (-0.04, 0.26, 0.0), (0.10, 0.16, 0.8))[
        it.details[0]
    ]
    if it.details[0] == 2:  # a dome
        parts.append(ball((0, top, middle), (wide * 0.9, cabin * 1.7, half * 1.15), GLASS))
        parts.append(ball((0, top + 0.025, middle - 0.01), (wide * 0.72, cabin * 1.75, half * 0.8), paint.second))
        roof_y = top + cabin * 1.72
    else:
        cabin = cabin * (1.25 if it.details[0] == 1 else 1.0)
        parts.append(roof((0, top + cabin, middle), (wide * 0.9, cabin, half), GLASS, top=narrow, hip=0.86))
        roof_y = top + 2 * cabin
        parts.append(box((0, roof_y, middle), (wide * 0.82, 0.028, half * narrow * 1.04), paint.second))
        for z in (-half * 0.86, 0.0 if half > 0.2 else half * 0.86):
            parts.append(box((0, top + cabin, middle + z), (wide * 0.89, cabin, 0.022), paint.second, roundness=0))
    for side in (-1, 1):
        for z in (length * 0.6, -length * 0.6):
            parts += _wheel(side * (wide - 0.01), z, wheel, paint.accent if it.details[2] % 2 else METAL)
        parts.append(ball((side * wide * 0.62, y + 0.02, length * 0.96), (0.055, 0.055, 0.04), LAMP))
        parts.append(box((side * wide * 0.7, y + 0.02, -length * 0.97), (0.05, 0.03, 0.03), Paint((0.8, 0.1, 0.1))))
    parts.append(box((0, y - height * 0.7, 0), (wide * 1.02, height * 0.22, length * 1.04), paint.accent))
    if it.details[1] == 1:  # a beacon
        parts.append(ball((0, roof_y + 0.05, middle), (0.06, 0.07, 0.06), paint.accent))
    elif it.details[1] == 2:  # luggage
        parts += [
            box((0, roof_y + 0.09, middle + z), (0.13, 0.065, 0.085), p)
            for z, p in ((0.07, paint.accent), (-0.1, paint.main))
        ]
    elif it.details[1] == 3:  # a surfboard
        parts.append(ball((0, roof_y + 0.06, middle), (0.1, 0.03, 0.40), paint.accent))
    if it.details[2] == 2:  # a spoiler
        parts += [
            rod((s * 0.13, top - 0.02, -length * 0.86), (s * 0.13, top + 0.12, -length * 0.92), 0.02, paint.main)
            for s in (-1, 1)
        ]
        parts.append(box((0, top + 0.12, -length * 0.92), (wide * 0.95, 0.022, 0.075), paint.accent))
    elif it.details[2] == 3:  # a spare wheel
        parts.append(tube((0, top - 0.02, -length * 1.02), (0.12, 0.05, 0.12), DARK, AHEAD))
    return parts


def boat(it: Instance) -> list[Part]:
    """Return a boat. Details: sails or funnels, mast top, hull. Proportions: length, hull, mast, sail."""
    paint = paints(it)
    long, hull, mast, sail = it.proportions
    length, hull, mast = 0.42 + 0.06 * long, 0.12 + 0.03 * hull, 0.66 + 0.12 * mast
    wide, deck = 0.19, 2 * hull
    upside_down = tilt(x=3.14159)
    parts = [
        tube(
            (0, hull, 0),
            (wide, hull, length),
            paint.body if it.details[2] != 1 else paint.main,
            upside_down,
            taper=0.62,
        ),
        tube((0, deck + 0.005, 0), (wide * 1.05, 0.022, length * 1.05), paint.accent),
        tube((0, deck + 0.03, 0), (wide * 0.85, 0.008, length * 0.9), Paint((0.72, 0.54, 0.34))),
    ]
    sailcloth = paint.second if it.pattern == "plain" or it.details[2] != 1 else paint.body
    base = deck + 0.08
    if it.details[0] < 2:
        parts.append(rod((0, deck, 0.04), (0, deck + mast, 0.04), 0.022, Paint((0.55, 0.38, 0.22))))
        reach = (0.34 + 0.05 * sail) * 0.5
        tall = (mast - 0.12) / 2
        parts.append(_sail(base + tall, tall, 0.04, reach, sailcloth, -1))
        if it.details[0] == 1:
            parts.append(_sail(base + tall * 0.8, tall * 0.8, 0.04, reach * 0.9, paint.accent, 1))
        top = deck + mast
    else:
        parts.append(box((0, deck + 0.09, -0.03), (0.13, 0.085, length * 0.5), WHITE))
        parts.append(box((0, deck + 0.20, -0.03), (0.10, 0.05, length * 0.32), paint.second))
        for z in ((-0.04,), (-0.14, 0.08))[it.details[0] - 2]:
            parts.append(tube((0, deck + 0.34, z), (0.062, 0.12 + 0.03 * sail, 0.062), paint.main))
            parts.append(tube((0, deck + 0.40, z), (0.066, 0.03, 0.066), paint.accent))
        parts += [ball((0.125, deck + 0.1, -0.03 + z), (0.02, 0.035, 0.035), GLASS) for z in (-0.12, 0.0, 0.12)]
        parts += [ball((-0.125, deck + 0.1, -0.03 + z), (0.02, 0.035, 0.035), GLASS) for z in (-0.12, 0.0, 0.12)]
        parts.append(rod((0, deck, length * 0.7), (0, deck + 0.3, length * 0.7), 0.014, METAL))
        top = deck + 0.3
    z = 0.04 if it.details[0] < 2 else length * 0.7
    if it.details[1] == 1:
        parts.append(box((0, top - 0.03, z - 0.09), (0.012, 0.05, 0.085), paint.accent, roundness=0))
    elif it.details[1] == 2:
        parts.append(ball((0, top, z), 0.05, paint.accent))
    elif it.details[1] == 3:
        parts.append(roof((0, top - 0.03, z - 0.09), (0.012, 0.06, 0.085), paint.main, top=1.0, hip=0.0))
    if it.details[2] == 2:  # a stripe
        parts.append(tube((0, hull * 1.25, 0), (wide * 0.97, hull * 0.22, length * 0.97), paint.accent))
    elif it.details[2] == 3:  # life belts
        parts += [
            tube((s * wide * 0.85, hull * 1.3, z), (0.07, 0.03, 0.07), WHITE, AXLE)
            for s in (-1, 1)
            for z in (-0.14, 0.14)
        ]
    return parts


def _sail(y: float, tall: float, mast: float, reach: float, paint: Paint, side: int) -> Part:
    """Return an upright triangle with its steep edge at the mast, before (1) or behind it (-1)."""
    centre, turn = (0, y, mast + side * (0.03 + reach / 2)), tilt(y=-1.5708)
    part = roof(centre, (reach, tall, 0.012), paint, top=1.0, hip=0.0)
    axes = turn * (reach, tall, 0.012)
    axes[:, 1] -= turn[:, 0] * (side * reach / 2)  # a sheared gable
    return replace(part, axes=axes)


def plane(it: Instance) -> list[Part]:
    """Return a plane. Details: engines, tail, nose. Proportions: length, fatness, wings, tail."""
    paint = paints(it, gloss=0.8)
    long, fat, wing, fin = it.proportions
    length, radius, wing, fin = 0.46 + 0.05 * long, 0.125 + 0.02 * fat, 0.50 + 0.06 * wing, 0.16 + 0.04 * fin
    y = radius + 0.14
    parts = [
        ball((0, y, 0), (radius, radius, length), paint.body),
        ball((0, y + radius * 0.62, length * 0.42), (radius * 0.62, radius * 0.6, 0.14), GLASS),
        ball((0, y - 0.03, 0.05), (wing, 0.03, 0.135), paint.second),
        ball((0, y + fin * 0.9, -length * 0.86), (0.025, fin, 0.1), paint.accent, tilt(x=-0.35)),
    ]
    tail_y = y + (fin * 1.7 if it.details[1] == 1 else 0.03)
    parts.append(
        ball((0, tail_y, -length * (0.98 if it.details[1] == 1 else 0.84)), (0.23, 0.022, 0.075), paint.second)
    )
    if it.details[1] == 2:
        parts += [
            ball((s * 0.2, y + fin * 0.6, -length * 0.84), (0.022, fin * 0.7, 0.08), paint.accent) for s in (-1, 1)
        ]
    elif it.details[1] == 3:  # tall
        parts.append(ball((0, y + fin * 1.5, -length * 0.98), (0.025, fin * 0.9, 0.08), paint.accent, tilt(x=-0.35)))
    for side in (-1, 1):
        if it.details[0] == 1:
            parts.append(tube((side * 0.26, y - 0.09, 0.1), (0.06, 0.13, 0.06), paint.accent, AHEAD))
        elif it.details[0] == 2:  # an upper wing, on struts
            parts.append(rod((side * 0.3, y, 0.05), (side * 0.3, y + 0.27, 0.05), 0.018, METAL))
        elif it.details[0] == 3:
            parts += [ball((side * x, y - 0.06, 0.16), (0.05, 0.05, 0.1), paint.accent) for x in (0.2, 0.36)]
        parts.append(rod((side * 0.1, 0.06, 0.14), (side * 0.06, y, 0.14), 0.018, METAL))
        parts += _wheel(side * 0.11, 0.14, 0.062, METAL)
    if it.details[0] == 2:
        parts.append(ball((0, y + 0.27, 0.05), (wing, 0.03, 0.13), paint.second))
    parts += _wheel(0.001, -length * 0.62, 0.045, METAL)
    if it.details[2] == 0:
        parts.append(ball((0, y, length * 0.82), (radius * 0.66, radius * 0.66, 0.13), paint.accent))
    elif it.details[2] == 3:
        parts.append(rod((0, y, length * 0.9), (0, y, length + 0.17), 0.05, paint.accent, taper=0.1))
    else:  # a propeller, upright or level
        parts.append(ball((0, y, length), 0.05, paint.accent))
        blade = (0.2, 0.03, 0.015) if it.details[2] == 1 else (0.03, 0.2, 0.015)
        parts.append(ball((0, y, length + 0.04), blade, DARK))
    return parts
