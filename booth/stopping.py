"""Stopping a run on request: Ctrl-C, or SIGTERM, which spot instances, TPU preemption and schedulers send."""

import os
import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop has saved its last update; `code` is the exit code, as shells have it."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step, self.code = step, 128 + number


class StopRequest:
    """Notes the first signal, so that the update at hand can be finished and saved; a second one interrupts at once.

    Only from `arm` on: before there is anything to save, a signal does what it does to any process, also while a
    framework compiles and Python hears nothing. `number` is the signal's, 0 if there was none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def arm(self) -> None:
        """From now on; signals are a matter of the main thread, elsewhere nothing happens."""
        if threading.current_thread() is threading.main_thread():
            # What a parent process ignores for us, as nohup does, stays ignored.
            numbers = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in numbers}

    def __enter__(self) -> "StopRequest":
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        # Not by way of a stream, in whose middle this may be.
        os.write(2, b"\nstopping: this update is finished and saved; once more stops at once\n")
