"""The UNet of Stable Diffusion 1 and 2 (arXiv 2112.10752) and XL (arXiv 2307.01952), module for module as diffusers
names it.

Shape suffixes as in `jaxbooth.models.layers`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from booth.common.errors import UserError
from jaxbooth.models.attention import PLAIN, Transformer2DModel
from jaxbooth.models.kernels import KEPT, Kernel
from jaxbooth.models.layers import (
    Conv,
    Downsample2D,
    GroupNorm,
    ResnetBlock2D,
    TimestepEmbedding,
    Upsample2D,
    read_config,
    sinusoidal_embedding,
)

SIZES_AND_TEXT = "text_time"  # diffusers' name for what Stable Diffusion XL adds to the timestep

_FREE = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "cross_attention_dim": 1280,
    "use_linear_projection": False,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}
_PER_LEVEL = {"transformer_layers_per_block", "attention_head_dim"}
_FIXED = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None, SIZES_AND_TEXT),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dropout": (0.0,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
# `upcast_attention` asks for logits and softmax in float32 while the rest is in half precision; `models.kernels` always
# does that. The next belongs to embeddings that are refused above; the last two are read where sizes are added.
_IGNORED = {
    "sample_size",
    "upcast_attention",
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
}

Runner = Callable[..., jax.Array]
# A block that is computed again need not compute its attention again: the output is small, unlike the logits.
_KEEP_ATTENTION = jax.checkpoint_policies.save_only_these_names(KEPT)


def _run(module: nnx.Module, *args: jax.Array) -> jax.Array:
    return module(*args)  # type: ignore[operator]


class DownBlock2D(nnx.Module):
    """Resnets, each followed by a transformer if there are `attentions`, then a downsampler if there is one."""

    def __init__(self, resnets: Sequence, attentions: Sequence, downsamplers: Sequence):
        self.resnets = nnx.List(resnets)
        self.attentions = nnx.List(attentions)
        self.downsamplers = nnx.List(downsamplers)

    def __call__(self, run: Runner, x_bhwc: jax.Array, time_bd: jax.Array, context_bsd: jax.Array) -> list[jax.Array]:
        """Return the output of every layer: the skip connections. The last is also the input of the next block."""
        outputs = []
        for i, resnet in enumerate(self.resnets):
            x_bhwc = run(resnet, x_bhwc, time_bd)
            if self.attentions:
                x_bhwc = run(self.attentions[i], x_bhwc, context_bsd)
            outputs.append(x_bhwc)
        for downsample in self.downsamplers:
            outputs.append(downsample(outputs[-1]))
        return outputs


class MidBlock2DCrossAttn(nnx.Module):
    """A transformer between two resnets."""

    def __init__(self, resnets: Sequence, attentions: Sequence):
        self.attentions = nnx.List(attentions)
        self.resnets = nnx.List(resnets)

    def __call__(self, run: Runner, x_bhwc: jax.Array, time_bd: jax.Array, context_bsd: jax.Array) -> jax.Array:
        x_bhwc = run(self.resnets[0], x_bhwc, time_bd)
        x_bhwc = run(self.attentions[0], x_bhwc, context_bsd)
        return run(self.resnets[1], x_bhwc, time_bd)


class UpBlock2D(nnx.Module):
    """Like `DownBlock2D`, but with an upsampler; each resnet also takes the last unused skip connection."""

    def __init__(self, resnets: Sequence, attentions: Sequence, upsamplers: Sequence):
        self.resnets = nnx.List(resnets)
        self.attentions = nnx.List(attentions)
        self.upsamplers = nnx.List(upsamplers)

    def __call__(
        self, run: Runner, x_bhwc: jax.Array, skips: list[jax.Array], time_bd: jax.Array, context_bsd: jax.Array
    ) -> jax.Array:
        for i, resnet in enumerate(self.resnets):
            x_bhwc = run(resnet, jnp.concatenate([x_bhwc, skips.pop()], axis=-1), time_bd)
            if self.attentions:
                x_bhwc = run(self.attentions[i], x_bhwc, context_bsd)
        for upsample in self.upsamplers:
            x_bhwc = upsample(x_bhwc, skips[-1].shape[1:3])
        return x_bhwc


def _attends(key: str, types: Sequence[str], attending: str, plain: str, levels: int) -> list[bool]:
    """Return which levels have transformers, from the names of their block types."""
    if len(types) != levels or not set(types) <= {attending, plain}:
        raise UserError(
            f"unet config: {key}={list(types)!r} is not supported, only {levels} names (one for each of"
            f" block_out_channels) out of {attending!r} and {plain!r} are"
        )
    return [name == attending for name in types]


def _per_level(key: str, value: int | Sequence[int], levels: int) -> list[int]:
    """Return one integer per level; the config may give one for all levels."""
    values = [value] * levels if isinstance(value, int) else list(value or ())
    if len(values) != levels or not all(isinstance(item, int) for item in values):
        raise UserError(f"unet config: {key}={value!r} is not supported, only an integer or {levels} integers are")
    return values


def _number(key: str, config: Mapping[str, Any]) -> int:
    """Return a number that a config with `addition_embed_type` must have."""
    value = config.get(key)
    if not isinstance(value, int):
        raise UserError(f"unet config: {key}={value!r} is not supported beside addition_embed_type, only a number is")
    return value


class UNet2DConditionModel(nnx.Module):
    """Predicts noise or velocity, as it was trained to, from noisy latents, the timestep and the text; that of Stable
    Diffusion XL also from a pooled text and from sizes.

    Args:
        config: the content of diffusers' `unet/config.json`.
        dtype: the compute dtype, float32 or bfloat16; parameters are cast to it at use.
        remat: whether the backward pass computes the inside of every resnet and transformer again instead of
            keeping it. The gradients are the same, for up to a third more time and with less memory, except on
            the CPU, whose compiler keeps it anyway.
        kernel: how attention is computed.

    Raises:
        UserError: if the config asks for something that Stable Diffusion 1, 2 and XL do not have.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        kernel: Kernel = PLAIN,
    ):
        c = read_config("unet", config, free=_FREE, fixed=_FIXED, ignored=_IGNORED, per_level=_PER_LEVEL)
        widths, levels = c.block_out_channels, len(c.block_out_channels)
        down_attends = _attends("down_block_types", c.down_block_types, "CrossAttnDownBlock2D", "DownBlock2D", levels)
        up_attends = _attends("up_block_types", c.up_block_types, "CrossAttnUpBlock2D", "UpBlock2D", levels)
        # In the configs of these models attention_head_dim is the number of heads, not the size of a head.
        heads = _per_level("attention_head_dim", c.attention_head_dim, levels)
        depths = _per_level("transformer_layers_per_block", c.transformer_layers_per_block, levels)
        if any(width % count for width, count in zip(widths, heads, strict=True)):
            raise UserError(
                f"unet config: attention_head_dim={c.attention_head_dim!r} (the number of heads) is not"
                f" supported, only divisors of block_out_channels={list(widths)!r} are"
            )
        time_features = 4 * widths[0]
        resnet = partial(
            ResnetBlock2D, groups=c.norm_num_groups, eps=c.norm_eps, time_features=time_features, dtype=dtype
        )

        def transformer(level: int) -> Transformer2DModel:
            return Transformer2DModel(
                widths[level],
                heads=heads[level],
                depth=depths[level],
                context_features=c.cross_attention_dim,
                groups=c.norm_num_groups,
                linear_projection=c.use_linear_projection,
                kernel=kernel,
                dtype=dtype,
            )

        self.dtype = dtype
        self.remat = remat
        self.sinusoids = {
            "features": widths[0],
            "flip_sin_to_cos": c.flip_sin_to_cos,
            "freq_shift": c.freq_shift,
        }
        self.time_embedding = TimestepEmbedding(widths[0], time_features, dtype=dtype)
        self.size_sinusoids: dict[str, Any] | None = None
        if config.get("addition_embed_type") == SIZES_AND_TEXT:
            self.size_sinusoids = {**self.sinusoids, "features": _number("addition_time_embed_dim", config)}
            added_features = _number("projection_class_embeddings_input_dim", config)
            self.add_embedding = TimestepEmbedding(added_features, time_features, dtype=dtype)
        self.conv_in = Conv(c.in_channels, widths[0], dtype=dtype)

        self.down_blocks: nnx.List[DownBlock2D] = nnx.List()
        skip_widths = [widths[0]]
        for level, width in enumerate(widths):
            resnets = []
            for _ in range(c.layers_per_block):
                resnets.append(resnet(skip_widths[-1], width))
                skip_widths.append(width)
            downsamplers = []
            if level < levels - 1:
                downsamplers.append(Downsample2D(width, dtype=dtype))
                skip_widths.append(width)
            attentions = [transformer(level) for _ in resnets if down_attends[level]]
            self.down_blocks.append(DownBlock2D(resnets, attentions, downsamplers))

        width = widths[-1]
        self.mid_block = MidBlock2DCrossAttn([resnet(width, width), resnet(width, width)], [transformer(-1)])

        self.up_blocks: nnx.List[UpBlock2D] = nnx.List()
        for level in reversed(range(levels)):
            resnets = []
            for _ in range(c.layers_per_block + 1):
                resnets.append(resnet(width + skip_widths.pop(), widths[level]))
                width = widths[level]
            attentions = [transformer(level) for _ in resnets if up_attends[levels - 1 - level]]
            upsamplers = [Upsample2D(width, dtype=dtype)] if level > 0 else []
            self.up_blocks.append(UpBlock2D(resnets, attentions, upsamplers))

        self.conv_norm_out = GroupNorm(c.norm_num_groups, width, eps=c.norm_eps, dtype=dtype)
        self.conv_out = Conv(width, c.out_channels, dtype=dtype)

    def __call__(
        self,
        latents_bhwc: jax.Array,
        timesteps_b: jax.Array,
        context_btd: jax.Array,
        pooled_bd: jax.Array | None = None,
        sizes_bk: jax.Array | None = None,
    ) -> jax.Array:
        """Predict from a batch of noisy latents.

        Args:
            latents_bhwc: noisy, scaled latents.
            timesteps_b: timesteps, integer or floating.
            context_btd: the text encoders' hidden states.
            pooled_bd: for Stable Diffusion XL, the pooled text.
            sizes_bk: for Stable Diffusion XL, six numbers of each row, float32: the original height and width of its
                image, the top and left corner of its crop, and the target height and width (arXiv 2307.01952,
                section 2.2). bfloat16 could not tell 1365 from 1368.

        Return:
            The prediction, [b, h, w, out_channels] float32.
        """
        # This decides about rematerialisation for every block.
        run = nnx.remat(_run, policy=_KEEP_ATTENTION) if self.remat else _run
        context_btd = context_btd.astype(self.dtype)
        time_bd = self.time_embedding(sinusoidal_embedding(timesteps_b, **self.sinusoids).astype(self.dtype))
        if self.size_sinusoids:
            assert pooled_bd is not None and sizes_bk is not None
            sizes_bd = sinusoidal_embedding(sizes_bk.reshape(-1), **self.size_sinusoids).reshape(len(sizes_bk), -1)
            added_bd = jnp.concatenate([pooled_bd.astype(jnp.float32), sizes_bd], axis=-1)
            time_bd = time_bd + self.add_embedding(added_bd.astype(self.dtype))

        x_bhwc = self.conv_in(latents_bhwc.astype(self.dtype))
        skips = [x_bhwc]
        for down_block in self.down_blocks:
            skips += down_block(run, skips[-1], time_bd, context_btd)
        x_bhwc = self.mid_block(run, skips[-1], time_bd, context_btd)
        for up_block in self.up_blocks:
            x_bhwc = up_block(run, x_bhwc, skips, time_bd, context_btd)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x_bhwc))).astype(jnp.float32)
