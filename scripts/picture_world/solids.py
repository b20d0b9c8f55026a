"""Convex solids and a z-buffer, from which the objects of the picture world are made.

A solid is a quadric of revolution (ball, cylinder, cone) cut by planes, or consists of planes alone (box, roof). In
parallel projection the depths at which a ray enters and leaves such a solid have closed forms, so a part costs about
thirty array operations on the pixels around it. In model space x points right, y up and z towards the viewer; the
ground is y = 0. In screen space x points right, y up and t away from the viewer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from picture_world.patterns import coverage

Vector = Sequence[float]
Colour = tuple[float, float, float]
BEVEL = 0.035  # depth in model units over which the normals of two faces blend, so that edges look rounded
FAR = np.float32(1e3)

# (A, B, C) of x^2 + z^2 + A y^2 + B y + C <= 0 in the solid's own space
_BALL = (1.0, 0.0, -1.0)
_SIDES = np.array([[1, 0, 0, 1], [-1, 0, 0, 1], [0, 0, 1, 1], [0, 0, -1, 1]], np.float64)
_CAPS = np.array([[0, 1, 0, 1], [0, -1, 0, 1]], np.float64)
_FACES = np.concatenate([_SIDES, _CAPS])
_UPRIGHT = np.eye(3)
_NO_PLANES = np.zeros((0, 4))


class Paint(NamedTuple):
    """The paint of a surface: `colour`, and a pattern in `ink` if any, sRGB from 0 to 1; `frequency` per model unit."""

    colour: Colour
    ink: Colour | None = None
    pattern: str = "plain"
    frequency: float = 20.0
    gloss: float = 0.35


@dataclass(frozen=True)
class Part:
    """One solid; the columns of `axes` [3, 3] are its own axes in model space, each as long as its half size."""

    centre: np.ndarray
    axes: np.ndarray
    quadric: tuple[float, float, float] | None
    planes: np.ndarray  # [n, 4]: normal and offset; a point p is inside if normal . p <= offset
    bound: str  # the shape that contains the outline: ball, tube or box
    paint: Paint


class Surface(NamedTuple):
    """What each pixel of a square shows, float32 [h, w] or [3, h, w]."""

    depth: np.ndarray  # FAR where there is no part
    normal: np.ndarray  # not normalised
    part: np.ndarray  # int16, index of the part
    ink: np.ndarray  # from 0 (the part's colour) to 1 (its ink)


def ball(at: Vector, size: float | Vector, paint: Paint, turn: np.ndarray | None = None) -> Part:
    """Return an ellipsoid with these half axes."""
    return _part(at, size, turn, _BALL, _NO_PLANES, "ball", paint)


def box(at: Vector, size: float | Vector, paint: Paint, turn: np.ndarray | None = None, roundness: float = 0.5) -> Part:
    """Return a box with these half sides; `roundness` from 0 to 1 rounds its corners."""
    quadric = (1.0, 0.0, -((1.732 - 0.42 * roundness) ** 2)) if roundness else None
    return _part(at, size, turn, quadric, _FACES, "box", paint)


def tube(at: Vector, size: float | Vector, paint: Paint, turn: np.ndarray | None = None, taper: float = 1.0) -> Part:
    """Return a cylinder along y with these half sizes, or a cone whose top is `taper` (at most 1) times as wide."""
    middle, slope = (1 + taper) / 2, (taper - 1) / 2
    quadric = (-slope * slope, -2 * middle * slope, -middle * middle)
    return _part(at, size, turn, quadric, _CAPS, "tube", paint)


def rod(start: Vector, end: Vector, radius: float, paint: Paint, taper: float = 1.0) -> Part:
    """Return a cylinder or cone from one point to another."""
    direction = [b - a for a, b in zip(start, end, strict=True)]
    middle = [(a + b) / 2 for a, b in zip(start, end, strict=True)]
    return tube(middle, (radius, math.hypot(*direction) / 2, radius), paint, towards(direction), taper)


def roof(at: Vector, size: Vector, paint: Paint, top: float = 0.0, hip: float = 1.0) -> Part:
    """Return a roof whose ridge is along x: `top` is the ridge's width and `hip` its length, relative to the base."""
    slope, end = (1 - top) / 2, (1 - hip) / 2
    planes = [[0, slope, 1, 1 - slope], [0, slope, -1, 1 - slope], [1, end, 0, 1 - end], [-1, end, 0, 1 - end]]
    return _part(at, size, None, None, np.concatenate([np.array(planes), _CAPS]), "box", paint)


