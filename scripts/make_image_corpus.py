"""Make a folder of more than 200 image files that are hard to read: broken, lying, huge, or oddly named.

    python scripts/make_image_corpus.py --out corpus

Every file is made here, with PIL, NumPy and bytes. Each run makes the same files, but an animated AVIF also contains
the time when it was made. `make_image_corpus` returns what a reader must do with each file. Names that the file system
does not allow are left out.
"""

import argparse
import io
import os
import struct
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, features

try:
    from pillow_heif import register_heif_opener
except ImportError:
    HEIC = False
else:
    register_heif_opener()
    HEIC = True

SIZE = (48, 32)  # (width, height) of every picture, unless a case needs another size
# "passed over": the file is not an image by its name or kind, and a log line names it; "silent": like this, but without
# a log line; "either": read or refused, depending on the flipped bit and the decoder's version.
Outcome = Literal["read", "refused", "passed over", "silent", "either"]
THEMES = (
    "format", "truncated", "bit-flipped", "16 bits", "CMYK", "palette", "transparent", "animated", "orientation",
    "0 bytes", "wrong extension", "bomb", "1 pixel", "huge", "HEIC", "beside", "link", "unreadable", "pipe", "name",
)  # fmt: skip
# For each EXIF orientation: what the camera does to the upright picture before it stores it.
TURNS = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_270}  # fmt: skip
NAMES = (
    "Größe 3", "犬", "🐕", "👩\u200d🚀", "اَلْكَلْبُ", "e\u0301", "²", "\u0663", "two  spaces", " leading", "trailing ",
    "-rf", "it's", 'the "dog"', "back\\slash", "semi;colon, comma", "%s %d %(name)s", "{0} {name}", "$(HOME) `id`",
    "*?", "~", "#", "x" * 240, "9" * 200, "new\nline", "tab\t", "carriage\rreturn", "esc\x1b[31mred\x1b]0;title\x07",
    "\x7f", "backspace\b\b", "C1 \x9b31m", "bidi \u202egpj", "line\u2028separator", "zero\u200bwidth", "\ufeffmark",
    "private \ue000", "no\xa0break",
)  # fmt: skip
NAME_BYTES = (b"\xff\xfe", b"caf\xe9", b"half \xf0\x9f\x90", b"\xed\xb3\xbf")  # none of them is UTF-8
AVIF = features.check("avif")
MIB = 2**20


@dataclass(frozen=True, eq=False)
class Expectation:
    """What a reader must do with one file.

    Its pixels must equal `truth`, [height, width, 3] from 0 to 255, within `tolerance` levels.
    """

    theme: str
    outcome: Outcome
    size: tuple[int, int] | None = None  # (width, height) after EXIF orientation
    truth: np.ndarray | None = None
    tolerance: float = 0.0


