"""The command `fields`: list all settings of a run, or only those whose name or meaning has a word in it."""

import argparse
from typing import Any

from booth.common.errors import UserError
from booth.config.fields import ANY, FIELDS, Field
from booth.config.names import similar


def add_parser(commands: Any, package: str) -> None:
    parser = commands.add_parser("fields", help="list the settings of a run: names, defaults, meanings and rules")
    parser.add_argument(
        "word", nargs="?", default="", metavar="WORD", help="list only settings with this word in name or meaning"
    )
    parser.set_defaults(run=run)


def run(package: str, options: argparse.Namespace) -> None:
    """Print the table of settings."""
    print(table(options.word))


def table(word: str = "") -> str:
    """Return one line for each setting with the word in its name or meaning. Raise UserError if there is none."""
    found = [field for field in FIELDS if word.casefold() in f"{field.name} {field.meaning}".casefold()]
    if not found:
        close = similar(word)
        hint = f"did you mean {' or '.join(close)}?" if close else "give no word to list all settings"
        raise UserError(f"no setting has {word!r} in its name or meaning; {hint}")
    width = max(len(field.name) for field in found)
    return "\n".join(f"{field.name:<{width}}  {field.default!r:<10}  {_said(field)}" for field in found)


def _said(field: Field) -> str:
    return field.meaning + (f" ({field.said_rule})" if field.rule is not ANY else "")
