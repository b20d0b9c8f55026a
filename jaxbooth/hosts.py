"""The processes of a run on several hosts: how they find each other, and what `booth.common.hosts` asks of them."""

import atexit
import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from booth.common.errors import UserError
from booth.common.hosts import ALONE, Hosts, quiet_unless_first

log = logging.getLogger("booth")

_SIZES = (1 << 12, 1 << 24)  # bytes that are sent at once: a size of array is compiled only once
_HEARTBEAT_S = 10  # a process that does not say for so long that it lives is taken for lost, and all end
_PATIENCE_S = 24 * 3600  # host 0 may push a pipeline for long while the others are at their end


def start(coordinator: str, hosts: int, index: int) -> None:
    """Join `hosts` processes at the address HOST:PORT of number 0; this one is number `index`. Raise UserError if they
    do not find each other."""
    if not coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator {coordinator!r} must be HOST:PORT of host 0, such as 10.0.0.2:1234")
    if not 0 <= index < hosts:
        raise UserError(f"--host {index} must be at least 0 and less than --hosts {hosts}")
    _initialize(
        coordinator_address=coordinator, num_processes=hosts, process_id=index, cluster_detection_method="deactivate"
    )


def join() -> Hosts:
    """Join the processes that were started together.

    On Cloud TPU and under SLURM (srun) the environment names the processes; elsewhere `start` does. Asking how many
    there are starts the devices, which must happen on all hosts at once.
    """
    if not jax.distributed.is_initialized():
        if _under_srun():
            _initialize(**_devices_of_task())
        elif _on_cloud_tpu():
            try:
                _initialize()
            except OSError as error:  # a notebook's TPU has no metadata server that describes it
                log.warning("cannot find out about other hosts (%s); continuing with the devices of this one", error)
                return ALONE
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return ALONE
    return quiet_unless_first(Processes())


class Processes:
    """An implementation of `Hosts` by collectives of the devices, of which every process has some."""

    def __init__(self) -> None:
        self.index, self.count = jax.process_index(), jax.process_count()
        firsts = {device.process_index: device for device in reversed(jax.devices())}
        mesh = Mesh(np.array([firsts[index] for index in range(self.count)]), "processes")
        self._one_each, shared = NamedSharding(mesh, P("processes")), NamedSharding(mesh, P())
        self._max = jax.jit(jnp.max, out_shardings=shared)

    def broadcast(self, content: bytes) -> bytes:
        """Send the length, and then the content in blocks of the size that fits it."""
        length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
        size = next((size for size in _SIZES if length <= size), _SIZES[-1])
        blocks = []
        for begin in range(0, length, size):
            block = np.zeros(size, np.uint8)
            if self.index == 0:
                part = np.frombuffer(content[begin : begin + size], np.uint8)
                block[: len(part)] = part
            blocks.append(np.asarray(multihost_utils.broadcast_one_to_all(block)).astype(np.uint8).tobytes())
        return b"".join(blocks)[:length]

    def largest(self, number: int) -> Callable[[], int]:
        numbers = jax.make_array_from_process_local_data(self._one_each, np.array([number], np.int32))
        answer = self._max(numbers)
        return lambda: int(answer)

    def leave(self, code: int) -> None:
        # This runs before JAX's own exit handler, which waits for the other processes.
        atexit.register(_exit, code)


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _under_srun() -> bool:
    """Return whether this is one of several tasks; a batch script by itself, outside srun, is one process."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in os.environ


def _devices_of_task() -> dict[str, list[int]]:
    """Return the devices of a SLURM task. JAX would give it one GPU; the only task of a node gets all visible ones."""
    alone = os.environ.get("SLURM_STEP_NUM_TASKS") == os.environ.get("SLURM_STEP_NUM_NODES")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return {"local_device_ids": list(range(visible.count(",") + 1))} if alone and visible else {}


def _on_cloud_tpu() -> bool:
    """Return whether this is a TPU VM that may have other hosts, by its environment; its metadata server decides."""
    named = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    several = named is None or "," in named or int(os.environ.get("MEGASCALE_NUM_SLICES", 1)) > 1
    return several and _has_tpu()


def _has_tpu() -> bool:
    """Return whether this machine has TPU chips, without starting them."""
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _initialize(**processes: Any) -> None:
    # JAX's own handler would catch SIGTERM and do nothing. Our handler must get it, and before that the system's.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **processes, heartbeat_timeout_seconds=_HEARTBEAT_S, shutdown_timeout_seconds=_PATIENCE_S
        )
    except (RuntimeError, ValueError) as error:  # no other host came, or the address is not valid
        raise UserError(f"the hosts do not find each other: {' '.join(str(error).split())}") from error
