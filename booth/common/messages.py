"""`Hosts` through a key-value store, which every framework's processes share: it does not wait for what devices are
doing, as a broadcast would.

A host that has failed says so there, and a thread on each host watches for it: who waits in a collective for one that
will not come hears nothing else.
"""

import atexit
import os
import pickle
import sys
import threading
import time
from itertools import count
from typing import Any, Protocol

from booth.common.signals import StopRequest

GRACE_S = 10  # for a process to end by itself once another has failed

_sessions = count()  # in every process the same: each run is one


class Store(Protocol):
    """What is set in one process can be read in all; a key is set once."""

    def set(self, key: str, value: bytes) -> None:
        """Nothing happens if the key is there already."""
        ...

    def ask(self, key: str) -> bytes | None:
        """None if it is not there within a second: so Ctrl-C is heard. Called from two threads."""
        ...

    def delete(self, prefix: str) -> None:
        """The key, and with some stores all below it."""
        ...


class StoredMessages:
    """The processes of a run, as `booth.common.hosts.Hosts` has them; `name` is the command's, for error lines."""

    def __init__(self, store: Store, index: int, count: int, name: str) -> None:
        self._store, self._name = store, name
        self.index, self.count = index, count
        self._keys = f"booth/{next(_sessions)}"
        self._number = 0  # of the last message
        self._kept = 1  # the oldest that is still in the store
        self._over = threading.Event()
        self._request: StopRequest | None = None
        self._watcher = threading.Thread(target=self._watch, name="hosts", daemon=True)
        self._watcher.start()
        # Before the framework's own way out, which waits for the others, and before threads are killed inside a call.
        atexit.register(self._watcher.join, 2 * GRACE_S)

    def send(self, message: Any) -> None:
        self._store.set(f"{self._keys}/{self._number + 1}", pickle.dumps(message))
        self._number += 1

    def receive(self) -> Any:
        message = pickle.loads(self._wait_for(f"{self._keys}/{self._number + 1}"))
        self._number += 1
        return message

    def confirm(self, failure: str) -> None:
        # Never empty: not every store tells an empty value from none.
        self._store.set(f"{self._keys}/{self._number}/{self.index}", pickle.dumps(failure))

    def confirmed(self) -> list[str]:
        answers = [self._wait_for(f"{self._keys}/{self._number}/{index}") for index in range(1, self.count)]
        for number in range(self._kept, self._number + 1):  # all have read them
            self._store.delete(f"{self._keys}/{number}")
        self._kept = self._number + 1
        return [pickle.loads(answer) for answer in answers]

    def fail(self, reason: str, code: int) -> None:
        self._store.set(f"{self._keys}/failed", pickle.dumps((self.index, reason, code)))

    def pass_on(self, request: StopRequest) -> None:
        self._request = request

    def end(self) -> None:
        """If others do not confirm in time, this process stays under watch: its way out would wait for them."""
        began = time.monotonic()
        missing = set(range(1, self.count)) if self.index == 0 else set()
        while missing and time.monotonic() - began < GRACE_S:
            missing = {index for index in missing if self._store.ask(f"{self._keys}/{self._number}/{index}") is None}
        if not missing:
            self._over.set()
            self._watcher.join()

    def _watch(self) -> None:
        """End this process once one has failed, unless it ends by itself: Python's way out waits for the others."""
        while not self._over.is_set():
            self._pass_on()
            content = self._store.ask(f"{self._keys}/failed")
            if content is not None:
                index, reason, code = pickle.loads(content)
                if not self._over.wait(GRACE_S):
                    if index != self.index:
                        print(f"{self._name}: error: host {index} has failed: {reason}", file=sys.stderr, flush=True)
                    os._exit(code)
                return

    def _pass_on(self) -> None:
        if self._request is None:
            return
        if self.index > 0 and self._request.number:
            self._store.set(f"{self._keys}/stop", pickle.dumps(self._request.number))
            self._request = None
        elif self.index == 0 and (content := self._store.ask(f"{self._keys}/stop")) is not None:
            self._request.number = self._request.number or pickle.loads(content)
            self._request = None

    def _wait_for(self, key: str) -> bytes:
        while (value := self._store.ask(key)) is None:
            pass
        return value
