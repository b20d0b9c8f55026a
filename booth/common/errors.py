"""The one exception that is meant for the user to read."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """An error that the user can correct: one line that gives the value, the rule and the fix.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # a path may have a line break in it


class OutOfMemory(UserError):
    """The device has too little memory for a computation."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Put `what`, such as the name of a field, before the message of a UserError; an empty name adds nothing."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}" if what else str(error)) from error


# These end a program or a generator and are not errors. Any other BaseException is an error: a library written in Rust
# raises one when it panics, for example when memory runs out.
ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit)


def said_by(error: BaseException) -> str:
    """Return the message of a library's error, fit to be part of one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def reading(what: str, fix: str) -> Iterator[None]:
    """Replace whatever a library raises while it reads something with the UserError "WHAT (reason); FIX"."""
    try:
        yield
    except (UserError, *ENDS):
        raise
    except BaseException as error:
        raise UserError(f"{what} ({said_by(error)}); {fix}") from error


def not_finite(name: str) -> UserError:
    """Return the error for a trained tensor that holds NaN or infinity, which no checkpoint may hold."""
    return UserError(
        f"{name} is not finite any more: training diverged and nothing is saved; continue from the last checkpoint with"
        " a lower train.learning_rate"
    )
