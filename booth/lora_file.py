"""LoRA files: adapters in the layout that diffusers reads with `pipe.load_lora_weights(folder)`.

Keys are PEFT's, `unet.<layer>.lora_A.weight`; those of the text encoder keep `text_model.`, which current libraries
leave out on saving and older ones and WebUIs need. Rank and alpha are in the file's metadata, as current diffusers
writes them; older versions read no alpha there and take the rank for it, which is right unless `adapter.alpha` says
otherwise.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save

from booth.adapters import Adapter
from booth.export import RECORD
from booth.rundir import write_bytes, write_text
from booth.safetensors_file import Precision, as_type

FILE = "pytorch_lora_weights.safetensors"

_DTYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}  # "source" and "fp32": as trained


def write_lora(
    folder: Path, adapter: Adapter, tensors: Iterable[tuple[str, str, np.ndarray]], precision: Precision, step: int
) -> None:
    """Writes FILE and a record of the step into `folder`; `tensors` are (component, name, float32 array).

    UserError if the disk is full, or if fp16 cannot hold a number.
    """
    dtype: Any = _DTYPES.get(precision, np.float32)
    content = {
        f"{component}.{name}": as_type(name, array, dtype) for component, name, array in tensors if ".lora_" in name
    }
    assert content.keys() == adapter.tensor_shapes().keys(), "an adapter is exported whole"
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(_metadata(adapter), sort_keys=True)}
    write_bytes(folder / FILE, save(content, metadata))
    record = {"step": step, "precision": precision, "rank": adapter.rank, "alpha": adapter.alpha}
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")


def read_lora(folder: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """(component, name, float32 array) of what `write_lora` wrote."""
    for key, array in load_file(folder / FILE).items():
        component, _, name = key.partition(".")
        yield component, name, array.astype(np.float32)


def _metadata(adapter: Adapter) -> dict[str, Any]:
    """Of each component the settings of a `peft.LoraConfig`, with the component before their names."""
    settings: dict[str, Any] = {}
    for component in sorted({name.partition(".")[0] for name in adapter.shapes}):
        # Names to match the ends of: some versions of transformers have the text encoder's layers without text_model.
        layers = [name.removeprefix("text_model.") for name in adapter.layers(component)]
        settings |= {
            f"{component}.r": adapter.rank,
            f"{component}.lora_alpha": adapter.alpha,
            f"{component}.target_modules": layers,
        }
    return settings
