"""Find settings by their dotted names, and suggest settings for unknown names."""

import difflib
import re
import reprlib

from booth.common.errors import UserError
from booth.config import foreign_flags
from booth.config.fields import FIELDS, Field

BY_NAME = {field.name: field for field in FIELDS}
SECTIONS = {name.partition(".")[0] for name in BY_NAME}

short = reprlib.Repr()  # values of a file may be large, and nested more deeply than repr() allows
short.maxstring = short.maxother = 200


def field_named(name: str) -> Field:
    """Return the field of this name. Raise UserError with a suggestion if the name is unknown."""
    if name not in BY_NAME:
        raise UserError(f"config field {short.repr(name)} does not exist{suggestion(name)}")
    return BY_NAME[name]


def similar(name: str) -> list[str]:
    """Return the fields that an unknown name may mean.

    The first of these that exists counts: the key of the same section with `lr` spelled out, the field for an option of
    other scripts, a similar key of the same section, an equal or similar key of any section.
    """
    section, key = name.partition(".")[0], name.rpartition(".")[2]
    inside = [field.partition(".")[2] for field in BY_NAME if field.startswith(section + ".")]
    everywhere = {field.rpartition(".")[2] for field in BY_NAME}
    if (spelled_out := re.sub(r"(?<![^_])lr(?![^_])", "learning_rate", key)) in {*inside} - {key}:
        return [f"{section}.{spelled_out}"]
    if key not in everywhere and (field := foreign_flags.field_of(key)):
        return [field]
    if close := difflib.get_close_matches(key, inside, n=1, cutoff=0.8):
        return [f"{section}.{close[0]}"]
    close = difflib.get_close_matches(key, everywhere, n=1, cutoff=0.8)
    return [field for field in BY_NAME if field.rpartition(".")[2] in close]


def suggestion(name: str) -> str:
    """Return the end of an error message: similar names, or else the names of the section."""
    if close := similar(name):
        return f"; did you mean {' or '.join(map(repr, close))}?"
    section = name.partition(".")[0]
    inside = [field.partition(".")[2] for field in BY_NAME if field.startswith(section + ".")]
    return f"; {section} has: {', '.join(inside)}" if inside else "; the command `fields` lists them"
