"""AdamW (arXiv 1711.05101), Prodigy (arXiv 2306.06101) and joint clipping, as torch computes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from booth.config.trained import rate_group

Params = dict[str, jax.Array]


@dataclass(frozen=True)
class Settings:
    """The optimizer's settings. They are hashable, so that runs with the same settings share the compiled step."""

    optimizer: str
    b1: float
    b2: float
    eps: float
    weight_decay: float
    pull: float
    max_grad_norm: float

    @classmethod
    def of(cls, config: Any) -> "Settings":
        train = config.train
        return cls(
            train.optimizer,
            train.adam_b1,
            train.adam_b2,
            train.adam_eps,
            train.weight_decay,
            train.pull,
            train.max_grad_norm,
        )


def init(trainable: Params, settings: Settings) -> optax.OptState:
    """Return the optimizer's states before the first update."""
    if settings.optimizer == "prodigy":
        # The first weights are one of Prodigy's states. They must be copies, because training consumes the weights.
        return _prodigy(settings, 1.0).init(jax.tree.map(jnp.copy, trainable))
    return _adamw(settings).init(trainable)


def update(
    trainable: Params,
    states: optax.OptState,
    gradients: Params,
    learning_rate: Mapping[str, jax.Array],
    anchor: Params,
    settings: Settings,
) -> tuple[Params, optax.OptState]:
    """Return (trainable, states) after an update at each group's learning rate.

    A tensor with an `anchor` is pulled towards it by learning rate x `train.pull`. This is L2-SP (arXiv 1802.01483,
    section 3), a penalty on the distance to the weights before fine-tuning. It is decoupled from the gradient as AdamW
    decouples weight decay (arXiv 1711.05101, section 2). If it were part of the loss, Adam would divide it by the
    gradients' size, so that weights with small gradients would be held the most, and clipping would weaken it.
    """
    if settings.optimizer == "prodigy":
        return _prodigy_update(trainable, states, gradients, next(iter(learning_rate.values())), settings)
    updates, states = _adamw(settings).update(gradients, states, trainable)
    for name, start in anchor.items():
        updates[name] += settings.pull * (trainable[name] - start)
    updated = {name: value - learning_rate[rate_group(name)] * updates[name] for name, value in trainable.items()}
    return updated, states


def _adamw(settings: Settings) -> optax.GradientTransformation:
    """Return AdamW without its learning rate, which comes with every batch: the update is -learning_rate times the
    result.

    optax's own `adamw` differs from torch's in its default weight decay; here every setting is given.
    """
    return optax.chain(
        optax.scale_by_adam(settings.b1, settings.b2, settings.eps),
        optax.add_decayed_weights(settings.weight_decay),
    )


def _prodigy(settings: Settings, learning_rate: Any) -> optax.GradientTransformation:
    return optax.contrib.prodigy(
        learning_rate, (settings.b1, settings.b2), eps=settings.eps, weight_decay=settings.weight_decay
    )


def _prodigy_update(
    trainable: Params, states: optax.OptState, gradients: Params, learning_rate: jax.Array, settings: Settings
) -> tuple[Params, optax.OptState]:
    updates, updated_states = _prodigy(settings, learning_rate).update(gradients, states, trainable)
    updated = optax.apply_updates(trainable, updates)
    # Prodigy's rate is a quotient. It is 0 / 0 before any tensor has a gradient, and at a learning rate of 0, at which
    # warmup begins. Then nothing is updated, as in the package of the paper's authors.
    happens = (learning_rate > 0) & jnp.isfinite(updated_states.estim_lr)
    before, after = (trainable, states), (updated, updated_states)
    kept: tuple[Params, optax.OptState] = jax.tree.map(partial(jnp.where, happens), after, before)
    return kept


def clip_by_global_norm(gradients: Any, max_norm: float) -> tuple[Any, jax.Array]:
    """Scale all gradients together to a norm of at most `max_norm` (0: no limit). Return them and the norm before."""
    norm = optax.tree.norm(gradients)
    if max_norm > 0:
        scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))  # 1e-6 as in torch
        gradients = jax.tree.map(lambda gradient: gradient * scale, gradients)
    return gradients, norm
