"""Names of weights: diffusers' names, which this project uses, and the names in files."""

import re
from collections.abc import Collection, Mapping

import numpy as np

from booth.common.errors import UserError
from booth.common.file_names import listed

_OLD_VAE_ATTENTION = re.compile(r"(?<=\.)(query|key|value|proj_attn)(?=\.)")


_NEW_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def canonical_name(component: str, key: str) -> str | None:
    """Return the one name of a weight, whichever library version wrote it; None for a buffer that is no weight."""
    if component == "text_encoder":
        return None if key.endswith("position_ids") else written_key(component, key)
    if component == "vae":
        return _OLD_VAE_ATTENTION.sub(lambda match: _NEW_VAE_ATTENTION[match[0]], key)
    return key


def written_key(component: str, key: str) -> str:
    """Return the key an export uses: the source's own, but text encoders always have the `text_model.` prefix.

    transformers 5 leaves it out; transformers 4 does not find weights without it and uses random ones in their place.
    """
    bare = component == "text_encoder" and key.startswith(("embeddings.", "encoder.", "final_layer_norm."))
    return f"text_model.{key}" if bare else key


def fit_weights(
    component: str, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Return the tensors as float32 in the shapes that a network has.

    The attention of older VAEs has linear layers in the form of 1x1 convolutions; these lose their last two axes. Raise
    UserError with the missing and the extra names, or with the wrong shapes.
    """
    missing, left_over = shapes.keys() - tensors.keys(), tensors.keys() - shapes.keys()
    if missing or left_over:
        raise UserError(
            f"{component} weights do not fit its config: missing {few(missing)}; left over {few(left_over)}"
        )
    fitted, wrong = {}, []
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.shape == (*shape, 1, 1):
            tensor = tensor.reshape(shape)
        if tensor.shape != shape or tensor.dtype.kind not in "fV":  # V: bfloat16 and similar types
            wrong.append(f"{name} is {tensor.dtype}{list(tensor.shape)} instead of float{list(shape)}")
        else:
            fitted[name] = tensor.astype(np.float32, copy=False)
    if wrong:
        raise UserError(f"{component} weights do not fit its config: {few(wrong)}")
    return fitted


def few(names: Collection[str]) -> str:
    """Return the first names of tensors in order, and how many more there are."""
    return listed(sorted(names), 4) or "none"
