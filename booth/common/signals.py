"""Stopping on request: Ctrl-C, a closed terminal, or the signals of schedulers and preempted machines.

Before the first update there is nothing to save: such a signal ends the process at once. After that, at the first
signal the current update is finished and saved, and a second signal ends the process at once. Exit codes are those of
shells: 128 plus the signal's number, 130 for Ctrl-C.

Of the other signals that end a process by default, SIGQUIT, SIGABRT and those of faults (SIGSEGV, SIGBUS, SIGFPE,
SIGILL, SIGTRAP, SIGSYS, SIGSTKFLT) end a process with a memory dump and are left alone; SIGALRM, SIGVTALRM, SIGPROF and
SIGIO (SIGPOLL) are timers and events that a process requests for itself; SIGXFSZ and SIGPIPE are errors of a write,
which Python turns into exceptions; SIGKILL cannot be caught.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from booth.common.errors import UserError

# The signals that ask a process to end, as far as this system has them, and who sends them.
_SIGNALS = tuple(
    signal.Signals[name]
    for name in (
        "SIGINT",  # Ctrl-C
        "SIGTERM",  # spot instances, TPU preemption, schedulers, `kill`
        "SIGHUP",  # a closed terminal or lost connection
        "SIGUSR1", "SIGUSR2",  # schedulers, some time before they end a job
        "SIGXCPU",  # the limit of processor time
        "SIGPWR",  # failing power
        "SIGBREAK",  # Windows: Ctrl-Break, a closed console
    )
    if name in signal.Signals.__members__
)  # fmt: skip
_MOMENT_S = 0.3
_DEAF_S = 5.0  # a signal ends the process if Python stays inside one call of a framework for longer than this

_heard_at = -math.inf  # when Python last came to handle a signal
_patient = threading.Event()  # the next signal may wait until the current call is over


class Interrupted(KeyboardInterrupt):
    """Raised when a signal ends the current work at once; `code` is the exit code."""

    def __init__(self, number: int, said: str = "interrupted") -> None:
        super().__init__(said)
        self.code = 128 + number


class Stopped(Interrupted):
    """Raised when a run that was asked to stop has saved its last update."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(number, f"stopped after step {step}")
        self.step = step


def exit_code(error: BaseException) -> int:
    """Return the code that a command ends with after an error: 128 plus its number for a signal (Ctrl-C: 130), 2 for
    what the user can fix, and 1 for anything else."""
    if isinstance(error, KeyboardInterrupt):
        return error.code if isinstance(error, Interrupted) else 128 + signal.SIGINT
    return 2 if isinstance(error, UserError | OSError) else 1


class StopRequest:
    """Notes the first signal, so that the current update can be finished and saved; a second one interrupts at once.

    This begins with `arm`. `number` is the signal's number, 0 if there was none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}
        self._at_once = False
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def arm(self) -> None:
        """Begin to note signals. Only the main thread receives signals; in any other thread nothing happens."""
        if threading.current_thread() is threading.main_thread():
            # A signal that a parent process has set to be ignored, as nohup does, stays ignored.
            numbers = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
            _patient.set()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let the first signal interrupt inside the block, for work that need not be finished, such as previews."""
        self._at_once = True
        try:
            if self.number:
                raise Interrupted(self.number)
            yield
        finally:
            self._at_once = False

    def __enter__(self) -> "StopRequest":
        return self

    def __exit__(self, *_: object) -> None:
        _patient.clear()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        _hear()
        if number == getattr(signal, "SIGHUP", None):
            self._leave_terminal()
        first = not self.number
        self.number = self.number or number
        if self._at_once or not first:
            raise Interrupted(number)
        with suppress(OSError):  # not through a stream: this handler may run in the middle of a write to it
            os.write(2, b"\nstopping: this update is finished and saved; a second Ctrl-C or signal stops at once\n")

    def _leave_terminal(self) -> None:
        """Redirect standard output and errors to the null device if they were a terminal: the terminal is gone, and
        writing to it would fail."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self._terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)


@contextmanager
def deafness_ends(name: str) -> Iterator[None]:
    """Let Ctrl-C end the process of command `name` even while Python cannot handle signals, because a framework
    compiles or computes.

    This applies to a command's main thread only, and not to Windows, where a second Ctrl-C ends a process anyway.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored or os.name == "nt" or threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.signal(signal.SIGINT, _interrupt), signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(reading, name), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before[1])
        signal.signal(signal.SIGINT, before[0])
        os.close(writing)  # which ends the thread


def _interrupt(number: int, frame: FrameType | None) -> None:
    _hear()
    raise KeyboardInterrupt


def _hear() -> None:
    global _heard_at
    _heard_at = time.monotonic()


def _listen(reading: int, name: str) -> None:
    """End the process if Python does not handle a signal in time: a handler runs only between two of Python's
    instructions, but a signal's number is written to this pipe at once."""
    while content := os.read(reading, 1):
        number, patient, came = content[0], _patient.is_set(), time.monotonic()
        _patient.clear()
        if number not in _SIGNALS or patient:
            continue
        # A handler may have run a moment before this thread did.
        while not (heard := _heard_at > came - _MOMENT_S) and time.monotonic() < came + _DEAF_S:
            time.sleep(0.02)
        if not heard:
            with suppress(OSError):
                os.write(2, f"\n{name}: stopped inside a computation; the same command continues\n".encode())
            os._exit(128 + number)
    os.close(reading)
