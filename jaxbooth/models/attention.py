"""Attention and the transformer inside the UNet. Shape suffixes as in `jaxbooth.models.layers`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxbooth.models.kernels import Kernel
from jaxbooth.models.layers import Conv, GroupNorm, LayerNorm, Linear

PLAIN = Kernel()


def attend_heads(q_btd: jax.Array, k_bsd: jax.Array, v_bsd: jax.Array, heads: int, kernel: Kernel, **kw) -> jax.Array:
    """Split the last axis into heads, attend, and join the heads again: [b, t, d]."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q_btd, k_bsd, v_bsd))
    return kernel(q, k, v, **kw).reshape(q_btd.shape)


class Attention(nnx.Module):
    """Multi-head attention of `x` to `context`, or to itself if there is none."""

    def __init__(
        self,
        features: int,
        *,
        heads: int,
        context_features: int | None = None,
        qkv_bias: bool = False,
        kernel: Kernel = PLAIN,
        dtype: DTypeLike,
    ):
        context_features = context_features or features
        self.to_q = Linear(features, features, bias=qkv_bias, dtype=dtype)
        self.to_k = Linear(context_features, features, bias=qkv_bias, dtype=dtype)
        self.to_v = Linear(context_features, features, bias=qkv_bias, dtype=dtype)
        self.to_out = nnx.List([Linear(features, features, dtype=dtype)])
        self.heads = heads
        self.kernel = kernel

    def __call__(self, x_btd: jax.Array, context_bsd: jax.Array | None = None) -> jax.Array:
        context_bsd = x_btd if context_bsd is None else context_bsd
        q_btd, k_bsd, v_bsd = self.to_q(x_btd), self.to_k(context_bsd), self.to_v(context_bsd)
        y_btd = attend_heads(q_btd, k_bsd, v_bsd, self.heads, self.kernel)
        return self.to_out[0](y_btd)


class GEGLU(nnx.Module):
    """A linear layer gated by the exact GELU of its second half (arXiv 2002.05202)."""

    def __init__(self, features_in: int, features_out: int, *, dtype: DTypeLike):
        self.proj = Linear(features_in, 2 * features_out, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden, gate = jnp.split(self.proj(x), 2, axis=-1)
        return hidden * jax.nn.gelu(gate, approximate=False)


class FeedForward(nnx.Module):
    """The transformer's perceptron, four times as wide inside."""

    def __init__(self, features: int, *, dtype: DTypeLike):
        # In diffusers the middle one is dropout, which is never active in these models but counts in the names.
        self.net: nnx.List[Any] = nnx.List(
            [GEGLU(features, 4 * features, dtype=dtype), None, Linear(4 * features, features, dtype=dtype)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.net[2](self.net[0](x))


class BasicTransformerBlock(nnx.Module):
    """Self-attention, attention to the context, perceptron; each gets a normalised input and adds its output to it."""

    def __init__(self, features: int, *, heads: int, context_features: int, kernel: Kernel, dtype: DTypeLike):
        self.norm1 = LayerNorm(features, dtype=dtype)
        self.attn1 = Attention(features, heads=heads, kernel=kernel, dtype=dtype)
        self.norm2 = LayerNorm(features, dtype=dtype)
        self.attn2 = Attention(features, heads=heads, context_features=context_features, kernel=kernel, dtype=dtype)
        self.norm3 = LayerNorm(features, dtype=dtype)
        self.ff = FeedForward(features, dtype=dtype)

    def __call__(self, x_btd: jax.Array, context_bsd: jax.Array) -> jax.Array:
        x_btd = x_btd + self.attn1(self.norm1(x_btd))
        x_btd = x_btd + self.attn2(self.norm2(x_btd), context_bsd)
        return x_btd + self.ff(self.norm3(x_btd))


class Transformer2DModel(nnx.Module):
    """Transformer blocks over the pixels of [b, h, w, c], added to the input."""

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        depth: int,
        context_features: int,
        groups: int,
        linear_projection: bool,
        kernel: Kernel,
        dtype: DTypeLike,
    ):
        # It is 1e-6 for every norm_eps of the UNet.
        self.norm = GroupNorm(groups, channels, eps=1e-6, dtype=dtype)
        # Both compute the same product: a 1x1 convolution in SD1, a linear layer in SD2.
        project: Callable[..., Any] = Linear if linear_projection else partial(Conv, size=1)
        self.proj_in = project(channels, channels, dtype=dtype)
        self.transformer_blocks = nnx.List(
            BasicTransformerBlock(channels, heads=heads, context_features=context_features, kernel=kernel, dtype=dtype)
            for _ in range(depth)
        )
        self.proj_out = project(channels, channels, dtype=dtype)

    def __call__(self, x_bhwc: jax.Array, context_bsd: jax.Array) -> jax.Array:
        h_bhwc = self.proj_in(self.norm(x_bhwc))
        h_btd = h_bhwc.reshape(h_bhwc.shape[0], -1, h_bhwc.shape[-1])
        for block in self.transformer_blocks:
            h_btd = block(h_btd, context_bsd)
        return x_bhwc + self.proj_out(h_btd.reshape(h_bhwc.shape))
