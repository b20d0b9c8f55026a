"""Many images -> one picture with captions, for people to look at."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP = 8


def grid(images: Sequence[np.ndarray], captions: Sequence[str], columns: int) -> Image.Image:
    """uint8 images [h, w, 3] of one size, row by row, each with its caption below it; small images are enlarged."""
    height, width = images[0].shape[:2]
    scale = max(1, -(-192 // width))
    width, height = width * scale, height * scale
    font = ImageFont.load_default(size=14)
    wrapped = ["\n".join(textwrap.wrap(caption, max(8, width // 7))) for caption in captions]
    text_height = 20 * max(text.count("\n") + 1 for text in wrapped)
    rows = -(-len(images) // columns)
    cell_width, cell_height = width + _GAP, height + text_height + _GAP
    picture = Image.new("RGB", (columns * cell_width + _GAP, rows * cell_height + _GAP), "white")
    draw = ImageDraw.Draw(picture)
    for place, (pixels, text) in enumerate(zip(images, wrapped, strict=True)):
        left, top = _GAP + place % columns * cell_width, _GAP + place // columns * cell_height
        picture.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (left, top))
        draw.text((left, top + height + 2), text, fill="black", font=font)
    return picture
