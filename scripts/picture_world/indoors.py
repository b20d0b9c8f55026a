"""The settings inside a house; `outdoors` has the others."""

from picture_world.canvas import Canvas, mix

WHITE, BLACK = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
CURTAINS = ((0.75, 0.35, 0.32), (0.36, 0.52, 0.62), (0.85, 0.68, 0.35), (0.45, 0.58, 0.42))


def kitchen(c: Canvas) -> None:
    """Paint tiles, a shelf with jars, a window and a wooden table."""
    rng, h = c.rng, c.horizon + 0.06
    tile = mix((0.93, 0.88, 0.78), (0.80, 0.88, 0.86), rng.uniform())
    c.gradient(0, h, mix(tile, WHITE, 0.2), mix(tile, BLACK, 0.1))
    for k in range(1, 8):
        c.line([(0, h - k * 0.085), (1, h - k * 0.085)], mix(tile, BLACK, 0.14), 0.006)
    shift = rng.uniform(0, 0.1)
    for k in range(11):
        c.line([(k * 0.1 + shift, 0), (k * 0.1 + shift, h)], mix(tile, BLACK, 0.14), 0.006)
    left = rng.uniform() < 0.5
    window = 0.04 if left else 0.58
    c.rectangle(window, 0.05, window + 0.38, h - 0.14, (0.97, 0.96, 0.93))
    c.rectangle(window + 0.03, 0.08, window + 0.35, h - 0.17, (0.66, 0.84, 0.95))
    c.disc(window + 0.12, h - 0.20, 0.10, 0.07, (0.50, 0.72, 0.45))
    c.rectangle(window + 0.17, 0.08, window + 0.20, h - 0.17, (0.97, 0.96, 0.93))
    c.rectangle(window, h - 0.18, window + 0.38, h - 0.14, (0.97, 0.96, 0.93))
    shelf = 0.55 if left else 0.04
    for y in (0.20, 0.36):
        for k in range(5):
            colour = CURTAINS[rng.integers(4)]
            x, tall = shelf + 0.05 + k * 0.085, rng.uniform(0.05, 0.10)
            c.rectangle(x - 0.028, y - tall, x + 0.028, y, colour)
            c.rectangle(x - 0.022, y - tall - 0.015, x + 0.022, y - tall, mix(colour, BLACK, 0.4))
        c.rectangle(shelf, y, shelf + 0.42, y + 0.022, (0.55, 0.36, 0.20))
    c.blur(0.007)
    wood = mix((0.72, 0.47, 0.26), (0.52, 0.30, 0.16), rng.uniform())
    c.gradient(h, 1, mix(wood, WHITE, 0.28), wood, mix(wood, BLACK, 0.15))
    for k in range(4):
        y = h + (1 - h) * (0.10, 0.28, 0.54, 0.86)[k]
        c.line([(0, y), (1, y)], mix(wood, BLACK, 0.32), 0.006)
    c.mottle(h, 1, 5, 22, 0.10)


def bed(c: Canvas) -> None:
    """Paint a wall with a picture, cushions and a quilt of squares."""
    rng, h = c.rng, c.horizon
    wall = ((0.52, 0.40, 0.58), (0.42, 0.36, 0.60), (0.62, 0.42, 0.52))[rng.integers(3)]
    c.gradient(0, h, mix(wall, WHITE, 0.12), wall)
    for k in range(10):
        c.rectangle(k * 0.11, 0, k * 0.11 + 0.05, h, mix(wall, WHITE, 0.10))
    c.rectangle(0.03, h - 0.26, 0.97, h, (0.42, 0.25, 0.16))
    c.rectangle(0.06, h - 0.23, 0.94, h, (0.52, 0.32, 0.20))
    quilt = ((0.93, 0.66, 0.70), (0.95, 0.78, 0.74), (0.80, 0.66, 0.86))[rng.integers(3)]
    for k in range(3):
        x = 0.2 + 0.3 * k + rng.uniform(-0.03, 0.03)
        colour = mix((0.97, 0.95, 0.93), quilt, 0.15 * (k % 2))
        c.disc(x, h - 0.07, 0.185, 0.105, mix(colour, BLACK, 0.10))
        c.disc(x, h - 0.085, 0.175, 0.095, colour)
    c.blur(0.008)
    c.gradient(h, 1, mix(quilt, BLACK, 0.1), quilt, mix(quilt, BLACK, 0.06))
    shift = rng.uniform(-0.1, 0.1)
    rows = [h + (1 - h) * f for f in (0.0, 0.14, 0.33, 0.60, 1.0)]
    for i in range(4):
        top, bottom = rows[i], rows[i + 1]
        wide, wider = 0.16 + 0.20 * (top - h), 0.16 + 0.20 * (bottom - h)
        for k in range(-5, 6):
            if (i + k) % 2:
                x = 0.5 + shift
                points = [
                    (x + k * wide, top),
                    (x + (k + 1) * wide, top),
                    (x + (k + 1) * wider, bottom),
                    (x + k * wider, bottom),
                ]
                c.polygon(points, mix(quilt, WHITE, 0.42 - 0.06 * i))
    c.blur(0.006)
    c.mottle(h, 1, 7, 7, 0.07)
