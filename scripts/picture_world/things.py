"""Robot, mug, clock, house and castle: turn an instance into parts that face the viewer, on the ground.

An object is about one unit large.
"""

from itertools import pairwise

import numpy as np

from picture_world.identity import Instance
from picture_world.paints import DARK, GLASS, LAMP, METAL, WHITE, paints
from picture_world.solids import Paint, Part, ball, box, rod, roof, tilt, tube

AHEAD = tilt(x=1.5708)  # turns a tube's axis to z


def robot(it: Instance) -> list[Part]:
    """Return a robot. Details: head, antennas, chest. Proportions: width, body, head, limbs."""
    paint = paints(it, gloss=0.7)
    wide, tall, head, limb = it.proportions
    wide, tall, head, leg = 0.21 + 0.035 * wide, 0.185 + 0.03 * tall, 0.15 + 0.025 * head, 0.15 + 0.04 * limb
    arm = 0.15 + 0.03 * limb
    y = leg + tall
    shoulder, top = y + tall * 0.75, y + tall + head + 0.03
    parts = [box((0, y, 0), (wide, tall, 0.15), paint.body, roundness=0.6)]
    parts.append(tube((0, y + tall + 0.01, 0), (0.06, 0.05, 0.06), METAL))
    if it.details[0] == 0:
        parts.append(box((0, top, 0), (head * 1.15, head, head), paint.main, roundness=0.7))
    elif it.details[0] == 1:
        parts.append(ball((0, top, 0), (head * 1.15, head * 1.05, head * 1.05), paint.main))
    elif it.details[0] == 2:
        parts.append(tube((0, top, 0), (head * 1.05, head, head * 1.05), paint.main))
    else:
        parts.append(tube((0, top, 0), (head * 1.3, head * 1.05, head * 1.15), paint.main, taper=0.55))
    face = head * (1.0, 0.95, 0.97, 0.9)[it.details[0]]
    for side in (-1, 1):
        parts.append(rod((side * wide * 0.5, 0.03, 0), (side * wide * 0.5, y, 0), 0.062, paint.second))
        parts.append(box((side * wide * 0.52, 0.045, 0.04), (0.085, 0.045, 0.13), paint.accent, roundness=0.8))
        hand = (side * (wide + 0.12), shoulder - 2 * arm + 0.03, 0.07)
        parts.append(ball((side * (wide + 0.035), shoulder, 0), 0.075, METAL))
        parts.append(rod((side * (wide + 0.06), shoulder, 0), hand, 0.05, paint.second))
        parts.append(ball(hand, 0.078, paint.accent))
        parts.append(ball((side * head * 0.46, top + head * 0.18, face * 0.92), (0.062, 0.062, 0.045), WHITE))
        parts.append(ball((side * head * 0.46, top + head * 0.18, face * 0.92 + 0.035), (0.032, 0.035, 0.02), DARK))
    parts.append(box((0, top - head * 0.45, face * 0.97), (head * 0.5, 0.02, 0.03), DARK))
    crown = top + head * 0.95
    if it.details[1] == 0:
        parts.append(rod((0, crown, 0), (0, crown + 0.13, 0), 0.018, METAL))
        parts.append(ball((0, crown + 0.15, 0), 0.052, paint.accent))
    elif it.details[1] == 1:
        for side in (-1, 1):
            end = (side * 0.15, crown + 0.13, 0)
            parts += [rod((side * 0.06, crown - 0.03, 0), end, 0.018, METAL), ball(end, 0.042, paint.accent)]
    elif it.details[1] == 2:  # ears
        parts += [tube((s * head * 1.15, top, 0), (0.075, 0.045, 0.075), paint.accent, tilt(z=1.5708)) for s in (-1, 1)]
    else:  # a pointed cap
        parts.append(tube((0, crown + 0.08, 0), (head * 0.75, 0.11, head * 0.75), paint.accent, taper=0.1))
    if it.details[2] == 0:
        parts.append(box((0, y + tall * 0.1, 0.145), (wide * 0.55, tall * 0.45, 0.03), WHITE))
        parts.append(ball((0, y + tall * 0.1, 0.165), (0.05, 0.05, 0.03), paint.accent))
    elif it.details[2] == 1:
        parts.append(ball((0, y + tall * 0.15, 0.13), (0.105, 0.105, 0.06), LAMP))
    elif it.details[2] == 2:
        parts += [ball((0, y + up, 0.145), (0.042, 0.042, 0.035), paint.accent) for up in (-0.11, 0.0, 0.11)]
    else:
        parts.append(box((0, y - tall * 0.6, 0), (wide * 1.05, 0.045, 0.165), paint.accent))
    return parts


