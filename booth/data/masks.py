"""Masks: they say where in a photo the subject is, so that the rest of the photo counts less, or nothing, in the loss.

White is the subject and black is the rest. A mask is a photo's alpha channel, or a picture `X-mask.png` beside `X.jpg`
of any size with the photo's proportions.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from booth.common.errors import UserError
from booth.common.file_names import listed, printable
from booth.data.image_file import load_alpha, load_image, reason
from booth.data.image_folder import MASK_END, masks_in
from booth.data.images import Example, Size
from booth.data.views import View, shown

_FIELD = "instance.masks"
_PROPORTIONS = 0.03  # difference of the logarithms of two aspect ratios; scaled copies are rounded to whole pixels


def with_masks(examples: Sequence[Example], source: str) -> list[Example]:
    """Return the examples, each with the file that holds its mask; return them unchanged for the source "none".

    Raise UserError for photos without a mask, and for masks that are all black or have other proportions.
    """
    if source == "none":
        return list(examples)
    masked = _with_files(examples) if source == "files" else [
        replace(example, mask=example.path if load_alpha(example.path) else None) for example in examples
    ]  # fmt: skip
    if without := [printable(example.name) for example in masked if example.mask is None]:
        wanted = "no transparency" if source == "alpha" else f"no {MASK_END}.png beside it"
        raise UserError(f"{_FIELD}={source!r}: {', '.join(without)}: {wanted}; give each photo a mask, or use 'none'")
    for example in masked:
        _check(example)
    return masked


def mask_hash(example: Example) -> str:
    """Return the sha256 of a mask's file, which a resumed run must find unchanged."""
    assert example.mask is not None
    return hashlib.sha256(example.mask.read_bytes()).hexdigest()


def loss_weights(view: View, latent_size: Size, background: float) -> np.ndarray:
    """Return how much each latent of a view counts, float32 [h, w, 1] with the mean 1.

    The weight at black places is `background` times the weight at white places. Raise UserError if all weights would be
    0.
    """
    image = shown(_mask(view.example), view).resize(latent_size, Image.Resampling.BOX)
    weights = background + (1 - background) * np.asarray(image, np.float64)[..., None] / 255
    if weights.mean() < 1e-3:
        raise UserError(
            f"{_FIELD}: the crop of {printable(view.example.name)} shows nothing that its mask keeps; raise"
            " instance.background_weight, use data.buckets, or correct the mask"
        )
    return (weights / weights.mean()).astype(np.float32)


def _with_files(examples: Sequence[Example]) -> list[Example]:
    """Return the examples with the masks X-mask.png beside X.jpg. Raise UserError for two masks of one photo."""
    masks = {folder: masks_in(folder) for folder in {example.path.parent for example in examples}}
    masked = []
    for example in examples:
        found = masks[example.path.parent].find(example.path.stem)
        if len(found) > 1:
            which = listed([path.name for path in found])
            raise UserError(f"{_FIELD}='files': {printable(example.name)} has several masks: {which}; keep one of them")
        masked.append(replace(example, mask=found[0] if found else None))
    return masked


def _mask(example: Example) -> Image.Image:
    """Return the mask of an example in grey, "L"."""
    assert example.mask is not None
    if example.mask == example.path:
        alpha = load_alpha(example.path)
        assert alpha is not None
        return alpha
    return load_image(example.mask).convert("L")


def _check(example: Example) -> None:
    name = printable(example.name)
    try:
        mask = _mask(example)
    except Exception as error:  # PIL raises many types
        raise UserError(
            f"{_FIELD}: the mask of {name} cannot be read ({reason(error)}); replace it by one that can,"
            " which may be smaller than the photo"
        ) from error
    ratios = [math.log(width / height) for width, height in (mask.size, example.size)]
    if abs(ratios[0] - ratios[1]) > _PROPORTIONS:
        raise UserError(
            f"{_FIELD}: the mask of {name} is {mask.size[0]}x{mask.size[1]} and the photo {example.size[0]}x"
            f"{example.size[1]}; they must have the same proportions"
        )
    if np.asarray(mask).max() == 0:
        raise UserError(f"{_FIELD}: the mask of {name} is all black, so nothing of it would be learned; correct it")
