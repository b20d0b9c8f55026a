"""LoRA: low-rank adapters put into layers, named as everywhere else."""

from typing import Any

import jax
import jax.numpy as jnp


def add(layer: Any, rank: int, scale: float, dropout: float) -> None:
    """Put an adapter into a linear layer or a convolution: `scale` B A is added to its weight.

    A share `dropout` of what goes into the adapter is left out, row by row, where the layer is given `row_keys`.
    """
    layer.lora_A, layer.lora_B = layer.low_rank(rank)
    layer.lora_scale, layer.lora_dropout = scale, dropout


def adapted(layer: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return a layer's output `y` for `x`, with what its adapter adds, if it has one."""
    if not hasattr(layer, "lora_A"):
        return y
    if hasattr(layer, "row_keys"):
        x = dropout(x, layer.row_keys, layer.lora_dropout)
    return y + layer.lora_scale * layer.lora_B(layer.lora_A(x))


def dropout(x: jax.Array, keys_b: jax.Array, share: float) -> jax.Array:
    """Return [b, ...] with this share of its numbers 0 and the others larger by 1 / (1 - share) (arXiv 1207.0580).

    Each row has a key, so that it does not matter which rows are computed together.
    """
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - share, x.shape[1:]))(keys_b)
    return jnp.where(kept, x / (1 - share), 0)


def with_weight(params: dict[str, jax.Array], weight: float) -> dict[str, jax.Array]:
    """Return parameters whose adapters count so many times as much as alpha and rank say."""
    return {name: value * weight if ".lora_B." in name else value for name, value in params.items()}
