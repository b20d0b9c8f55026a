"""The text encoder of CLIP (arXiv 2103.00020), module for module as transformers names it.

Shape suffixes as in `jaxbooth.models.layers`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from booth.common.errors import UserError
from jaxbooth.models.attention import PLAIN, attend_heads
from jaxbooth.models.layers import Embedding, LayerNorm, Linear, read_config

_FREE = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 512,
}
_FIXED = {
    "add_cross_attention": (False,),
    "attention_dropout": (0.0,),
    "chunk_size_feed_forward": (0,),
    "dropout": (0.0,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "model_type": ("clip_text_model",),
    "pruned_heads": ({},),
}
# Bookkeeping, initialisation, the pooled output, and the outputs of transformers' other model classes.
_IGNORED = {
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers_version",
}


def quick_gelu(x: jax.Array) -> jax.Array:
    """Return the sigmoid approximation of GELU that CLIP was trained with (arXiv 1606.08415, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable] = {
    "quick_gelu": quick_gelu,
    "gelu": partial(jax.nn.gelu, approximate=False),
}


class CLIPAttention(nnx.Module):
    """Multi-head self-attention in which a token sees itself and earlier ones."""

    def __init__(self, features: int, *, heads: int, dtype: DTypeLike):
        self.q_proj = Linear(features, features, dtype=dtype)
        self.k_proj = Linear(features, features, dtype=dtype)
        self.v_proj = Linear(features, features, dtype=dtype)
        self.out_proj = Linear(features, features, dtype=dtype)
        self.heads = heads

    def __call__(self, x_btd: jax.Array) -> jax.Array:
        q_btd, k_btd, v_btd = self.q_proj(x_btd), self.k_proj(x_btd), self.v_proj(x_btd)
        return self.out_proj(attend_heads(q_btd, k_btd, v_btd, self.heads, PLAIN, causal=True))


class CLIPMLP(nnx.Module):
    """Two linear layers around the activation."""

    def __init__(self, features: int, hidden: int, *, activation: str, dtype: DTypeLike):
        self.fc1 = Linear(features, hidden, dtype=dtype)
        self.fc2 = Linear(hidden, features, dtype=dtype)
        self.activation = activation

    def __call__(self, x_btd: jax.Array) -> jax.Array:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x_btd)))


class CLIPEncoderLayer(nnx.Module):
    """Self-attention and perceptron; each gets a normalised input and adds its output to the input."""

    def __init__(self, c: SimpleNamespace, *, dtype: DTypeLike):
        self.layer_norm1 = LayerNorm(c.hidden_size, eps=c.layer_norm_eps, dtype=dtype)
        self.self_attn = CLIPAttention(c.hidden_size, heads=c.num_attention_heads, dtype=dtype)
        self.layer_norm2 = LayerNorm(c.hidden_size, eps=c.layer_norm_eps, dtype=dtype)
        self.mlp = CLIPMLP(c.hidden_size, c.intermediate_size, activation=c.hidden_act, dtype=dtype)

    def __call__(self, x_btd: jax.Array) -> jax.Array:
        x_btd = x_btd + self.self_attn(self.layer_norm1(x_btd))
        return x_btd + self.mlp(self.layer_norm2(x_btd))


