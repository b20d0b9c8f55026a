"""The command line of both backends: the list of commands, error messages and exit codes.

A command is a module with `add_parser(commands, package)`, which describes it, and `run(package, options)`.
"""

import importlib.metadata
import logging
import sys
from collections.abc import Sequence

from tqdm import tqdm

from booth.commands import (
    completion,
    convert,
    doctor,
    evaluate,
    export,
    fields,
    merge,
    plan,
    push,
    report,
    sample,
    train,
)
from booth.commands.parsing import Parser, parse
from booth.common.errors import UserError
from booth.common.signals import Stopped, deafness_ends, exit_code

log = logging.getLogger("booth")

COMMANDS = (train, sample, evaluate, export, merge, push, report, doctor, plan, convert, fields, completion)


def main(package: str, argv: Sequence[str] | None = None) -> int:
    """Run a command of `jaxbooth` or `torchbooth` and return the exit code.

    The code is 0 for success, 2 for an error that the user can fix, and 128 plus its number for a signal (Ctrl-C: 130).
    """
    _log_to_stderr()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with deafness_ends(package):
            options = parse(build_parser(package), arguments)
            options.run(package, options)
    except UserError as error:
        print(f"{package}: error: {error}", file=sys.stderr)
        return exit_code(error)
    except OSError as error:  # for example: no permission, or a disk that is full or missing
        print(f"{package}: error: {error}; fix this and run the same command again", file=sys.stderr)
        return exit_code(error)
    except Stopped as stopped:
        print(f"{package}: {stopped}, which is saved; the same command continues", file=sys.stderr)
        return exit_code(stopped)
    except KeyboardInterrupt as error:
        print(
            f"\n{package}: interrupted; the same command continues, training from its last checkpoint", file=sys.stderr
        )
        return exit_code(error)
    return 0


def build_parser(package: str) -> Parser:
    """Return the parser of `jaxbooth` or `torchbooth`; its `commands` hold the parsers of all commands by name."""
    parser = Parser(prog=package, description="DreamBooth fine-tuning of Stable Diffusion")
    parser.add_argument("--version", action="version", version=f"{package} {_version()}")
    commands = parser.add_subparsers(required=True)
    for command in COMMANDS:
        command.add_parser(commands, package)
    parser.commands = commands.choices
    commands.metavar = "|".join(commands.choices)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("booth")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _log_to_stderr() -> None:
    if not log.handlers:
        log.addHandler(_AboveProgress())
        log.setLevel(logging.INFO)
        log.propagate = False


class _AboveProgress(logging.Handler):
    """A log handler that writes each message as one line to stderr, above the progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        tqdm.write(prefix + record.getMessage(), file=sys.stderr)
