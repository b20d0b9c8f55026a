"""The processes of a run. All of them run the same program (SPMD): randomness is a function of seed and step, so the
same decisions fall everywhere, and what only process 0 can know it tells the others.

What a backend must provide is `Hosts`, a few collective operations: every process calls them in the same order. The
functions below are what the core uses.
"""

import io
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np

from booth.common.errors import UserError
from booth.common.signals import Stopped, StopRequest, exit_code

log = logging.getLogger("booth")

Result = TypeVar("Result")


class Hosts(Protocol):
    """The processes of a run, seen from one of them."""

    index: int  # 0 is the process that has the photos, and writes what is one for all
    count: int

    def broadcast(self, content: bytes) -> bytes:
        """Return on every process what process 0 gives; what the others give is ignored."""
        ...

    def largest(self, number: int) -> Callable[[], int]:
        """Begin to find the largest of the small numbers that the processes give. The result waits for it."""
        ...

    def leave(self, code: int) -> None:
        """Let this process, which has failed, end with this code as soon as it has said why: it must not wait for the
        others, who wait for it. The framework notices that it is gone, and ends them."""
        ...


# Neither framework has a type for it: both repeat what the library says that connects processors. Between accelerators
# nothing is raised, and the framework ends the process.
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


class AgreedError(UserError):
    """An error that all processes raise, so that nobody has to be ended because of it."""


class Alone:
    """One process, which agrees with itself: an implementation of `Hosts`."""

    index, count = 0, 1

    def broadcast(self, content: bytes) -> bytes:
        return content

    def largest(self, number: int) -> Callable[[], int]:
        return lambda: number

    def leave(self, code: int) -> None:
        pass


ALONE = Alone()


def from_first(hosts: Hosts, make: Callable[[], Result]) -> Result:
    """Return on every process what `make` returns on process 0: plain data, as `packed` describes.

    If it raises UserError or OSError, all processes raise UserError with its message. Within `make` there must be no
    collective operation, as only process 0 calls it.
    """
    if hosts.count == 1:
        return make()
    if hosts.index > 0:
        told = unpacked(hosts.broadcast(b""))
        if "failure" in told:
            raise AgreedError(f"host 0 has stopped: {told['failure']}")
        return told["result"]  # type: ignore[no-any-return]
    try:
        content = packed({"result": make()})
    except (UserError, OSError) as error:
        hosts.broadcast(packed({"failure": str(error)}))
        raise AgreedError(str(error)) from error
    return unpacked(hosts.broadcast(content))["result"]  # type: ignore[no-any-return]


def on_all(hosts: Hosts, make: Callable[[], Result]) -> Result:
    """Return what `make` returns on this process. If it raises UserError or OSError on one, all processes raise
    UserError; those that did not fail name the one that did."""
    if hosts.count == 1:
        return make()
    try:
        result = make()
    except (UserError, OSError) as error:
        hosts.largest(hosts.index + 1)()
        raise AgreedError(str(error)) from error
    if failed := hosts.largest(0)():
        raise AgreedError(f"host {failed - 1} of {hosts.count} has failed and says why in its own output")
    return result


def stop_asked(hosts: Hosts, request: StopRequest) -> Callable[[], int]:
    """Return a function for the end of each update: the number of the signal that asked any process to stop, or 0.

    Several processes learn of a signal one update late, when that answer is there and nobody has to wait for it.
    """
    if hosts.count == 1:
        return lambda: request.number
    answers: deque[Callable[[], int]] = deque()

    def asked() -> int:
        answers.append(hosts.largest(request.number))
        return answers.popleft()() if len(answers) > 1 else 0

    return asked


@contextmanager
def ended_together(hosts: Hosts) -> Iterator[None]:
    """If the block fails on this process alone, let it leave, so that the others are ended and do not wait for ever."""
    try:
        yield
    except BaseException as error:
        lost = hosts.count > 1 and any(said in str(error) for said in _LOST)
        if not isinstance(error, Stopped | AgreedError):
            hosts.leave(exit_code(UserError("") if lost else error))
        if lost:
            raise UserError("another process of this run has ended, and says why in its own output") from error
        raise


def quiet_unless_first(hosts: Hosts) -> Hosts:
    """Return the same; on all processes but the first silence the log, which says the same on all, and progress."""
    log.info("host %d of %d", hosts.index, hosts.count)
    if hosts.index:
        log.setLevel(logging.ERROR)
    return hosts


def packed(data: Any) -> bytes:
    """Return plain data as bytes: None, numbers, texts, lists, dicts with texts as keys, and NumPy arrays.
    Nothing in it can run code. Raise TypeError for anything else."""
    arrays: list[np.ndarray] = []

    def placeholder(array: Any) -> dict[str, int]:
        if not isinstance(array, np.ndarray) or array.dtype.hasobject:
            raise TypeError(f"{type(array).__name__} is not plain data")
        arrays.append(array)
        return {"array": len(arrays) - 1}

    text = json.dumps(data, default=placeholder)  # which is called for each array
    buffer = io.BytesIO()
    np.savez(buffer, np.frombuffer(text.encode(), np.uint8), *arrays)
    return buffer.getvalue()


def unpacked(content: bytes) -> Any:
    """Return what `packed` was given; tuples are lists now."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:

        def filled(entry: dict[str, Any]) -> Any:
            return file[f"arr_{entry['array'] + 1}"] if entry.keys() == {"array"} else entry

        return json.loads(file["arr_0"].tobytes(), object_hook=filled)
