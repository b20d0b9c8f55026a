"""The settings outdoors; `indoors` has the others."""

import numpy as np

from picture_world.canvas import Canvas, mix

WHITE, BLACK = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
PETALS = ((0.95, 0.30, 0.36), (0.98, 0.80, 0.25), (0.96, 0.58, 0.78), (0.97, 0.95, 0.92), (0.66, 0.45, 0.88))


def beach(c: Canvas) -> None:
    rng, h = c.rng, c.horizon - 0.06
    c.gradient(0, h, (0.32, 0.66, 0.95), (0.58, 0.82, 0.98), (0.84, 0.94, 0.98))
    _clouds(c, 0.05, h - 0.15, 3, WHITE)
    shore = h + 0.17
    c.gradient(h, shore, (0.04, 0.42, 0.68), (0.10, 0.62, 0.76), (0.38, 0.82, 0.82))
    x = rng.uniform(0.1, 0.9)
    c.polygon([(x, h - 0.08), (x, h - 0.01), (x + 0.06, h - 0.01)], WHITE)
    c.blur(0.008)
    for _ in range(7):
        y, x, length = rng.uniform(h + 0.02, shore - 0.03), rng.uniform(-0.1, 1), rng.uniform(0.08, 0.25)
        c.line([(x, y), (x + length, y)], (0.72, 0.93, 0.95), 0.005)
    sand = (0.95, 0.84, 0.62)
    along = np.linspace(0, 1, 17)
    wave = shore - 0.02 + 0.018 * np.sin(along * rng.uniform(5, 9) + rng.uniform(0, 6))
    for lower, colour in ((0.0, (0.97, 0.99, 0.98)), (0.03, (0.80, 0.68, 0.48)), (0.06, sand)):
        c.polygon([*zip(along.tolist(), (wave + lower).tolist(), strict=True), (1, 1), (0, 1)], colour)
    c.blur(0.004)
    c.mottle(shore + 0.05, 1, 12, 14, 0.07)
    for _ in range(6):
        c.disc(
            rng.uniform(),
            rng.uniform(shore + 0.1, 0.98),
            0.013,
            0.008,
            mix((0.98, 0.93, 0.86), (0.8, 0.5, 0.45), rng.uniform()),
        )


def snow(c: Canvas) -> None:
    rng, h = c.rng, c.horizon
    c.gradient(0, h, (0.66, 0.76, 0.87), (0.84, 0.89, 0.95))
    c.ridge(h + 0.02, 0.18, 5, (0.78, 0.84, 0.92))
    for x in rng.permutation(9)[:6] / 8 + rng.uniform(-0.04, 0.04, 6):
        tall = rng.uniform(0.22, 0.42)
        _fir(c, x, h + 0.05, tall, (0.22, 0.40, 0.42), (0.93, 0.96, 1.0))
    c.blur(0.008)
    c.gradient(h + 0.04, 1, (0.86, 0.91, 0.98), (0.95, 0.97, 1.0), (0.89, 0.93, 0.99))
    for _ in range(3):
        x, y = rng.uniform(0, 1), rng.uniform(h + 0.04, h + 0.16)
        c.disc(x, y + 0.06, rng.uniform(0.2, 0.45), 0.08, (0.96, 0.98, 1.0))
    c.blur(0.012)
    c.mottle(h + 0.08, 1, 6, 7, 0.05)


def night(c: Canvas) -> None:
    rng, h = c.rng, c.horizon + 0.02
    c.gradient(0, h, (0.02, 0.03, 0.14), (0.06, 0.09, 0.28), (0.17, 0.17, 0.42))
    x, y, radius = rng.uniform(0.1, 0.9), rng.uniform(0.10, 0.22), rng.uniform(0.055, 0.085)
    c.disc(x, y, radius * 1.7, radius * 1.7, (0.12, 0.14, 0.32))
    c.blur(0.02)
    for _ in range(46):
        size = rng.uniform(0.003, 0.009)
        c.disc(
            rng.uniform(),
            rng.uniform(0, h - 0.04),
            size,
            size,
            mix((0.55, 0.6, 0.85), (1.0, 0.98, 0.85), rng.uniform()),
        )
    c.disc(x, y, radius, radius, (0.99, 0.96, 0.80))
    if rng.uniform() < 0.6:
        c.disc(x + radius * 0.45, y - radius * 0.2, radius * 0.85, radius * 0.85, (0.09, 0.11, 0.30))
    c.ridge(h + 0.02, 0.14, 5, (0.05, 0.07, 0.18))
    for _ in range(5):
        left = rng.uniform(0, 1)
        c.rectangle(left, h - 0.012, left + 0.014, h + 0.004, (0.98, 0.80, 0.36))
    c.blur(0.003)
    c.gradient(h + 0.015, 1, (0.08, 0.11, 0.22), (0.12, 0.16, 0.29), (0.07, 0.10, 0.20))
    c.mottle(h + 0.03, 1, 9, 10, 0.16)


