"""Optimizer states in the memory of the host, fetched for the update of one tensor."""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from torchbooth.optim import SHARED_STATES

HOST = torch.device("cpu")


class HostStates:
    """Optimizer states in pinned memory of the host, which are on the device only for the update of their tensor.

    Copies run on a separate stream. While one tensor is updated, the states of the tensor that came next in the last
    update are copied already. On a CPU all memory is the same and everything runs in order; the same copies are made.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._host: dict[int, dict[str, torch.Tensor]] = {}  # by the id of a tensor's states
        self._next: dict[int, dict[str, Any]] = {}
        self._ahead: dict[int, tuple[dict[str, torch.Tensor], Any]] = {}
        self._before: dict[str, Any] | None = None
        self._stored: deque[Any] = deque()  # events that show when the copies back were done

    @contextmanager
    def fetched(self, state: dict[str, Any]) -> Iterator[None]:
        """Keep a tensor's states on the device inside the block."""
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
        """Wait until all copies to the host's memory are done."""
        if self._stream is not None:
            self._stream.synchronize()

    def _fetch(self, state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], Any]:
        """Return (copies on the device, the event after which they are complete)."""
        # Without this wait the host would run ahead of the copies, and in the end all states would be on the device.
        while len(self._stored) > 2:
            self._stored.popleft().synchronize()
        with self._copying():
            copies = {key: value.to(self._device, non_blocking=True) for key, value in movable(state)}
        if self._stream is None:
            return copies, None
        for copy in copies.values():
            copy.record_stream(
                torch.cuda.current_stream(self._device)
            )  # that stream uses the memory, which belongs to the copying stream
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
    """Return the optimizer states of one tensor that take memory and are not shared with other tensors."""
    return [
        (key, value)
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and value.numel() > 1 and key not in SHARED_STATES
    ]
