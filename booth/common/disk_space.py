"""Disk space: checked before a run begins; if a disk is full later, the error says how much is needed and free."""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from booth.common.errors import UserError

# To the user, a quota or a limit on file sizes means the same as a full disk.
_FULL = {errno.ENOSPC, errno.EFBIG} | ({errno.EDQUOT} if hasattr(errno, "EDQUOT") else set())


@dataclass(frozen=True)
class Need:
    """Something that will be written below a folder. The folder need not exist yet."""

    what: str
    folder: Path
    size: int  # bytes


def require(needs: Sequence[Need], advice: str) -> None:
    """Raise UserError if a disk has too little space for what will be written to it; `advice` ends the message."""
    disks: dict[int, list[Need]] = {}
    for need in needs:
        if need.size > 0:
            disks.setdefault(_existing(need.folder).stat().st_dev, []).append(need)
    for there in disks.values():
        needed, available = sum(need.size for need in there), free(there[0].folder)
        if needed > available:
            parts = ", ".join(f"{need.what} {readable(need.size)}" for need in there)
            raise UserError(
                f"{readable(needed)} are needed in {there[0].folder} ({parts}), and {readable(available)} are free;"
                f" {advice}"
            )


def free(folder: Path) -> int:
    """Return the number of bytes that can be written below a folder. The folder need not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


@contextmanager
def explained(path: Path, size: int) -> Iterator[None]:
    """Raise UserError with the bytes needed and free, if a block that writes `path` finds the disk full."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise UserError(
            f"{path} cannot be written ({os.strerror(error.errno or 0)}): {readable(size)} are needed and"
            f" {readable(free(path.parent))} are free; make room there and give the same command again, which continues"
        ) from error


def readable(size: int) -> str:
    """Return a number of bytes as text: "4.27 GB" for 4265146304."""
    if size >= 1e9:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} KB"
