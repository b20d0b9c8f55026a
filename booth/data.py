"""Image folders -> Examples. Bad files are refused by name. How an image is shown is in `booth.views`."""

import glob
import hashlib
import logging
import re
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

from booth.captions import read_captions
from booth.errors import UserError

log = logging.getLogger("booth")

# What a photo folder may hold; anything else (notes, .DS_Store, Thumbs.db) is passed over. HEIC is in the list so that
# an iPhone's folder is not silently halved: without a decoder such a file is refused by name.
IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif"]
)
MASK_END = "-mask"  # of the name of a mask that lies beside its photo
_BESIDE_IMAGES = frozenset([".txt", ".json", ".jsonl", ".csv", ".db", ".ini"])  # passed over without a word
# As many bytes as 16-bit RGB takes, uncompressed, of the most pixels that PIL reads. Some decoders read the whole of a
# file, however long it is.
MOST_BYTES = 2**29


@dataclass(frozen=True)
class Example:
    """One training image with its caption. `size` is (width, height) in pixels after EXIF orientation.

    `mask`: the file that says where the subject is; it may be the image itself. `repeats`: how often it is shown while
    others are shown once; `concept`: which of a run's concepts it belongs to; `folder`: what tells it apart from images
    of the same name, empty where all are in one folder.
    """

    path: Path
    caption: str
    kind: Literal["instance", "prior"]
    sha256: str
    size: tuple[int, int]
    repeats: int = 1
    concept: int = 0
    folder: str = ""
    mask: Path | None = None

    @property
    def name(self) -> str:
        """The file's, after its folder's where that is needed."""
        return f"{self.folder}/{self.path.name}" if self.folder else self.path.name


Size = tuple[int, int]  # (width, height) in pixels


def find_images(folder: str | Path, field: str) -> list[Path]:
    """The image files of a folder in natural name order (2.jpg before 10.jpg). UserError names the config field."""
    entries = _entries(folder, field)
    if entries is None:
        raise UserError(f"{field}={str(folder)!r} is not a folder; give the folder that holds the images")
    return sorted(filter(_is_image, entries), key=lambda path: (_natural(path.name), path.name))


def _entries(folder: str | Path, field: str) -> list[Path] | None:
    """What lies in a folder; None if it is no folder, UserError if it cannot be looked into."""
    try:
        return list(Path(folder).iterdir()) if Path(folder).is_dir() else None
    except OSError as error:
        raise UserError(
            f"{field}={str(folder)!r} cannot be read: {_reason(error)}; give a folder that this user may read"
        ) from error


def _is_image(path: Path) -> bool:
    """By its name. A link to nowhere or in a circle is one too: it is refused later by name, not silently left out."""
    if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
        return False
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def log_passed_over(folder: str | Path, field: str) -> None:
    """One line that names what in an image folder is neither an image nor known to lie beside images."""
    rest = sorted(
        printable(path.name)
        for path in _entries(folder, field) or ()
        if not (_is_image(path) or path.name.startswith(".") or path.suffix.lower() in _BESIDE_IMAGES)
    )
    if rest:
        log.info("%s: passed over, not taken for images: %s", field, ", ".join(rest))


def printable(text: str) -> str:
    """For one line of a terminal: line ends, ESC, bytes that are no UTF-8 and their like become escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name.lower())]


def read_examples(
    paths: Sequence[Path], caption: str, kind: Literal["instance", "prior"], field: str, **known: Any
) -> list[Example]:
    """Decodes every file once; UserError names all that cannot be read and lists the rest as fine.

    `known`: further fields of the examples.
    """
    examples, bad, fine = [], [], []
    for path in paths:
        name = printable(path.name)
        try:
            size = load_image(path).size
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except Exception as error:  # PIL raises many types, SyntaxError and struct.error among them
            bad.append(f"{name} ({_reason(error)})")
        else:
            examples.append(Example(path, caption, kind, sha256, size, **known))
            fine.append(name)
    if bad:
        rest = f"the other {len(fine)} are fine: {', '.join(fine)}" if fine else "no file is readable"
        raise UserError(
            f"{field}: {len(bad)} of {len(paths)} images cannot be read: {', '.join(bad)};"
            f" remove or replace what is named ({rest})"
        )
    return examples


def _reason(error: Exception) -> str:
    """What an error says of a file or folder, without its path, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "no image in a format that can be read here; convert it to JPEG"
    words = printable(" ".join((getattr(error, "strerror", None) or str(error)).split()))
    if not words or isinstance(error, ArithmeticError | LookupError | TypeError):  # PIL stumbled over what is broken
        return f"cannot be decoded: {type(error).__name__} {words}".rstrip()
    return words


