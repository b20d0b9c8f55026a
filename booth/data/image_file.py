"""An image file of any format -> upright RGB, or a reason in plain words why it cannot be read."""

import codecs
import functools
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import jpeg_factory
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

from booth.common.file_names import printable
from booth.data.image_folder import IMAGE_SUFFIXES

# The size of uncompressed 16-bit RGB with the largest number of pixels that PIL reads. A limit is needed because some
# decoders read a whole file, however long it is.
MOST_BYTES = 2**29
MOST_MEMORY = 2**31  # bytes for reading, at a reduced size, a JPEG with more pixels than PIL reads
REDUCED = "reduced"  # the key in such an image's `info` that says by which whole number it was reduced
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")  # brands
_TOO_MANY_PIXELS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def load_image(path: Path, least: int = 0) -> Image.Image:
    """Open a file as an RGB image: EXIF orientation applied, 16 bits scaled to 8, transparency laid on white.

    Raise whatever PIL raises for a file it cannot decode. Raise ValueError for a file that is no image, for float
    pixels, for grey of more than 16 bits, for more than MOST_BYTES and for too many pixels.

    While a file is read, a pixel takes 8 bytes, or 16 in a WebP or HEIC; 89 million pixels, the most that PIL reads,
    take 0.7 or 1.4 GB. A JPEG may have more pixels: it is read at a half, a quarter or an eighth of its size, at the
    largest of these that fits into MOST_MEMORY. With `least`, every JPEG is read at a reduced size whose sides have at
    least so many pixels, which is much faster and good for thumbnails.
    """
    image = _decoded(path, least)
    if image.mode == "F":  # files exist with a scale of 0 to 1, 0 to 255, or logarithms
        raise ValueError("float images are not supported; convert to 8 or 16 bit")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:  # transparent pixels have arbitrary colours
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        image = white
    return image.convert("RGB")


def load_alpha(path: Path) -> Image.Image | None:
    """Return how opaque each pixel of a file is, as "L" in the size of `load_image`; None if nothing is transparent."""
    image = _decoded(path)
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def image_format(content: bytes) -> str:
    """Return PIL's name for the format of an encoded image. Raise ValueError if it is none or has too many pixels."""
    with _in_plain_words(), _open(io.BytesIO(content)) as image:
        return image.format or ""


def reason(error: Exception) -> str:
    """Return an error's message about a file or folder, without its path, as one line."""
    if isinstance(error, MemoryError):
        return "there is too little memory to read it; make it smaller"
    words = printable(" ".join((getattr(error, "strerror", None) or str(error)).split()))
    if not words or isinstance(error, ArithmeticError | LookupError | TypeError):  # PIL failed on a broken file
        return f"cannot be decoded: {type(error).__name__} {words}".rstrip()
    return words


def _decoded(path: Path, least: int = 0) -> Image.Image:
    """Return the first frame with its stored pixels, but upright."""
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{size} bytes, and at most {MOST_BYTES} are read; convert it to JPEG")
    with _in_plain_words():
        try:
            file = _open(path)
        except _TOO_MANY_PIXELS:
            file = _large_jpeg(path)
        with file:
            if least:
                file.draft(None, (least, least))  # type: ignore[arg-type]
            ImageOps.exif_transpose(file, in_place=True)
    return file


def _open(source: Path | io.BytesIO) -> ImageFile.ImageFile:
    """Open an image and read only its header. Raise ValueError that says what a file is if it is no image."""
    try:
        return Image.open(source, formats=_formats())
    except UnidentifiedImageError as error:
        raise ValueError(_why_no_image(_head(source))) from error


def _large_jpeg(path: Path) -> ImageFile.ImageFile:
    """Return a JPEG that has more pixels than PIL opens, to be decoded at a reduced size. Raise PIL's error if it is no
    JPEG, and ValueError if it would take too much memory even then."""
    try:
        file = jpeg_factory(path)  # type: ignore[arg-type]  # PIL.Image.open without its check
    except SyntaxError:
        return _open(path)
    pixels = file.width * file.height
    # A JPEG that is not stored in one scan is held in memory as a whole, with two bytes for each value.
    taken = {factor: 2 * len(file.getbands()) * pixels + 8 * pixels // factor**2 for factor in (2, 4, 8)}
    fits = [factor for factor in taken if pixels <= _most_pixels() * factor**2 and taken[factor] <= MOST_MEMORY]
    if not fits:
        file.close()
        raise ValueError(f"{file.width}x{file.height} pixels would take too much memory; make it smaller")
    file.draft(None, (file.width // fits[0], file.height // fits[0]))
    file.info[REDUCED] = fits[0]
    return file


def _most_pixels() -> float:
    return Image.MAX_IMAGE_PIXELS or float("inf")


@contextmanager
def _in_plain_words() -> Iterator[None]:
    """Replace PIL's message about many pixels, which speaks of an attack, and silence its other warnings, which do not
    name the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except _TOO_MANY_PIXELS as error:
            pixels = re.search(r"\d+", str(error))
            many = f"{int(pixels[0]):,} pixels" if pixels else "too many pixels"
            raise ValueError(
                f"{many}, and at most {_most_pixels():,} are read if it is not a JPEG; make it smaller, or save it as"
                " JPEG"
            ) from error


def _head(source: Path | io.BytesIO) -> bytes:
    if isinstance(source, io.BytesIO):
        return source.getvalue()[:4096]
    with source.open("rb") as file:
        return file.read(4096)


def _why_no_image(head: bytes) -> str:
    """Return what a file that no decoder reads seems to be, by its first bytes."""
    if not head:
        return "an empty file; copy it again"
    if not any(head):
        return "zeros in place of an image, which an interrupted copy leaves; copy it again"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS in place of the image; fetch it with git lfs pull"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC and "HEIF" not in _formats():
        return "HEIC, which pillow-heif reads: pip install pillow-heif, the [heic] extra; or convert it to JPEG"
    for name in _formats():
        accept = Image.OPEN[name][1]
        if accept and accept(head[:16]) is True:
            return f"begins as {name} does, but is cut short or damaged; copy it again"
    text = codecs.getincrementaldecoder("utf-8")(errors="replace").decode(head)
    if all(char.isprintable() or char.isspace() for char in text) and "\ufffd" not in text:
        return f"a text and no image: {' '.join(text.split())[:40]!r}"
    return "no image in a format that can be read here; convert it to JPEG"


@functools.cache
def _formats() -> list[str]:
    """Return PIL's names of the formats in IMAGE_SUFFIXES. PIL must try no others, as PostScript starts Ghostscript."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener  # the [heic] extra

        register_heif_opener()
    known = Image.registered_extensions()
    return sorted({known[suffix] for suffix in IMAGE_SUFFIXES if suffix in known})


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert grey of 12 or 16 bits to "L", or to "LA" if one value is declared transparent. PIL's own conversion would
    clip at 255."""
    clear = image.info.pop("transparency", None)
    deep = image.convert("I")
    lowest, highest = cast(tuple[int, int], deep.getextrema())
    if lowest < 0 or highest > 65535:
        raise ValueError("values beyond 16 bits are not supported; convert to 8 or 16 bit")
    tags = getattr(image, "tag_v2", {})  # for a TIFF: PIL ignores the number of bits, and that white may be 0
    most = 2 ** min(16, *tags.get(BITSPERSAMPLE, [16])) - 1
    levels = [min(255, round(255 * value / most)) for value in range(65536)]
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:
        levels = [255 - level for level in levels]
    grey = deep.point(levels, "L")
    if clear is not None:
        grey.putalpha(deep.point([255 * (value != clear) for value in range(65536)], "L"))
    return grey
