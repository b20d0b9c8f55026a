"""Layers that the three models share, and the reading of their configs.

Parameters are declared by shape only: `jaxbooth.weights.Network` binds arrays to them, so building a model of
any size costs no memory, no random initialisation and no compilation. They carry Flax's names and layouts
(`kernel` [in, out] or [h, w, in, out], `scale`, `embedding`, `bias`); the modules have diffusers' names.

Every layer takes and returns the compute dtype and casts its parameters at use; norms compute in float32.

Shape suffixes: b batch, h height, w width, c channels, t tokens, d features of a token, n attention heads.
"""

import math
from collections.abc import Collection, Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from booth.common.errors import UserError
from jaxbooth import adapters

# In this order: a bool is an int to Python.
_KINDS = {(bool,): "true or false", (int, float): "a number", (str,): "a string", (list, tuple): "a list"}


def read_config(
    component: str,
    config: Mapping[str, Any],
    *,
    free: Mapping[str, Any],
    fixed: Mapping[str, tuple],
    ignored: Collection[str],
    per_level: Collection[str] = (),
) -> SimpleNamespace:
    """Read a diffusers or transformers config, and refuse any key that would silently change the model.

    Args:
        component: the name used in the error, such as `unet`.
        config: the content of the component's json file.
        free: the keys that may have any value of the right kind, with diffusers' default for a missing key.
        fixed: the keys that may only have one of the listed values; the first one is diffusers' default.
        ignored: the keys that do not change the model's output.
        per_level: the free keys that may also be a list; the caller must check their values.

    Return:
        The values of the free keys as attributes.

    Raise:
        UserError: for a key that is unknown or has a value without support. Keys that start with `_` are
            bookkeeping; an unknown key that is null is an option of a newer library, switched off.
    """
    settings = dict(free)
    for key, value in config.items():
        if key.startswith("_") or key in ignored:
            continue
        if key in free:
            kind, name = next((kind, name) for kind, name in _KINDS.items() if isinstance(free[key], kind))
            if key not in per_level and not isinstance(value, kind):
                raise UserError(f"{component} config: {key}={value!r} is not supported, only {name} is")
            settings[key] = value
        elif key in fixed:
            if value not in fixed[key]:
                supported = " or ".join(repr(choice) for choice in fixed[key])
                raise UserError(f"{component} config: {key}={value!r} is not supported, only {supported} is")
        elif value is not None:
            raise UserError(f"{component} config: {key}={value!r} is not supported, only a config without {key} is")
    return SimpleNamespace(**settings)


