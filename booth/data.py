"""Image folders -> Examples, and an Example -> the pixels the VAE encodes. Bad files are refused by name."""

import hashlib
import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from booth import randomness
from booth.errors import UserError

log = logging.getLogger("booth")

# What a photo folder may hold; anything else (notes, .DS_Store, Thumbs.db) is passed over. HEIC is in the list so that
# an iPhone's folder is not silently halved: without a decoder such a file is refused by name.
IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif"]
)
_BESIDE_IMAGES = frozenset([".txt", ".json", ".csv", ".db", ".ini"])  # passed over without a word


@dataclass(frozen=True)
class Example:
    """One training image with its caption. `size` is (width, height) in pixels after EXIF orientation."""

    path: Path
    caption: str
    kind: Literal["instance", "prior"]
    sha256: str
    size: tuple[int, int]


@dataclass(frozen=True)
class View:
    """One way an image is shown: `left`, `top` of the crop after the short side became `resolution`, and a flip."""

    example: Example
    resolution: int
    left: int
    top: int
    flip: bool


def find_images(folder: str | Path, field: str) -> list[Path]:
    """The image files of a folder in natural name order (2.jpg before 10.jpg). UserError names the config field."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{field}={str(folder)!r} is not a folder; give the folder that holds the images")
    paths = [path for path in folder.iterdir() if _is_image(path)]
    return sorted(paths, key=lambda path: (_natural(path.name), path.name))


def _is_image(path: Path) -> bool:
    """By its name. A link to nowhere is one too: it is refused later by name, not silently left out."""
    named = path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    return named and (path.is_file() or not path.exists())


def log_passed_over(folder: str | Path, field: str) -> None:
    """One line that names what in an image folder is neither an image nor known to lie beside images."""
    entries = Path(folder).iterdir() if Path(folder).is_dir() else ()
    rest = sorted(
        path.name
        for path in entries
        if not (_is_image(path) or path.name.startswith(".") or path.suffix.lower() in _BESIDE_IMAGES)
    )
    if rest:
        log.info("%s: passed over, not taken for images: %s", field, ", ".join(rest))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name.lower())]


def read_examples(paths: Sequence[Path], caption: str, kind: Literal["instance", "prior"], field: str) -> list[Example]:
    """Decodes every file once; UserError names all that cannot be read and lists the rest as fine."""
    examples, bad, fine = [], [], []
    for path in paths:
        try:
            content = path.read_bytes()
            size = load_image(path).size
        except UnidentifiedImageError:
            bad.append(f"{path.name} (no image in a format that can be read here; convert it to JPEG)")
        except Exception as error:  # PIL raises many types, SyntaxError and struct.error among them
            bad.append(f"{path.name} ({' '.join(str(error).split()) or type(error).__name__})")
        else:
            examples.append(Example(path, caption, kind, hashlib.sha256(content).hexdigest(), size))
            fine.append(path.name)
    if bad:
        rest = f"the other {len(fine)} are fine: {', '.join(fine)}" if fine else "no file is readable"
        raise UserError(
            f"{field}: {len(bad)} of {len(paths)} images cannot be read: {', '.join(bad)};"
            f" remove or replace what is named ({rest})"
        )
    return examples


def instance_examples(folder: str, prompt: str) -> list[Example]:
    """The subject's photos; UserError when there are none or one cannot be read."""
    paths = find_images(folder, "instance.images")
    log_passed_over(folder, "instance.images")
    if not paths:
        raise UserError(
            f"instance.images={folder!r} holds no images; put 3 to 12 photos there"
            f" ({', '.join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))})"
        )
    return read_examples(paths, prompt, "instance", "instance.images")


def warn_if_small(examples: Sequence[Example], resolution: int) -> None:
    """One warning that names the images whose short side will be enlarged."""
    small = [f"{e.path.name} ({e.size[0]}x{e.size[1]})" for e in examples if min(e.size) < resolution]
    if small:
        log.warning("smaller than data.resolution=%d and enlarged: %s", resolution, ", ".join(small))


def load_image(path: Path) -> Image.Image:
    """Opens a file as an RGB image: EXIF orientation applied, 16 bits scaled to 8, transparency laid on white.

    Raises whatever PIL raises for a file it cannot decode, and for a decompression bomb; ValueError for float pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            image.load()
    if image.mode == "F":  # 0 to 1, 0 to 255, and logarithms are all to be met
        raise ValueError("float images are not supported; convert to 8 or 16 bit")
    if image.mode.startswith("I"):  # 16-bit grey: PIL's own conversion clips at 255 and turns it white
        image = Image.fromarray(np.round(np.asarray(image).clip(0, 65535) / 257.0).astype(np.uint8))
    if image.has_transparency_data:  # the colours under transparent pixels are arbitrary
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def views(example: Example, resolution: int, crop: str, variants: int, flip: bool, seed: int) -> list[View]:
    """The fixed set of views of one image; a step picks one.

    Random crops are drawn from the image's own content, so other files in the folder do not change them.
    """
    width, height = resized(example.size, resolution)
    spare_x, spare_y = width - resolution, height - resolution
    if crop == "center" or not (spare_x or spare_y):
        corners = [(spare_x // 2, spare_y // 2)]
    else:
        draw = randomness.generator(seed, "crop", row=int(example.sha256[:16], 16))
        corners = [(int(draw.integers(spare_x + 1)), int(draw.integers(spare_y + 1))) for _ in range(variants)]
    return [
        View(example, resolution, x, y, mirror) for x, y in corners for mirror in ((False, True) if flip else (False,))
    ]


def resized(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """(width, height) after the short side became `resolution`."""
    short = min(size)
    return (round(size[0] * resolution / short), round(size[1] * resolution / short))


def pixels(view: View) -> np.ndarray:
    """float32 [resolution, resolution, 3] in [-1, 1]."""
    image = load_image(view.example.path)
    whole, side = resized(image.size, view.resolution), view.resolution
    x, y = image.size[0] / whole[0], image.size[1] / whole[1]
    # Only the crop is computed: the whole of a very long image may not fit into memory once its short side is enlarged.
    right, bottom = min((view.left + side) * x, image.size[0]), min((view.top + side) * y, image.size[1])
    image = image.resize((side, side), Image.Resampling.LANCZOS, (view.left * x, view.top * y, right, bottom))
    if view.flip:
        image = ImageOps.mirror(image)
    return np.asarray(image, np.float32) / np.float32(127.5) - np.float32(1.0)