class Corpus:
    """A folder that is filled with files, and the expectation for each file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.expected: dict[str, Expectation] = {}

    def write(self, theme: str, name: str, content: bytes, outcome: Outcome, **more: Any) -> None:
        try:
            (self.folder / name).write_bytes(content)
        except OSError:  # not every file system allows every name
            return
        self.expected[name] = Expectation(theme, outcome, **more)

    def save(self, theme: str, name: str, image: Image.Image, outcome: Outcome = "read", **options: Any) -> None:
        """Encode and write an image; `truth` and `tolerance` are for the expectation, other options for the encoder."""
        more = {key: options.pop(key) for key in ("truth", "tolerance") if key in options}
        options.setdefault("format", Image.registered_extensions()[Path(name).suffix.lower()])
        self.write(theme, name, encoded(image, **options), outcome, size=image.size, **more)


def make_image_corpus(folder: Path) -> dict[str, Expectation]:
    """Fill the new folder `folder` and return {file name: expectation}. Raise FileExistsError if the folder exists."""
    folder.mkdir(parents=True)
    corpus = Corpus(folder)
    for add in (
        _formats, _damaged, _sixteen_bits, _print_colours, _palettes, _transparent, _animated, _orientations,
        _empty, _wrong_extensions, _png_bombs, _other_bombs, _extreme_sizes, _phones, _beside, _no_plain_files, _names,
    ):  # fmt: skip
        add(corpus)
    return corpus.expected


def picture() -> Image.Image:
    """Return an RGB picture of SIZE that is different in every corner."""
    x, y = np.meshgrid(np.linspace(0, 200, SIZE[0]), np.linspace(0, 200, SIZE[1]))
    waves = 25 + 20 * np.sin(np.arange(SIZE[0]) * 0.5)
    return Image.fromarray((np.stack([x, y, 200 - x / 2 - y / 2], axis=-1) + waves[:, None]).round().astype(np.uint8))


def encoded(image: Image.Image, **options: Any) -> bytes:
    """Return an image as the bytes of a file in the given format."""
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def array(image: Image.Image) -> np.ndarray:
    """Return an 8-bit image as RGB, uint8 [height, width, 3], converted by PIL itself."""
    return np.asarray(image.convert("RGB"))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG that is made by hand.

    `rows` are the bytes before compression, with a filter byte before each row; `chunks` come before them in the file.
    """

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(width: int, height: int, samples: np.ndarray, order: str = "<", **lies: int) -> bytes:
    """Return an uncompressed TIFF that is made by hand.

    It has one strip of `samples`, [height, width, channels] of uint8 or uint16. `lies` replace the true values of its
    tags: the strip's offset, count and rows, the bits of a sample (bits), the number of samples whose bits are listed
    (entries), and whether 0 is black (black).
    """
    channels, bits = samples.shape[-1], lies.get("bits", samples.dtype.itemsize * 8)
    strip = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    end = 8 + len(strip)
    tags = [  # (tag, type: 3 is 16 bits and 4 is 32, how many, value)
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, lies.get("entries", channels), bits if channels == 1 else end),
        (259, 3, 1, 1),
        (262, 3, 1, 2 if channels == 3 else lies.get("black", 1)),
        (273, 4, 1, lies.get("offset", 8)),
        (277, 3, 1, channels),
        (278, 4, 1, lies.get("rows", height)),
        (279, 4, 1, lies.get("count", len(strip))),
    ]
    directory = struct.pack(order + "H", len(tags))
    for tag, kind, count, value in tags:
        short = kind == 3 and count == 1
        directory += struct.pack(order + "HHI" + ("HH" if short else "I"), tag, kind, count, *[value, 0][: 1 + short])
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", end + 2 * channels)
    return start + strip + struct.pack(f"{order}{channels}H", *[bits] * channels) + directory + bytes(4)


def _formats(corpus: Corpus) -> None:
    """Add one picture as PIL's encoders write it, in every mode that they support."""
    rgb = picture()
    grey, two = rgb.convert("L"), rgb.convert("1")
    for image in (rgb, grey, two):
        for suffix in ("png", "bmp", "tif", "gif"):
            indexed = suffix == "gif" and image is rgb
            corpus.save("format", f"{image.mode}.{suffix}", image, truth=None if indexed else array(image))
    for name, options in {
        "baseline": {}, "progressive": {"progressive": True}, "optimized": {"optimize": True},
        "full-colour": {"subsampling": 0}, "half-colour": {"subsampling": 1}, "coarse": {"quality": 5},
        "restart-markers": {"restart_marker_rows": 1}, "comment": {"comment": b"\x1b[31m"},
    }.items():  # fmt: skip
        known = {"truth": array(rgb), "tolerance": 12} if "colour" in name else {}
        corpus.save("format", f"{name}.jpg", rgb, **{"quality": 95, **options, **known})
    corpus.save("format", "grey.jpeg", grey, quality=98, truth=array(grey), tolerance=6)
    corpus.save("format", "grey-progressive.jfif", grey, progressive=True)
    corpus.save("format", "two-pictures.jpg", rgb, format="MPO", save_all=True, append_images=[grey])
    for compression in ("packbits", "tiff_lzw", "tiff_adobe_deflate"):
        corpus.save("format", f"{compression}.tiff", rgb, compression=compression, truth=array(rgb))
    corpus.save("format", "jpeg-inside.tiff", rgb, compression="jpeg", quality=95)
    for compression in ("group3", "group4"):
        corpus.save("format", f"{compression}.tif", two, compression=compression, truth=array(two))
    corpus.save("format", "big.tiff", rgb, big_tiff=True, truth=array(rgb))
    corpus.save("format", "luma-and-chroma.tif", rgb.convert("YCbCr"), truth=array(rgb), tolerance=3)
    corpus.save("format", "lab.tif", Image.new("LAB", SIZE), "either")  # PIL may be built without colour profiles
    corpus.save("format", "float.tif", grey.convert("F"), "refused")
    for name, value in {"32 bits": 2**30, "below 0": -1}.items():
        corpus.save("format", f"{name}.tif", Image.new("I", SIZE, value), "refused")
    corpus.save("format", "lossless.webp", rgb, lossless=True, truth=array(rgb))
    corpus.save("format", "lossy.webp", rgb, quality=90)
    corpus.save("format", "fast.webp", rgb, quality=10, method=0)
    if AVIF:
        corpus.save("format", "lossy.avif", rgb, speed=10)
        fine = {"quality": 100, "subsampling": "4:4:4", "speed": 10}
        corpus.save("format", "fine.avif", rgb, truth=array(rgb), tolerance=6, **fine)
    for suffix in (".PNG", ".JPG", ".Tiff", ".WebP"):
        corpus.save("format", f"upper case{suffix}", rgb)


