"""The autoencoder of Stable Diffusion (arXiv 2112.10752), module for module as diffusers names it.

Shape suffixes as in `jaxbooth.models.layers`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from booth.common.errors import UserError
from jaxbooth.models.attention import Attention
from jaxbooth.models.layers import Conv, Downsample2D, GroupNorm, ResnetBlock2D, Upsample2D, read_config

_FREE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (64,),
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "layers_per_block": 1,
    "norm_num_groups": 32,
}
_FIXED = {
    "act_fn": ("silu", "swish"),
    "mid_block_add_attention": (True,),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
# The caller scales the latents and chooses the compute dtype.
_IGNORED = {"sample_size", "scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast"}

# The epsilon of every norm of the autoencoder.
_EPS = 1e-6


class AttentionBlock(Attention):
    """Single-head attention over the normalised pixels of [b, h, w, c], added to the input."""

    def __init__(self, channels: int, *, groups: int, dtype: DTypeLike):
        super().__init__(channels, heads=1, qkv_bias=True, dtype=dtype)
        self.group_norm = GroupNorm(groups, channels, eps=_EPS, dtype=dtype)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:  # type: ignore[override]
        batch, height, width, channels = x_bhwc.shape
        h_btd = self.group_norm(x_bhwc).reshape(batch, height * width, channels)
        return x_bhwc + super().__call__(h_btd).reshape(x_bhwc.shape)


class MidBlock2D(nnx.Module):
    """Attention between two resnets."""

    def __init__(self, channels: int, *, groups: int, dtype: DTypeLike):
        self.attentions = nnx.List([AttentionBlock(channels, groups=groups, dtype=dtype)])
        self.resnets = nnx.List(
            ResnetBlock2D(channels, channels, groups=groups, eps=_EPS, dtype=dtype) for _ in range(2)
        )

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        return self.resnets[1](self.attentions[0](self.resnets[0](x_bhwc)))


class DownEncoderBlock2D(nnx.Module):
    """Resnets, then a downsampler if there is one."""

    def __init__(self, resnets: Sequence, downsamplers: Sequence):
        self.resnets = nnx.List(resnets)
        self.downsamplers = nnx.List(downsamplers)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        for layer in (*self.resnets, *self.downsamplers):
            x_bhwc = layer(x_bhwc)
        return x_bhwc


class UpDecoderBlock2D(nnx.Module):
    """Resnets, then an upsampler if there is one."""

    def __init__(self, resnets: Sequence, upsamplers: Sequence):
        self.resnets = nnx.List(resnets)
        self.upsamplers = nnx.List(upsamplers)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        for layer in (*self.resnets, *self.upsamplers):
            x_bhwc = layer(x_bhwc)
        return x_bhwc


class Encoder(nnx.Module):
    """[b, h, w, channels_in] -> [b, h / 2^n, w / 2^n, channels_out], with a downsampling between successive widths."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        widths: Sequence[int],
        layers: int,
        groups: int,
        dtype: DTypeLike,
    ):
        resnet = partial(ResnetBlock2D, groups=groups, eps=_EPS, dtype=dtype)
        self.conv_in = Conv(channels_in, widths[0], dtype=dtype)
        self.down_blocks: nnx.List[DownEncoderBlock2D] = nnx.List()
        previous = widths[0]
        for level, width in enumerate(widths):
            resnets = [resnet(previous if i == 0 else width, width) for i in range(layers)]
            last = level == len(widths) - 1
            downsamplers = [] if last else [Downsample2D(width, padding=(0, 1), dtype=dtype)]
            self.down_blocks.append(DownEncoderBlock2D(resnets, downsamplers))
            previous = width
        self.mid_block = MidBlock2D(previous, groups=groups, dtype=dtype)
        self.conv_norm_out = GroupNorm(groups, previous, eps=_EPS, dtype=dtype)
        self.conv_out = Conv(previous, channels_out, dtype=dtype)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        x_bhwc = self.conv_in(x_bhwc)
        for down_block in self.down_blocks:
            x_bhwc = down_block(x_bhwc)
        x_bhwc = self.mid_block(x_bhwc)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x_bhwc)))