def parameter(*shape: int) -> nnx.Param:
    """Declare a float32 parameter without allocating it."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32))


def _along_last(vector: nnx.Param, like: jax.Array) -> jax.Array:
    """Reshape a vector for arithmetic with the last axis of `like`, in the dtype of `like`."""
    return vector[...].astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


class Linear(nnx.Module):
    """A dense layer over the last axis."""

    def __init__(self, features_in: int, features_out: int, *, bias: bool = True, dtype: DTypeLike):
        self.kernel = parameter(features_in, features_out)
        self.bias = parameter(features_out) if bias else None
        self.dtype = dtype

    def low_rank(self, rank: int) -> tuple["Linear", "Linear"]:
        """Return two layers that together map as this one does, with `rank` features between them."""
        features_in, features_out = self.kernel.get_value().shape
        down = Linear(features_in, rank, bias=False, dtype=self.dtype)
        return down, Linear(rank, features_out, bias=False, dtype=self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x @ self.kernel[...].astype(self.dtype)
        y = y if self.bias is None else y + _along_last(self.bias, y)
        return adapters.adapted(self, x, y)


class Conv(nnx.Module):
    """A square convolution over [b, h, w, c]; `padding` is (before, after) on both spatial axes."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: int = 3,
        *,
        stride: int = 1,
        padding: tuple[int, int] | None = None,
        bias: bool = True,
        dtype: DTypeLike,
    ):
        self.kernel = parameter(size, size, features_in, features_out)
        self.bias = parameter(features_out) if bias else None
        self.stride = stride
        self.padding = (size // 2, size // 2) if padding is None else padding
        self.dtype = dtype

    def low_rank(self, rank: int) -> tuple["Conv", "Conv"]:
        """Return a convolution like this one to `rank` channels, and a 1x1 one from there."""
        size, _, features_in, features_out = self.kernel.get_value().shape
        options: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "bias": False, "dtype": self.dtype}
        return Conv(features_in, rank, size, **options), Conv(rank, features_out, 1, bias=False, dtype=self.dtype)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        y_bhwc = jax.lax.conv_general_dilated(
            x_bhwc,
            self.kernel[...].astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=(self.padding, self.padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        y_bhwc = y_bhwc if self.bias is None else y_bhwc + _along_last(self.bias, y_bhwc)
        return adapters.adapted(self, x_bhwc, y_bhwc)


class GroupNorm(nnx.Module):
    """Group normalization over [b, ..., c] (arXiv 1803.08494), in float32."""

    def __init__(self, groups: int, channels: int, *, eps: float, dtype: DTypeLike):
        self.scale = parameter(channels)
        self.bias = parameter(channels)
        self.groups = groups
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, channels = x.shape[0], x.shape[-1]

        def group_means(x_btc: jax.Array) -> jax.Array:
            # The mean over positions comes first, so that the large array never has only a few channels on its last
            # axis.
            means_bgc = x_btc.mean(1).reshape(batch, self.groups, -1)
            return means_bgc.mean(-1).repeat(channels // self.groups, axis=-1)[:, None, :]

        x_btc = x.astype(jnp.float32).reshape(batch, -1, channels)
        # The variance takes two passes: E[x^2] - E[x]^2 loses digits if the mean is large.
        x_btc -= group_means(x_btc)
        gain = jax.lax.rsqrt(group_means(jnp.square(x_btc)) + self.eps) * _along_last(self.scale, x_btc)
        y_btc = x_btc * gain + _along_last(self.bias, x_btc)
        return y_btc.reshape(x.shape).astype(self.dtype)


class LayerNorm(nnx.Module):
    """Layer normalization over the last axis, in float32."""

    def __init__(self, features: int, *, eps: float = 1e-5, dtype: DTypeLike):
        self.scale = parameter(features)
        self.bias = parameter(features)
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y -= y.mean(-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * _along_last(self.scale, y) + _along_last(self.bias, y)).astype(self.dtype)


class Embedding(nnx.Module):
    """A table of vectors looked up by integer."""

    def __init__(self, rows: int, features: int, *, dtype: DTypeLike):
        self.embedding = parameter(rows, features)
        self.dtype = dtype

    def __call__(self, ids: jax.Array) -> jax.Array:
        # The lookup comes before the cast, so that the table is never copied; an id past its end gives NaN.
        return jnp.take(self.embedding[...], ids, axis=0).astype(self.dtype)


def sinusoidal_embedding(
    timesteps_b: jax.Array, features: int, *, flip_sin_to_cos: bool, freq_shift: float
) -> jax.Array:
    """Return sinusoids of the timestep at geometrically spaced frequencies, [b, features] float32.

    The transformer's position encoding (arXiv 1706.03762, section 3.5) with diffusers' two conventions: which
    half comes first, and the shift in the denominator of the exponent.
    """
    half = features // 2
    exponents = jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    frequencies = jnp.exp(-math.log(10000.0) * exponents)
    angles = timesteps_b.astype(jnp.float32)[:, None] * frequencies[None, :]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([cos, sin] if flip_sin_to_cos else [sin, cos], axis=-1)


class TimestepEmbedding(nnx.Module):
    """The perceptron over the sinusoids: [b, features_in] -> [b, features_out]."""

    def __init__(self, features_in: int, features_out: int, *, dtype: DTypeLike):
        self.linear_1 = Linear(features_in, features_out, dtype=dtype)
        self.linear_2 = Linear(features_out, features_out, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


class ResnetBlock2D(nnx.Module):
    """Two convolutions with a shortcut, conditioned on the time embedding if `time_features` is given."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        groups: int,
        eps: float,
        time_features: int | None = None,
        dtype: DTypeLike,
    ):
        self.norm1 = GroupNorm(groups, channels_in, eps=eps, dtype=dtype)
        self.conv1 = Conv(channels_in, channels_out, dtype=dtype)
        if time_features is not None:
            self.time_emb_proj = Linear(time_features, channels_out, dtype=dtype)
        self.norm2 = GroupNorm(groups, channels_out, eps=eps, dtype=dtype)
        self.conv2 = Conv(channels_out, channels_out, dtype=dtype)
        self.conv_shortcut = None if channels_in == channels_out else Conv(channels_in, channels_out, 1, dtype=dtype)

    def __call__(self, x_bhwc: jax.Array, time_bd: jax.Array | None = None) -> jax.Array:
        h_bhwc = self.conv1(jax.nn.silu(self.norm1(x_bhwc)))
        if time_bd is not None:
            h_bhwc = h_bhwc + self.time_emb_proj(jax.nn.silu(time_bd))[:, None, None, :]
        h_bhwc = self.conv2(jax.nn.silu(self.norm2(h_bhwc)))
        return h_bhwc + (x_bhwc if self.conv_shortcut is None else self.conv_shortcut(x_bhwc))


class Downsample2D(nnx.Module):
    """Halves height and width with a strided convolution; an odd number is rounded up.

    In the VAE it is padded only after the last row and column.
    """

    def __init__(self, channels: int, *, padding: tuple[int, int] = (1, 1), dtype: DTypeLike):
        self.conv = Conv(channels, channels, stride=2, padding=padding, dtype=dtype)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        return self.conv(x_bhwc)


class Upsample2D(nnx.Module):
    """Doubles height and width by repeating pixels, cut to `size_hw` if halving an odd size had rounded up."""

    def __init__(self, channels: int, *, dtype: DTypeLike):
        self.conv = Conv(channels, channels, dtype=dtype)

    def __call__(self, x_bhwc: jax.Array, size_hw: tuple[int, int] | None = None) -> jax.Array:
        x_bhwc = x_bhwc.repeat(2, axis=1).repeat(2, axis=2)
        if size_hw is not None:
            x_bhwc = x_bhwc[:, : size_hw[0], : size_hw[1]]
        return self.conv(x_bhwc)