def mug(it: Instance) -> list[Part]:
    """Return a mug. Details: handle, ornament, top. Proportions: width, height, taper, handle."""
    paint = paints(it, gloss=0.9)
    wide, tall, taper, grip = it.proportions
    wide, tall, grip = 0.29 + 0.045 * wide, 0.34 + 0.08 * tall, 0.17 + 0.035 * grip
    taper = 0.86 + 0.14 * taper
    upside_down = tilt(x=3.14159)
    parts = [tube((0, tall + 0.02, 0), (wide, tall, wide), paint.body, upside_down, taper)]
    rim = 2 * tall + 0.02
    parts.append(tube((0, rim, 0), (wide * 1.04, 0.03, wide * 1.04), paint.accent))
    parts.append(tube((0, rim + 0.022, 0), (wide * 0.88, 0.012, wide * 0.88), Paint((0.30, 0.17, 0.10), gloss=0.9)))
    parts.append(tube((0, 0.03, 0), (wide * taper * 1.03, 0.03, wide * taper * 1.03), paint.second))
    x, y = wide * 0.93, tall * 1.05
    if it.details[0] == 0:
        parts += _loop(x, y, grip, tall * 0.55, 0.048, paint.second)
    elif it.details[0] == 1:  # square
        corners = [
            (x, y + tall * 0.55, 0),
            (x + grip * 1.2, y + tall * 0.55, 0),
            (x + grip * 1.2, y - tall * 0.5, 0),
            (x, y - tall * 0.5, 0),
        ]
        parts += [rod(a, b, 0.045, paint.second) for a, b in pairwise(corners)]
        parts += [ball(corner, 0.047, paint.second) for corner in corners[1:3]]
    elif it.details[0] == 2:  # one handle on each side
        parts += _loop(x, y, grip * 0.8, tall * 0.4, 0.042, paint.second)
        parts += _loop(-x, y, -grip * 0.8, tall * 0.4, 0.042, paint.second)
    else:  # small and low, with a rest for the thumb
        parts += _loop(x, y - tall * 0.2, grip * 0.8, tall * 0.32, 0.055, paint.second)
        parts.append(ball((x + grip * 0.5, y + tall * 0.2, 0), (0.12, 0.04, 0.07), paint.accent))
    front = wide * (1 + taper) / 2
    if it.details[1] == 1:  # a face
        for side in (-1, 1):
            turn = tilt(y=side * 0.42)
            eye, pupil = turn @ (0, 0, front * 1.0), turn @ (0, 0, front * 1.04)
            parts += [
                ball(np.add(eye, (0, y + 0.08, 0)), (0.07, 0.08, 0.04), WHITE, turn),
                ball(np.add(pupil, (0, y + 0.08, 0)), (0.035, 0.045, 0.03), DARK, turn),
            ]
        parts.append(ball((0, y - 0.1, front * 0.99), (0.09, 0.035, 0.04), DARK))
    elif it.details[1] == 2:  # a badge
        parts.append(ball((0, y, front * 0.95), (0.15, 0.15, 0.07), paint.accent))
        parts.append(ball((0, y, front * 1.03), (0.08, 0.08, 0.05), WHITE))
    elif it.details[1] == 3:  # a belt
        parts.append(tube((0, y, 0), (front * 1.04, 0.075, front * 1.04), paint.accent))
    if it.details[2] == 1:
        parts.append(rod((0.05, rim, 0), (-0.2, rim + 0.27, 0.03), 0.024, METAL))
        parts.append(ball((-0.22, rim + 0.3, 0.03), (0.04, 0.065, 0.03), METAL, tilt(z=0.7)))
    elif it.details[2] == 2:  # cream
        parts += [
            ball((0, rim + 0.02, 0), (wide * 0.8, 0.12, wide * 0.8), WHITE),
            ball((0, rim + 0.15, 0), 0.06, paint.accent),
        ]
    elif it.details[2] == 3:  # a lid
        parts += [
            ball((0, rim, 0), (wide * 1.0, 0.14, wide * 1.0), paint.second),
            ball((0, rim + 0.15, 0), 0.06, paint.accent),
        ]
    return parts


