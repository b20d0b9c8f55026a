"""What a text from the command line or from YAML means: the setting that it is for decides."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from booth.config import data_file
from booth.config.names import BY_NAME, field_named
from booth.config.values import CONCEPTS, WEIGHT, flat

_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


def parse_text(name: str, text: str) -> Any:
    """Return a command-line value in the field's type: booleans are true/false, never "any text is true"."""
    if field_named(name).kind is not tuple:
        return of_text(name, text)
    if not text.startswith("["):  # one prompt, whatever its ":" and "#" mean in YAML
        return (text,) if text else ()
    try:
        return of_text(name, data_file.from_yaml(text))
    except Exception:  # PyYAML raises what it likes
        return text


def of_text(name: str, value: Any) -> Any:
    """Return what a text from YAML or the command line means in a field, or as a concept's weight.

    A text that means nothing there stays as it is, and so does a value that is no text.
    """
    if name == CONCEPTS and isinstance(value, list):
        return [_concept(entry) for entry in value]
    kind = float if name == WEIGHT else BY_NAME[name].kind if name in BY_NAME else str
    if not isinstance(value, str):
        return value
    if kind is bool and value.lower() in (*_TRUE, *_FALSE):
        return value.lower() in _TRUE
    with suppress(ValueError, OverflowError):  # also of more digits than Python reads
        if kind is int:  # 010 is ten: who writes it aligns columns; 0x10 can only be sixteen
            return int(value, 0 if re.match(r"[+-]?0[xo]", value, re.IGNORECASE) else 10)
        if kind is float:
            return float(value)
    return value


def _concept(entry: Any) -> Any:
    return {key: of_text(key, value) for key, value in flat(entry).items()} if isinstance(entry, Mapping) else entry
