"""Folders in half precision that `DiffusionPipeline.from_pretrained(folder)` opens without being told a type.

Without a type, diffusers opens its networks in float32, and transformers 4 does the same with the text encoder. But
transformers 5 opens the text encoder in the type that its config names, or else in the type of its weights, and then
the networks do not fit together. So the config is made to name float32. With `torch_dtype=torch.float16` all networks
are still opened in float16.
"""

import json
from pathlib import Path

from booth.common.errors import UserError
from booth.models.pipeline import FLOATS, read_json, read_specs


def name_float32(folder: Path) -> bool:
    """Make the config in the folder of a transformers network name float32. Return whether that was needed.

    A folder without a network, or with files that cannot be read, stays as it is.
    """
    try:
        config = read_json(folder / "config.json")
        specs = [read_specs(path, whole=False) for path in folder.glob("*.safetensors")]
    except UserError:  # a safety checker, which the pipeline can do without, is copied even if it is broken
        return False
    named = config.get("dtype", config.get("torch_dtype"))
    types = {spec.dtype for each in specs for spec in each.values() if spec.dtype in FLOATS}
    if named == "float32" or (named is None and types <= {"F32"}):
        return False
    older = {"torch_dtype": "float32"} if "torch_dtype" in config else {}  # its name before transformers 4.56
    text = json.dumps({**config, **older, "dtype": "float32"}, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8", newline="\n")
    return True
