"""The one exception that is meant for the person at the keyboard."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user can mend: one line that gives the value, the rule and the fix.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # a path may have a line break in it


class OutOfMemory(UserError):
    """The device has too little memory for what was to be computed at once."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Say what a UserError from the depths is about, such as a field; nothing for an empty name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}" if what else str(error)) from error


# What ends a program or a generator and is no error. Whatever else is no Exception is one all the same: a library in
# Rust raises such where it panics, as for want of memory.
ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit)


def said_by(error: BaseException) -> str:
    """Return what a library's error says, as part of one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def reading(what: str, fix: str) -> Iterator[None]:
    """A UserError, "WHAT (reason); FIX", in place of whatever the library raises that reads something."""
    try:
        yield
    except (UserError, *ENDS):
        raise
    except BaseException as error:
        raise UserError(f"{what} ({said_by(error)}); {fix}") from error


def not_finite(name: str) -> UserError:
    """For a trained tensor with NaN or infinity in it, which no checkpoint may hold."""
    return UserError(
        f"{name} is not finite any more: training diverged and nothing is saved; continue from the last checkpoint with"
        " a lower train.learning_rate"
    )
