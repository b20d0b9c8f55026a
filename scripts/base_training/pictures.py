"""Pictures of the picture world to train on, drawn once by all cores."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

import numpy as np
from picture_world.world import example, render, render_with_truth
from tqdm import tqdm

CHUNK = 250


def draw_pictures(seed: int, count: int, size: int) -> np.ndarray:
    """The first `count` examples of world `seed`, uint8 [count, size, size, 3]."""
    return _drawn(_pictures, seed, count, size)


def draw_masks(seed: int, count: int, size: int) -> np.ndarray:
    """The object's share of each of their pixels, from 0 to 255, uint8 [count, size, size]."""
    return _drawn(_masks, seed, count, size)


def _drawn(draw: Callable[[int, range, int], np.ndarray], seed: int, count: int, size: int) -> np.ndarray:
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    with ProcessPoolExecutor(os.cpu_count()) as pool, tqdm(total=count, desc="drawing", unit="picture") as progress:
        made = []
        for part in pool.map(draw, repeat(seed), chunks, repeat(size)):
            made.append(part)
            progress.update(len(part))
    return np.concatenate(made)


def _pictures(seed: int, indices: range, size: int) -> np.ndarray:
    return np.stack([render(*example(seed, index), size) for index in indices])


def _masks(seed: int, indices: range, size: int) -> np.ndarray:
    masks = np.stack([render_with_truth(*example(seed, index), size).mask for index in indices])
    return np.round(masks * 255).astype(np.uint8)