def towards(direction: Vector) -> np.ndarray:
    """Return a rotation [3, 3] that turns y into this direction."""
    length = math.hypot(*direction)
    a, b, c = (float(step) / length for step in direction)
    across = math.hypot(a, b)
    if across < 1e-6:  # towards the viewer, or away
        return np.array([[1, 0, 0], [0, 0, -c], [0, c, 0]])
    d, e = b / across, -a / across  # x = (d, e, 0) is at a right angle to both y and the view
    return np.array([[d, a, e * c], [e, b, -d * c], [0, c, d * b - e * a]])


def tilt(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> np.ndarray:
    """Return a rotation [3, 3] by angles in radians, first about x, then y, then z."""
    (a, i), (b, j), (c, k) = ((math.cos(angle), math.sin(angle)) for angle in (x, y, z))
    about_x = np.array([[1, 0, 0], [0, a, -i], [0, i, a]])
    about_y = np.array([[b, 0, j], [0, 1, 0], [-j, 0, b]])
    return np.array([[c, -k, 0], [k, c, 0], [0, 0, 1]]) @ about_y @ about_x


def view_matrix(turn: float, elevation: float) -> np.ndarray:
    """Return the matrix [3, 3] from model to screen space.

    The object is turned by `turn` about y (positive angles turn it to the right) and seen from `elevation` above. Both
    angles are in radians.
    """
    c, s, ce, se = np.cos(turn), np.sin(turn), np.cos(elevation), np.sin(elevation)
    return np.array([[c, 0, s], [s * se, ce, -c * se], [s * ce, -se, -c * ce]])


class Placed:
    """Parts in screen space that can be drawn at any scale; `bounds` is (left, bottom, right, top)."""

    def __init__(self, parts: Sequence[Part], view: np.ndarray):
        self.parts = parts
        axes = view @ np.stack([part.axes for part in parts])
        self._centres = np.stack([part.centre for part in parts]) @ view.T
        self._inverses = np.linalg.inv(axes)
        self._halves = np.array([_half(part.bound, own) for part, own in zip(parts, axes[:, :2].tolist(), strict=True)])
        low, high = self._centres[:, :2] - self._halves, self._centres[:, :2] + self._halves
        self.bounds = (*low.min(axis=0), *high.max(axis=0))

    def draw(self, scale: float, x: float, y: float, side: int) -> Surface:
        """Return what a square of `side` pixels shows, with `scale` pixels a unit and the origin at pixel (x, y)."""
        shape = (side, side)
        surface = Surface(
            np.full(shape, FAR), np.zeros((3, *shape), np.float32), np.zeros(shape, np.int16),
            np.zeros(shape, np.float32),
        )  # fmt: skip
        across = ((np.arange(side) + 0.5 - x) / scale).astype(np.float32)
        upwards = ((y - np.arange(side) - 0.5) / scale).astype(np.float32)
        low, high = self._centres[:, :2] - self._halves, self._centres[:, :2] + self._halves
        lefts, rights = (np.clip(x + edge[:, 0] * scale + [[0], [1]], 0, side).astype(int) for edge in (low, high))
        tops, bottoms = (np.clip(y - edge[:, 1] * scale + [[0], [1]], 0, side).astype(int) for edge in (high, low))
        for k, part in enumerate(self.parts):
            rows, columns = slice(tops[0, k], bottoms[1, k]), slice(lefts[0, k], rights[1, k])
            cx, cy, depth = self._centres[k].tolist()
            window = Surface(*(layer[..., rows, columns] for layer in surface))
            if window.part.size:
                _draw_part(
                    part, k, self._inverses[k], depth, across[columns] - cx, (upwards[rows] - cy)[:, None], window
                )
        return surface


def _part(at, size, turn, quadric, planes, bound, paint) -> Part:
    sizes = (size, size, size) if isinstance(size, int | float) else size
    axes = (_UPRIGHT if turn is None else turn) * sizes
    return Part(np.asarray(at, float), axes, quadric, planes, bound, paint)


def _half(bound: str, axes: list[list[float]]) -> list[float]:
    """Return half the width and height [2] on the screen of a solid with these axes [2, 3]."""
    if bound == "ball":
        return [math.hypot(*row) for row in axes]
    if bound == "tube":
        return [abs(b) + math.hypot(a, c) for a, b, c in axes]
    return [abs(a) + abs(b) + abs(c) for a, b, c in axes]


def _draw_part(part: Part, index: int, inverse: np.ndarray, depth: float, x, y, window: Surface) -> None:
    """Draw one part, at `depth`, where it is nearest; x [w] and y [h, 1] are relative to its centre."""
    faces: list[np.ndarray] = []  # the depths at which rays enter each face
    normals: list[np.ndarray | None] = []  # None stands for the quadric, whose normal differs from pixel to pixel
    leave, hit = None, None
    if part.quadric is not None:
        enter, leave, hit = _quadric_depths(part.quadric, inverse, x, y)
        faces, normals = [enter], [None]
    if len(part.planes):
        slopes = part.planes[:, :3] @ inverse  # the planes in screen space: slopes . (x, y, t) <= offset
        for (px, py, pt), offset in zip(slopes.tolist(), part.planes[:, 3].tolist(), strict=True):
            pt = pt if abs(pt) > 1e-6 else 1e-6
            reached = (offset / pt - px / pt * x) - (py / pt) * y
            if pt < 0:
                faces.append(reached)
                norm = (px * px + py * py + pt * pt) ** 0.5
                normals.append(np.array([px / norm, py / norm, pt / norm], np.float32))
            else:
                leave = reached if leave is None else np.minimum(leave, reached)
    nearest = faces[0]
    for face in faces[1:]:
        nearest = np.maximum(nearest, face)
    seen = (nearest < leave) & (nearest + depth < window.depth)
    if hit is not None:
        seen &= hit
    if not seen.any():
        return
    own = None
    if part.paint.ink is not None or part.quadric is not None:
        points = np.empty((3, *nearest.shape), np.float32)
        points[0], points[1], points[2] = x, y, nearest
        own = inverse.astype(np.float32) @ points.reshape(3, -1)  # [3, h w]: in the solid's own space
    np.copyto(window.normal, _normals(part, inverse, own, nearest, faces, normals), where=seen)
    np.copyto(window.depth, nearest + depth, where=seen)
    np.copyto(window.part, np.int16(index), where=seen)
    if part.paint.ink is not None:
        sizes = np.sqrt((part.axes * part.axes).sum(axis=0))
        inked = coverage(part.paint.pattern, own, sizes, part.paint.frequency, part.bound == "box")
        np.copyto(window.ink, inked.reshape(seen.shape), where=seen)
    else:
        np.copyto(window.ink, np.float32(0), where=seen)


def _quadric_depths(quadric, inverse, x, y):
    """Return the depths [h, w] at which rays enter and leave a quadric, and which rays hit it (bool)."""
    curve, linear, constant = quadric
    (ax, ay, ad), (bx, by, bd), (cx, cy, cd) = inverse.tolist()
    a = ad * ad + cd * cd + curve * bd * bd
    a = a if abs(a) > 1e-6 else 1e-6
    # b and c of a t^2 + 2 b t + c are linear and quadratic in x and y; so is the discriminant
    mx = (ax * ad + cx * cd + curve * bx * bd) / a
    my = (ay * ad + cy * cd + curve * by * bd) / a
    m0 = linear * bd / 2 / a
    row = (mx * mx - (ax * ax + cx * cx + curve * bx * bx) / a) * x
    row = (row + (2 * mx * m0 - linear * bx / a)) * x + (m0 * m0 - constant / a)
    column = ((my * my - (ay * ay + cy * cy + curve * by * by) / a) * y + (2 * my * m0 - linear * by / a)) * y
    discriminant = column + row
    discriminant += (2 * (mx * my - (ax * ay + cx * cy + curve * bx * by) / a) * y) * x
    root = np.sqrt(np.maximum(discriminant, 0))
    middle = (-m0 - mx * x) - my * y
    if a > 0:
        return middle - root, middle + root, discriminant > 0
    # inside a cone: a ray that has entered it stays inside, or has always been inside
    if bd * linear < 0:
        return middle + root, np.full_like(middle, FAR), None
    return np.full_like(middle, -FAR), middle - root, None


def _normals(part, inverse, own, nearest, faces, normals) -> np.ndarray:
    """Return the normals in screen space [3, h, w]; near the edge of two faces their normals are blended."""
    curved = None
    if part.quadric is not None:
        gradient = own.copy()
        gradient[1] = part.quadric[0] * own[1] + part.quadric[1] / 2
        curved = (inverse.T.astype(np.float32) @ gradient).reshape(3, *nearest.shape)
        if len(faces) == 1:
            return curved
        curved *= 1 / np.sqrt(np.maximum((curved * curved).sum(axis=0), 1e-9))
    mixed = np.zeros((3, *nearest.shape), np.float32)
    for face, normal in zip(faces, normals, strict=True):
        weight = np.maximum((face - nearest) * np.float32(1 / BEVEL) + 1, 0)
        weight *= weight
        mixed += weight * (curved if normal is None else normal[:, None, None])
    return mixed