def _loop(x: float, y: float, out: float, half: float, radius: float, paint: Paint) -> list[Part]:
    """Return half a ring beside (x, y)."""
    angles = np.linspace(-np.pi / 2, np.pi / 2, 7)
    points = [(x + out * 1.3 * np.cos(a), y + half * np.sin(a), 0.0) for a in angles]
    parts = [rod(a, b, radius, paint) for a, b in pairwise(points)]
    return parts + [ball(point, radius * 1.02, paint) for point in points[1:-1]]


def clock(it: Instance) -> list[Part]:
    """Return a clock. Details: case, top, hours. Proportions: radius, depth, the two hands."""
    paint = paints(it, gloss=0.7)
    size, deep, hour, minute = it.proportions
    radius, deep = 0.34 + 0.035 * size, 0.12 + 0.03 * deep
    y = radius + 0.1
    cases = (
        [tube((0, y, 0), (radius, deep, radius), paint.body, AHEAD)],
        [box((0, y, 0), (radius, radius, deep), paint.body, roundness=0.4)],
        [
            box((0, y - 0.04, 0), (radius * 0.95, radius * 0.9, deep), paint.body, roundness=0.0),
            roof((0, y + radius * 0.98, 0), (radius * 1.15, radius * 0.22, deep * 1.2), paint.second, top=1.0, hip=0.1),
        ],
        [
            tube((0, y, 0), (radius * 0.98, deep, radius * 0.98), paint.body, AHEAD),
            box((0, y * 0.55, 0), (radius * 0.98, y * 0.5, deep), paint.body, roundness=0.0),
        ],
    )
    parts = [*cases[it.details[0]]]
    parts.append(tube((0, y, deep), (radius * 0.84, 0.03, radius * 0.84), paint.second, AHEAD))
    parts.append(tube((0, y, deep + 0.015), (radius * 0.74, 0.03, radius * 0.74), WHITE, AHEAD))
    z = deep + 0.05
    for k in range(0, 12, (3, 1, 2, 6)[it.details[2]]):
        across, up = np.sin(k * np.pi / 6), np.cos(k * np.pi / 6)
        at = (across * radius * 0.6, y + up * radius * 0.6, z)
        parts.append(ball(at, ((0.032, 0.022, 0.028, 0.05)[it.details[2]],) * 2 + (0.012,), paint.accent))
    for turn, length, width in ((hour, 0.34, 0.032), (minute, 0.52, 0.024)):
        angle = turn * np.pi
        end = (radius * length * np.sin(angle), y + radius * length * np.cos(angle), z)
        parts.append(rod((0, y, z), end, width, DARK, taper=0.6))
    parts.append(ball((0, y, z + 0.01), (0.045, 0.045, 0.03), paint.accent))
    for side in (-1, 1):
        if it.details[0] != 3:
            parts.append(rod((side * radius * 0.75, 0, 0.02), (side * radius * 0.5, y * 0.6, 0), 0.045, paint.accent))
        else:
            parts.append(ball((side * radius * 0.8, 0.035, 0), (0.08, 0.045, 0.1), paint.accent))
    top = 2 * radius + 0.1 + (0.1 if it.details[0] == 2 else 0)
    if it.details[1] == 0:  # two bells and a handle
        for side in (-1, 1):
            parts.append(ball((side * radius * 0.55, top - 0.02, 0), (0.13, 0.1, 0.11), METAL, tilt(z=-side * 0.5)))
        parts += _arch(top + 0.02, 0.11, 0.022, METAL)
    elif it.details[1] == 1:
        parts += [
            rod((0, top - 0.05, 0), (0, top + 0.05, 0), 0.03, METAL),
            ball((0, top + 0.1, 0), (0.14, 0.1, 0.12), paint.accent),
        ]
    elif it.details[1] == 2:
        parts += _arch(top - 0.03, 0.16, 0.035, paint.accent)
    return parts


