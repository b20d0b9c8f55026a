"""LoRA files merged into a pipeline: the pipeline's weights plus the updates of the files."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from booth.common.errors import UserError
from booth.models.adapters import LowRank, added, layers, weight_shapes
from booth.models.lora_file import LoraFile
from booth.models.pipeline import PipelineDir
from booth.models.weight_names import few


def weights_of(files: Sequence[Path], weights: Sequence[float]) -> list[float]:
    """Return one weight for each file, 1 if none is given. Raise UserError if their count differs, or if one is not
    finite."""
    if weights and len(weights) != len(files):
        raise UserError(f"--weight is given {len(weights)} times and --lora {len(files)}; give one for each, in order")
    for weight in weights:
        if not math.isfinite(weight):
            raise UserError(f"--weight {weight} must be a finite number, such as 0.8")
    return list(weights) or [1.0] * len(files)


def check_fits(pipeline: PipelineDir, lora: LoraFile) -> None:
    """Raise UserError with the names of layers that the pipeline does not have, or has in other shapes."""
    components = sorted({layer.partition(".")[0] for layer in lora.layers})
    known = {
        f"{component}.{name}": shape
        for component in components
        for name, shape in layers(weight_shapes(pipeline, component)).items()
    }
    where = f"{lora.path} does not fit {pipeline.where}, {pipeline.family.title}"
    if missing := lora.layers.keys() - known.keys():
        raise UserError(f"{where}, which has no {few(missing)}; give a LoRA that was trained from such a model")
    other = [
        f"{layer} {list(update.shape)} instead of {list(known[layer])}"
        for layer, update in lora.layers.items()
        if _plain(update.shape) != _plain(known[layer])
    ]
    if other:
        raise UserError(f"{where}: {few(other)}; give a LoRA that was trained from such a model")


def merged(
    pipeline: PipelineDir, loras: Sequence[LoraFile], weights: Sequence[float]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield (component, name, float32 array) of all weights of the components that the files change."""
    updates: dict[str, list[tuple[LowRank, float]]] = {}
    for lora, weight in zip(loras, weights, strict=True):
        for layer, update in lora.layers.items():
            updates.setdefault(layer, []).append((update, weight))
    return added(pipeline, updates)


def record(loras: Sequence[LoraFile], weights: Sequence[float]) -> list[dict[str, Any]]:
    """Return what an export records about the merged files."""
    return [
        {"file": lora.path.name, "sha256": hashlib.sha256(lora.path.read_bytes()).hexdigest(), "weight": weight}
        for lora, weight in zip(loras, weights, strict=True)
    ]


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a 1x1 convolution as that of a linear layer, since some trainers write it so."""
    return shape[:2] if shape[2:] == (1, 1) else shape