def forest(c: Canvas) -> None:
    rng, h = c.rng, c.horizon + 0.03
    c.gradient(0, h, (0.28, 0.46, 0.20), (0.52, 0.68, 0.32), (0.36, 0.50, 0.24))
    for depth, (count, colour) in enumerate(((8, (0.33, 0.40, 0.20)), (6, (0.22, 0.24, 0.13)))):
        for x in (np.arange(count) + rng.uniform(-0.3, 0.3, count)) / (count - 1):
            half = rng.uniform(0.012, 0.022) * (1 + depth)
            foot = h + 0.03 * depth
            c.polygon(
                [(x - half * 0.8, 0), (x + half * 0.8, 0), (x + half * 1.3, foot), (x - half * 1.3, foot)], colour
            )
    for _ in range(14):
        shade = mix((0.16, 0.36, 0.12), (0.36, 0.58, 0.20), rng.uniform())
        c.disc(rng.uniform(), rng.uniform(-0.03, 0.13), rng.uniform(0.08, 0.17), 0.08, shade)
    for _ in range(9):
        shade = mix((0.12, 0.28, 0.10), (0.24, 0.44, 0.14), rng.uniform())
        c.disc(rng.uniform(), h + 0.02, rng.uniform(0.05, 0.12), rng.uniform(0.04, 0.09), shade)
    c.blur(0.009)
    c.gradient(h + 0.03, 1, (0.26, 0.33, 0.13), (0.46, 0.38, 0.20), (0.36, 0.28, 0.14))
    for _ in range(60):
        x, y = rng.uniform(), 1 - (1 - h - 0.05) * rng.uniform() ** 0.7
        size = 0.010 + 0.022 * (y - h)
        leaf = mix((0.32, 0.40, 0.12), (0.62, 0.38, 0.14), rng.uniform())
        c.disc(x, y, size * 1.5, size * 0.7, leaf)
    c.blur(0.004)
    c.mottle(h + 0.04, 1, 7, 8, 0.18)


def water(c: Canvas) -> None:
    rng, h = c.rng, c.horizon + 0.06
    c.gradient(0, 1, (0.34, 0.80, 0.88), (0.10, 0.54, 0.74), (0.03, 0.33, 0.58), (0.03, 0.30, 0.50))
    for _ in range(5):
        x, wide = rng.uniform(-0.1, 1), rng.uniform(0.02, 0.06)
        lean = 0.25 * (x - 0.5) + 0.08
        c.polygon([(x, 0), (x + wide, 0), (x + wide * 2.4 + lean, h), (x + wide + lean, h)], (0.30, 0.72, 0.84))
    c.blur(0.02)
    c.ridge(h + 0.02, 0.12, 4, (0.05, 0.36, 0.52))
    c.blur(0.008)
    c.gradient(h, 1, (0.22, 0.52, 0.60), (0.55, 0.70, 0.62), (0.46, 0.60, 0.54))
    c.mottle(h, 1, 9, 9, 0.16)
    for x in (*rng.uniform(0, 0.25, 3), *rng.uniform(0.75, 1, 3)):
        weed, foot, tall = (
            mix((0.06, 0.40, 0.30), (0.30, 0.56, 0.22), rng.uniform()),
            rng.uniform(h, 0.9),
            rng.uniform(0.2, 0.4),
        )
        sway = rng.uniform(0, 6)
        along = np.linspace(0, 1, 9)
        c.line([(x + 0.025 * np.sin(sway + 5 * a) * a, foot - tall * a) for a in along], weed, 0.022)
    for _ in range(3):
        x, y = rng.choice((rng.uniform(0, 0.2), rng.uniform(0.8, 1))), rng.uniform(h + 0.02, 0.95)
        coral = PETALS[rng.integers(3)]
        for _ in range(4):
            c.disc(
                x + rng.uniform(-0.03, 0.03), y + rng.uniform(-0.03, 0), 0.022, 0.022, mix(coral, (0.1, 0.4, 0.55), 0.3)
            )
    c.blur(0.005)