def instance_examples(
    folder: str, prompt: str, captions: str = "none", column: str = "text", *, masks: bool = False
) -> list[Example]:
    """The subject's photos with their captions; UserError when there are none, or one cannot be read or has no caption.

    `captions` and `column` are as in `read_captions`; `masks`: whether images named as masks lie beside the photos.
    """
    paths = find_images(folder, "instance.images")
    if masks:
        paths = [path for path in paths if not path.stem.endswith(MASK_END)]
    log_passed_over(folder, "instance.images")
    if not paths:
        raise UserError(
            f"instance.images={folder!r} holds no images; put 3 to 12 photos there"
            f" ({', '.join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))})"
        )
    said = read_captions(Path(folder), paths, captions, column, prompt)
    examples = read_examples(paths, prompt, "instance", "instance.images")
    return [replace(example, caption=caption) for example, caption in zip(examples, said, strict=True)]


def load_image(path: Path) -> Image.Image:
    """Opens a file as an RGB image: EXIF orientation applied, 16 bits scaled to 8, transparency laid on white.

    Raises whatever PIL raises for a file it cannot decode, and for a decompression bomb; ValueError for float pixels,
    for grey of more than 16 bits and for more than MOST_BYTES. Meanwhile a pixel takes 8 bytes, and 16 in a WebP; the
    most pixels that PIL reads, 89 million, take 0.7 and 1.4 GB.
    """
    image = _decoded(path)
    if image.mode == "F":  # 0 to 1, 0 to 255, and logarithms are all to be met
        raise ValueError("float images are not supported; convert to 8 or 16 bit")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:  # the colours under transparent pixels are arbitrary
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        image = white
    return image.convert("RGB")


def load_alpha(path: Path) -> Image.Image | None:
    """How opaque each pixel of a file is, "L", as large as `load_image` has it; None where nothing is transparent."""
    image = _decoded(path)
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def masks_of(path: Path) -> list[Path]:
    """The files beside a photo that are named as its mask: X-mask.png for X.jpg."""
    return sorted(path.parent.glob(f"{glob.escape(path.stem)}{MASK_END}.*"))


def _decoded(path: Path) -> Image.Image:
    """The first frame as it is stored, but upright."""
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{size} bytes, and at most {MOST_BYTES} are read; convert it to JPEG")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they tell of broken EXIF, not of which file
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=image_formats()) as file:
            ImageOps.exif_transpose(file, in_place=True)
    return file


def image_formats() -> list[str]:
    """PIL's names of the formats in IMAGE_SUFFIXES. It is to try no others: PostScript it would give to Ghostscript."""
    known = Image.registered_extensions()
    return sorted({known[suffix] for suffix in IMAGE_SUFFIXES if suffix in known})


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 12 or 16 bits as "L", or "LA" if one value is declared transparent. PIL's own conversion clips at 255."""
    clear = image.info.pop("transparency", None)
    deep = image.convert("I")
    lowest, highest = cast(tuple[int, int], deep.getextrema())
    if lowest < 0 or highest > 65535:
        raise ValueError("values beyond 16 bits are not supported; convert to 8 or 16 bit")
    tags = getattr(image, "tag_v2", {})  # a TIFF's: PIL heeds neither how many bits there are nor that white may be 0
    most = 2 ** min(16, *tags.get(BITSPERSAMPLE, [16])) - 1
    levels = [min(255, round(255 * value / most)) for value in range(65536)]
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:
        levels = [255 - level for level in levels]
    grey = deep.point(levels, "L")
    if clear is not None:
        grey.putalpha(deep.point([255 * (value != clear) for value in range(65536)], "L"))
    return grey
