"""Step -> learning rates, in plain Python, so that both backends use the same code.

The shapes and their end points are those of `get_scheduler` in diffusers and transformers.
"""

import math
from typing import Any

from booth.config.fields import AUTO
from booth.config.trained import rate_groups


def learning_rates(config: Any, step: int) -> dict[str, float]:
    """Return the learning rate of each trained component, and of new tokens, in update `step` (0 for the first)."""
    train = config.train
    factor = schedule_factor(config, step)
    own = train.text_encoder_learning_rate
    peak = {
        "unet": train.learning_rate,
        "text_encoder": train.learning_rate if own == AUTO else own,
        "tokens": config.tokens.learning_rate if step < config.tokens.fraction * train.steps else 0.0,
    }
    return {group: peak[group] * factor for group in rate_groups(config)}


def schedule_factor(config: Any, step: int) -> float:
    """Return the factor of the peak learning rates: it rises from 0 during warmup, then falls until the last update."""
    train = config.train
    warmup, rest = train.lr_warmup_steps, train.steps - train.lr_warmup_steps
    if step < warmup:
        return step / warmup
    remaining = 1.0 - (step - warmup) / rest
    if train.lr_schedule == "linear":
        return remaining
    if train.lr_schedule == "cosine":
        return 0.5 * (1.0 - math.cos(math.pi * remaining))
    if train.lr_schedule == "cosine_with_restarts":
        through = train.lr_cycles * (step - warmup) % rest / rest  # in integers, so that rounding cannot miss a restart
        return 0.5 * (1.0 + math.cos(math.pi * through))
    if train.lr_schedule == "polynomial":
        end = train.lr_end / train.learning_rate
        return (1.0 - end) * remaining**train.lr_power + end
    assert train.lr_schedule == "constant", "refused by validate()"
    return 1.0
