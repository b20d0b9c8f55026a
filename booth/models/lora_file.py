"""LoRA files, read in any layout (`booth.models.lora_layouts`) and written in two.

diffusers reads PEFT's layout with `pipe.load_lora_weights(folder)`. Layers of the text encoder keep `text_model.`:
current libraries leave it out when they save, but older libraries and WebUIs need it. Rank and alpha are in the file's
metadata, as current diffusers writes them; but older versions and other programs do not read alpha there and take the
rank for it. So alpha is made equal to the rank: B is multiplied by alpha / rank, and the metadata also say what alpha
was. kohya's layout, for WebUIs, has the alpha of each layer in a tensor.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from booth.common import disk_space, host_memory
from booth.common.errors import UserError
from booth.common.files import write_bytes, write_text
from booth.models import lora_metadata
from booth.models.adapters import Adapter, LowRank
from booth.models.export_folder import RECORD
from booth.models.lora_layouts import kohya_key, parsed, peft_key
from booth.models.pipeline import PICKLES, read_json, read_specs
from booth.models.safetensors_file import CODES, DTYPES, Precision, as_type, packed
from booth.models.safetensors_reader import SUFFIX, opened

FILE = "pytorch_lora_weights.safetensors"
FORMATS = ("peft", "kohya")
ZERO_SNR = "it goes with a scheduler that has rescale_betas_zero_snr=true, timestep_spacing='trailing'"

_CONFIG = "adapter_config.json"  # a file that only PEFT writes, beside its weights


@dataclass(frozen=True)
class LoraFile:
    path: Path
    layers: Mapping[str, LowRank]  # by `component.layer`
    metadata: Mapping[str, str]


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA file, or the one in a folder that diffusers wrote. Raise UserError for anything but a plain LoRA."""
    path = path / FILE if path.is_dir() else path
    if path.suffix.lower() in PICKLES:
        raise UserError(
            f"{path} is a pickle, which may run code and is never read; `torchbooth convert {path} --out"
            f" {path.with_suffix(SUFFIX)}` takes the tensors out of it"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a LoRA file, NAME{SUFFIX}")
    specs = read_specs(path)
    found: dict[str, dict[str, np.ndarray]] = {}
    host_memory.require(sum(spec.nbytes for spec in specs.values()), str(path))
    with opened(path) as file:
        metadata = file.metadata
        for key in sorted(specs):
            try:
                layer, part = parsed(key)
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
            if part in found.setdefault(layer, {}):
                raise UserError(f"{path} has two tensors for {part} of {layer}; give a file in one layout")
            found[layer][part] = file.tensor(key)
    if not found:
        raise UserError(f"{path} is empty; give a LoRA file")
    config = path.with_name(_CONFIG)
    alone = all(key.startswith("base_model.model.") for key in specs)
    if alone and not config.is_file():
        raise UserError(f"{path} is PEFT's, whose alpha is in {_CONFIG}; put that file beside it")
    settings = read_json(config) if alone else lora_metadata.peft_settings(path, metadata)
    layers = {layer: _low_rank(path, layer, found[layer], settings) for layer in sorted(found)}
    if before := lora_metadata.settings_before(path, metadata):
        layers = {
            layer: update.with_alpha(_alpha(path, layer, update.rank, before)) for layer, update in layers.items()
        }
    return LoraFile(path, layers, metadata)


def write(
    path: Path, layers: Mapping[str, LowRank], layout: str, precision: Precision, about: lora_metadata.About
) -> None:
    """Write a LoRA file in one of FORMATS. Raise UserError if the disk is full, or if fp16 cannot hold a number."""
    if layout == "kohya":
        write_kohya(path, layers, precision, about)
    else:
        write_peft(path, layers, precision)


def write_kohya(path: Path, layers: Mapping[str, LowRank], precision: Precision, about: lora_metadata.About) -> None:
    """Raise UserError if the disk is full, or if fp16 cannot hold a number."""
    content = {kohya_key(layer, "alpha"): np.array(update.alpha, np.float32) for layer, update in layers.items()}
    for layer, update in layers.items():
        content |= {
            kohya_key(layer, "down"): _typed(layer, update.down, precision),
            kohya_key(layer, "up"): _typed(layer, update.up, precision),
        }
    write_bytes(path, lora_metadata.sealed(content, {"format": "pt", **lora_metadata.kohya(layers, about)}))


def write_peft(path: Path, layers: Mapping[str, LowRank], precision: Precision) -> None:
    """Raise UserError if the disk is full, or if fp16 cannot hold a number."""
    content: dict[str, np.ndarray] = {}
    folded = {layer: update.with_alpha(float(update.rank)) for layer, update in layers.items()}
    for layer, update in folded.items():
        content |= {
            peft_key(layer, "down"): _typed(layer, update.down, precision),
            peft_key(layer, "up"): _typed(layer, update.up, precision),
        }
    write_bytes(path, packed(content, {"format": "pt", **lora_metadata.peft(folded, layers)}))


def write_lora(
    folder: Path, adapter: Adapter, tensors: Iterable[tuple[str, str, np.ndarray]], precision: Precision, step: int
) -> None:
    """Write FILE and a record of the step into `folder`; `tensors` are (component, name, float32 array).

    Raise UserError if the disk is full, or if fp16 cannot hold a number.
    """
    write_peft(folder / FILE, updates_of(adapter, tensors), precision)
    record = {"step": step, "precision": precision, "rank": adapter.rank, "alpha": adapter.alpha}
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")


def updates_of(adapter: Adapter, tensors: Iterable[tuple[str, str, np.ndarray]]) -> dict[str, LowRank]:
    """Return what a run's adapter adds, by `component.layer`; what else trained is left out."""
    own = {f"{component}.{name}": array for component, name, array in tensors if ".lora_" in name}
    assert own.keys() == adapter.tensor_shapes().keys(), "an adapter is exported whole"
    return adapter.updates(own)


def check_target(out: Path) -> None:
    """Raise UserError unless `out` is a free name for a LoRA file."""
    if out.suffix != SUFFIX:
        raise UserError(f"--out {out} must end with {SUFFIX}")
    if out.exists():
        raise UserError(f"--out {out} exists; choose another name")


def require_space(out: Path, layers: Iterable[LowRank]) -> None:
    """Raise UserError if the disk has too little space for them, in float32."""
    size = sum(4 * (update.down.size + update.up.size) + 600 for update in layers)  # 600: three entries in the header
    disk_space.require([disk_space.Need("the LoRA", out.parent, size)], "make room, or choose another --out")


def _typed(layer: str, array: np.ndarray, precision: Precision) -> np.ndarray:
    dtype = array.dtype if precision == "source" else DTYPES[CODES[precision]]
    return as_type(layer, array, dtype)


def _low_rank(path: Path, layer: str, parts: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> LowRank:
    """Raise UserError if they do not go together."""
    if missing := [part for part in ("down", "up") if part not in parts]:
        raise UserError(f"{path}: {layer} has no {missing[0]} matrix; download it again")
    down, up = parts["down"], parts["up"]
    is_conv = down.ndim == 4
    wanted = (len(up), len(down), 1, 1) if is_conv else (len(up), len(down))
    if down.ndim not in (2, 4) or up.shape != wanted:
        raise UserError(
            f"{path}: {layer} is no LoRA: down is {list(down.shape)} and up {list(up.shape)}; they must be [rank, in]"
            " and [out, rank], or [rank, in, h, w] and [out, rank, 1, 1]"
        )
    return LowRank(down, up, _alpha(path, layer, len(down), settings, parts.get("alpha")))


def _alpha(path: Path, layer: str, rank: int, settings: Mapping[str, Any], own: np.ndarray | None = None) -> float:
    """Return a layer's `own`, or by the settings of PEFT. Raise UserError if it cannot be used."""
    try:
        # As it is written: float32's 0.1 is the float 0.1.
        value = lora_metadata.peft_alpha(settings, layer, rank) if own is None else float(str(own.reshape(())))
        if not math.isfinite(value):
            raise ValueError(f"it is {value}")
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: the alpha of {layer} cannot be used ({error}); download it again") from error
    return value
