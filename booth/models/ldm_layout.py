"""The layout of single-file checkpoints: latent diffusion's (LDM's) keys <-> our weights, total and invertible.

The keys are the module paths of the original code (github.com/CompVis/stable-diffusion and
github.com/Stability-AI/stablediffusion, for XL github.com/Stability-AI/generative-models), which numbers all blocks in
one sequence, while diffusers nests them. Four differences are more than names: the VAE's attention consists of 1x1
convolutions there and of linear layers here; OpenCLIP keeps query, key and value of a layer in one tensor; its
projection is transposed; and a file has tensors that nothing here uses (`unused`).

A table of every weight is made from the components' configs, so missing and extra tensors are known by name.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from booth.common.errors import UserError
from booth.models.weight_names import few, written_key

UNET, VAE, CLIP, OPEN_CLIP = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.",
    "cond_stage_model.model.",
)
XL_CLIP, XL_OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
POSITION_IDS = "text_model.embeddings.position_ids"

# Other tensors that files of the family may hold: averaged weights, the noise schedule, counters, masks.
_BESIDE = re.compile(
    r"model_ema\.|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?(alphas|betas)|posterior_|logvar$|lvlb_"
    r"|global_step$|scale_factor$|first_stage_model\.loss\.|.*\.position_ids$|cond_stage_model\.model\.attn_mask$"
    r"|cond_stage_model\.(transformer\.)?(logit_scale$|text_projection)"
)


@dataclass(frozen=True)
class Piece:
    """The weights of this project that a tensor of the file holds."""

    component: str
    names: tuple[str, ...]  # canonical names; several weights lie one after another along the tensor's first axis
    pointwise: bool = False  # whether a linear layer [out, in] is a 1x1 convolution [out, in, 1, 1] in the file
    transposed: bool = False  # whether a linear layer [out, in] is [in, out] in the file

    def in_file(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the tensor in the file, of which each weight has this shape."""
        shape = (shape[0] * len(self.names), *shape[1:])
        return (*shape, 1, 1) if self.pointwise else shape[::-1] if self.transposed else shape

    def weight(self, array: np.ndarray, part: int) -> np.ndarray:
        """Return the weight number `part` of the tensor in the file."""
        if len(self.names) > 1:
            array = np.split(array, len(self.names))[part]
        return array.reshape(array.shape[:2]) if self.pointwise else array.T if self.transposed else array


Configs = Mapping[str, Mapping[str, Any]]


def table(configs: Configs) -> dict[str, Piece]:
    """Return, by key in the file, what each tensor of a pipeline with these configs is: unet, vae, and one or two text
    encoders.

    Raise UserError for a config that the original code cannot express.
    """
    try:
        return {
            **{UNET + key: Piece("unet", (name,)) for name, key in _unet(configs["unet"])},
            **{VAE + key: Piece("vae", (name,), name.endswith(_POINTWISE)) for name, key in _vae(configs["vae"])},
            **dict(_texts(configs)),
        }
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"this model has no single-file form: a config of its networks is unusual ({error!r}); keep its folder"
        ) from error


def inverse(pieces: Mapping[str, Piece]) -> dict[tuple[str, str], tuple[str, int]]:
    """Return, by (component, canonical name), the key in the file and which part of that tensor the weight is."""
    return {
        (piece.component, name): (key, part) for key, piece in pieces.items() for part, name in enumerate(piece.names)
    }


def unused(configs: Configs) -> dict[str, np.ndarray]:
    """Return the tensors that original files have besides the weights, so that a file has every key of an original.

    Stable Diffusion 1 and XL have the positions 0 to 76. Stable Diffusion 2 uses OpenCLIP up to the last layer but one,
    and a diffusers folder has no further layer. So the last layer is made of zeros here, a residual block that adds
    nothing: a program that computes all layers gets the same result. The projection is the identity. The scale ln 100
    is CLIP's upper bound (Radford et al. 2021, section 2.5).
    """
    text_encoder = configs["text_encoder"]
    positions = np.arange(text_encoder.get("max_position_embeddings", 77), dtype=np.int64)[None]
    scale = np.array(math.log(100), np.float32)
    if "text_encoder_2" in configs:
        return {XL_CLIP + POSITION_IDS: positions, f"{XL_OPEN_CLIP}logit_scale": scale}
    if not is_open_clip(text_encoder):
        return {CLIP + POSITION_IDS: positions}
    width, wide = text_encoder["hidden_size"], text_encoder["intermediate_size"]
    shapes = {
        "attn.in_proj": (3 * width, width), "attn.out_proj": (width, width), "mlp.c_fc": (wide, width),
        "mlp.c_proj": (width, wide),
    }  # fmt: skip
    block = f"{OPEN_CLIP}transformer.resblocks.{text_encoder['num_hidden_layers']}."
    zeros: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        dot = "_" if name.endswith("in_proj") else "."
        zeros[f"{block}{name}{dot}weight"] = np.zeros(shape, np.float32)
        zeros[f"{block}{name}{dot}bias"] = np.zeros(shape[:1], np.float32)
    for name in ("ln_1", "ln_2"):
        for leaf in ("weight", "bias"):
            zeros[f"{block}{name}.{leaf}"] = np.zeros(width, np.float32)
    return {
        **zeros,
        f"{OPEN_CLIP}text_projection": np.eye(width, dtype=np.float32),
        f"{OPEN_CLIP}logit_scale": scale,
    }


