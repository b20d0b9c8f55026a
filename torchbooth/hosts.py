"""Joining the processes of a run: one for each GPU, started by torchrun or accelerate launch."""

import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from booth.common.errors import UserError
from booth.common.messages import StoredMessages


def join() -> StoredMessages | None:
    """Join the processes that torchrun or accelerate launch started together. Return None if this process is alone.

    Raise UserError if they do not find each other.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return None
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(local_device())
        try:
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        except (RuntimeError, ValueError) as error:  # no other process came, or an environment variable is missing
            raise UserError(f"the processes do not find each other: {' '.join(str(error).split())}") from error
    return StoredMessages(_RendezvousStore(), dist.get_rank(), dist.get_world_size(), "torchbooth")


def local_device() -> torch.device:
    """Return the GPU of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", 0))
    if index >= torch.cuda.device_count():
        raise UserError(f"process {index} has no GPU: there are {torch.cuda.device_count()}; start as many processes")
    return torch.device("cuda", index)


class _RendezvousStore:
    """The store where the processes met, over a separate connection, since the process group uses its own."""

    def __init__(self) -> None:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=60))

    def set(self, key: str, value: bytes) -> None:
        self._store.compare_set(key, "", value)  # type: ignore[arg-type]  # it takes bytes too

    def ask(self, key: str) -> bytes | None:
        # This polls, since waiting in the store would block the other thread of this process.
        for _ in range(500):
            if self._store.check([key]):
                value: bytes = self._store.get(key)
                return value
            time.sleep(0.002)
        return None

    def delete(self, prefix: str) -> None:
        self._store.delete_key(prefix)
