"""The processes of a run, one for each GPU, started by torchrun or accelerate launch: how they find each other, and
what `booth.common.hosts` asks of them."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from booth.common.errors import UserError
from booth.common.hosts import ALONE, Hosts, quiet_unless_first

_PATIENCE = timedelta(days=1)  # process 0 may push a pipeline for long while the others are at their end


def join() -> Hosts:
    """Join the processes that torchrun or accelerate launch started together.

    Raise UserError if they do not find each other.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return ALONE
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(local_device())
        try:
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", **_meeting())
        except (RuntimeError, ValueError) as error:  # no other process came, or an environment variable is missing
            raise UserError(f"the processes do not find each other: {' '.join(str(error).split())}") from error
    return quiet_unless_first(Processes())


def _meeting() -> dict[str, Any]:
    """Return where the processes meet.

    After a restart torchrun's store still holds the addresses of the processes before it, so each attempt has keys of
    its own there.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}  # as the environment says
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, count, is_master=False)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return {"store": dist.PrefixStore(f"attempt-{attempt}", store), "rank": rank, "world_size": count}


class Processes:
    """An implementation of `Hosts` over the network of the hosts, apart from the work of the devices."""

    def __init__(self) -> None:
        self.index, self.count = dist.get_rank(), dist.get_world_size()
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)

    def broadcast(self, content: bytes) -> bytes:
        length = torch.tensor(len(content))
        dist.broadcast(length, src=0, group=self._group)
        block = torch.frombuffer(bytearray(content), dtype=torch.uint8) if self.index == 0 else None
        if block is None:
            block = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(block, src=0, group=self._group)
        return block.numpy().tobytes()

    def largest(self, number: int) -> Callable[[], int]:
        answer = torch.tensor(number)
        work = dist.all_reduce(answer, dist.ReduceOp.MAX, group=self._group, async_op=True)

        def wait() -> int:
            work.wait()
            return int(answer)

        return wait

    def leave(self, code: int) -> None:
        pass  # torchrun sees that this process has ended, and ends the others; nothing here waits for them


def local_device() -> torch.device:
    """Return the GPU of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", 0))
    if index >= torch.cuda.device_count():
        raise UserError(f"process {index} has no GPU: there are {torch.cuda.device_count()}; start as many processes")
    return torch.device("cuda", index)
