"""LoRA: low-rank adapters in layers, with the same names as in the rest of the code."""

from typing import Any

import jax
import jax.numpy as jnp


def add(layer: Any, rank: int, scale: float, dropout: float) -> None:
    """Put an adapter into a linear layer or a convolution, which adds `scale` B A to its weight.

    If the layer is given `row_keys`, a share `dropout` of the adapter's input is set to 0, row by row.
    """
    layer.lora_A, layer.lora_B = layer.low_rank(rank)
    layer.lora_scale, layer.lora_dropout = scale, dropout


def adapted(layer: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return a layer's output `y` for `x` plus its adapter's output, if it has an adapter."""
    if not hasattr(layer, "lora_A"):
        return y
    if hasattr(layer, "row_keys"):
        x = dropout(x, layer.row_keys, layer.lora_dropout)
    return y + layer.lora_scale * layer.lora_B(layer.lora_A(x))


def dropout(x: jax.Array, keys_b: jax.Array, share: float) -> jax.Array:
    """Return [b, ...] with this share of its numbers set to 0 and the others divided by 1 - share (arXiv 1207.0580).

    Each row has its own key, so it does not matter which rows are computed together.
    """
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - share, x.shape[1:]))(keys_b)
    return jnp.where(kept, x / (1 - share), 0)


def with_weight(params: dict[str, jax.Array], weight: float) -> dict[str, jax.Array]:
    """Return the parameters with adapters scaled by `weight`, in addition to alpha / rank."""
    return {name: value * weight if ".lora_B." in name else value for name, value in params.items()}
