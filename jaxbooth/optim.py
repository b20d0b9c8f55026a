"""The optimizer: AdamW (arXiv 1711.05101) and joint clipping, as torch computes them."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax


@dataclass(frozen=True)
class Settings:
    """Hashable, so that the compiled step can be shared between runs with the same settings."""

    b1: float
    b2: float
    eps: float
    weight_decay: float
    max_grad_norm: float

    @classmethod
    def of(cls, config: Any) -> "Settings":
        train = config.train
        return cls(train.adam_b1, train.adam_b2, train.adam_eps, train.weight_decay, train.max_grad_norm)


def adamw(settings: Settings) -> optax.GradientTransformation:
    """AdamW without its learning rate, which comes with every batch: the update is -learning_rate times the result.

    optax's own `adamw` differs from torch's in its default weight decay; here every setting is given.
    """
    return optax.chain(
        optax.scale_by_adam(settings.b1, settings.b2, settings.eps),
        optax.add_decayed_weights(settings.weight_decay),
    )


def clip_by_global_norm(gradients: Any, max_norm: float) -> tuple[Any, jax.Array]:
    """Scales all gradients together to at most `max_norm` (0: leaves them); returns them and the norm before."""
    norm = optax.tree.norm(gradients)
    if max_norm > 0:
        scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))  # 1e-6 as in torch
        gradients = jax.tree.map(lambda gradient: gradient * scale, gradients)
    return gradients, norm
