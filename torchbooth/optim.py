"""The optimizer: AdamW (arXiv 1711.05101) and joint clipping, as torch has them."""

from collections.abc import Iterable
from typing import Any

import torch


def adamw(parameters: Iterable[torch.nn.Parameter], config: Any) -> torch.optim.AdamW:
    """AdamW over float32 parameters; the learning rate is set anew for every update by `set_learning_rate`."""
    return torch.optim.AdamW(
        parameters,
        lr=config.train.learning_rate,
        betas=(config.train.adam_b1, config.train.adam_b2),
        eps=config.train.adam_eps,
        weight_decay=config.train.weight_decay,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def clip_by_global_norm(parameters: list[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scales all gradients together to at most `max_norm` (0: leaves them); returns the norm before, a scalar."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
