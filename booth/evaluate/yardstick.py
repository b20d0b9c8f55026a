"""The yardstick: a small convolutional network in NumPy that describes pictures of the drawn world.

It recognises a picture's class and setting, and describes the individual in it by a vector that is the same for all
pictures of one individual, whatever the setting, side and scale. `scripts/train_yardstick.py` trains it on renderings
whose content is known; `tests/booth/test_yardstick.py` measures how reliable it is.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from booth.common.errors import reading
from booth.models.safetensors_reader import opened

WEIGHTS = Path(__file__).parent / "yardstick.safetensors"
SIDE = 64  # pixels; other pictures are resized to it
_BATCH = 64


@dataclass(frozen=True)
class Looks:
    """The network's description of n pictures.

    `class_scores` [n, classes] and `setting_scores` [n, settings] are probabilities, `identity` [n, 64] unit vectors;
    float32. `classes` and `settings` name the columns.
    """

    class_scores: np.ndarray
    setting_scores: np.ndarray
    identity: np.ndarray
    classes: tuple[str, ...]
    settings: tuple[str, ...]

    @property
    def class_names(self) -> list[str]:
        """The most likely class of each picture."""
        return [self.classes[column] for column in self.class_scores.argmax(axis=1)]

    @property
    def setting_names(self) -> list[str]:
        """The most likely setting of each picture."""
        return [self.settings[column] for column in self.setting_scores.argmax(axis=1)]


def look(pictures: Sequence[np.ndarray]) -> Looks:
    """Describe uint8 pictures [h, w, 3] of any sizes, at least one. Raise UserError if the network's weights are
    unusable."""
    weights, classes, settings = _load()
    pixels = np.stack([_pixels(picture) for picture in pictures])
    parts = [_forward(weights, pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
    class_logits, setting_logits, identity = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Looks(_softmax(class_logits), _softmax(setting_logits), _unit(identity), classes, settings)


@cache
def _load() -> tuple[dict[str, np.ndarray], tuple[str, ...], tuple[str, ...]]:
    """Return (float32 weights by name, classes, settings)."""
    fix = "install this project again"
    with reading(f"{WEIGHTS} is broken", fix), opened(WEIGHTS, fix) as file:
        names = {key: tuple(json.loads(value)) for key, value in file.metadata.items() if key != "format"}
        weights = {key: file.tensor(key).astype(np.float32) for key in file.specs()}
        return weights, names["classes"], names["settings"]


def _pixels(picture: np.ndarray) -> np.ndarray:
    """Return a picture as float32 [SIDE, SIDE, 3] from -1 to 1."""
    if picture.shape != (SIDE, SIDE, 3):
        picture = np.asarray(Image.fromarray(picture).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX))
    return picture.astype(np.float32) / 127.5 - 1


def _forward(weights: dict[str, np.ndarray], pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (class logits, setting logits, identity before normalisation) of float32 [n, SIDE, SIDE, 3]."""
    x = pixels
    layers = sum(name.startswith("conv") and name.endswith(".weight") for name in weights)
    for layer in range(layers):
        kernel, bias = weights[f"conv{layer}.weight"], weights[f"conv{layer}.bias"]  # [3, 3, in, out], [out]
        x = np.maximum(_convolve(x, kernel, stride=int(weights[f"conv{layer}.stride"][0])) + bias, 0)
    pooled = np.concatenate([x.mean(axis=(1, 2)), x.max(axis=(1, 2))], axis=1)
    hidden = np.maximum(pooled @ weights["hidden.weight"] + weights["hidden.bias"], 0)
    heads = (hidden @ weights[f"{head}.weight"] + weights[f"{head}.bias"] for head in ("class", "setting", "identity"))
    return tuple(heads)  # type: ignore[return-value]


def _convolve(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """Return the 3x3 convolution of [n, h, w, in], with a border of zeros: [n, h/stride, w/stride, out]."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::stride, ::stride]  # [n, h, w, in, 3, 3]
    n, h, w = windows.shape[:3]
    flat = windows.transpose(0, 1, 2, 4, 5, 3).reshape(n * h * w, -1)
    return (flat @ kernel.reshape(-1, kernel.shape[-1])).reshape(n, h, w, -1)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
