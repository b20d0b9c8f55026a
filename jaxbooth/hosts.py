"""Joining the processes of a run on several hosts."""

import logging
import os
from contextlib import suppress
from typing import Any

import jax

from booth.common.errors import UserError
from booth.common.messages import StoredMessages

log = logging.getLogger("booth")


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


def join() -> StoredMessages | None:
    """Join the processes that were started together. Return None if this process is alone.

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
                return None
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return None
    return StoredMessages(_KeyValueStore(), jax.process_index(), jax.process_count(), "jaxbooth")


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
    from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm  # JAX itself uses it; it has no public name

    named = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    several = named is None or "," in named or int(os.environ.get("MEGASCALE_NUM_SLICES", 1)) > 1
    return running_in_cloud_tpu_vm and several


def _initialize(**processes: Any) -> None:
    # JAX's own handler would catch SIGTERM and do nothing. Our handler must get it, and before that the system's.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**processes)
    except (RuntimeError, ValueError) as error:  # no other host came, or the address is not valid
        raise UserError(f"the hosts do not find each other: {' '.join(str(error).split())}") from error


class _KeyValueStore:
    """The key-value store of `jax.distributed`."""

    def __init__(self) -> None:
        from jax._src.distributed import global_state  # it has no public name

        self._client: Any = global_state.client

    def set(self, key: str, value: bytes) -> None:
        with suppress(jax.errors.JaxRuntimeError):  # the key exists already
            self._client.key_value_set_bytes(key, value)

    def ask(self, key: str) -> bytes | None:
        try:
            value: bytes = self._client.blocking_key_value_get_bytes(key, 1000)
            return value
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            return None

    def delete(self, prefix: str) -> None:
        self._client.key_value_delete(prefix)
