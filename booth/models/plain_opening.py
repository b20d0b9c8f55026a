"""Folders in half precision that `DiffusionPipeline.from_pretrained(folder)` opens without being told a type.

diffusers opens its networks in float32 then, and transformers 4 the text encoder; but transformers 5 opens that in the
type that its config names, or else in that of its weights, and the two do not fit together. So a config names float32.
With `torch_dtype=torch.float16` all are float16 all the same.
"""

import json
from pathlib import Path

from booth.common.errors import UserError
from booth.models.pipeline import FLOATS, read_json, read_specs


def name_float32(folder: Path) -> bool:
    """Has the config in a transformers network's folder name float32; whether that was needed.

    Not in a folder without a network, nor in one whose files cannot be read.
    """
    try:
        config = read_json(folder / "config.json")
        specs = [read_specs(path, whole=False) for path in folder.glob("*.safetensors")]
    except UserError:  # what only decorates a pipeline, a safety checker, is copied whatever is in it
        return False
    named = config.get("dtype", config.get("torch_dtype"))
    types = {spec.dtype for each in specs for spec in each.values() if spec.dtype in FLOATS}
    if named == "float32" or (named is None and types <= {"F32"}):
        return False
    older = {"torch_dtype": "float32"} if "torch_dtype" in config else {}  # its name before transformers 4.56
    text = json.dumps({**config, **older, "dtype": "float32"}, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8", newline="\n")
    return True
