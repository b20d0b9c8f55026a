"""The processes of a run on several hosts: how they find each other, and how the leader's word reaches the others."""

import atexit
import logging
import os
import pickle
import sys
import threading
import time
from contextlib import suppress
from itertools import count
from typing import Any

import jax

from booth.errors import UserError

log = logging.getLogger("booth")

GRACE_S = 10  # for a process to end by itself once another has failed


def start(coordinator: str, hosts: int, index: int) -> None:
    """Joins `hosts` processes, of which this is number `index`, at the address HOST:PORT of number 0. UserError."""
    if not coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator {coordinator!r} must be HOST:PORT of host 0, such as 10.0.0.2:1234")
    if not 0 <= index < hosts:
        raise UserError(f"--host {index} must be at least 0 and less than --hosts {hosts}")
    _initialize(
        coordinator_address=coordinator, num_processes=hosts, process_id=index, cluster_detection_method="deactivate"
    )


def join() -> "KeyValueHosts | None":
    """This process among those that were started together; None if it is alone.

    On Cloud TPU and under SLURM (srun) the environment says who they are; elsewhere `start` does. Asking how many there
    are starts the devices, which must be done on all hosts at once.
    """
    if not jax.distributed.is_initialized():
        if _under_srun():
            _initialize(**_devices_of_task())
        elif _on_cloud_tpu():
            try:
                _initialize()
            except OSError as error:  # a notebook's TPU: no metadata server describes its machine
                log.warning("nobody says which hosts there are (%s); going on with the devices of this one", error)
                return None
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return None
    return KeyValueHosts()


def _under_srun() -> bool:
    """Whether this is one of several tasks; a batch script by itself, outside srun, is one process."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in os.environ


def _devices_of_task() -> dict[str, list[int]]:
    """JAX would give a task of SLURM one GPU; the only task of a node gets all that are visible to it."""
    alone = os.environ.get("SLURM_STEP_NUM_TASKS") == os.environ.get("SLURM_STEP_NUM_NODES")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return {"local_device_ids": list(range(visible.count(",") + 1))} if alone and visible else {}


def _on_cloud_tpu() -> bool:
    """Whether this is a TPU VM, with other hosts as far as its environment says; its metadata server knows better."""
    from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm  # what JAX itself goes by; it has no public name

    named = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    several = named is None or "," in named or int(os.environ.get("MEGASCALE_NUM_SLICES", 1)) > 1
    return running_in_cloud_tpu_vm and several


def _initialize(**processes: Any) -> None:
    try:
        jax.distributed.initialize(**processes)
    except (RuntimeError, ValueError) as error:  # nobody came, or an address that is none
        raise UserError(f"the hosts do not find each other: {' '.join(str(error).split())}") from error


_sessions = count()  # in every process the same: each run is one


class KeyValueHosts:
    """Messages through the key-value store that every `jax.distributed` has: it does not wait for what devices are
    doing, as a broadcast would.

    A host that has failed says so there, and a thread on each host watches for it: who waits in a collective for one
    that will not come hears nothing else.
    """

    def __init__(self) -> None:
        from jax._src.distributed import global_state  # the store has no public name

        self._store: Any = global_state.client
        self.index, self.count = jax.process_index(), jax.process_count()
        self._keys = f"booth/{next(_sessions)}"
        self._number = 0  # of the last message
        self._kept = 1  # the oldest that is still in the store
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="hosts", daemon=True)
        self._watcher.start()
        # Before JAX's own way out, which waits for the others, and before threads are killed inside a call.
        atexit.register(self._watcher.join, 2 * GRACE_S)

    def send(self, message: Any) -> None:
        content = pickle.dumps(message)
        self._store.key_value_set_bytes(f"{self._keys}/{self._number + 1}", content)
        self._number += 1

    def receive(self) -> Any:
        message = pickle.loads(self._wait_for(f"{self._keys}/{self._number + 1}"))
        self._number += 1
        return message

    def confirm(self, failure: str) -> None:
        self._store.key_value_set_bytes(f"{self._keys}/{self._number}/{self.index}", failure.encode())

    def confirmed(self) -> list[str]:
        failures = [self._wait_for(f"{self._keys}/{self._number}/{index}").decode() for index in range(1, self.count)]
        for number in range(self._kept, self._number + 1):  # all have read them
            self._store.key_value_delete(f"{self._keys}/{number}")
        self._kept = self._number + 1
        return failures

    def fail(self, reason: str, code: int) -> None:
        with suppress(jax.errors.JaxRuntimeError):  # another was first
            self._store.key_value_set_bytes(f"{self._keys}/failed", pickle.dumps((self.index, reason, code)))

    def end(self) -> None:
        """If others do not confirm in time, this process stays under watch: its way out would wait for them."""
        began = time.monotonic()
        missing = set(range(1, self.count)) if self.index == 0 else set()
        while missing and time.monotonic() - began < GRACE_S:
            missing = {index for index in missing if self._ask(f"{self._keys}/{self._number}/{index}") is None}
        if not missing:
            self._over.set()
            self._watcher.join()

    def _watch(self) -> None:
        """Ends this process once one has failed, unless it ends by itself: Python's way out waits for the others."""
        while not self._over.is_set():
            content = self._ask(f"{self._keys}/failed")
            if content is not None:
                index, reason, code = pickle.loads(content)
                if not self._over.wait(GRACE_S):
                    if index != self.index:
                        print(f"jaxbooth: error: host {index} has failed: {reason}", file=sys.stderr, flush=True)
                    os._exit(code)
                return

    def _wait_for(self, key: str) -> bytes:
        while (value := self._ask(key)) is None:
            pass
        return value

    def _ask(self, key: str) -> bytes | None:
        """None if it is not there within a second: so Ctrl-C is heard."""
        try:
            value: bytes = self._store.blocking_key_value_get_bytes(key, 1000)
            return value
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            return None
