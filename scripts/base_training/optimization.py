"""What all stages of the base's training share: device, order of examples, optimizer and learning rate."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from booth.common import randomness


def best_device() -> torch.device:
    """Return a GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rows_of_step(count: int, batch: int, step: int, seed: int, stream: str) -> np.ndarray:
    """Return the indices int64 [batch] of the examples of a step.

    Each epoch has its own permutation of the examples, cut to whole batches. Raise ValueError if there are fewer
    examples than rows in a batch.
    """
    if count < batch:
        raise ValueError(f"{count} examples must be at least a batch of {batch}")
    epoch, place = divmod(step, count // batch)
    order = randomness.generator(seed, f"{stream} order", epoch).permutation(count)
    return np.sort(order[place * batch : (place + 1) * batch])  # sorted, because the arrays are memory-mapped files


def optimizer(
    parameters: Iterable[torch.nn.Parameter], peak_rate: float, cycles: Sequence[int], weight_decay: float = 1e-2
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """Return AdamW and a schedule that falls to 0 along a cosine in each cycle (arXiv 1608.03983, eq. 5).

    `cycles` are the numbers of steps. Each cycle has half the peak of the one before and begins with a warmup of 2 % of
    its steps.
    """
    adam = torch.optim.AdamW(parameters, peak_rate, betas=(0.9, 0.99), weight_decay=weight_decay)

    def rate(step: int) -> float:
        peak = 1.0
        for steps in cycles:
            if step < steps:
                break
            step, peak = step - steps, peak / 2
        else:
            return 0.0  # this is read once, after the last step
        warmup = max(1, steps // 50)
        if step < warmup:
            return peak * (step + 1) / warmup
        return peak * (0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return adam, torch.optim.lr_scheduler.LambdaLR(adam, rate)
