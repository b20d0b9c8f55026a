"""Convert texts from the command line or from YAML into values; the setting decides what a text means."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from booth.config import data_file
from booth.config.names import BY_NAME, field_named
from booth.config.values import CONCEPTS, WEIGHT, flat

_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


def parse_text(name: str, text: str) -> Any:
    """Return a command-line value in the field's type.

    A text that has no meaning in the field is returned as it is. Raise UserError for an unknown name.
    """
    if field_named(name).kind is not tuple:
        return of_text(name, text)
    if not text.startswith("["):  # a single prompt, in which ":" and "#" have no meaning
        return (text,) if text else ()
    try:
        return of_text(name, data_file.from_yaml(text))
    except Exception:  # PyYAML may raise any exception
        return text


def of_text(name: str, value: Any) -> Any:
    """Return the value of a text from YAML or the command line for a field or a concept's weight.

    A text that has no meaning there is returned as it is, and so is a value that is not a text.
    """
    if name == CONCEPTS and isinstance(value, list):
        return [_concept(entry) for entry in value]
    kind = float if name == WEIGHT else BY_NAME[name].kind if name in BY_NAME else str
    if not isinstance(value, str):
        return value
    if kind is bool and value.lower() in (*_TRUE, *_FALSE):
        return value.lower() in _TRUE
    with suppress(ValueError, OverflowError):  # for example, more digits than Python reads
        if kind is int:  # 010 is ten, because zeros may align columns; 0x10 is sixteen
            return int(value, 0 if re.match(r"[+-]?0[xo]", value, re.IGNORECASE) else 10)
        if kind is float:
            return float(value)
    return value


def _concept(entry: Any) -> Any:
    return {key: of_text(key, value) for key, value in flat(entry).items()} if isinstance(entry, Mapping) else entry
