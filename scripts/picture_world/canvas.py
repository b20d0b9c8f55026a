"""The canvas for settings: PIL shapes in coordinates from 0 to 1, so that a picture is the same at any size."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[float, float, float]
REFERENCE = 2  # a picture is painted this many times as large and then reduced


class Canvas:
    """A square of `size` pixels to paint on; x points right and y down, both from 0 to 1; colours are from 0 to 1."""

    def __init__(self, size: int, rng: np.random.Generator):
        self.rng = rng
        self.side = size * REFERENCE
        self.horizon = float(rng.uniform(0.44, 0.58))
        self.image = Image.new("RGB", (self.side, self.side))
        self.draw = ImageDraw.Draw(self.image)

    def gradient(self, top: float, bottom: float, *colours: Colour) -> None:
        """Paint a band from `top` to `bottom` over the whole width, with a gradient through these colours."""
        first, last = round(top * self.side), round(bottom * self.side)
        if last <= first:
            return
        places = (np.arange(first, last) + 0.5) / self.side
        stops = np.linspace(top, bottom, len(colours))
        rows = np.stack([np.interp(places, stops, channel) for channel in zip(*colours, strict=True)], axis=1)
        column = Image.fromarray(np.uint8(rows * 255 + 0.5)[:, None])
        self.image.paste(column.resize((self.side, last - first), Image.Resampling.NEAREST), (0, first))

    def polygon(self, points, colour: Colour) -> None:
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=_bytes(colour))

    def disc(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        s = self.side
        self.draw.ellipse(((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s), fill=_bytes(colour))

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        s = self.side
        self.draw.rectangle((left * s, top * s, right * s, bottom * s), fill=_bytes(colour))

    def line(self, points, colour: Colour, width: float) -> None:
        flat = [(x * self.side, y * self.side) for x, y in points]
        self.draw.line(flat, fill=_bytes(colour), width=max(1, round(width * self.side)))

    def ridge(self, base: float, height: float, bumps: int, colour: Colour, sharp: bool = False) -> np.ndarray:
        """Paint hills or sharp peaks between the horizon `base` and `height` above it; return their outline [n, 2]."""
        x = np.linspace(0, 1, bumps + 1) + np.concatenate([[0], self.rng.uniform(-0.3, 0.3, bumps - 1) / bumps, [0]])
        y = base - height * self.rng.uniform(0.25, 1, bumps + 1)
        if sharp:
            y[::2] = base - height * self.rng.uniform(0.0, 0.3, len(y[::2]))
        else:
            fine = np.linspace(0, 1, 33)
            bend = np.interp(fine, x, np.arange(len(x)))
            blend = bend % 1
            blend = blend * blend * (3 - 2 * blend)
            index = np.minimum(bend.astype(int), bumps - 1)
            last = bend >= bumps
            x, y = fine, np.where(last, y[-1], y[index] * (1 - blend) + y[index + 1] * blend)
        outline = np.stack([x, y], axis=1)
        self.polygon([*outline.tolist(), (1, base + 0.01), (0, base + 0.01)], colour)
        return outline

    def blur(self, radius: float) -> None:
        """Blur everything painted so far, as if it were out of focus; `radius` is relative to the side."""
        # A box blur takes a third of the time of a Gaussian blur.
        self.image = self.image.filter(ImageFilter.BoxBlur(1.6 * radius * self.side))
        self.draw = ImageDraw.Draw(self.image)

    def mottle(self, top: float, bottom: float, columns: int, rows: int, strength: float) -> None:
        """Lighten and darken a band with smooth noise on a grid of `columns` x `rows` cells."""
        first, last = round(top * self.side), round(bottom * self.side)
        cells = Image.fromarray(self.rng.uniform(-1, 1, (rows, columns)).astype(np.float32))
        noise = np.asarray(cells.resize((self.side, last - first), Image.Resampling.BICUBIC))
        band = np.asarray(self.image.crop((0, first, self.side, last)), np.float32)
        band = np.clip(band * (1 + strength * noise[..., None]), 0, 255)
        self.image.paste(Image.fromarray(band.astype(np.uint8)), (0, first))

    def finish(self) -> np.ndarray:
        """Return the picture, float32 [size, size, 3] from 0 to 1."""
        return np.asarray(self.image.reduce(REFERENCE), np.float32) / 255


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Return colour a mixed with this share of colour b."""
    return tuple(x + (y - x) * share for x, y in zip(a, b, strict=True))


def _bytes(colour: Colour) -> tuple[int, int, int]:
    return tuple(min(255, max(0, round(channel * 255))) for channel in colour)
