"""`Hosts` through the key-value store that the processes of every framework share. Unlike a broadcast, it does not wait
for the devices.

A host that has failed says so in the store, and a thread on each host watches for that: the main thread may be waiting
in a collective for the failed host, where nothing else reaches it.
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

GRACE_S = 10  # how long a process may take to end by itself after another has failed

_sessions = count()  # numbers the runs, equally in every process


class Store(Protocol):
    """A store whose values, set in one process, can be read in all; each key is set once."""

    def set(self, key: str, value: bytes) -> None:
        """Set a key's value; do nothing if the key exists already."""
        ...

    def ask(self, key: str) -> bytes | None:
        """Return a key's value, or None if it does not appear within a second: the short wait lets Ctrl-C through.

        Two threads call this.
        """
        ...

    def delete(self, prefix: str) -> None:
        """Delete the key and, in some stores, all keys below it."""
        ...


class StoredMessages:
    """An implementation of `booth.common.hosts.Hosts`; `name` is the command's name, for error lines."""

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
        # This must run before the framework's own exit handler, which waits for the other processes, and before
        # threads are killed inside a call.
        atexit.register(self._watcher.join, 2 * GRACE_S)

    def send(self, message: Any) -> None:
        self._store.set(f"{self._keys}/{self._number + 1}", pickle.dumps(message))
        self._number += 1

    def receive(self) -> Any:
        message = pickle.loads(self._wait_for(f"{self._keys}/{self._number + 1}"))
        self._number += 1
        return message

    def confirm(self, failure: str) -> None:
        # Pickling makes the value never empty: not every store tells an empty value from a missing one.
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
        """If others do not confirm in time, keep the watcher thread running: the exit handler would wait for them."""
        began = time.monotonic()
        missing = set(range(1, self.count)) if self.index == 0 else set()
        while missing and time.monotonic() - began < GRACE_S:
            missing = {index for index in missing if self._store.ask(f"{self._keys}/{self._number}/{index}") is None}
        if not missing:
            self._over.set()
            self._watcher.join()

    def _watch(self) -> None:
        """End this process after another has failed, unless it ends by itself: Python's exit waits for the others."""
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