def is_open_clip(text_encoder: Mapping[str, Any]) -> bool:
    """Return whether a text encoder is OpenCLIP's, as in Stable Diffusion 2, by the rule of `booth.models.family`."""
    return text_encoder.get("hidden_act") == "gelu"


def plain_key(key: str) -> str:
    """Return the key as it is in the table: files made with early versions of transformers leave `text_model.` out."""
    return CLIP + written_key("text_encoder", key.removeprefix(CLIP)) if key.startswith(CLIP) else key


def check_complete(where: str, found: Collection[str], pieces: Mapping[str, Piece], also: Collection[str] = ()) -> None:
    """Raise UserError unless `found` are all keys of the table, with or without the keys in `also`.

    The message begins with `where` and lists the missing and the extra keys.
    """
    missing = pieces.keys() - set(found)
    left_over = [key for key in set(found) - pieces.keys() - set(also) if not _BESIDE.match(key)]
    if missing or left_over:
        raise UserError(
            f"{where}: its tensors are not those of its config: missing {few(missing)}; left over {few(left_over)}"
        )


_BOTH = ("weight", "bias")
_POINTWISE = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight")  # of the VAE's attention
_UNET_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}  # fmt: skip
_VAE_RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}  # fmt: skip

Names = Iterator[tuple[str, str]]  # (name here, key in the file)


def _module(name: str, key: str, inside: Mapping[str, str] | None = None) -> Names:
    """Yield weight and bias of a module, or of the modules inside it."""
    for inner, other in (inside or {"": ""}).items():
        for leaf in _BOTH:
            yield ".".join(filter(None, (name, inner, leaf))), ".".join(filter(None, (key, other, leaf)))


