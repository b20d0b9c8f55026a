"""The size of the states that each optimizer of `train.optimizer` keeps for a tensor, the same in both backends."""

import math
from collections.abc import Sequence

_8_BIT_FROM = 4096  # elements; bitsandbytes keeps the states of smaller tensors in float32
_BLOCK = 256  # elements that share a scale


def state_bytes(optimizer: str, shape: Sequence[int]) -> int:
    """Return the bytes of the states of one tensor of this shape, in float32 or, if the optimizer's name says so, in 8
    bits."""
    count = math.prod(shape)
    in_8_bits = count + 4 * -(-count // _BLOCK) if count >= _8_BIT_FROM else 4 * count
    factors = count // shape[-1] + count // shape[-2] if len(shape) > 1 else count
    return {
        "adamw": 8 * count,  # two moments
        "prodigy": 16 * count,  # two moments, the sums of its distance estimate and the first values
        "adamw8bit": 2 * in_8_bits,
        "lion": 4 * count,  # one moment
        "lion8bit": in_8_bits,
        "adafactor": 4 * factors,  # the means of rows and of columns
    }[optimizer]
