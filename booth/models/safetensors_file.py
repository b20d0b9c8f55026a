"""A safetensors file written tensor by tensor, in any order: a checkpoint need not fit into memory."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import ml_dtypes
import numpy as np
from safetensors.numpy import save

from booth.common.errors import UserError
from booth.models.safetensors_reader import TensorSpec

Precision = Literal["source", "fp32", "fp16", "bf16"]

CODES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}  # as safetensors writes them
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

HASH = "modelspec.hash_sha256"  # the only entry of the metadata that is known after the tensors are written
_NO_HASH = "0x" + 64 * "0"


class SafetensorsFile:
    """A safetensors file whose tensors arrive in any order: keys, dtypes and shapes are fixed when it is made."""

    def __init__(
        self, path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.path, self.specs = path, specs
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}  # transformers requires the format
        self._start: dict[str, int] = {}
        self.data_bytes = 0
        for key in sorted(
            specs, key=lambda key: (-specs[key].itemsize, key)
        ):  # large items first, so that all are aligned
            self._start[key] = self.data_bytes
            self.data_bytes += specs[key].nbytes
            header[key] = {
                "dtype": specs[key].dtype,
                "shape": specs[key].shape,
                "data_offsets": [self._start[key], self.data_bytes],
            }
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._header = encoded
        self._start = {key: start + 8 + len(encoded) for key, start in self._start.items()}
        with path.open("wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            file.truncate(file.tell() + self.data_bytes)

    def write(self, key: str, array: np.ndarray, part: int = 0, parts: int = 1) -> None:
        """Write a tensor, or one of its equal parts along the first axis. Raise UserError if fp16 cannot hold it."""
        spec = self.specs[key]
        shape = (spec.shape[0] // parts, *spec.shape[1:]) if parts > 1 else spec.shape
        if array.shape != shape:
            raise RuntimeError(f"{key} to export has shape {array.shape}, in the source {shape}")
        converted = as_type(key, array, DTYPES.get(spec.dtype))
        with self.path.open("r+b") as file:
            file.seek(self._start[key] + part * spec.nbytes // parts)
            file.write(converted.reshape(-1).view(np.uint8).data)

    def seal(self) -> None:
        """Replace `UNKNOWN_HASH` in the metadata by the sha256 of all tensors as they are in the file."""
        found = hash_of_tensors(self.path)
        with self.path.open("r+b") as file:
            file.seek(8)
            file.write(self._header.replace(_NO_HASH.encode(), found.encode(), 1))


UNKNOWN_HASH = {HASH: _NO_HASH}


def packed(content: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Return a small file's bytes, always the same: the library itself writes the metadata in random order."""
    plain = save(dict(content), dict(metadata))
    end = 8 + int.from_bytes(plain[:8], "little")
    header = json.loads(plain[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + plain[end:]


def hash_of_tensors(path: Path) -> str:
    """Return ModelSpec's `hash_sha256`: 0x and the sha256 of everything after the header."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return f"0x{digest.hexdigest()}"


def as_type(name: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    """Return the array in another type. Raise UserError if float16 cannot hold it."""
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(array, dtype)
    if converted.dtype == np.float16 and np.isinf(converted).any() and not np.isinf(array).any():
        raise UserError(f"export.precision=fp16 cannot hold {name}: it exceeds 65504; use bf16 or fp32")
    return converted
