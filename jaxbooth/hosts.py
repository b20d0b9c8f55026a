"""The processes of a run on several hosts: how they find each other, and how the leader's word reaches the others."""

import logging
import os
import pickle
from typing import Any

import jax

from booth.errors import UserError

log = logging.getLogger("booth")

_PATIENCE_MS = 60_000  # of one request; it is made again as long as the leader lives


def start(coordinator: str, count: int, index: int) -> None:
    """Joins `count` processes, of which this is number `index`, at the address HOST:PORT of number 0. UserError."""
    if not coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator {coordinator!r} must be HOST:PORT of host 0, such as 10.0.0.2:1234")
    if not 0 <= index < count:
        raise UserError(f"--host {index} must be at least 0 and less than --hosts {count}")
    _initialize(coordinator_address=coordinator, num_processes=count, process_id=index)


def join() -> "KeyValueHosts | None":
    """This process among those that were started together; None if it is alone.

    On Cloud TPU and under SLURM (srun) the environment says who they are; elsewhere `start` does.
    """
    if not jax.distributed.is_initialized():
        if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in os.environ:
            _initialize()
        elif _on_cloud_tpu():
            try:
                _initialize()
            except UserError as error:  # a notebook's TPU, whose machine nobody describes
                log.warning("%s; going on with the devices of this host", error)
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return None
    return KeyValueHosts()


def _on_cloud_tpu() -> bool:
    """Whether this is a TPU VM, with other hosts as far as its environment says; its metadata server knows better."""
    from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm  # what JAX itself goes by; it has no public name

    named = os.environ.get("TPU_WORKER_HOSTNAMES")
    return running_in_cloud_tpu_vm and (named is None or "," in named)


def _initialize(**processes: Any) -> None:
    try:
        jax.distributed.initialize(**processes)
    except (RuntimeError, ValueError) as error:  # nobody came, or an address that is none
        raise UserError(f"the hosts do not find each other: {' '.join(str(error).split())}") from error


class KeyValueHosts:
    """Messages through the key-value store that every `jax.distributed` has: it is there before any device, and does
    not wait for what devices are doing, as a broadcast would."""

    def __init__(self) -> None:
        from jax._src.distributed import global_state  # the store has no public name

        self._store: Any = global_state.client
        self.index, self.count = jax.process_index(), jax.process_count()
        self._number = 0  # of the last message
        self._kept = 1  # the oldest that is still in the store

    def send(self, message: Any) -> None:
        self._number += 1
        self._store.key_value_set_bytes(f"booth/{self._number}", pickle.dumps(message))

    def receive(self) -> Any:
        self._number += 1
        return pickle.loads(self._wait_for(f"booth/{self._number}"))

    def confirm(self, failure: str) -> None:
        self._store.key_value_set_bytes(f"booth/{self._number}/{self.index}", failure.encode())

    def confirmed(self) -> list[str]:
        failures = [self._wait_for(f"booth/{self._number}/{index}").decode() for index in range(1, self.count)]
        for number in range(self._kept, self._number + 1):  # all have read them
            self._store.key_value_delete(f"booth/{number}")
        self._kept = self._number + 1
        return failures

    def _wait_for(self, key: str) -> bytes:
        while True:
            try:
                value: bytes = self._store.blocking_key_value_get_bytes(key, _PATIENCE_MS)
                return value
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
