"""How a file or folder gets its final name: staged beside its place, synced to disk, and renamed."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from booth.common import disk_space

WINDOWS = os.name == "nt"


STAGING_PREFIX = ".staging-"


@contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Yield a staging path beside `path`; what the block wrote there gets its final name only if the block succeeds.

    The block makes a file or a folder at the staging path. An existing file is replaced; an existing folder is an
    error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(STAGING_PREFIX + path.name)
    remove(staging)
    try:
        yield staging
        for file in [staging, *staging.rglob("*")] if staging.is_dir() else [staging]:
            _sync(file)
        rename(staging, path)
        _sync(path.parent)
    except BaseException:
        remove(staging)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a file's content atomically, in UTF-8. Raise UserError if the disk is full."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content atomically. Raise UserError if the disk is full."""
    with disk_space.explained(path, len(content)), publish(path) as staging:
        staging.write_bytes(content)


def remove(path: Path) -> None:
    """Remove a file or a folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        _patiently(lambda: shutil.rmtree(path))
    else:
        _patiently(lambda: path.unlink(missing_ok=True))


def rename(old: Path, new: Path) -> None:
    """Rename a file or a folder; an existing file of the new name is replaced."""
    _patiently(lambda: old.replace(new))


def _patiently(act: Callable[[], object]) -> None:
    """Call `act`, several times on Windows if need be: Windows cannot rename or remove an open file, and virus scanners
    open files that were just written."""
    for pause in (0.1, 0.3, 1.0, 3.0) if WINDOWS else ():
        try:
            act()
            return
        except PermissionError:
            time.sleep(pause)
    act()


def _sync(path: Path) -> None:
    if path.is_dir() and WINDOWS:  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