class Decoder(nnx.Module):
    """[b, h, w, channels_in] -> [b, h * 2^n, w * 2^n, channels_out], with the widths in reverse order."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        widths: Sequence[int],
        layers: int,
        groups: int,
        dtype: DTypeLike,
    ):
        resnet = partial(ResnetBlock2D, groups=groups, eps=_EPS, dtype=dtype)
        previous = widths[-1]
        self.conv_in = Conv(channels_in, previous, dtype=dtype)
        self.mid_block = MidBlock2D(previous, groups=groups, dtype=dtype)
        self.up_blocks: nnx.List[UpDecoderBlock2D] = nnx.List()
        for level in reversed(range(len(widths))):
            width = widths[level]
            resnets = [resnet(previous if i == 0 else width, width) for i in range(layers + 1)]
            upsamplers = [Upsample2D(width, dtype=dtype)] if level > 0 else []
            self.up_blocks.append(UpDecoderBlock2D(resnets, upsamplers))
            previous = width
        self.conv_norm_out = GroupNorm(groups, previous, eps=_EPS, dtype=dtype)
        self.conv_out = Conv(previous, channels_out, dtype=dtype)

    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        x_bhwc = self.mid_block(self.conv_in(x_bhwc))
        for up_block in self.up_blocks:
            x_bhwc = up_block(x_bhwc)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x_bhwc)))


def posterior(moments_bhwc: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split moments [b, h, w, 2c] into mean and standard deviation, each [b, h, w, c].

    The log variance is clamped as in the reference implementation (CompVis/latent-diffusion,
    ldm/modules/distributions/distributions.py).
    """
    mean_bhwc, logvar_bhwc = jnp.split(moments_bhwc, 2, axis=-1)
    return mean_bhwc, jnp.exp(0.5 * jnp.clip(logvar_bhwc, -30.0, 20.0))


class AutoencoderKL(nnx.Module):
    """Maps pixels to the distribution of their latents, and latents back to pixels.

    Args:
        config: the content of diffusers' `vae/config.json`; latent scale and shift are left to the caller.
        dtype: the compute dtype, float32 or bfloat16; parameters are cast to it at use.

    Raises:
        UserError: if the config asks for something that the autoencoder of Stable Diffusion does not have.
    """

    def __init__(self, config: Mapping[str, Any], *, dtype: DTypeLike = jnp.float32):
        c = read_config("vae", config, free=_FREE, fixed=_FIXED, ignored=_IGNORED)
        for key, supported in (
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ):
            if list(getattr(c, key)) != [supported] * len(c.block_out_channels):
                raise UserError(
                    f"vae config: {key}={getattr(c, key)!r} is not supported, only {supported!r} for each of"
                    f" block_out_channels={c.block_out_channels!r} is"
                )
        kw = {
            "widths": c.block_out_channels,
            "layers": c.layers_per_block,
            "groups": c.norm_num_groups,
            "dtype": dtype,
        }
        self.dtype = dtype
        self.encoder = Encoder(c.in_channels, 2 * c.latent_channels, **kw)
        self.quant_conv = Conv(2 * c.latent_channels, 2 * c.latent_channels, 1, dtype=dtype)
        self.post_quant_conv = Conv(c.latent_channels, c.latent_channels, 1, dtype=dtype)
        self.decoder = Decoder(c.latent_channels, c.out_channels, **kw)

    def encode(self, pixels_bhwc: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return mean and standard deviation of the latents, unscaled, each [b, h', w', c] float32.

        Args:
            pixels_bhwc: pixels in [-1, 1]; h' = h / 8 and w' = w / 8 with four levels.
        """
        moments_bhwc = self.quant_conv(self.encoder(pixels_bhwc.astype(self.dtype))).astype(jnp.float32)
        return posterior(moments_bhwc)

    def decode(self, latents_bhwc: jax.Array) -> jax.Array:
        """Return pixels in about [-1, 1], [b, h, w, c] float32.

        Args:
            latents_bhwc: unscaled latents.
        """
        return self.decoder(self.post_quant_conv(latents_bhwc.astype(self.dtype))).astype(jnp.float32)