def _damaged(corpus: Corpus) -> None:
    """Add files that are cut off after their beginning, and files in which one bit is flipped."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8))
    whole = {
        "baseline.jpg": encoded(noise, format="JPEG"),
        "progressive.jpg": encoded(noise, format="JPEG", progressive=True),
        "rgb.png": encoded(noise, format="PNG"),
        "plain.bmp": encoded(noise, format="BMP"),
        "indexed.gif": encoded(noise, format="GIF"),
        "lzw.tif": encoded(noise, format="TIFF", compression="tiff_lzw"),
        "plain.tif": encoded(noise, format="TIFF"),
        "lossy.webp": encoded(noise, format="WEBP"),
        "lossless.webp": encoded(noise, format="WEBP", lossless=True),
    }
    if AVIF:
        whole["lossy.avif"] = encoded(noise, format="AVIF", speed=10)
    draw = np.random.default_rng(1)
    for name, content in whole.items():
        for percent in (1, 10, 40, 60, 90):
            head = content[: max(1, len(content) * percent // 100)]
            corpus.write("truncated", f"{percent} percent {name}", head, "refused")
        # The first 64 bytes contain the sizes, so half of the flipped bits are there.
        for place in (*draw.integers(0, 64, 4), *draw.integers(64, len(content), 4)):
            flipped = bytearray(content)
            flipped[place] ^= 1 << int(draw.integers(8))
            corpus.write("bit-flipped", f"byte {place:04} {name}", bytes(flipped), "either")


def _sixteen_bits(corpus: Corpus) -> None:
    """Add gradients over all 65536 values, in grey and in colour; the truth is 1/257 of each value."""
    width, height = SIZE
    values = np.linspace(0, 65535, width * height).round().astype(np.uint16).reshape(height, width)
    grey = np.repeat(values[..., None] / 257, 3, axis=-1)
    colour = np.stack([values, values[::-1], values[:, ::-1]], axis=-1)
    opaque = np.full((height, width, 1), 65535, np.uint16)

    def scanlines(samples: np.ndarray) -> bytes:
        return b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)

    known = {"size": SIZE, "truth": grey, "tolerance": 1}
    for suffix in ("png", "tif"):
        corpus.save("16 bits", f"16 bits grey.{suffix}", Image.fromarray(values), truth=grey, tolerance=1)
    corpus.save("16 bits", "16 bits in 32.tif", Image.fromarray(values.astype(np.int32)), truth=grey, tolerance=1)
    corpus.save(
        "16 bits", "16 bits packed.tif", Image.fromarray(values), compression="tiff_lzw", truth=grey, tolerance=1
    )
    for order, name in (("<", "little"), (">", "big")):
        deep = tiff(*SIZE, values[..., None], order)
        corpus.write("16 bits", f"16 bits grey {name} end first.tif", deep, "read", **known)
        deep = tiff(*SIZE, colour, order)
        corpus.write("16 bits", f"16 bits colour {name} end first.tif", deep, "read", **known | {"truth": colour / 257})
    first, second = values[:, ::2] >> 4, values[:, 1::2] >> 4
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8)
    twelve = tiff(*SIZE, packed.reshape(height, -1, 1), bits=12)
    corpus.write("16 bits", "12 bits grey.tif", twelve, "read", **known)
    negative = tiff(*SIZE, 65535 - values[..., None], black=0)
    corpus.write("16 bits", "16 bits white is 0.tif", negative, "read", **known)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(np.rot90(values).copy())
    corpus.write("16 bits", "16 bits turned.png", encoded(turned, format="PNG", exif=exif), "read", **known)
    with_alpha = np.concatenate([values[..., None], opaque], axis=-1)
    corpus.write("16 bits", "16 bits grey alpha.png", png(*SIZE, 16, 4, scanlines(with_alpha)), "read", **known)
    known["truth"] = colour / 257
    corpus.write("16 bits", "16 bits colour.png", png(*SIZE, 16, 2, scanlines(colour)), "read", **known)
    with_alpha = np.concatenate([colour, opaque], axis=-1)
    corpus.write("16 bits", "16 bits colour alpha.png", png(*SIZE, 16, 6, scanlines(with_alpha)), "read", **known)
    # One 16-bit value is declared transparent: the middle one of 256 values that are equal in 8 bits.
    key = int(values[height // 2, width // 2])
    known["truth"] = np.where(values[..., None] == key, 255, grey)
    keyed = png(*SIZE, 16, 0, scanlines(values[..., None]), (b"tRNS", struct.pack(">H", key)))
    corpus.write("16 bits", "16 bits one value transparent.png", keyed, "read", **known)


def _print_colours(corpus: Corpus) -> None:
    cyan, truth = Image.new("CMYK", SIZE, (255, 0, 0, 0)), array(Image.new("RGB", SIZE, (0, 255, 255)))
    for name, options in {"plain.jpg": {}, "fine.jpg": {"quality": 100}, "progressive.jpg": {"progressive": True},
                          "plain.tif": {}, "packed.tif": {"compression": "tiff_lzw"}}.items():  # fmt: skip
        corpus.save("CMYK", f"CMYK {name}", cyan, truth=truth, tolerance=4, **options)
    mixed = picture().convert("CMYK")
    corpus.save("CMYK", "CMYK mixed.tif", mixed, truth=array(mixed))


def _palettes(corpus: Corpus) -> None:
    for colours, bits in ((2, 1), (4, 2), (16, 4), (256, 8)):
        indexed = picture().quantize(colours)
        corpus.save("palette", f"palette of {colours}.png", indexed, bits=bits, truth=array(indexed))
        corpus.save("palette", f"palette of {colours}.gif", indexed, truth=array(indexed))
        corpus.save("palette", f"palette of {colours}.bmp", indexed, truth=array(indexed))
    corpus.save("palette", "palette.tif", indexed, truth=array(indexed))
    # The index of the only colour is beyond the end of the palette.
    beyond = png(8, 8, 8, 3, b"\0\xc8\xc8\xc8\xc8\xc8\xc8\xc8\xc8" * 8, (b"PLTE", b"\x01\x02\x03"))
    corpus.write("palette", "palette too short.png", beyond, "either")
    corpus.write("palette", "palette missing.png", png(8, 8, 8, 3, b"\0" * 72), "either")


def _transparent(corpus: Corpus) -> None:
    """Add red pictures that are opaque in the right half, half-transparent in one column, and else transparent."""
    rgba = np.zeros((*SIZE[::-1], 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:, SIZE[0] // 2 :, 3] = 255
    rgba[:, SIZE[0] // 2 - 1, 3] = 128
    truth = 255 + (rgba[..., :3] - 255.0) * rgba[..., 3:] / 255
    image = Image.fromarray(rgba)
    known = {"truth": truth, "tolerance": 1}
    corpus.save("transparent", "transparent.png", image, **known)
    corpus.save("transparent", "transparent.webp", image, lossless=True, exact=True, **known)
    corpus.save("transparent", "transparent.tif", image, **known)
    corpus.save("transparent", "transparent packed.tif", image, compression="tiff_lzw", **known)
    corpus.save("transparent", "transparent.gif", image)
    if AVIF:
        corpus.save("transparent", "transparent.avif", image, speed=10)
    known["truth"] = 255 + (200 - 255.0) * np.repeat(rgba[..., 3:], 3, axis=-1) / 255
    corpus.save("transparent", "transparent LA.png", Image.fromarray(rgba[..., [0, 3]], "LA"), **known)
    indexed = Image.frombytes("PA", SIZE, rgba[..., [0, 3]].tobytes())
    indexed.putpalette([level for level in range(256) for _ in "RGB"])
    corpus.save("transparent", "transparent PA.tif", indexed, **known)
    white = array(Image.new("RGB", SIZE, "white"))
    indexed = Image.new("P", SIZE, 1)
    indexed.putpalette([0, 0, 0, 10, 20, 30])
    for suffix in ("png", "gif"):
        corpus.save("transparent", f"one index transparent.{suffix}", indexed, truth=white, transparency=1)
    corpus.save("transparent", "alpha of each index.png", indexed, truth=white, transparency=b"\xff\0")
    corpus.save("transparent", "one colour transparent.png", Image.new("RGB", SIZE, (1, 2, 3)), truth=white,
                transparency=(1, 2, 3))  # fmt: skip
    corpus.save("transparent", "one grey transparent.png", Image.new("L", SIZE, 7), truth=white, transparency=7)
    corpus.save("transparent", "black transparent.png", Image.new("1", SIZE, 0), truth=white, transparency=0)
    keyed = png(8, 8, 16, 2, (b"\0" + b"\xff\xfe" * 24) * 8, (b"tRNS", b"\xff\xfe" * 3))
    corpus.write("transparent", "one deep colour transparent.png", keyed, "read", size=(8, 8))


def _animated(corpus: Corpus) -> None:
    """Add animations; only their first frame, which is red, must be read."""
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "lime", "blue")]
    red = array(frames[0])
    for suffix in ("gif", "png", "webp", "tif"):
        options = {"lossless": True} if suffix == "webp" else {}
        options |= {"save_all": True, "append_images": frames[1:]}
        corpus.save("animated", f"animated.{suffix}", frames[0], truth=red, **options)
    corpus.save("animated", "animated small frames.gif", frames[0], save_all=True, truth=red,
                append_images=[Image.new("RGB", (4, 4), "lime")] * 40, loop=0, disposal=2)  # fmt: skip
    content = encoded(frames[0], format="GIF", save_all=True, append_images=frames[1:])
    corpus.write("animated", "animated cut after the first frame.gif", content[: len(content) // 2 + 8], "either")
    if AVIF:
        corpus.save("animated", "animated.avif", frames[0], save_all=True, append_images=frames[1:], speed=10)


def _orientations(corpus: Corpus) -> None:
    """Add `orientation N.SUFFIX`: one upright picture, stored in eight ways. JPEG and AVIF lose a little."""
    rgb = picture()
    for orientation, turn in TURNS.items():
        stored, exif = rgb if turn is None else rgb.transpose(turn), Image.Exif()
        exif[0x0112] = orientation
        for suffix, options in {
            "png": {}, "tif": {}, "webp": {"lossless": True}, "jpg": {"quality": 98, "subsampling": 0},
            **({"avif": {"speed": 10, "quality": 100, "subsampling": "4:4:4"}} if AVIF else {}),
        }.items():  # fmt: skip
            kind = Image.registered_extensions()[f".{suffix}"]
            content = encoded(stored, format=kind, exif=exif, **options)
            known = {"size": SIZE, "truth": array(rgb), "tolerance": 8 if suffix in ("jpg", "avif") else 0}
            corpus.write("orientation", f"orientation {orientation}.{suffix}", content, "read", **known)
    for orientation in (0, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = orientation
        corpus.save("orientation", f"orientation {orientation} that is none.png", rgb, exif=exif, truth=array(rgb))
    for name, broken in {"no": b"", "lost": b"II*\0\xff\xff\xff\xff", "cut": b"MM\0*\0\0\0\x08\xff\xff"}.items():
        for suffix in ("jpg", "png"):
            corpus.save("orientation", f"EXIF with {name} tags.{suffix}", rgb, exif=b"Exif\0\0" + broken)


def _empty(corpus: Corpus) -> None:
    for suffix in ("jpg", "jpeg", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "heic", "heif", "hif", "avif"):
        corpus.write("0 bytes", f"empty.{suffix}", b"", "refused")
    corpus.write("0 bytes", "a megabyte of nothing.jpg", bytes(MIB), "refused")


def _wrong_extensions(corpus: Corpus) -> None:
    """Add files whose suffix is wrong: the name decides whether a file is read, and its bytes decide the format."""
    rgb, theme = picture(), "wrong extension"
    kinds = {"PNG": "jpg", "JPEG": "png", "GIF": "jpg", "TIFF": "jpg", "BMP": "png", "WEBP": "jpeg", "MPO": "heic"}
    for kind, suffix in (kinds | {"AVIF": "jpg"} if AVIF else kinds).items():
        corpus.write(theme, f"{kind} named.{suffix}", encoded(rgb, format=kind), "read", size=SIZE)
    for name, content in {
        "text.jpg": b"this is no picture",
        "web page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="48" height="32"/>',
        "archive.png": b"PK\x03\x04" + bytes(60),
        "document.jpg": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        "video.jpg": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2mp41" + bytes(64),
        # PIL gives PostScript to Ghostscript, which would run a program from a photo folder.
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n",
        "raw.jpg": encoded(rgb, format="PPM"),
        "icon.png": encoded(rgb, format="ICO"),
        "git-lfs.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
    }.items():
        corpus.write(theme, name, content, "refused")
    photo = encoded(rgb, format="JPEG")
    for name in ("no extension", "photo.jpg.part", "photo.jpg~", "photo.jpg ", "photo.jpg\n", "photo.jpg.zip"):
        corpus.write(theme, name, photo, "passed over")
    corpus.write(theme, "photo.jpg.txt", photo, "silent")


def _png_bombs(corpus: Corpus) -> None:
    """Add PNGs of a few kilobytes that would unpack to gigabytes."""
    one_row = bytes(4)
    corpus.write("bomb", "bomb that lies.png", png(60000, 60000, 8, 2, bytes(1000)), "refused")
    corpus.write("bomb", "bomb at the end of 31 bits.png", png(2**31 - 1, 2**31 - 1, 8, 2, bytes(1000)), "refused")
    corpus.write("bomb", "bomb of two colours.png", png(12000, 12000, 1, 0, bytes(12000 * 1501)), "refused")
    plenty = zlib.compress(bytes(64 * MIB), 9)
    for kind, head in ((b"zTXt", b"Comment\0\0"), (b"iTXt", b"Comment\0\1\0\0\0"), (b"iCCP", b"profile\0\0")):
        content = png(1, 1, 8, 2, one_row, (kind, head + plenty))
        corpus.write("bomb", f"bomb in {kind.decode()}.png", content, "refused")
    little = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(MIB - 1), 9))
    corpus.write("bomb", "bomb in many texts.png", png(1, 1, 8, 2, one_row, *[little] * 100), "refused")
    corpus.write("bomb", "bomb behind the last row.png", png(1, 1, 8, 2, one_row + bytes(64 * MIB)), "either")


def _other_bombs(corpus: Corpus) -> None:
    rgb = picture()

    def lying(kind: str, place: int, numbers: bytes, **options: Any) -> bytes:
        content = encoded(rgb, format=kind, **options)
        return content[:place] + numbers + content[place + len(numbers) :]

    frame = encoded(rgb, format="JPEG").index(b"\xff\xc0") + 5
    for name, content in {
        "bomb.gif": lying("GIF", 6, struct.pack("<HH", 65535, 65535)),
        "bomb.bmp": lying("BMP", 18, struct.pack("<ii", 2**30, 2**30)),
        "bomb on its head.bmp": lying("BMP", 18, struct.pack("<ii", 60000, -60000)),
        "bomb.jpg": lying("JPEG", frame, struct.pack(">HH", 65500, 65500)),
    }.items():
        corpus.write("bomb", name, content, "refused")
    # The number of pixels is allowed and the end is regular, so only the decoder notices that rows are missing.
    corpus.write("bomb", "little bomb.jpg", lying("JPEG", frame, struct.pack(">HH", 1500, 1500)), "either")
    canvas = struct.pack("<I", 16382)[:3] * 2
    content = encoded(rgb, format="WEBP", save_all=True, append_images=[Image.new("RGB", SIZE)])
    corpus.write("bomb", "bomb.webp", content[:24] + canvas + content[30:], "refused")
    samples = np.asarray(rgb)
    for name, sides, lies in (
        ("bomb", (10**6, 10**6), {}),
        ("bomb of 32 bits", (2**32 - 1, 2**32 - 1), {}),
        ("little bomb", (1500, 1500), {}),
        ("data beyond the end", SIZE, {"offset": 2**31}),
        ("data in the header", SIZE, {"offset": 0}),
        ("four gigabytes of data", SIZE, {"count": 2**32 - 1}),
        ("no data", SIZE, {"count": 0}),
        ("no rows", SIZE, {"rows": 0}),
        ("four billion bits", SIZE, {"entries": 2**32 - 1}),
    ):
        refused = "bomb" in name or name == "data beyond the end"
        corpus.write("bomb", f"{name}.tif", tiff(*sides, samples, **lies), "refused" if refused else "either")
    sparse: dict[int, Outcome] = {64: "read", 4096: "refused"}
    for size, outcome in sparse.items():
        name = f"photo and {size} MiB of nothing.jpg"
        corpus.write("bomb", name, encoded(rgb, format="JPEG"), outcome)
        os.truncate(corpus.folder / name, size * MIB)  # a sparse file, which takes no space on the disk


def _extreme_sizes(corpus: Corpus) -> None:
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tif", *(["avif"] if AVIF else [])):
        white = np.full((1, 1, 3), 255)
        corpus.save("1 pixel", f"1 pixel.{suffix}", Image.new("RGB", (1, 1), "white"), truth=white, tolerance=2)
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        corpus.save("1 pixel", f"1 pixel {mode}.png".replace(";", "-"), Image.new(mode, (1, 1)))
    corpus.write("1 pixel", "0 pixels.png", png(0, 0, 8, 2, b""), "refused")
    corpus.write("1 pixel", "0 rows.png", png(1, 0, 8, 2, b""), "refused")
    for size in ((60000, 1), (1, 60000), (2, 40000)):
        corpus.save("huge", "huge {}x{}.png".format(*size), Image.new("RGB", size, (9, 90, 200)))
    corpus.save("huge", "huge 65535x1.gif", Image.new("L", (65535, 1), 9))
    corpus.save("huge", "huge 16383x1.webp", Image.new("RGB", (16383, 1), (9, 90, 200)))
    corpus.save("huge", "huge 65000x2.jpg", Image.new("L", (65000, 2), 9))
    side = 6000  # 36 million pixels, in files of less than a megabyte
    for name, depth, colour, row in (
        ("of two colours", 1, 0, 1 + side // 8),
        ("of 16 bits", 16, 0, 1 + side * 2),
        ("and transparent", 8, 6, 1 + side * 4),
    ):
        content = png(side, side, depth, colour, bytes(side * row))
        corpus.write("huge", f"huge {name}.png", content, "read", size=(side, side))


def _phones(corpus: Corpus) -> None:
    """Add HEIC files, which PIL alone cannot decode, and a JPEG with more pixels than PIL opens."""
    if HEIC:
        rgb, fine = picture(), {"quality": 100, "chroma": 444}
        corpus.save("HEIC", "lossy.heic", rgb)
        corpus.save("HEIC", "grey.hif", rgb.convert("L"), truth=array(rgb.convert("L")), tolerance=6, **fine)
        corpus.write("HEIC", "HEIC named.jpg", encoded(rgb, format="HEIF"), "read", size=SIZE)
        corpus.write("truncated", "60 percent lossy.heic", encoded(rgb, format="HEIF")[:-200], "refused")
        for orientation, turn in TURNS.items():
            exif = Image.Exif()
            exif[0x0112] = orientation
            stored = rgb if turn is None else rgb.transpose(turn)
            content = encoded(stored, format="HEIF", exif=exif.tobytes(), **fine)
            known = {"size": SIZE, "truth": array(rgb), "tolerance": 8}
            corpus.write("HEIC", f"orientation {orientation}.heic", content, "read", **known)
    large = Image.new("L", (12000, 9000), 90)
    known = {"size": (6000, 4500), "truth": np.broadcast_to(np.uint8(90), (4500, 6000, 3)), "tolerance": 1}
    corpus.write("huge", "huge 12000x9000.jpg", encoded(large, format="JPEG"), "read", **known)
    for brand, suffix in ((b"heic", "heic"), (b"heix", "heic"), (b"mif1", "heif"), (b"msf1", "heif"), (b"heic", "jpg")):
        head = struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + b"mif1heic"
        content = head + b"\0\0\0\x0emeta" + bytes(64)
        corpus.write("HEIC", f"{brand.decode()} phone.{suffix}", content, "refused")


def _beside(corpus: Corpus) -> None:
    """Add files that operating systems and people leave in a photo folder."""
    system = (".DS_Store", "._photo.jpg", ".hidden.png", ".jpg", "Thumbs.db", "desktop.ini")
    for name in (*system, "1.txt", "metadata.json", "captions.csv"):
        corpus.write("beside", name, b"\0\0\0\1Bud1", "silent")
    for name in ("notes.md", "raw.cr2", "film.mov", "model.safetensors", "script.py", "photo.svg"):
        corpus.write("beside", name, b"something", "passed over")


def _no_plain_files(corpus: Corpus) -> None:
    """Add folders, links, a file that nobody may read, and a pipe, at which a reader would wait for ever."""
    folder, expected = corpus.folder, corpus.expected
    for name, outcome in (("folder.jpg", "passed over"), (".folder", "silent")):
        (folder / name).mkdir()
        expected[name] = Expectation("beside", outcome)
    (folder / ".folder" / "photo").write_bytes(encoded(picture(), format="PNG"))
    links: dict[str, tuple[str, Outcome]] = {
        "link.jpg": (".folder/photo", "read"),
        "link to a link.jpg": ("link.jpg", "read"),
        "link to nowhere.jpg": ("unplugged/photo.jpg", "refused"),
        "link to itself.jpg": ("link to itself.jpg", "refused"),
        "link round and round 1.jpg": ("link round and round 2.jpg", "refused"),
        "link round and round 2.jpg": ("link round and round 1.jpg", "refused"),
        "link under a file.jpg": ("link.jpg/photo", "refused"),
        "link to a name too long.jpg": ("x" * 300, "refused"),
        "link to a folder.jpg": (".folder", "passed over"),
        "link to a device.jpg": ("/dev/zero", "passed over"),
        "link to nowhere": ("unplugged", "passed over"),
    }
    for name, (target, outcome) in links.items():
        (folder / name).symlink_to(target)
        expected[name] = Expectation("link", outcome)
    locked = folder / "unreadable.png"
    corpus.save("unreadable", locked.name, picture())
    locked.chmod(0)
    if not os.access(locked, os.R_OK):  # the superuser may read it
        expected[locked.name] = Expectation("unreadable", "refused")
    for name in ("pipe.jpg", "pipe.PNG", "pipe"):
        os.mkfifo(folder / name)
        expected[name] = Expectation("pipe", "passed over")


def _names(corpus: Corpus) -> None:
    """Add names that are hard to print, quote or sort, each for a picture and for a file that is no picture."""
    photo = encoded(picture(), format="PNG")
    for name in (*NAMES, *map(os.fsdecode, NAME_BYTES)):
        corpus.write("name", f"{name}.png", photo, "read", size=SIZE)
        corpus.write("name", f"bad {name}.png", b"", "refused")
    for name in ("esc\x1b[31mred.raw", "new\nline.raw", os.fsdecode(b"caf\xe9.raw")):
        corpus.write("name", name, b"", "passed over")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    outcomes = Counter(expectation.outcome for expectation in make_image_corpus(parser.parse_args().out).values())
    print(f"{outcomes.total()} files:", ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()))
