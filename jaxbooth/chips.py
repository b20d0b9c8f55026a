"""TPU chips, and the devices of a TPU slice as the TPU compiler describes them, without a TPU."""

import importlib.util
import os
import re
from dataclasses import dataclass
from typing import Any

import jax

from booth.common.errors import UserError


@dataclass(frozen=True)
class Chip:
    """One device: a core of v2 and v3, a chip of the others.

    `flops` are bfloat16 operations per second; `clock` is that of the matrix units, in Hz; `hbm_gib` is the memory that
    the compiler lets a program use; `link` is the number of bytes per second that a device receives from the others
    over all links. `network` is the number of bytes per second that it receives from other slices; None where Google
    does not say it. These are Google's figures (cloud.google.com/tpu/docs/system-architecture-tpu-vm, and for the
    network docs/v6e, per pod of 256 chips); the clock is computed from the operations per second.
    """

    flops: float
    clock: float
    hbm_gib: float
    link: float
    network: float | None = None


CHIPS = {
    "TPU v2": Chip(23e12, 700e6, 7.5, 62e9),
    "TPU v3": Chip(61.5e12, 940e6, 15.48, 82e9),
    "TPU v4": Chip(275e12, 1050e6, 30.75, 300e9),
    "TPU v5 lite": Chip(197e12, 1500e6, 15.75, 200e9, 3.1e9),
    "TPU v5": Chip(459e12, 1750e6, 95.0, 600e9),
    "TPU v6 lite": Chip(918e12, 1750e6, 31.25, 448e9, 12.5e9),
}


# On v4 and v5p both cores of a chip are used as one device.
_OPTIONS: dict[str, dict[str, Any]] = {
    "v5e:1x1": {"chips_per_host_bounds": (1, 1, 1)},
    "v6e:1x1": {"chips_per_host_bounds": (1, 1, 1)},
}


def devices_of(topology: str) -> list[Any]:
    """Return the devices of a slice such as v3:2x2, or of several, such as 2xv5e:2x4. Raise UserError if libtpu is
    missing or does not know the slice."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the TPU compiler is not installed; pip install libtpu")
    # libtpu must neither look for a TPU nor ask Google's metadata server about one.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    number, one = re.fullmatch(r"(?:(\d+)x(?=v))?(.*)", topology, re.DOTALL).groups()  # type: ignore[union-attr]
    options = dict(_OPTIONS.get(one, {})) | ({"num_slices": int(number)} if number else {})
    if one.startswith(("v4:", "v5p:")):
        options["chip_config_name"] = "megacore"
    try:
        devices: list[Any] = list(topologies.get_topology_desc(topology_name=one, platform="tpu", **options).devices)
    except Exception as error:  # libtpu raises many types
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"topology {topology!r} is not one that libtpu knows ({said}); such as v3:2x2, v5e:2x4, 2xv5e:2x4"
        ) from error
    if devices[0].device_kind not in CHIPS:
        raise UserError(f"topology {topology!r} is of {devices[0].device_kind}; known are {', '.join(CHIPS)}")
    return devices
