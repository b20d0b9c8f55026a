"""The randomness: every random number of a run is a pure function of (seed, stream, step, row).

The generator is counter-based (Philox 4x64), so nothing is carried from draw to draw: a resumed run, a run on another
number of devices and a run on the other backend see the same numbers, and drawing for one purpose never shifts
another. Streams are named after their purpose.
"""

import hashlib

import numpy as np


def generator(seed: int, stream: str, step: int = 0, row: int = 0) -> np.random.Generator:
    """Return a generator for one purpose at one place of a run.

    Philox increments the low word of its counter, so step and row sit in the high words: draws of up to 2**66 numbers
    cannot run into the neighbouring row's.
    """
    key = np.array([seed, _word(stream)], dtype=np.uint64)
    counter = np.array([0, 0, row, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normal(seed: int, stream: str, step: int, row: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return standard normal numbers in float32, of the given shape."""
    return generator(seed, stream, step, row).standard_normal(shape, dtype=np.float32)


def derive_seed(seed: int, stream: str, row: int) -> int:
    """Return a seed, in 0 .. 2**63 - 1, for something that has its own seed, such as one class image."""
    return int(generator(seed, stream, 0, row).integers(2**63))


def _word(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
