"""One command line for both backends: the commands, each in a module of its own, errors and exit codes.

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
from booth.common.signals import Interrupted, Stopped, deafness_ends

log = logging.getLogger("booth")

COMMANDS = (train, sample, evaluate, export, merge, push, report, doctor, plan, convert, fields, completion)
INTERRUPTED = 130  # as shells report Ctrl-C


def main(package: str, argv: Sequence[str] | None = None) -> int:
    """Run a command of `jaxbooth` or `torchbooth`; return the exit code. 2: something the user can mend."""
    _log_to_stderr()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with deafness_ends(package):
            options = parse(build_parser(package), arguments)
            options.run(package, options)
    except UserError as error:
        print(f"{package}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # no permission, a disk that is full or gone
        print(f"{package}: error: {error}; mend that and give the same command again", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"{package}: {stopped}, which is saved; the same command continues", file=sys.stderr)
        return stopped.code
    except KeyboardInterrupt as error:
        print(
            f"\n{package}: interrupted; the same command continues, training from its last checkpoint", file=sys.stderr
        )
        return error.code if isinstance(error, Interrupted) else INTERRUPTED
    return 0


def build_parser(package: str) -> Parser:
    """Return the parser of `jaxbooth` or `torchbooth`, with those of all its commands in `commands`."""
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
    """One line on stderr a message, above a progress bar that may be there."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        tqdm.write(prefix + record.getMessage(), file=sys.stderr)