def _transformer(name: str, key: str, depth: int) -> Names:
    """Yield the weights of a UNet's attention, whose parts have the same names in both layouts."""
    yield from _module(name, key, {part: part for part in ("norm", "proj_in", "proj_out")})
    for block in (f"transformer_blocks.{number}" for number in range(depth)):
        both = [f"{block}.{part}" for part in ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2")]
        both += [f"{block}.{attention}.to_out.0" for attention in ("attn1", "attn2")]
        yield from _module(name, key, {part: part for part in both})
        for attention in ("attn1", "attn2"):
            for part in ("to_q", "to_k", "to_v"):
                leaf = f"{block}.{attention}.{part}.weight"
                yield f"{name}.{leaf}", f"{key}.{leaf}"


def _unet(config: Mapping[str, Any]) -> Names:
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    depths = config.get("transformer_layers_per_block", 1)
    depths = [depths] * len(widths) if isinstance(depths, int) else list(depths)
    yield from _module("time_embedding", "time_embed", {"linear_1": "0", "linear_2": "2"})
    if config.get("addition_embed_type"):
        yield from _module("add_embedding", "label_emb.0", {"linear_1": "0", "linear_2": "2"})
    yield from _module("conv_in", "input_blocks.0.0")
    yield from _module("", "", {"conv_norm_out": "out.0", "conv_out": "out.2"})
    place = 1
    for block, (kind, width) in enumerate(zip(config["down_block_types"], widths, strict=True)):
        for layer in range(layers):
            resnet, key = f"down_blocks.{block}.resnets.{layer}", f"input_blocks.{place}"
            yield from _module(resnet, f"{key}.0", _UNET_RESNET)
            if layer == 0 and width != widths[max(block - 1, 0)]:
                yield from _module(f"{resnet}.conv_shortcut", f"{key}.0.skip_connection")
            if "CrossAttn" in kind:
                yield from _transformer(f"down_blocks.{block}.attentions.{layer}", f"{key}.1", depths[block])
            place += 1
        if block < len(widths) - 1:
            yield from _module(f"down_blocks.{block}.downsamplers.0.conv", f"input_blocks.{place}.0.op")
            place += 1
    for layer in range(2):
        yield from _module(f"mid_block.resnets.{layer}", f"middle_block.{2 * layer}", _UNET_RESNET)
    yield from _transformer("mid_block.attentions.0", "middle_block.1", depths[-1])
    for block, kind in enumerate(config["up_block_types"]):
        for layer in range(layers + 1):
            resnet, key = f"up_blocks.{block}.resnets.{layer}", f"output_blocks.{block * (layers + 1) + layer}"
            yield from _module(resnet, f"{key}.0", _UNET_RESNET)
            yield from _module(
                f"{resnet}.conv_shortcut", f"{key}.0.skip_connection"
            )  # it also takes a skip connection, so its input is wider
            if "CrossAttn" in kind:
                yield from _transformer(f"up_blocks.{block}.attentions.{layer}", f"{key}.1", depths[-1 - block])
        if block < len(widths) - 1:
            place = 2 if "CrossAttn" in kind else 1
            yield from _module(f"up_blocks.{block}.upsamplers.0.conv", f"{key}.{place}.conv")


def _vae(config: Mapping[str, Any]) -> Names:
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    last = len(widths) - 1
    yield from _module("", "", {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"})
    for half in ("encoder", "decoder"):
        yield from _module(half, half, {"conv_in": "conv_in", "conv_out": "conv_out", "conv_norm_out": "norm_out"})
        for layer in range(2):
            yield from _module(f"{half}.mid_block.resnets.{layer}", f"{half}.mid.block_{layer + 1}", _VAE_RESNET)
        yield from _module(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", _VAE_ATTENTION)
    for block in range(last + 1):
        name, key = f"encoder.down_blocks.{block}", f"encoder.down.{block}"
        yield from _vae_block(name, key, layers, widths[max(block - 1, 0)] != widths[block])
        if block < last:
            yield from _module(f"{name}.downsamplers.0.conv", f"{key}.downsample.conv")
        name, key = f"decoder.up_blocks.{last - block}", f"decoder.up.{block}"  # counted from the other end
        yield from _vae_block(name, key, layers + 1, widths[min(block + 1, last)] != widths[block])
        if block > 0:
            yield from _module(f"{name}.upsamplers.0.conv", f"{key}.upsample.conv")


def _vae_block(name: str, key: str, layers: int, widens: bool) -> Names:
    for layer in range(layers):
        yield from _module(f"{name}.resnets.{layer}", f"{key}.block.{layer}", _VAE_RESNET)
    if widens:
        yield from _module(f"{name}.resnets.0.conv_shortcut", f"{key}.block.0.nin_shortcut")


def _texts(configs: Configs) -> Iterator[tuple[str, Piece]]:
    first = configs["text_encoder"]
    if "text_encoder_2" in configs:
        second = configs["text_encoder_2"]
        yield from _clip(XL_CLIP, first)
        yield from _open_clip(XL_OPEN_CLIP, second, "text_encoder_2")
        projection = Piece("text_encoder_2", ("text_projection.weight",), transposed=True)
        yield f"{XL_OPEN_CLIP}text_projection", projection
    else:
        yield from _open_clip(OPEN_CLIP, first, "text_encoder") if is_open_clip(first) else _clip(CLIP, first)


def _clip(start: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Piece]]:
    parts = [f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")]
    parts += ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]
    modules = [f"encoder.layers.{layer}.{part}" for layer in range(config["num_hidden_layers"]) for part in parts]
    names = [f"text_model.{module}.{leaf}" for module in (*modules, "final_layer_norm") for leaf in _BOTH]
    names += [f"text_model.embeddings.{part}_embedding.weight" for part in ("token", "position")]
    yield from ((start + name, Piece("text_encoder", (name,))) for name in names)


def _open_clip(start: str, config: Mapping[str, Any], component: str) -> Iterator[tuple[str, Piece]]:
    one = [
        ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        *_module("text_model.final_layer_norm", "ln_final"),
    ]
    for layer in range(config["num_hidden_layers"]):
        name, key = f"text_model.encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        one += _module(name, key, _OPEN_CLIP_LAYER)
        for leaf in _BOTH:
            fused = tuple(f"{name}.self_attn.{part}_proj.{leaf}" for part in "qkv")
            yield f"{start}{key}.attn.in_proj_{leaf}", Piece(component, fused)
    yield from ((start + key, Piece(component, (name,))) for name, key in one)
