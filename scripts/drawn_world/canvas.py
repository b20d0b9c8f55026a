"""A pen that draws flat shapes with dark outlines, in an object's own units, on a picture that is reduced later."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]
INK: Colour = (34, 30, 44)


class Pen:
    """Draws one object. Its units: x from -1 (left) to 1, y from -1 (top) to 1, where it stands.

    `centre` and `half` are the object's centre and half of its side, in pixels. `mirrored` swaps left and right.
    `picture` is transparent where nothing was drawn.
    """

    def __init__(self, size: int, centre: Point, half: float, mirrored: bool = False) -> None:
        self.picture = Image.new("RGBA", (size, size))
        self._draw = ImageDraw.Draw(self.picture)
        self._centre, self._half, self._sign = centre, half, -1 if mirrored else 1
        self._outline = max(1, round(0.075 * half))

    def _at(self, point: Point) -> Point:
        return self._centre[0] + self._sign * self._half * point[0], self._centre[1] + self._half * point[1]

    def _box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        (left, top), (right, bottom) = self._at((x0, y0)), self._at((x1, y1))
        return min(left, right), min(top, bottom), max(left, right), max(top, bottom)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, outlined: bool = True) -> None:
        outline = {"outline": INK, "width": self._outline} if outlined else {}
        self._draw.ellipse(self._box(x - rx, y - ry, x + rx, y + ry), colour, **outline)

    def box(
        self, x0: float, y0: float, x1: float, y1: float, colour: Colour, radius: float = 0.0, outlined: bool = True
    ) -> None:
        outline = {"outline": INK, "width": self._outline} if outlined else {}
        self._draw.rounded_rectangle(self._box(x0, y0, x1, y1), radius * self._half, colour, **outline)

    def polygon(self, points: Sequence[Point], colour: Colour, outlined: bool = True) -> None:
        corners = [self._at(point) for point in points]
        self._draw.polygon(corners, colour)
        if outlined:
            self._draw.line([*corners, *corners[:2]], INK, self._outline, joint="curve")

    def line(self, points: Sequence[Point], width: float, colour: Colour = INK) -> None:
        corners = [self._at(point) for point in points]
        self._draw.line(corners, colour, max(1, round(width * self._half)), joint="curve")

    def arc(
        self, x: float, y: float, rx: float, ry: float, start: float, end: float, width: float, colour: Colour
    ) -> None:
        """Draw a part of an ellipse's line, from one angle to another in degrees, clockwise from the right."""
        if self._sign < 0:
            start, end = 180 - end, 180 - start
        self._draw.arc(self._box(x - rx, y - ry, x + rx, y + ry), start, end, colour, max(1, round(width * self._half)))

    def patterned(self, shape: Callable[["Pen", Colour], None], colours: Sequence[Colour], pattern: str) -> None:
        """Draw a shape whose inside shows a pattern: `shape(pen, colour)` draws it in one colour."""
        base, accent = colours[:2]
        shape(self, base)
        if pattern == "plain":
            return
        stencil = Pen(self.picture.width, self._centre, self._half, self._sign < 0)
        shape(stencil, base)
        inside = np.asarray(stencil.picture)
        painted = Pen(self.picture.width, self._centre, self._half, self._sign < 0)
        if pattern == "stripes":
            for number in range(6):
                left = -1.15 + 0.46 * number
                painted.box(left, -1.2, left + 0.2, 1.2, accent, outlined=False)
        else:
            for row in range(7):
                for column in range(7):
                    x, y = -1.02 + 0.34 * column + 0.17 * (row % 2), -1.02 + 0.34 * row
                    painted.ellipse(x, y, 0.105, 0.105, accent, outlined=False)
        only_inside = (
            (inside[..., :3] == base).all(-1) & (inside[..., 3] > 0) & (np.asarray(painted.picture)[..., 3] > 0)
        )
        self.picture.paste(Image.new("RGBA", self.picture.size, (*accent, 255)), mask=Image.fromarray(only_inside))
        self._draw = ImageDraw.Draw(self.picture)

    def eye(self, x: float, y: float, size: float, colour: Colour = INK) -> None:
        """Draw a round white eye with a pupil."""
        self.ellipse(x, y, size, size, (255, 255, 255))
        self.ellipse(x + 0.2 * size, y, 0.52 * size, 0.52 * size, colour, outlined=False)
