"""Captions from file names: the words of a name, without the parts that only distinguish files.

A number at the end is left out if a program added it: in brackets ("dog (2)"), after the word copy ("dog copy 2"), with
leading zeros ("dog_007"), or in a series without gaps of the same words in the folder ("dog-1", "dog-2"). Any other
number is a word: "Porsche 911", "R2D2". The names that cameras give ("IMG_1234") make no caption.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from booth.common.file_names import composed

_COPY = re.compile(r"\s*\(\d{1,3}\)|\scopy(\s\d+)?", re.IGNORECASE)
_CAMERAS = frozenset(["dsc", "dscf", "dscn", "gopr", "img", "mvimg", "pxl", "screenshot", "whatsapp"])
_OF_CAMERAS = frozenset(["am", "at", "cover", "e", "edited", "image", "mp", "pm", "wa"])  # further words of such names


def captions_from_names(stems: Sequence[str]) -> list[str]:
    """Return the caption of each name, given without its suffix; "" if a name has no words."""
    names = [_without_copy(" ".join(re.split(r"[\s_-]+", composed(stem))).strip()) for stem in stems]
    numbers: dict[str, set[str]] = defaultdict(set)  # the numbers that follow the same words
    for name in names:
        words, number = _split(name)
        numbers[words].add(number)
    captions = []
    for name in names:
        words, number = _split(name)
        captions.append(words if number and _are_counters(numbers[words]) else name)
    return [caption if _says_something(caption) else "" for caption in captions]


def _without_copy(name: str) -> str:
    """Return the name without what copying and downloading append, even several times."""
    kept = re.sub(f"({_COPY.pattern})+$", "", name, flags=re.IGNORECASE)
    return kept or name


def _split(name: str) -> tuple[str, str]:
    """Return (the words, the number after them or "" if there is none)."""
    match = re.fullmatch(r"(.+) (\d+)", name)
    return (match[1], match[2]) if match else (name, "")


def _are_counters(numbers: Iterable[str]) -> bool:
    """Return whether the numbers that follow the same words in a folder only count files; "" is a name without one."""
    counted = sorted(int(number) for number in numbers if number)
    if any(re.match(r"0\d", number) for number in numbers):
        return True
    first = counted[0]
    without = "" in numbers
    return first <= 1 + without and len(counted) + without > 1 and counted == [*range(first, first + len(counted))]


def _says_something(caption: str) -> bool:
    words = re.findall(r"[^\d\s_().,-]+", caption.lower())
    return bool(words) and not (words[0] in _CAMERAS and _OF_CAMERAS.issuperset(words[1:]))
