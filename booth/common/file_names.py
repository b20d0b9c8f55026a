"""Names of files: how they are shown, ordered and compared.

One name can be written in several ways: macOS takes letters and their accents apart (Unicode's NFD), other systems do
not (NFC), and some do not tell upper from lower case. Files move between systems, so names are compared across all of
that.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from pathlib import Path


def printable(text: str) -> str:
    """For one line of a terminal: line ends, ESC, bytes that are no UTF-8 and their like become escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def listed(names: Sequence[str], shown: int = 5) -> str:
    """Return the first names and how many more there are, in one line of a terminal."""
    some = ", ".join(map(printable, names[:shown]))
    return some if len(names) <= shown else f"{some} and {len(names) - shown} more"


def composed(name: str) -> str:
    """Return a name in the one form that is kept and shown: NFC."""
    return unicodedata.normalize("NFC", name)


def natural(name: str) -> tuple[list[tuple[int, str]], str, str]:
    """Return the key of an order in which 2.jpg is before 10.jpg, and which is the same on every system."""
    parts = re.split(r"(\d+)", composed(name).lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], composed(name), name


class FileLookup:
    """Files to be found by their names, or by what `part` makes of them, such as the stem.

    A file of exactly that name comes first; else those are found that differ in case or Unicode form only.
    """

    def __init__(self, paths: Iterable[Path], part: Callable[[Path], str] = attrgetter("name")) -> None:
        self._exact: dict[str, list[Path]] = defaultdict(list)
        self._alike: dict[str, list[Path]] = defaultdict(list)
        for path in paths:
            self._exact[part(path)].append(path)
            self._alike[_folded(part(path))].append(path)

    def find(self, name: str) -> list[Path]:
        return self._exact.get(name) or self._alike.get(_folded(name)) or []


def _folded(name: str) -> str:
    return composed(composed(name).casefold())