def _arch(y: float, radius: float, thick: float, paint: Paint) -> list[Part]:
    points = [(radius * np.cos(a), y + radius * np.sin(a), 0.0) for a in np.linspace(0, np.pi, 6)]
    return [rod(a, b, thick, paint) for a, b in pairwise(points)]


def house(it: Instance) -> list[Part]:
    """Return a house. Details: roof, windows, chimney. Proportions: width, height, roof, depth."""
    paint = paints(it, gloss=0.1)
    wide, tall, peak, deep = it.proportions
    wide, tall, peak, deep = 0.34 + 0.06 * wide, 0.21 + 0.06 * tall, 0.16 + 0.045 * peak, 0.27 + 0.04 * deep
    top = 2 * tall
    parts = [box((0, tall, 0), (wide, tall, deep), paint.body, roundness=0)]
    parts.append(box((0, 0.025, 0), (wide * 1.06, 0.025, deep * 1.08), Paint((0.6, 0.58, 0.55)), roundness=0))
    over = (wide * 1.15, peak, deep * 1.2)
    parts += (
        [roof((0, top + peak, 0), over, paint.second, top=0.0, hip=1.0)],
        [roof((0, top + peak, 0), over, paint.second, top=0.0, hip=0.12)],
        [
            roof((0, top + peak * 0.7, 0), (wide * 1.12, peak * 0.7, deep * 1.15), paint.second, top=0.72, hip=0.8),
            roof((0, top + peak * 1.75, 0), (wide * 0.9, peak * 0.35, deep * 0.82), paint.second, top=0.0, hip=0.85),
        ],
        [roof((0, top + peak * 1.15, 0), (deep * 1.2, peak * 1.15, wide * 1.12), paint.second, top=1.0, hip=0.0)],
    )[it.details[0]]
    door_x = wide * (0, -0.5, 0.5, 0)[it.details[1]]
    parts.append(box((door_x, 0.16, deep), (0.075, 0.13, 0.025), paint.accent, roundness=0.3))
    parts.append(ball((door_x + 0.04, 0.15, deep + 0.03), 0.016, LAMP))
    places = (
        [(-0.6, 0.25), (0.6, 0.25)],
        [(0.4, 0.15)],
        [(-0.55, 0.1), (0.0, 0.1)],
        [(-0.62, -0.15), (0.62, -0.15), (-0.62, 0.6), (0.62, 0.6), (0.0, 0.6)],
    )[it.details[1]]
    for x, up in places:
        at = (x * wide, tall * (1 + up), deep)
        half = (0.13, 0.1) if it.details[1] == 1 else (0.068, 0.065)
        if it.details[1] == 2:
            parts += [
                tube(at, (0.095, 0.02, 0.095), WHITE, AHEAD),
                tube((*at[:2], deep + 0.01), (0.068, 0.022, 0.068), LAMP, AHEAD),
            ]
        else:
            parts += [
                box(at, (half[0] + 0.025, half[1] + 0.025, 0.018), WHITE, roundness=0),
                box(at, (*half, 0.028), GLASS, roundness=0),
            ]
    for side in (-1, 1):
        parts.append(box((side * wide, tall * 1.15, 0), (0.025, 0.08, 0.09), GLASS, roundness=0))
    if it.details[2] in (1, 2):
        x = wide * (0.55, -0.55)[it.details[2] - 1]
        parts.append(box((x, top + peak * 1.5, -deep * 0.3), (0.06, peak, 0.06), paint.accent, roundness=0))
        parts.append(box((x, top + peak * 2.5, -deep * 0.3), (0.075, 0.025, 0.075), DARK, roundness=0))
    elif it.details[2] == 3:  # a small tower
        parts.append(tube((wide * 0.95, tall * 1.25, deep * 0.6), (0.13, tall * 1.25, 0.13), paint.main))
        parts.append(tube((wide * 0.95, tall * 2.5 + 0.11, deep * 0.6), (0.17, 0.13, 0.17), paint.second, taper=0.02))
    return parts