def garden(c: Canvas) -> None:
    rng, h = c.rng, c.horizon
    c.gradient(0, h, (0.48, 0.76, 0.97), (0.80, 0.92, 0.99))
    _clouds(c, 0.04, 0.16, 2, WHITE)
    for _ in range(16):
        green = mix((0.14, 0.42, 0.16), (0.34, 0.62, 0.22), rng.uniform())
        c.disc(rng.uniform(), h - rng.uniform(0, 0.10), rng.uniform(0.07, 0.13), rng.uniform(0.07, 0.13), green)
    for k in range(9):  # a fence
        x = k * 0.125 + 0.02
        c.polygon(
            [(x, h + 0.03), (x, h - 0.12), (x + 0.03, h - 0.16), (x + 0.06, h - 0.12), (x + 0.06, h + 0.03)],
            (0.96, 0.95, 0.92),
        )
    c.rectangle(0, h - 0.09, 1, h - 0.06, (0.90, 0.89, 0.86))
    c.blur(0.008)
    c.gradient(h + 0.02, 1, (0.32, 0.56, 0.18), (0.44, 0.70, 0.24), (0.34, 0.60, 0.18))
    c.mottle(h + 0.02, 1, 16, 10, 0.16)
    for _ in range(46):
        x, y = rng.uniform(), 1 - (0.98 - h) * rng.uniform()
        size = 0.010 + 0.032 * (y - h)
        petal = PETALS[rng.integers(len(PETALS))]
        c.disc(x, y + size, size * 1.4, size, (0.20, 0.46, 0.14))
        c.disc(x, y, size * 1.2, size, petal)
        c.disc(x, y, size * 0.4, size * 0.35, (0.98, 0.85, 0.35))
    c.blur(0.003)


def city(c: Canvas) -> None:
    rng, h = c.rng, c.horizon + 0.05
    c.gradient(0, h, (0.62, 0.74, 0.86), (0.88, 0.88, 0.86))
    for depth, base in enumerate(((0.66, 0.70, 0.78), (0.44, 0.46, 0.54))):
        x = rng.uniform(-0.1, 0)
        while x < 1:
            wide, top = rng.uniform(0.11, 0.20), rng.uniform(0.04, 0.28) + 0.04 * depth
            wall = mix(base, (0.66, 0.42, 0.34), rng.uniform(0, 0.7) * depth)
            c.rectangle(x, top, x + wide, h, wall)
            for y in np.arange(top + 0.03, h - 0.03, 0.055):
                for left in np.arange(x + 0.018, x + wide - 0.03, 0.045):
                    lit = rng.uniform() < 0.3
                    c.rectangle(
                        left,
                        y,
                        left + 0.022,
                        y + 0.028,
                        (0.98, 0.88, 0.58) if lit else mix(wall, (0.16, 0.20, 0.30), 0.6),
                    )
            x += wide + rng.uniform(0, 0.05)
    c.blur(0.006)
    c.gradient(h, h + 0.07, (0.74, 0.72, 0.70), (0.66, 0.65, 0.64))
    c.gradient(h + 0.07, 1, (0.33, 0.34, 0.37), (0.40, 0.41, 0.44))
    c.rectangle(0, h + 0.065, 1, h + 0.08, (0.86, 0.85, 0.82))
    shift = rng.uniform(0, 0.3)
    for k in range(-1, 4):
        x = shift + k * 0.3
        c.polygon([(x, 0.93), (x + 0.16, 0.93), (x + 0.17, 0.96), (x, 0.96)], (0.93, 0.90, 0.80))
    c.blur(0.003)
    c.mottle(h + 0.08, 1, 14, 14, 0.06)


def rain(c: Canvas) -> None:
    rng, h = c.rng, c.horizon
    c.gradient(0, h, (0.36, 0.40, 0.46), (0.54, 0.58, 0.63))
    _clouds(c, 0.02, 0.20, 6, (0.30, 0.33, 0.39))
    c.ridge(h + 0.02, 0.14, 5, (0.40, 0.46, 0.49))
    c.ridge(h + 0.02, 0.07, 6, (0.32, 0.39, 0.40))
    c.blur(0.012)
    c.gradient(h, 1, (0.40, 0.44, 0.46), (0.34, 0.38, 0.42), (0.26, 0.30, 0.34))
    for _ in range(7):
        x, y = rng.uniform(), rng.uniform(h + 0.05, 0.98)
        wide = 0.05 + 0.25 * (y - h)
        c.disc(x, y, wide, wide * 0.22, (0.56, 0.61, 0.67))
        c.disc(x, y + wide * 0.03, wide * 0.8, wide * 0.15, (0.64, 0.69, 0.75))
    c.blur(0.005)


