"""Draw the training pictures of the picture world, once, on all cores."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

import numpy as np
from picture_world.world import example, render_with_truth
from tqdm import tqdm

CHUNK = 250


def draw_pictures(seed: int, count: int, size: int) -> np.ndarray:
    """Return the first `count` examples of world `seed`, uint8 [count, size, size, 4].

    The channels are red, green, blue and the object's share of each pixel, from 0 to 255.
    """
    pictures = np.empty((count, size, size, 4), np.uint8)
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    # spawn, because a process that has computed with torch must not be forked
    with (
        ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool,
        tqdm(total=count, desc="drawing", unit="picture") as progress,
    ):
        for chunk, part in zip(chunks, pool.map(_draw, repeat(seed), chunks, repeat(size)), strict=True):
            pictures[chunk.start : chunk.stop] = part
            progress.update(len(part))
    return pictures


def _draw(seed: int, indices: range, size: int) -> np.ndarray:
    made = (render_with_truth(*example(seed, index), size) for index in indices)
    return np.stack([np.dstack([one.picture, np.round(one.mask * 255).astype(np.uint8)]) for one in made])
