"""Pictures of the picture world to train on, drawn once by all cores."""

import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from picture_world.world import example, render
from tqdm import tqdm

CHUNK = 250


def draw_pictures(seed: int, count: int, size: int) -> np.ndarray:
    """The first `count` examples of world `seed`, uint8 [count, size, size, 3]."""
    pictures = np.empty((count, size, size, 3), np.uint8)
    starts = range(0, count, CHUNK)
    with ProcessPoolExecutor(os.cpu_count()) as pool, tqdm(total=count, desc="drawing", unit="picture") as progress:
        for start, chunk in zip(starts, pool.map(_draw, ((seed, start, count, size) for start in starts)), strict=True):
            pictures[start : start + len(chunk)] = chunk
            progress.update(len(chunk))
    return pictures


def _draw(span: tuple[int, int, int, int]) -> np.ndarray:
    seed, start, count, size = span
    indices = range(start, min(start + CHUNK, count))
    return np.stack([render(*example(seed, index), size) for index in indices])