def castle(it: Instance) -> list[Part]:
    """Return a castle. Details: tower tops, towers, flags. Proportions: width, wall, towers, tops."""
    paint = paints(it, gloss=0.1)
    wide, wall, tall, peak = it.proportions
    wide, wall, tall, peak = 0.33 + 0.05 * wide, 0.17 + 0.04 * wall, 0.27 + 0.05 * tall, 0.12 + 0.03 * peak
    parts = [box((0, wall, 0), (wide, wall, 0.2), paint.body, roundness=0)]
    parts += [
        box((x * wide, 2 * wall + 0.03, 0.19), (0.045, 0.04, 0.035), paint.main, roundness=0)
        for x in (-0.5, -0.17, 0.17, 0.5)
    ]
    parts.append(box((0, 0.11, 0.2), (0.09, 0.11, 0.02), DARK, roundness=0))
    parts.append(tube((0, 0.21, 0.2), (0.09, 0.02, 0.09), DARK, AHEAD))
    # x, z, radius and half height of each tower
    towers = (
        [(-1, 0.15, 0.12, 1.0), (1, 0.15, 0.12, 1.0)],
        [(-1, 0.15, 0.11, 0.8), (1, 0.15, 0.11, 0.8), (0, -0.12, 0.15, 1.3)],
        [(-1, 0.1, 0.16, 1.3), (1, 0.15, 0.11, 0.85)],
        [(-1, 0.15, 0.1, 0.9), (1, 0.15, 0.1, 0.9), (-0.45, -0.15, 0.1, 1.3), (0.45, -0.15, 0.1, 1.3)],
    )[it.details[1]]
    for x, z, radius, height in towers:
        half, at = tall * height, x * wide
        top = 2 * half
        parts.append(tube((at, half, z), (radius, half, radius), paint.body))
        if it.details[0] == 0:
            parts.append(tube((at, top + peak, z), (radius * 1.3, peak, radius * 1.3), paint.second, taper=0.02))
        elif it.details[0] == 1:
            parts.append(tube((at, top, z), (radius * 1.2, 0.035, radius * 1.2), paint.second))
            parts += [
                box(
                    (at + radius * 1.0 * np.cos(a), top + 0.07, z + radius * 1.0 * np.sin(a)),
                    0.04,
                    paint.second,
                    roundness=0,
                )
                for a in np.arange(5) * 1.2566 + 0.3
            ]
        elif it.details[0] == 2:
            parts.append(ball((at, top, z), (radius * 1.1, peak * 1.2, radius * 1.1), paint.second))
        else:
            parts.append(tube((at, top, z), (radius * 1.2, 0.04, radius * 1.2), paint.accent))
            parts.append(
                tube((at, top + peak * 0.5, z), (radius * 0.8, peak * 0.5, radius * 0.8), paint.second, taper=0.3)
            )
        parts.append(box((at, top * 0.72, z + radius), (0.028, 0.05, 0.02), LAMP, roundness=0))
    if it.details[2]:
        x, z, _, height = towers[-1] if it.details[2] == 1 else towers[0]
        top = 2 * tall * height + (2 * peak if it.details[0] == 0 else peak)
        for place in (x * wide,) if it.details[2] < 3 else (-wide, wide):
            parts.append(rod((place, top - 0.08, z), (place, top + 0.15, z), 0.014, METAL))
            parts.append(box((place + 0.08, top + 0.11, z), (0.07, 0.045, 0.012), paint.accent, roundness=0))
    return parts
