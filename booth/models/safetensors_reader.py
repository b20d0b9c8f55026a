"""The reader of safetensors files: tensors as NumPy arrays, one at a time, and a UserError for what cannot be read.

The library compares the header with the size of the file. A file may still be larger than the memory, so the available
memory is checked before a tensor is read.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (this import makes bfloat16 known to NumPy)
import numpy as np
from safetensors import safe_open

from booth.common import host_memory
from booth.common.disk_space import readable
from booth.common.errors import UserError, reading

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class TensorSpec:
    dtype: str  # as safetensors writes it: F32, F16, BF16, I64, ...
    shape: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        return int(self.dtype.lstrip("BFIU")) // 8

    @property
    def nbytes(self) -> int:
        return self.itemsize * math.prod(self.shape)


class TensorFile:
    """An open safetensors file; `opened` makes it. Its methods raise UserError."""

    def __init__(self, path: Path, file: Any, fix: str) -> None:
        self._path, self._file, self._fix = path, file, fix

    @property
    def metadata(self) -> dict[str, str]:
        with self._reading():
            return dict(self._file.metadata() or {})

    def specs(self) -> dict[str, TensorSpec]:
        """Return the dtypes and shapes of all tensors by key."""
        with self._reading():
            slices = {key: self._file.get_slice(key) for key in self._file.keys()}  # noqa: SIM118 (it is no dict)
            return {key: TensorSpec(part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items()}

    def tensor(self, key: str) -> np.ndarray:
        """Return a tensor. Raise UserError also if there is too little memory for it."""
        with self._reading():
            part = self._file.get_slice(key)
            size = TensorSpec(part.get_dtype(), tuple(part.get_shape())).nbytes
            host_memory.require(size, f"{self._path}: {key}")
        fix = f"if there is memory enough for it, {self._fix}"
        with reading(f"{self._path}: {key}, {readable(size)}, cannot be read", fix):
            array: np.ndarray = self._file.get_tensor(key)
            return array

    def _reading(self) -> AbstractContextManager[None]:
        return reading(f"{self._path} cannot be read", self._fix)


@contextmanager
def opened(path: Path, fix: str = "") -> Iterator[TensorFile]:
    """Open a file while the block runs. Raise UserError if it is missing or broken; `fix` says what to do then."""
    fix = fix or again(path)
    try:
        with reading(f"{path} is missing, truncated or broken", fix):
            file = safe_open(path, framework="np")
    except UserError as error:
        if _is_pointer(path):
            reason = "it is a Git LFS pointer; run `git lfs pull`"
            raise UserError(f"{path} is missing, truncated or broken ({reason}); {fix}") from error
        raise
    with file:
        yield TensorFile(path, file, fix)


def again(path: Path) -> str:
    """Return what to do about a broken file.

    In the hub's cache the path is a link: if the user deleted only the link, it would lead to the broken file again.
    """
    if path.is_symlink() and path.readlink().parent.name == "blobs":
        return f"delete {path.resolve()}, then it is downloaded again"
    return "download it again"


def _is_pointer(path: Path) -> bool:
    return path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(b"version http")
