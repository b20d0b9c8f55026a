"""Masks: where in a photo the subject is, so that the rest of it counts less, or nothing, in the loss.

White is the subject and black the rest. A mask is a photo's alpha channel, or a picture `X-mask.png` beside `X.jpg`, of
any size with its photo's proportions.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from booth import data
from booth.data import Example, Size
from booth.errors import UserError
from booth.views import View, shown

SOURCES = ("none", "alpha", "files")
_FIELD = "instance.masks"
_PROPORTIONS = 0.03  # difference of the logarithms of two aspect ratios; scaled copies are rounded to whole pixels


def with_masks(examples: Sequence[Example], source: str) -> list[Example]:
    """The same examples, each with the file that holds its mask; as they are for the source "none".

    UserError names photos without a mask, and masks that are empty or of other proportions.
    """
    if source == "none":
        return list(examples)
    masked = [replace(example, mask=_file(example, source)) for example in examples]
    if without := [data.printable(example.name) for example in masked if example.mask is None]:
        wanted = "no transparency" if source == "alpha" else f"no {data.MASK_END}.png beside it"
        raise UserError(f"{_FIELD}={source!r}: {', '.join(without)}: {wanted}; give each photo a mask, or use 'none'")
    for example in masked:
        _check(example)
    return masked


def mask_hash(example: Example) -> str:
    """sha256 of a mask's file, which a resumed run must find unchanged."""
    assert example.mask is not None
    return hashlib.sha256(example.mask.read_bytes()).hexdigest()


def loss_weights(view: View, latent_size: Size, background: float) -> np.ndarray:
    """How much each latent of a view counts, float32 [h, w, 1] with the mean 1.

    Where the mask is black it is `background` of what it is where the mask is white. UserError if that leaves nothing.
    """
    image = shown(_mask(view.example), view).resize(latent_size, Image.Resampling.BOX)
    weights = background + (1 - background) * np.asarray(image, np.float64)[..., None] / 255
    if weights.mean() < 1e-3:
        raise UserError(
            f"{_FIELD}: the crop of {data.printable(view.example.name)} shows nothing of what its mask leaves; raise"
            " instance.background_weight, use data.buckets, or correct the mask"
        )
    return (weights / weights.mean()).astype(np.float32)


def _file(example: Example, source: str) -> Path | None:
    if source == "alpha":
        return example.path if data.load_alpha(example.path) else None
    return next(iter(data.masks_of(example.path)), None)


def _mask(example: Example) -> Image.Image:
    """Grey, "L"."""
    assert example.mask is not None
    if example.mask == example.path:
        alpha = data.load_alpha(example.path)
        assert alpha is not None
        return alpha
    return data.load_image(example.mask).convert("L")


def _check(example: Example) -> None:
    name = data.printable(example.name)
    try:
        mask = _mask(example)
    except Exception as error:  # PIL raises many types
        raise UserError(f"{_FIELD}: the mask of {name} cannot be read ({error}); save it anew as PNG") from error
    ratios = [math.log(width / height) for width, height in (mask.size, example.size)]
    if abs(ratios[0] - ratios[1]) > _PROPORTIONS:
        raise UserError(
            f"{_FIELD}: the mask of {name} is {mask.size[0]}x{mask.size[1]} and the photo {example.size[0]}x"
            f"{example.size[1]}; they must have the same proportions"
        )
    if np.asarray(mask).max() == 0:
        raise UserError(f"{_FIELD}: the mask of {name} is all black, so nothing of it would be learned; correct it")
