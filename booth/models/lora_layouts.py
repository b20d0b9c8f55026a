"""The layouts of LoRA files: their keys <-> a layer, as `component.layer` in diffusers' names, and a part of its LoRA.

    PEFT's, which diffusers writes     unet.mid_block.attentions.0.proj_in.lora_A.weight
    kohya's, which WebUIs read         lora_unet_mid_block_attentions_0_proj_in.lora_down.weight
    read too                           unet.mid_block.attentions.0.proj_in.lora.down.weight       (diffusers 0.20)
                                       unet.[...].attn1.processor.to_q_lora.down.weight           (before)
                                       base_model.model.mid_block.attentions.0.proj_in.lora_A.weight   (PEFT alone)

kohya's (github.com/kohya-ss/sd-scripts, networks/lora.py) is diffusers' module path with underscores in place of dots,
and has the alpha of each layer in a further tensor; the first text encoder is `te`. The underscores can be turned back
into dots, since the words of these networks that contain an underscore are known.
"""

import re
from typing import Literal

from booth.common.errors import UserError
from booth.models.weight_names import written_key

Part = Literal["down", "up", "alpha"]

_KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
_KOHYA_NAME = re.compile(r"lora_(unet|te1?)_(.*)")
_COMPONENTS = {"unet": "unet", "te": "text_encoder", "te1": "text_encoder"}
_DOTTED_NAME = re.compile(r"(?:(unet|text_encoder)\.)?(?:base_model\.model\.)?(.*)")

# The words with an underscore in the names of linear and convolutional layers of UNets and CLIP's text encoders.
_WORDS = (
    "down_blocks", "mid_block", "up_blocks", "transformer_blocks", "conv_in", "conv_out", "conv_shortcut", "proj_in",
    "proj_out", "to_q", "to_k", "to_v", "to_out", "time_emb_proj", "time_embedding", "linear_1", "linear_2",
    "text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj",
)  # fmt: skip
_WORD = re.compile(rf"(?:{'|'.join(_WORDS)})(?=_|$)|[^_]+")

_PART = re.compile(
    r"(?P<layer>.+?)(?:\.lora_(?P<peft>[AB])(?:\.\w+)?\.weight|\.lora_(?P<kohya>down|up)\.weight"
    r"|(?:_lora|\.lora|\.lora_linear_layer)\.(?P<old>down|up)\.weight|\.(?P<alpha>alpha))"
)
_OLD_ATTENTION = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}  # of text encoders

# Files of other kinds: (the part of a key that shows the kind, what it is).
_OTHERS = (
    (r"dora_scale|lora_magnitude_vector", "DoRA, which rescales the weights"),
    (r"\.lora_mid\.", "LoCon with a third, middle matrix"),
    (r"\.hada_", "LoHa"),
    (r"\.lokr_", "LoKr"),
    (r"\.oft_|\.boft_", "OFT"),
    (r"\.diff(_b)?$|\.(w|b)_norm$", "whole differences of weights"),
    (r"^bundle_emb\.", "embeddings of new words beside the LoRA"),
    (r"^lora_te[23]_|^text_encoder_[23]\.", "a second text encoder, as of Stable Diffusion XL"),
    (r"^lora_unet_(input|middle|output)_blocks?_", "blocks numbered as in LoRAs of Stable Diffusion XL"),
    (
        r"^transformer\.|^lora_transformer_|double_blocks|joint_blocks",
        "a transformer, as of Stable Diffusion 3 or FLUX",
    ),
)


def parsed(key: str) -> tuple[str, Part]:
    """Return (`component.layer`, part) of a key in any of the layouts; down is A, up is B.

    Raise UserError, without the file's name, for a key that is no part of a LoRA.
    """
    for pattern, what in _OTHERS:
        if re.search(pattern, key):
            raise UserError(f"{key} shows {what}, which is not supported; give a plain LoRA of Stable Diffusion 1 or 2")
    match = _PART.fullmatch(key)
    if not match:
        raise UserError(f"{key} is no part of a LoRA; give a LoRA file, in diffusers' (PEFT's) or kohya's layout")
    part: Part = "alpha"
    if match["peft"]:
        part = "down" if match["peft"] == "A" else "up"
    elif not match["alpha"]:
        part = "down" if "down" in (match["kohya"], match["old"]) else "up"
    return _layer(match["layer"]), part


def peft_key(layer: str, part: Part) -> str:
    """Return the key of an A or B in diffusers' layout."""
    return f"{layer}.lora_{'A' if part == 'down' else 'B'}.weight"


def kohya_key(layer: str, part: Part) -> str:
    component, _, name = layer.partition(".")
    return f"{_KOHYA[component]}{name.replace('.', '_')}.{'alpha' if part == 'alpha' else f'lora_{part}.weight'}"


def _layer(name: str) -> str:
    if match := _KOHYA_NAME.fullmatch(name):
        return f"{_COMPONENTS[match[1]]}.{'.'.join(_WORD.findall(match[2]))}"
    match = _DOTTED_NAME.fullmatch(name)
    assert match, "it matches everything"
    inside = match[2].replace(".processor.", ".")
    is_text = inside.startswith(("text_model.", "encoder.layers."))
    component = match[1] or ("text_encoder" if is_text else "unet")
    if component == "unet":
        return f"unet.{re.sub(r'to_out$', 'to_out.0', inside)}"
    start, _, last = inside.rpartition(".")
    return f"text_encoder.{written_key(component, f'{start}.{_OLD_ATTENTION.get(last, last)}')}"
