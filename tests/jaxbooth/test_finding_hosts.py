"""Where several hosts are seen, and where not; the processes themselves are in tests/e2e/test_two_hosts.py."""

import jax
import pytest

from booth.common.errors import UserError
from booth.common.hosts import ALONE
from jaxbooth import hosts


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, None),
        # A batch script by itself: tasks are allotted, but this is not one of them.
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "node1"}, None),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "node[1-2]"}, {}),
        (
            {
                "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "node[1-2]",
                "CUDA_VISIBLE_DEVICES": "0,1,2,3",
            },
            {"local_device_ids": [0, 1, 2, 3]},
        ),
    ],
)  # fmt: skip
def test_the_environment_says_whether_there_are_others(monkeypatch, environment, asked):
    called = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: called.append(arguments))
    monkeypatch.setattr(hosts, "_has_tpu", lambda: False)
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hosts.join() is ALONE
    for arguments in called:  # a lost host is noticed soon, and nobody waits too little for one that still writes
        assert arguments.pop("heartbeat_timeout_seconds") <= 30
        assert arguments.pop("shutdown_timeout_seconds") >= 3600
    assert called == ([] if asked is None else [asked])


@pytest.mark.parametrize(
    ("names", "slices", "several"), [(None, None, True), ("a", None, False), ("a,b", None, True), ("a", "2", True)]
)
def test_a_tpu_vm_is_one_of_several_unless_it_says_otherwise(monkeypatch, names, slices, several):
    monkeypatch.setattr(hosts, "_has_tpu", lambda: True)
    for name, value in (("TPU_WORKER_HOSTNAMES", names), ("MEGASCALE_NUM_SLICES", slices)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    assert hosts._on_cloud_tpu() == several


def test_what_cannot_be_joined_is_one_line():
    with pytest.raises(UserError, match="--coordinator 'somewhere' must be HOST:PORT"):
        hosts.start("somewhere", 2, 0)
    with pytest.raises(UserError, match="--host 2 must be at least 0 and less than --hosts 2"):
        hosts.start("localhost:1234", 2, 2)
