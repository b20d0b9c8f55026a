"""Names of files: how they are shown, ordered and compared.

One name can be written in several ways: macOS separates letters from their accents (Unicode's NFD), other systems do
not (NFC), and some systems ignore case. Files move between systems, so names are compared without regard to these
differences.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from pathlib import Path


def printable(text: str) -> str:
    """Return the text fit for one line of a terminal: line ends, ESC, bytes that are not UTF-8 and the like become
    escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def listed(names: Sequence[str], shown: int = 5) -> str:
    """Return the first names and how many more there are, as one line for a terminal."""
    some = ", ".join(map(printable, names[:shown]))
    return some if len(names) <= shown else f"{some} and {len(names) - shown} more"


def composed(name: str) -> str:
    """Return a name in the form that is stored and shown: NFC."""
    return unicodedata.normalize("NFC", name)


def natural(name: str) -> tuple[list[tuple[int, str]], str, str]:
    """Return a sort key that puts 2.jpg before 10.jpg and gives the same order on every system."""
    parts = re.split(r"(\d+)", composed(name).lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], composed(name), name


class FileLookup:
    """Finds files by name, or by what `part` takes from the path, such as the stem.

    A file of exactly that name wins; otherwise files whose names differ only in case or Unicode form are found.
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
