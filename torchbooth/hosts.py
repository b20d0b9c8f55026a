"""How the processes of a run find each other: one for each GPU, started by torchrun or accelerate launch."""

import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from booth.common.errors import UserError
from booth.common.messages import StoredMessages


def join() -> StoredMessages | None:
    """This process among those that torchrun or accelerate launch started together; None if it is alone. UserError."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return None
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(local_device())
        try:
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        except (RuntimeError, ValueError) as error:  # nobody came, or half of what must be said is missing
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
    """The store where the processes met, by a connection of its own: the one of the process group is for that."""

    def __init__(self) -> None:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=60))

    def set(self, key: str, value: bytes) -> None:
        self._store.compare_set(key, "", value)  # type: ignore[arg-type]  # it takes bytes too

    def ask(self, key: str) -> bytes | None:
        # Looks again and again: waiting in the store would keep the other thread of this process out of it.
        for _ in range(500):
            if self._store.check([key]):
                value: bytes = self._store.get(key)
                return value
            time.sleep(0.002)
        return None

    def delete(self, prefix: str) -> None:
        self._store.delete_key(prefix)