class CLIPEncoder(nnx.Module):
    """The stack of layers."""

    def __init__(self, c: SimpleNamespace, *, dtype: DTypeLike, remat: bool):
        self.layers = nnx.List(CLIPEncoderLayer(c, dtype=dtype) for _ in range(c.num_hidden_layers))
        self.remat = remat

    def __call__(self, x_btd: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the outputs of the last layer but one and of the last layer."""
        run = nnx.remat(_run) if self.remat else _run
        before_btd = x_btd
        for layer in self.layers:
            before_btd, x_btd = x_btd, run(layer, x_btd)
        return before_btd, x_btd


def _run(layer: nnx.Module, x_btd: jax.Array) -> jax.Array:
    return layer(x_btd)  # type: ignore[operator]


class CLIPTextEmbeddings(nnx.Module):
    """The sum of the vectors of a token and of its position."""

    def __init__(self, c: SimpleNamespace, *, dtype: DTypeLike):
        self.token_embedding = Embedding(c.vocab_size, c.hidden_size, dtype=dtype)
        self.position_embedding = Embedding(c.max_position_embeddings, c.hidden_size, dtype=dtype)

    def __call__(self, token_ids_bt: jax.Array) -> jax.Array:
        positions_t = jnp.arange(token_ids_bt.shape[1])
        return self.token_embedding(token_ids_bt) + self.position_embedding(positions_t)[None]


class CLIPTextTransformer(nnx.Module):
    """Embeddings, layers and the final norm."""

    def __init__(self, c: SimpleNamespace, *, dtype: DTypeLike, remat: bool):
        self.embeddings = CLIPTextEmbeddings(c, dtype=dtype)
        self.encoder = CLIPEncoder(c, dtype=dtype, remat=remat)
        self.final_layer_norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps, dtype=dtype)

    def __call__(self, token_ids_bt: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the output of the last layer but one, and that of the last layer after the final norm."""
        before_btd, last_btd = self.encoder(self.embeddings(token_ids_bt))
        return before_btd, self.final_layer_norm(last_btd)


class CLIPTextModel(nnx.Module):
    """Encodes prompts for the UNet.

    Args:
        config: the content of transformers' `text_encoder/config.json`.
        dtype: the compute dtype, float32 or bfloat16; parameters are cast to it at use.
        remat: whether the backward pass computes the inside of every layer once more instead of keeping it.
        penultimate: whether the output of the last layer but one is returned, without a norm, as Stable Diffusion XL
            takes it. The last layer and the final norm have no effect then.

    Raises:
        UserError: if the config asks for something that CLIP's and OpenCLIP's text encoders do not have.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        penultimate: bool = False,
    ):
        self.text_model = CLIPTextTransformer(_read("text_encoder", config), dtype=dtype, remat=remat)
        self.penultimate = penultimate

    def __call__(self, token_ids_bt: jax.Array) -> jax.Array:
        """Return the last hidden state after the final layer norm, or the last but one, [b, t, hidden_size] float32.

        Attention is causal and without a padding mask, as Stable Diffusion was trained: padding is encoded as well.

        Args:
            token_ids_bt: int32 token ids. An id past the vocabulary gives NaN, and so does a position past
                `max_position_embeddings`.
        """
        before_btd, last_btd = self.text_model(token_ids_bt)
        return (before_btd if self.penultimate else last_btd).astype(jnp.float32)


class CLIPTextModelWithProjection(nnx.Module):
    """Encodes prompts for the UNet of Stable Diffusion XL, and pools each into one vector.

    Args:
        config: the content of transformers' `text_encoder_2/config.json`.
        end_token: the id of the token that ends a prompt. The text is pooled at the first of them. (transformers takes
            the largest id where the config says eos_token_id=2, as older configs do: with tokens that were added
            later that would be another place.)
        dtype, remat: as in `CLIPTextModel`.

    Raises:
        UserError: as `CLIPTextModel`.
    """

    def __init__(
        self, config: Mapping[str, Any], *, end_token: int, dtype: DTypeLike = jnp.float32, remat: bool = False
    ):
        c = _read("text_encoder_2", config)
        self.text_model = CLIPTextTransformer(c, dtype=dtype, remat=remat)
        self.text_projection = Linear(c.hidden_size, c.projection_dim, bias=False, dtype=dtype)
        self.end_token = end_token

    def __call__(self, token_ids_bt: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the hidden state of the last layer but one, [b, t, hidden_size], and the pooled text,
        [b, projection_dim]; both float32."""
        before_btd, last_btd = self.text_model(token_ids_bt)
        ends_b = jnp.argmax(token_ids_bt == self.end_token, axis=1)
        pooled_bd = jnp.take_along_axis(last_btd, ends_b[:, None, None], axis=1)[:, 0]
        return before_btd.astype(jnp.float32), self.text_projection(pooled_bd).astype(jnp.float32)


def _read(component: str, config: Mapping[str, Any]) -> SimpleNamespace:
    c = read_config(component, config, free=_FREE, fixed=_FIXED, ignored=_IGNORED)
    if c.hidden_act not in ACTIVATIONS:
        raise UserError(
            f"{component} config: hidden_act={c.hidden_act!r} is not supported,"
            f" only {' or '.join(map(repr, ACTIVATIONS))} is"
        )
    return c
