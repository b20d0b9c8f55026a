"""Files of an exported pipeline, written and copied under the names that loaders expect."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from booth.models.pipeline import PipelineDir


def copy_weights(source: PipelineDir, component: str, out: Path, changes: dict[str, str]) -> None:
    weights = source.weights[component]
    for path in weights.specs:
        copy_file(path, out / component / plain_name(path, source), changes)
    if weights.index:
        index = out / component / plain_name(weights.index, source)
        copy_file(weights.index, index, changes)
        if source.variant:  # the shards were renamed
            content = json.loads(index.read_text(encoding="utf-8"))
            shards = content["weight_map"]
            content["weight_map"] = {key: plain_name(Path(shards[key]), source) for key in shards}
            write_json(index, content)


def copy_files(source: PipelineDir, files: Sequence[Path], out: Path, changes: dict[str, str]) -> None:
    """Copy all files of a component that this project does not write (tokenizer, scheduler, safety checker, ...)."""
    for path in files:
        if not path.name.startswith("."):
            plain = path.with_name(plain_name(path, source))
            copy_file(path, out / (path.name if plain in files else plain.name), changes)


def plain_name(path: Path, source: PipelineDir) -> str:
    """Return the file's name without the variant, so that it loads without asking for one."""
    return path.name.replace(f".{source.variant}", "", 1) if source.variant else path.name


def copy_file(path: Path, target: Path, changes: dict[str, str]) -> None:
    shutil.copyfile(path, target)  # the content only: the umask decides about file modes
    if target.name != path.name:
        changes[relative(target)] = f"named {path.name} in the source"


def relative(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
