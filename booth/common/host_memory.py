"""The host's memory: what a file needs is compared with what is available before the memory is allocated.

A system that promises more memory than it has kills the process later without a message; a system that refuses makes
some libraries panic.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from booth.common.disk_space import readable
from booth.common.errors import UserError

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def require(size: int, what: str) -> None:
    """Raise UserError if `what` takes more memory than is available, as far as that is known."""
    there = available()
    if there is not None and size > there:
        raise UserError(
            f"{what} takes {readable(size)} of memory, and {readable(there)} are available; close other programs, or"
            " take a machine with more or a smaller model"
        )


def available() -> int | None:
    """Return how many bytes this process can still allocate: on the machine, within the limits of its container
    (cgroups, version 2) and of `ulimit -v`. Return None if the system tells none of these."""
    known = [*_of_machine(), *_of_container(), *_of_address_space()]
    return max(0, min(known)) if known else None


def _of_machine() -> Iterator[int]:
    with suppress(OSError, KeyError, ValueError):  # only Linux has it
        lines = (_PROC / "meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
        yield 1024 * (kilobytes["MemAvailable"] + kilobytes["SwapFree"])


def _of_container() -> Iterator[int]:
    with suppress(OSError, ValueError):
        lines = (_PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
        names = [line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")]
        for group in (inner for name in names for inner in (_CGROUPS / name, *(_CGROUPS / name).parents)):
            with suppress(OSError, KeyError, ValueError):  # a group without a limit has no number, or no file
                limit = int((group / "memory.max").read_text(encoding="ascii"))
                used = int((group / "memory.current").read_text(encoding="ascii"))
                lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
                cached = int(dict(line.split() for line in lines)["inactive_file"])  # the kernel frees it on demand
                yield limit - used + cached


def _of_address_space() -> Iterator[int]:
    with suppress(ImportError, OSError, ValueError):
        import resource  # Windows does not have it

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            pages = int((_PROC / "self" / "statm").read_text(encoding="ascii").split()[0])
            yield limit - pages * resource.getpagesize()
