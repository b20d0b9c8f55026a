"""Pictures of the page of `booth.report.write`, limited in size and number: 3.2 MB as JPEG, or 4.2 MB in the page."""

import base64
import functools
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote

from booth.data import pictures
from booth.report.data import Album, Report
from booth.report.markup import element, shortened

T = TypeVar("T")


class Limits(NamedTuple):
    """The limits of one picture."""

    box: tuple[int, int]  # width and height in pixels
    size: int  # bytes


LARGE = Limits((1400, 4000), 450_000)  # one
PREVIEW, PREVIEWS = Limits((800, 1600), 90_000), 20
THUMBNAIL, THUMBNAILS = Limits((256, 256), 24_000), 36


def linked(report: Report, path: Path, limits: Limits, said: str) -> ET.Element:
    """Return a picture of the run folder with a link to its full size."""
    name = path.relative_to(report.path).as_posix()
    image = _image(path, limits, said)
    return element("a", f"{name} cannot be read." if image is None else image, href=quote(name))


def captioned(album: Album, name: str) -> ET.Element | None:
    """Return one picture with its caption; None if it does not exist or cannot be read."""
    image = _image(album.folder / name, THUMBNAIL, f"{album.title}: {shortened(name)}")
    if image is None:
        return None
    caption = album.captions[name]
    return element("figure", image, element("figcaption", shortened(caption)) if caption else None)


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most `most` of the items, evenly spread, including the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / max(1, most - 1))] for place in range(most)]


def _image(path: Path, limits: Limits, said: str) -> ET.Element | None:
    try:
        file = path.stat()
        jpeg, (width, height) = _jpeg(path, limits, file.st_mtime_ns, file.st_size)
    except Exception:  # PIL raises many types
        return None
    source = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    return element("img", src=source, alt=said, width=width, height=height)


@functools.lru_cache(maxsize=128)  # a run writes its page many times with mostly the same pictures
def _jpeg(path: Path, limits: Limits, *_of_file: int) -> tuple[bytes, tuple[int, int]]:
    return pictures.thumbnail(path, *limits)
