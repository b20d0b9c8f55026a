"""Captions from file names: the words of a name, without what only tells files apart.

A last number is left out where a program put it: in brackets ("dog (2)"), after the word copy ("dog copy 2"), with
leading zeros ("dog_007"), or where the folder counts the same words up without a gap ("dog-1", "dog-2"). Any other
number is a word: "Porsche 911", "R2D2". What a camera calls its pictures ("IMG_1234") says nothing.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from booth.common.file_names import composed

_COPY = re.compile(r"\s*\(\d{1,3}\)|\scopy(\s\d+)?", re.IGNORECASE)
_CAMERAS = frozenset(["dsc", "dscf", "dscn", "gopr", "img", "mvimg", "pxl", "screenshot", "whatsapp"])
_OF_CAMERAS = frozenset(["am", "at", "cover", "e", "edited", "image", "mp", "pm", "wa"])  # what else such names have


def captions_from_names(stems: Sequence[str]) -> list[str]:
    """Return the caption of each name, which is without its suffix; empty where a name has no words."""
    names = [_without_copy(" ".join(re.split(r"[\s_-]+", composed(stem))).strip()) for stem in stems]
    numbers: dict[str, set[str]] = defaultdict(set)  # after the same words
    for name in names:
        words, number = _split(name)
        numbers[words].add(number)
    captions = []
    for name in names:
        words, number = _split(name)
        captions.append(words if number and _are_counters(numbers[words]) else name)
    return [caption if _says_something(caption) else "" for caption in captions]


def _without_copy(name: str) -> str:
    """Without what copying and downloading append, which may be several times."""
    kept = re.sub(f"({_COPY.pattern})+$", "", name, flags=re.IGNORECASE)
    return kept or name


def _split(name: str) -> tuple[str, str]:
    """(words, the number behind them), which is empty where there is none."""
    match = re.fullmatch(r"(.+) (\d+)", name)
    return (match[1], match[2]) if match else (name, "")


def _are_counters(numbers: Iterable[str]) -> bool:
    """Of all numbers that stand behind the same words in a folder; an empty one is that of the name without."""
    counted = sorted(int(number) for number in numbers if number)
    if any(re.match(r"0\d", number) for number in numbers):
        return True
    first = counted[0]
    without = "" in numbers
    return first <= 1 + without and len(counted) + without > 1 and counted == [*range(first, first + len(counted))]


def _says_something(caption: str) -> bool:
    words = re.findall(r"[^\d\s_().,-]+", caption.lower())
    return bool(words) and not (words[0] in _CAMERAS and _OF_CAMERAS.issuperset(words[1:]))
