"""Optimizer states in the memory of the host, fetched for the update of one tensor."""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from torchbooth.optim import SHARED_STATES

HOST = torch.device("cpu")


class HostStates:
    """Optimizer states that live in pinned memory of the host and are on the device for their tensor's update only.

    Copies run on a stream of their own. While one tensor is updated, the states of the one that came next the last
    time are on their way. On a CPU everything is in one memory and in order already; the same copies are made.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._host: dict[int, dict[str, torch.Tensor]] = {}  # by id of a tensor's states
        self._next: dict[int, dict[str, Any]] = {}
        self._ahead: dict[int, tuple[dict[str, torch.Tensor], Any]] = {}
        self._before: dict[str, Any] | None = None
        self._stored: deque[Any] = deque()  # when copies back were done

    @contextmanager
    def fetched(self, state: dict[str, Any]) -> Iterator[None]:
        """Inside, a tensor's states are on the device."""
        arriving, event = self._ahead.pop(id(state)) if id(state) in self._ahead else self._fetch(state)
        if self._before is not None:
            self._next[id(self._before)] = state
        self._before = state
        following = self._next.get(id(state))
        if following is not None and following is not state and id(following) not in self._ahead:
            self._ahead[id(following)] = self._fetch(following)
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)
        state.update(arriving)
        yield
        self._store(state)

    def wait(self) -> None:
        """Until all copies to the host's memory are done."""
        if self._stream is not None:
            self._stream.synchronize()

    def _fetch(self, state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], Any]:
        """(copies on the device, the event after which they are there)."""
        # The host would run ahead of the copies, and all states be on the device in the end.
        while len(self._stored) > 2:
            self._stored.popleft().synchronize()
        with self._copying():
            copies = {key: value.to(self._device, non_blocking=True) for key, value in movable(state)}
        if self._stream is None:
            return copies, None
        for copy in copies.values():
            copy.record_stream(torch.cuda.current_stream(self._device))  # which will use memory of the other's
        return copies, self._stream.record_event()

    def _store(self, state: dict[str, Any]) -> None:
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        buffers = self._host.setdefault(id(state), {})
        with self._copying():
            for key, value in movable(state):
                if key not in buffers:
                    buffers[key] = torch.empty(
                        value.shape, dtype=value.dtype, device=HOST, pin_memory=self._stream is not None
                    )
                buffers[key].copy_(value, non_blocking=True)
                if self._stream is not None:
                    value.record_stream(self._stream)
        if self._stream is not None:
            self._stored.append(self._stream.record_event())
        state.update(buffers)

    def _copying(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream) if self._stream is not None else nullcontext()


def movable(state: Mapping[str, Any]) -> list[tuple[str, torch.Tensor]]:
    """Of one tensor's optimizer states what takes memory, and is its own."""
    return [
        (key, value)
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and value.numel() > 1 and key not in SHARED_STATES
    ]
