"""Parse a command line: options by argparse, settings as NAME=VALUE, and hints for mistakes."""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from booth.common.errors import UserError
from booth.config import foreign_flags
from booth.config.names import BY_NAME, similar


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError; `commands` holds the parsers of its commands by name."""

    commands: Mapping[str, argparse.ArgumentParser]

    def error(self, message: str) -> Any:
        raise UserError(f"{message}; {self.prog} --help shows how it is used")


def parse(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line.

    Its settings are in `overrides` as (name, text), and the parser is in `parser`. Raise UserError if the command line
    cannot be read.
    """
    command = parser.commands.get(arguments[0]) if arguments else None
    overrides, others = _split(command, arguments) if command and _has_settings(command) else ([], list(arguments))
    try:
        options, unknown = parser.parse_known_args(others)
        if unknown:
            _refuse(parser, command, unknown)
    except UserError:
        if command and _has_settings(command) and (answer := _foreign(command, others[1:])):
            raise UserError(answer) from None
        raise
    options.overrides, options.parser = overrides, parser
    return options


def _has_settings(command: argparse.ArgumentParser) -> bool:
    """Return whether a command takes settings."""
    return "--config" in command._option_string_actions


def _split(command: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the settings, as (name, text), and the other arguments, options last.

    The value of an option is not a setting, and neither is an argument after `--`. Options come last because argparse
    treats an optional positional argument as missing if an option comes before it.
    """
    overrides: list[tuple[str, str]] = []
    words: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if override := _override(argument):
            overrides.append(override)
            continue
        (others if argument.startswith("-") else words).append(argument)
        if argument == "--":
            others += rest
        elif _takes_value(command, argument):
            others += _next(rest)
    return overrides, words + others


def _next(arguments: Iterator[str]) -> list[str]:
    return [argument for argument in [next(arguments, None)] if argument is not None]


def _takes_value(command: argparse.ArgumentParser, argument: str) -> bool:
    """Return whether an argument is an option, possibly abbreviated, whose value is the next argument."""
    options = command._option_string_actions
    named = [options[argument]] if argument in options else [
        action for option, action in options.items() if argument.startswith("--") and option.startswith(argument)
    ]  # fmt: skip
    return any(action.nargs is None for action in named)


def _override(argument: str) -> tuple[str, str] | None:
    """Return (name, text) of `NAME=VALUE` or `--config.NAME=VALUE`; None for any other argument.

    `NAME=VALUE` is a path if a file has that name and no setting is called NAME. An argument with a slash before "=" is
    also a path. Raise UserError for a setting without "=".
    """
    name, equals, text = argument.partition("=")
    if long := re.fullmatch(r"--config\.([\w.]+)", name):
        if not equals:
            raise UserError(f"{argument} must be written {argument}=VALUE")
        return long[1], text
    if "." in name and name in BY_NAME and not equals:
        raise UserError(f"{argument} must be written {argument}=VALUE")
    is_name = re.fullmatch(r"[A-Za-z_][\w.]*", name) is not None
    return (name, text) if equals and is_name and (name in BY_NAME or not _exists(argument)) else None


def _exists(path: str) -> bool:
    with suppress(OSError, ValueError):  # a name that is too long, or has a NUL character in it
        return Path(path).exists()
    return False


def _refuse(parser: Parser, command: argparse.ArgumentParser | None, unknown: Sequence[str]) -> None:
    """Raise UserError for arguments that a command does not have."""
    settings = [argument for argument in unknown if argument.startswith("--config.")]
    if settings:
        able = [name for name, other in parser.commands.items() if _has_settings(other)]
        names = f"{', '.join(able[:-1])} and {able[-1]}"
        raise UserError(f"{settings[0].partition('=')[0]} belongs to {names}; leave it out")
    parser.error(f"unrecognized arguments: {' '.join(unknown)}{_meant(unknown[0], command)}")


def _meant(unknown: str, command: argparse.ArgumentParser | None) -> str:
    """Return a hint for an unknown option: one of our options with "_" for "-", or a setting after dashes; or ""."""
    option, name = unknown.partition("=")[0].replace("_", "-"), unknown.removeprefix("--").partition("=")[0]
    if command is None or not unknown.startswith("--"):
        return ""
    if option in command._option_string_actions:
        return f"; did you mean {option}?"
    name = name.replace("-", "_")
    fields = [name] if name in BY_NAME else similar(name) if _has_settings(command) else []
    return f"; settings are given as {' or '.join(f'{field}=VALUE' for field in fields)}" if fields else ""


def _foreign(command: argparse.ArgumentParser, arguments: Sequence[str]) -> str | None:
    """Return the answer to the first option of another training script; None if there is none."""
    unknown = (one for one in arguments if one.partition("=")[0] not in command._option_string_actions)
    return next(filter(None, map(foreign_flags.answer, unknown)), None)
