"""Export: a diffusers pipeline folder with the trained weights; everything else is the source's, byte for byte.

Keys, shapes and file names of the weights are the source's too. If a file must differ from the source's (trained,
converted, renamed, newly made), export.json says so and why. The folder gets its name only when it is complete.
"""

import json
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from booth.common import disk_space
from booth.common.disk_space import readable
from booth.common.errors import UserError, reading
from booth.common.files import STAGING_PREFIX, publish, remove, rename
from booth.models import new_tokens
from booth.models.component_writer import ComponentWriter, convert_weights, is_as_wanted
from booth.models.exported_files import copy_file, copy_files, copy_weights, write_json
from booth.models.open import open_pipeline
from booth.models.pipeline import PipelineDir, components, has_vocabulary
from booth.models.plain_opening import name_float32
from booth.models.safetensors_file import CODES, Precision
from booth.models.safetensors_reader import TensorSpec
from booth.models.tokenizer import Tokenizer

RECORD = "export.json"


def export(
    source: PipelineDir,
    out: Path,
    trained: Iterable[tuple[str, str, np.ndarray]],
    precision: Precision = "source",
    step: int | None = None,
    added: Sequence[str] = (),
    merged: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the pipeline with its trained weights to `out`; an earlier export there is replaced at the very end.

    `trained` yields (component, canonical name, float32 array) for every weight of a trained component, in any order;
    one array is held at a time. With the precision "source", trained weights are float32 and the rest stays as it is;
    otherwise all weights get that type. `step`, the training step, and `merged`, the LoRA files merged into the
    weights, are only recorded. `added` are new tokens, whose rows are at the end of the trained text encoder's table;
    they are added to the tokenizer.

    Raise UserError if `out` holds something else or cannot be written, or if fp16 cannot hold a weight. Raise
    RuntimeError if the tensors of a trained component differ from the source's in name or shape.
    """
    out = Path(out).resolve()  # the staging folder is named after `out`, and "." is no name
    check_target(source, out)
    fresh, aside = _beside(out)
    try:
        finish_interrupted(out)
        with publish(fresh) as staging:
            record = _write_pipeline(source, staging, trained, precision, added, merged)
            write_json(staging / RECORD, {"step": step, **record})
        if out.exists():
            rename(out, aside)
        rename(fresh, out)
        remove(aside)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"export to {out} failed ({' '.join(str(error).split())}):"
            f" {readable(export_size(source, precision, source.family.trainable))} are needed and"
            f" {readable(disk_space.free(out.parent))} are free; fix that, export again"
        ) from error


def _beside(out: Path) -> tuple[Path, Path]:
    """Return the folder that an export is written to before it gets its name, and the folder that the export which it
    replaces is moved to."""
    return out.with_name(f".new-{out.name}"), out.with_name(f".old-{out.name}")


def finish_interrupted(out: Path) -> None:
    """Remove what a crash in the middle of an export left behind, and give an earlier export its name back."""
    fresh, aside = _beside(out)
    if aside.exists() and not out.exists():  # between the two renames
        rename(aside, out)
    remove(aside)
    remove(fresh)
    remove(fresh.with_name(STAGING_PREFIX + fresh.name))


def export_size(source: PipelineDir, precision: Precision, trained: Collection[str]) -> int:
    """Return the largest size of an export in bytes; `trained` are the components that get new weights."""
    size = 0
    for component, files in source.component_files().items():
        if component not in source.family.networks:
            size += sum(path.stat().st_size for path in files)
            continue
        kept = precision == "source" and component not in trained
        for specs in source.weights[component].specs.values():
            for spec in specs.values():
                wanted = spec if kept else TensorSpec(CODES.get(precision, "F32"), spec.shape)
                size += wanted.nbytes + 200  # its entry in the header
    return size


def exported_step(folder: Path, precision: Precision | None = None) -> int | None:
    """Return the step that an export's record names; None if there is no export (in `precision`) or no step in it."""
    if not (folder / RECORD).is_file():
        return None
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        step = record["step"] if precision in (None, record["precision"]) else None
        return None if step is None else int(step)
    except (KeyError, RecursionError, TypeError, ValueError):  # a damaged record: the pipeline is exported again
        return None


def check_target(source: PipelineDir, out: Path) -> None:
    """Raise UserError if an export to `out` would replace anything but an earlier export."""
    out = out.resolve()
    if any(path.resolve().is_relative_to(out) for path in (source.path, source.where)):
        raise UserError(f"export to {out} would replace the source pipeline {source.where}; choose another folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"export to {out}: it is a file; choose another name for the folder")
    if out.exists() and any(out.iterdir()) and not (out / RECORD).is_file():
        raise UserError(f"export to {out}: it holds other files (no {RECORD}); move them away, or choose a new folder")


def _write_pipeline(
    source: PipelineDir,
    out: Path,
    trained: Iterable[tuple[str, str, np.ndarray]],
    precision: Precision,
    added: Sequence[str],
    merged: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Fill a new folder with the export. Return its record, which becomes export.json."""
    out.mkdir()
    changes: dict[str, str] = {}  # file -> why it differs from the source's file of that name
    present = source.component_files()
    for component in present:
        (out / component).mkdir()

    writers: dict[str, ComponentWriter] = {}
    for component, name, array in trained:
        if component not in writers:
            assert component in source.family.trainable, f"{component} cannot have been trained"
            more = {new_tokens.TABLE: len(added)} if component == "text_encoder" else {}
            writers[component] = ComponentWriter(source, component, out, CODES.get(precision, "F32"), more)
        writers[component].add(name, array)
    for component in source.family.networks:
        shutil.copyfile(source.path / component / "config.json", out / component / "config.json")
        if component in writers:
            writers[component].finish("with LoRA" if merged else "trained", changes)
        elif is_as_wanted(source, component, CODES.get(precision)):
            copy_weights(source, component, out, changes)
        else:
            convert_weights(source, component, out, precision, changes)

    for component, files in present.items():
        if component not in source.family.networks:
            copy_files(source, files, out / component, changes)
    if source.changed_scheduler is not None:
        write_json(out / "scheduler" / "scheduler_config.json", source.changed_scheduler)
        changes["scheduler/scheduler_config.json"] = "the noise schedule that was trained with"
    _complete_tokenizer(source, out / "tokenizer", changes)
    if added:
        _add_tokens(source, out, added, changes)
    for component in present:
        if source.model_index[component][0] != "diffusers" and name_float32(out / component):
            before = [changes[name]] if (name := f"{component}/config.json") in changes else []
            changes[name] = "; ".join([*before, "names float32, so that it opens beside the others without a type"])
    _write_model_index(source, out, set(components(source.model_index)) - set(present), changes)
    return {
        "family": source.family.name,
        "source": {
            "path": str(source.where),
            **({"hub_id": source.model.id, "commit": source.model.commit} if source.model else {}),
            "variant": source.variant,
            "weights_sha256": _hashes(source),
        },
        "trained": [] if merged else sorted(writers),
        **({"merged": list(merged)} if merged else {}),
        "precision": precision,
        "weights_sha256": _hashes(open_pipeline(out)),  # this also shows that the folder can be read
        "changed_files": changes,
    }


def _complete_tokenizer(source: PipelineDir, folder: Path, changes: dict[str, str]) -> None:
    """Add vocab.json and merges.txt, which transformers 4 needs, where the source has only tokenizer.json."""
    if has_vocabulary(folder):
        return
    with reading(f"{source.tokenizer_path / 'tokenizer.json'} is broken", "download it again"):
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        vocab, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
        added = {token["content"]: token["id"] for token in tokenizer["added_tokens"] if token["content"] not in vocab}
        lines = ["#version: 0.2", *(merge if isinstance(merge, str) else " ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    write_json(folder / "vocab.json", vocab)
    changes["tokenizer/vocab.json"] = changes["tokenizer/merges.txt"] = "made from tokenizer.json"
    if added:
        write_json(folder / "added_tokens.json", added)
        changes["tokenizer/added_tokens.json"] = "made from tokenizer.json"


def _add_tokens(source: PipelineDir, out: Path, added: Sequence[str], changes: dict[str, str]) -> None:
    """Add new tokens to an export's tokenizer, and put the new size of the table into its text encoder's config."""
    config = source.component_config("text_encoder")
    first = config.get("vocab_size", 49408)
    write_json(out / "text_encoder" / "config.json", {**config, "vocab_size": first + len(added)})
    Tokenizer(source.tokenizer_path, config["max_position_embeddings"], first, added).save(out / "tokenizer")
    ids = {token: first + place for place, token in enumerate(added)}
    path = out / "tokenizer" / "added_tokens.json"  # for transformers 4, which need not read tokenizer.json
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, {**before, **ids})
    for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json"):
        changes[f"tokenizer/{name}"] = "new tokens"
    changes["text_encoder/config.json"] = "new tokens"


def _write_model_index(source: PipelineDir, out: Path, absent: set[str], changes: dict[str, str]) -> None:
    copy_file(source.path / "model_index.json", out / "model_index.json", changes)
    reasons = [f"{', '.join(sorted(absent))}: named there, but not in the source's folder"] if absent else []
    before = json.loads((out / "model_index.json").read_text(encoding="utf-8"))
    if source.model_index.get("scheduler") != before.get("scheduler"):
        reasons.append("scheduler: a class that knows its config")
    if reasons:
        write_json(out / "model_index.json", {**source.model_index, **{name: [None, None] for name in absent}})
        changes["model_index.json"] = "; ".join(reasons)


def _hashes(pipeline: PipelineDir) -> dict[str, str]:
    return {component: pipeline.weights_hash(component) for component in pipeline.family.networks}