def mountain(c: Canvas) -> None:
    rng, h = c.rng, c.horizon + 0.06
    c.gradient(0, h, (0.18, 0.46, 0.86), (0.55, 0.77, 0.96))
    _clouds(c, 0.06, 0.3, 2, WHITE)
    for height, bumps, rock in ((h * 0.92, 4, (0.52, 0.56, 0.68)), (h * 0.66, 6, (0.40, 0.40, 0.47))):
        outline = c.ridge(h, height, bumps, rock, sharp=True)
        for k in range(1, len(outline) - 1, 2):
            (lx, ly), (x, y), (rx, ry) = outline[k - 1 : k + 2].tolist()
            c.polygon([(x, y), (rx, ry), (x + (rx - x) * 0.2, h)], mix(rock, BLACK, 0.22))
            f = 0.36
            left, right = (x + (lx - x) * f, y + (ly - y) * f), (x + (rx - x) * f, y + (ry - y) * f)
            middle = y + (h - y) * f * 0.55
            c.polygon(
                [
                    (x, y),
                    left,
                    ((left[0] + x) / 2, middle + 0.02),
                    (x, middle - 0.02),
                    ((right[0] + x) / 2, middle + 0.02),
                    right,
                ],
                (0.97, 0.98, 1.0),
            )
    c.blur(0.006)
    c.gradient(h - 0.01, 1, (0.44, 0.50, 0.36), (0.55, 0.53, 0.48), (0.44, 0.42, 0.39))
    for _ in range(26):
        x, y = rng.uniform(), rng.uniform(h + 0.02, 1)
        wide = 0.012 + 0.07 * (y - h) * rng.uniform(0.4, 1)
        stone = mix((0.46, 0.45, 0.44), (0.68, 0.66, 0.62), rng.uniform())
        c.disc(x, y + wide * 0.2, wide, wide * 0.6, mix(stone, BLACK, 0.35))
        c.disc(x, y, wide * 0.92, wide * 0.5, stone)
    c.blur(0.003)
    c.mottle(h, 1, 10, 9, 0.10)


def moon(c: Canvas) -> None:
    rng, h = c.rng, c.horizon
    c.rectangle(0, 0, 1, 1, (0.01, 0.01, 0.02))
    for _ in range(22):
        size = rng.uniform(0.002, 0.005)
        c.disc(rng.uniform(), rng.uniform(0, h), size, size, (0.9, 0.9, 0.9))
    x, y, radius = rng.uniform(0.12, 0.88), rng.uniform(0.14, 0.22), rng.uniform(0.09, 0.12)
    c.disc(x, y, radius * 1.06, radius * 1.06, (0.20, 0.34, 0.62))
    c.disc(x, y, radius, radius, (0.16, 0.42, 0.85))
    for _ in range(4):
        c.disc(
            x + rng.uniform(-0.5, 0.5) * radius,
            y + rng.uniform(-0.5, 0.5) * radius,
            radius * 0.32,
            radius * 0.2,
            (0.30, 0.62, 0.34),
        )
    for _ in range(3):
        c.disc(
            x + rng.uniform(-0.4, 0.4) * radius, y + rng.uniform(-0.6, 0.6) * radius, radius * 0.45, radius * 0.1, WHITE
        )
    c.blur(0.004)
    c.ridge(h + 0.03, 0.09, 6, (0.40, 0.40, 0.41))
    c.gradient(h + 0.02, 1, (0.50, 0.50, 0.50), (0.66, 0.66, 0.65), (0.58, 0.58, 0.58))
    for _ in range(11):
        x, y = rng.uniform(), rng.uniform(h + 0.05, 1)
        wide = 0.02 + 0.18 * (y - h) * rng.uniform(0.4, 1)
        c.disc(x, y, wide, wide * 0.34, (0.78, 0.78, 0.77))
        c.disc(x + wide * 0.06, y + wide * 0.05, wide * 0.9, wide * 0.27, (0.36, 0.36, 0.37))
        c.disc(x + wide * 0.02, y + wide * 0.11, wide * 0.78, wide * 0.19, (0.54, 0.54, 0.54))
    c.blur(0.005)
    c.mottle(h + 0.04, 1, 10, 10, 0.10)


def _clouds(c: Canvas, top: float, bottom: float, count: int, colour) -> None:
    for _ in range(count):
        x, y, size = c.rng.uniform(0, 1), c.rng.uniform(top, max(top, bottom)), c.rng.uniform(0.05, 0.09)
        for step in (-1.2, -0.4, 0.5, 1.3):
            c.disc(x + step * size, y - size * 0.25 * (abs(step) < 1), size, size * 0.55, colour)


def _fir(c: Canvas, x: float, foot: float, tall: float, green, cap) -> None:
    for k in range(3):
        base, wide = foot - tall * 0.27 * k, tall * (0.24 - 0.055 * k)
        c.polygon([(x - wide, base), (x + wide, base), (x, base - tall * 0.46)], green)
        c.polygon(
            [(x - wide * 0.5, base - tall * 0.20), (x + wide * 0.5, base - tall * 0.20), (x, base - tall * 0.46)], cap
        )
