"""Many images -> one picture with captions, for the user to look at."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from booth.common.files import write_bytes
from booth.data.image_file import load_image

_GAP = 8
_LINE = 20  # the height of a line of text in pixels


def grid(images: Sequence[np.ndarray], captions: Sequence[str], columns: int) -> Image.Image:
    """Return a picture of uint8 images [h, w, 3] of one size, row by row, each with its caption below it. Small images
    are enlarged."""
    shown = _enlarged(images, 192)
    width, height = shown[0].size
    wrapped = [_wrapped(caption, width) for caption in captions]
    rows = -(-len(images) // columns)
    cell_width, cell_height = width + _GAP, height + max(map(_text_height, wrapped)) + _GAP
    picture = Image.new("RGB", (columns * cell_width + _GAP, rows * cell_height + _GAP), "white")
    for place, (image, text) in enumerate(zip(shown, wrapped, strict=True)):
        left, top = _GAP + place % columns * cell_width, _GAP + place // columns * cell_height
        picture.paste(image, (left, top))
        _write(picture, (left, top + height + 2), text)
    return picture


def labelled_rows(rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> Image.Image:
    """Return a picture of rows of uint8 images [h, w, 3] of one size, any number in each row, with its label above it.
    Small images are enlarged, but less than in a grid, since there may be many rows."""
    shown = [_enlarged(images, 128) for _, images in rows]
    width, height = shown[0][0].size
    total_width = max(map(len, shown)) * (width + _GAP) + _GAP
    wrapped = [_wrapped(label, total_width - 2 * _GAP) for label, _ in rows]
    total_height = sum(_text_height(text) + height + _GAP for text in wrapped) + _GAP
    picture = Image.new("RGB", (total_width, total_height), "white")
    top = _GAP
    for text, images in zip(wrapped, shown, strict=True):
        _write(picture, (_GAP, top), text)
        top += _text_height(text)
        for place, image in enumerate(images):
            picture.paste(image, (_GAP + place * (width + _GAP), top))
        top += height + _GAP
    return picture


def thumbnail(path: Path, box: tuple[int, int], most: int) -> tuple[bytes, tuple[int, int]]:
    """Return (JPEG, (width, height)) of an image file, no larger than the box and at most `most` bytes long.

    Raise what `load_image` raises.
    """
    image = load_image(path, 2 * max(box))
    image.info.clear()  # PIL would write the photo's comment into the JPEG
    image.thumbnail(box, Image.Resampling.LANCZOS, reducing_gap=2.0)
    while True:
        for quality in (88, 75, 55, 35):
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=quality, optimize=True)
            if buffer.tell() <= most or max(image.size) == 1:
                return buffer.getvalue(), image.size
        image = image.resize((max(1, image.size[0] * 2 // 3), max(1, image.size[1] * 2 // 3)))


def xy_grid(images: Sequence[np.ndarray], across: Sequence[str], down: Sequence[str]) -> Image.Image:
    """Return a picture of uint8 images [h, w, 3] of one size, row by row, with a label above each column and one to the
    left of each row. Small images are enlarged."""
    shown = _enlarged(images, 192)
    width, height = shown[0].size
    above = [_wrapped(label, width) for label in across]
    margin = 160 if any(down) else 0
    beside = [_wrapped(label, margin) for label in down]
    top = _GAP + max(map(_text_height, above)) if any(across) else _GAP
    row_height = max(height, *map(_text_height, beside)) + _GAP
    size = (_GAP + margin + len(across) * (width + _GAP), top + len(down) * row_height)
    picture = Image.new("RGB", size, "white")
    lefts = [_GAP + margin + column * (width + _GAP) for column in range(len(across))]
    for left, text in zip(lefts, above, strict=True):
        _write(picture, (left, _GAP), text)
    for row, text in enumerate(beside):
        _write(picture, (_GAP, top + row * row_height), text)
        for left, image in zip(lefts, shown[row * len(across) :], strict=False):
            picture.paste(image, (left, top + row * row_height))
    return picture


def save(picture: Image.Image, path: Path, parameters: str = "") -> None:
    """Save a picture as PNG with the text `parameters` in it. The file gets its name only when it is complete. Raise
    UserError if the disk is full."""
    buffer, info = io.BytesIO(), PngInfo()
    if parameters:
        info.add_text("parameters", parameters)  # this writes iTXt if the text is not all Latin-1
    picture.save(buffer, format="PNG", pnginfo=info)
    write_bytes(path, buffer.getvalue())


def _enlarged(images: Sequence[np.ndarray], least_width: int) -> list[Image.Image]:
    """Return the images enlarged by the smallest whole number that makes them this wide."""
    height, width = images[0].shape[:2]
    scale = max(1, -(-least_width // width))
    size = (width * scale, height * scale)
    return [Image.fromarray(image).resize(size, Image.Resampling.NEAREST) for image in images]


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, max(8, width // 7)))


def _text_height(text: str) -> int:
    return _LINE * (text.count("\n") + 1)


def _write(picture: Image.Image, place: tuple[int, int], text: str) -> None:
    ImageDraw.Draw(picture).text(place, text, fill="black", font=ImageFont.load_default(size=14))
