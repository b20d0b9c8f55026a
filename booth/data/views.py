"""Views of an image: its size, crops and flips; and a view -> the pixels that the VAE encodes.

Images are resized and cropped, never distorted. With buckets (arXiv 2307.01952, section 2.3) each image gets the size
whose aspect ratio is nearest to its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, ImageOps

from booth.common import randomness
from booth.config.fields import AUTO
from booth.data.image_file import load_image
from booth.data.images import Example, Size

_SIDE = 64  # the side of the small picture whose saliency is computed
_AIM = 0.6  # standard deviation of the subjects' places, in halves of a side


@dataclass(frozen=True)
class View:
    """One way an image is shown. `left` and `top` are the corner of the crop of `size` in the image, which is first
    resized so that it just covers `size`; `flip` mirrors the crop."""

    example: Example
    size: Size
    left: int
    top: int
    flip: bool


def bucket_sizes(buckets: Sequence[str], resolution: int, multiple: int) -> tuple[Size, ...]:
    """Return the sizes of images after resizing: one square without buckets, else those listed, such as "448x576".

    "auto" stands for all sizes whose sides are multiples of `multiple`, from half to twice the resolution, each as long
    as possible with no more pixels than the square.
    """
    if not buckets:
        return ((resolution, resolution),)
    sizes: list[Size] = []
    for bucket in buckets:
        if bucket == AUTO:
            shortest = max(multiple, resolution // 2 // multiple * multiple)
            for width in range(shortest, 2 * resolution + 1, multiple):
                height = min(resolution**2 // width, 2 * resolution) // multiple * multiple
                sizes += [(width, height)] if height else []
        else:
            width, height = map(int, bucket.split("x"))
            sizes.append((width, height))
    return tuple(dict.fromkeys(sizes))


def nearest(size: Size, sizes: Sequence[Size]) -> Size:
    """Return the size in `sizes` whose aspect ratio is nearest; of equally near ones, the one with the most pixels."""

    def far(other: Size) -> tuple[float, int]:
        return round(abs(math.log(size[0] * other[1] / (size[1] * other[0]))), 9), -other[0] * other[1]

    return min(sizes, key=far)


def views(example: Example, size: Size, crop: str, variants: int, flip: bool, seed: int) -> list[View]:
    """Return the fixed set of views of one image; a step picks one.

    `crop` is "center", "random" (`variants` crops), or "focal": the crop with the most saliency. Random crops are drawn
    from the image's own content, so other files in the folder do not change them.
    """
    whole = covering(example.size, size)
    spare = whole[0] - size[0], whole[1] - size[1]
    if crop == "random" and any(spare):
        draw = randomness.generator(seed, "crop", row=int(example.sha256[:16], 16))
        corners = [(int(draw.integers(spare[0] + 1)), int(draw.integers(spare[1] + 1))) for _ in range(variants)]
    elif crop == "focal" and any(spare):
        corners = [_focal_corner(example, whole, size)]
    else:
        corners = [(spare[0] // 2, spare[1] // 2)]
    return [View(example, size, x, y, mirror) for x, y in corners for mirror in ((False, True) if flip else (False,))]


def covering(size: Size, target: Size) -> Size:
    """Return the size of an image resized, in its own proportions, so that it just covers `target`."""
    if target[0] * size[1] >= target[1] * size[0]:
        return target[0], round(size[1] * target[0] / size[0])
    return round(size[0] * target[1] / size[1]), target[1]


def pixels(view: View) -> np.ndarray:
    """Return the pixels of a view, float32 [height, width, 3] in [-1, 1]."""
    image = load_image(view.example.path)
    return np.asarray(shown(image, view), np.float32) / np.float32(127.5) - np.float32(1.0)


def shown(image: Image.Image, view: View) -> Image.Image:
    """Return the part of its image that a view shows, or the same part of another image with the same proportions."""
    whole, size = covering(image.size, view.size), view.size
    x, y = image.size[0] / whole[0], image.size[1] / whole[1]
    # Only the crop is computed: a very long image with its short side enlarged may not fit into memory as a whole.
    right, bottom = min((view.left + size[0]) * x, image.size[0]), min((view.top + size[1]) * y, image.size[1])
    image = image.resize(size, Image.Resampling.LANCZOS, (view.left * x, view.top * y, right, bottom))
    return ImageOps.mirror(image) if view.flip else image


def _focal_corner(example: Example, whole: Size, size: Size) -> tuple[int, int]:
    """Return the crop's corner in the image of size `whole`, which is longer than the crop in one direction."""
    image = load_image(example.path).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    along = 0 if whole[0] > size[0] else 1
    profile = saliency(_lab(image)).sum(axis=0 if along == 0 else 1)
    places = np.arange(whole[along] - size[along] + 1)
    # The saliency in each crop is the sum of the profile between its ends, which may lie between two of its steps.
    total = np.concatenate([[0.0], np.cumsum(profile)])
    edges = np.linspace(0, whole[along], _SIDE + 1)
    seen = np.interp(places + size[along], edges, total) - np.interp(places, edges, total)
    best = places[seen >= seen.max() * (1 - 1e-6)]
    place = int(best[np.argmin(abs(best - places[-1] / 2))])  # of equally good places, the one in the middle
    return (place, (whole[1] - size[1]) // 2) if along == 0 else ((whole[0] - size[0]) // 2, place)


def _lab(image: Image.Image) -> np.ndarray:
    """Return L, a and b, float64 [h, w, 3], each in PIL's scale of 0 to 255."""
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    values = np.asarray(lab, np.float64)
    return np.concatenate([values[..., :1], (values[..., 1:] + 128) % 256], axis=-1)  # a and b are signed bytes


def saliency(colours: np.ndarray) -> np.ndarray:
    """Return the saliency of each place of a small picture [h, w, 3] (CIELAB), [h, w].

    It is the distance of the colour from the picture's mean (Achanta et al., CVPR 2009, equation 4), reduced towards
    the edges, since people put their subject near the middle.
    """
    distance = np.sqrt(((colours - colours.mean(axis=(0, 1))) ** 2).sum(axis=-1))
    y, x = (np.linspace(-1, 1, side) for side in distance.shape)
    aim: np.ndarray = np.exp(-(y[:, None] ** 2 + x**2) / 2 / _AIM**2)
    return distance * aim
