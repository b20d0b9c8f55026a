"""Write the generated pages of docs/reference: the settings, and the commands with their options.

python scripts/make_reference.py            write settings.md and commands.md

`tests/e2e/test_reference.py` compares the pages with the output of this script. The text depends only on the code, not
on the version of Python or the width of the terminal.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from booth.commands import cli
from booth.config.fields import FIELDS, Field

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
WRITTEN = "This page is written by `scripts/make_reference.py`: change the code, not the page."
BACKENDS = ("torchbooth", "jaxbooth")


def pages() -> dict[str, str]:
    """Return {file name: text} of the generated pages."""
    return {"settings.md": settings_page(), "commands.md": commands_page()}


def settings_page() -> str:
    sections: dict[str, list[Field]] = {}
    for field in FIELDS:
        sections.setdefault(field.name.partition(".")[0], []).append(field)
    lines = [
        "# Settings",
        "",
        "Every setting of a run, with its default. Give one in a config file, or as `NAME=VALUE` on the command line;",
        "`torchbooth fields WORD` finds one. [Training options](../guide/training-options.md) says which settings",
        "people change, and why. A setting with the rule *may change* can have another value when a run is resumed.",
        "",
        WRITTEN,
    ]
    for section, fields in sections.items():
        lines += ["", f"## {section}", "", "| setting | default | meaning | rules |", "|---|---|---|---|"]
        lines += [
            _row(_code(field.name), _code(_value(field.default)), _text(field.meaning), _text(_rules(field)))
            for field in fields
        ]
    return "\n".join(lines) + "\n"


def _value(default: Any) -> str:
    """Return a default in the form in which YAML has it."""
    if isinstance(default, bool):
        return str(default).lower()
    if default in ("", ()):
        return {"": "''", (): "[]"}[default]
    return str(default)


def _rules(field: Field) -> str:
    """Return the rule for a value, the settings with which the field has an effect, and whether it may change."""
    rules = [] if field.said_rule == "anything" else [field.said_rule]
    if field.needs:
        rules.append("has an effect with " + " or ".join(f"`{needs.name}`: {needs.rule.text}" for needs in field.needs))
    return "; ".join(rules + ["*may change*"] * field.may_change)


def commands_page() -> str:
    parsers = {backend: command_parsers(backend) for backend in BACKENDS}
    names = list(dict.fromkeys(name for backend in BACKENDS for name in parsers[backend]))
    lines = [
        "# Commands",
        "",
        "`torchbooth` and `jaxbooth` have the same commands and options, except where a backend is named here.",
        "`python -m torchbooth.train` is `torchbooth train`, and likewise for jaxbooth. A command that takes",
        "`--config` also takes any number of `NAME=VALUE`, or `--config.NAME=VALUE`; see [settings](settings.md).",
        "",
        WRITTEN,
    ]
    for name in names:
        found = {backend: parsers[backend][name] for backend in BACKENDS if name in parsers[backend]}
        lines += ["", f"## {name}", ""]
        lines += [_purpose({backend: purpose for backend, (purpose, _) in found.items()}), ""]
        lines += ["| option | meaning |", "|---|---|"]
        rows: dict[str, list[str]] = {}
        for backend, (_, parser) in found.items():
            for action in _actions(parser):
                rows.setdefault(_row(_signature(action), _text(_meaning(parser, action))), []).append(backend)
        for row, backends in rows.items():
            where = f" ({backends[0]})" if len(backends) < len(found) else ""
            lines.append(row.removesuffix(" |") + where + " |")
    return "\n".join(lines) + "\n"


def _purpose(purposes: Mapping[str, str]) -> str:
    """Return the purpose of a command, with the backend if the backends differ or only one has the command."""
    sentences = {backend: text[:1].upper() + text[1:].rstrip(".") + "." for backend, text in purposes.items()}
    if len(set(sentences.values())) > 1:
        return " ".join(f"{backend}: {sentence}" for backend, sentence in sentences.items())
    (backend, sentence), *others = sentences.items()
    return sentence if others else f"{sentence} Only {backend} has this command."


def command_parsers(backend: str) -> dict[str, tuple[str, argparse.ArgumentParser]]:
    """Return {command: (purpose, parser)} of `torchbooth` or `jaxbooth`, in their order."""
    (commands,) = (
        action for action in cli.build_parser(backend)._actions if isinstance(action, argparse._SubParsersAction)
    )
    purposes = {choice.dest: choice.help or "" for choice in commands._choices_actions}
    return {name: (purposes[name], commands.choices[name]) for name in purposes}


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    return (
        action
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction) and action.help != argparse.SUPPRESS
    )


def _signature(action: argparse.Action) -> str:
    """Return the form in which an option is written, such as `--steps N`."""
    value = ""
    if action.nargs != 0:
        value = "|".join(map(str, action.choices)) if action.choices else _metavar(action)
        value += " ..." if action.nargs in ("+", "*") else ""
    return _code(f"{', '.join(action.option_strings)} {value}".strip())


def _metavar(action: argparse.Action) -> str:
    return str(action.metavar or (action.dest if not action.option_strings else action.dest.upper()))


def _meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    groups = [group for group in parser._mutually_exclusive_groups if action in group._group_actions]
    others = [_code("/".join(other.option_strings)) for group in groups for other in group._group_actions
              if other is not action]  # fmt: skip
    said = action.required or "default" in text or action.default in (None, "", [], False, argparse.SUPPRESS)
    notes = ["**required**"] * bool(action.required)
    notes += [] if said else [f"default: {action.default}"]
    notes += [f"either this or {' or '.join(others)}"] * bool(others)
    notes += ["may be given several times"] * (isinstance(action, argparse._AppendAction) and "several" not in text)
    return "; ".join([text] * bool(text) + notes)


def _code(text: str) -> str:
    return f"`{text}`"


def _text(text: str) -> str:
    """Return a text in which no part can be read as HTML."""
    return text.replace("<", "&lt;")


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8", newline="\n")
        print(REFERENCE / name)


if __name__ == "__main__":
    main()
