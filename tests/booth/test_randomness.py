"""The stream of random numbers is part of the product: a run must be repeatable for years."""

import hashlib

import numpy as np

from booth.common import randomness


def test_golden_hash():
    """If this fails, a library changed its numbers: old runs could no longer be resumed or compared. Do not edit it."""
    digest = hashlib.sha256()
    for seed, stream, step, row in ((0, "noise", 0, 0), (7, "posterior", 3, 1), (2**63 - 1, "timestep", 10**6, 255)):
        digest.update(randomness.normal(seed, stream, step, row, (8, 8, 4)).tobytes())
        digest.update(randomness.generator(seed, stream, step, row).permutation(12).astype("<i8").tobytes())
        digest.update(randomness.generator(seed, stream, step, row).integers(1000, size=9).astype("<i8").tobytes())
        digest.update(str(randomness.derive_seed(seed, stream, row)).encode())
    assert digest.hexdigest()[:16] == "4816ff6aa863e790"


def test_every_coordinate_counts():
    base = {"seed": 1, "stream": "noise", "step": 2, "row": 3}
    drawn = [randomness.normal(**(base | change), shape=(64,)) for change in
             ({}, {"seed": 2}, {"stream": "posterior"}, {"step": 3}, {"row": 2}, {"step": 3, "row": 2})]  # fmt: skip
    correlation = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(correlation).max() < 0.5
    assert np.array_equal(drawn[0], randomness.normal(**base, shape=(64,)))


def test_rows_do_not_run_into_each_other():
    """A long draw must not reach the numbers of the next row."""
    long = randomness.normal(0, "noise", 0, 0, (200_000,))
    following = randomness.normal(0, "noise", 0, 1, (8,))
    windows = np.lib.stride_tricks.sliding_window_view(long, 8)
    assert not (windows == following).all(axis=1).any()
