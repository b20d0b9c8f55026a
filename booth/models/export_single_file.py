"""Export to a single file, in the original layout: what AUTOMATIC1111, Forge, ComfyUI and InvokeAI read."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from booth.common import disk_space
from booth.common.errors import UserError, reading
from booth.common.files import publish, write_text
from booth.models import ldm_layout, modelspec
from booth.models.pipeline import PipelineDir, read_json
from booth.models.safetensors_file import CODES, Precision, SafetensorsFile
from booth.models.safetensors_reader import SUFFIX, TensorSpec
from booth.models.single_file import configs_of
from booth.models.weight_names import canonical_name

_TEXT_NORM = ("text_encoder", "text_model.final_layer_norm.weight")


def check_target(source: PipelineDir, out: Path) -> None:
    """Raise UserError unless `source` has a single-file form and `out` is a free name for the file."""
    if out.suffix != SUFFIX:
        raise UserError(f"--out {out} must end with {SUFFIX} for --format single-file")
    if out.exists():
        raise UserError(f"--out {out} exists; choose another name")
    configs, beside = configs_of(source), modelspec.config_path(out)
    text = modelspec.original_config(configs, None)
    if beside.exists() and (text is None or not _is_our_config(beside)):
        raise UserError(f"--out {out}: WebUIs would take {beside} for its config; choose another name")
    _check_vocabulary(source)
    _check_weights(source)


def file_size(source: PipelineDir, precision: Precision, trains: Collection[str]) -> int:
    """Return the largest size of the file in bytes; `trains` are the components that get new weights."""
    return sum(spec.nbytes + 200 for spec in _file_specs(source, precision, trains).values())  # 200: in the header


def write(
    source: PipelineDir,
    out: Path,
    trained: Iterable[tuple[str, str, np.ndarray]] = (),
    precision: Precision = "source",
    trains: Collection[str] = (),
    *,
    title: str = "",
    resolution: int | None = None,
    trigger_phrase: str = "",
) -> None:
    """Write `source` with its trained weights into one file, and beside it the .yaml that some models need.

    `trained` yields (component, canonical name, float32 array) for every weight of the components `trains`, in any
    order; one array is held at a time. With the precision "source", trained weights are float32 and the rest stays as
    it is; otherwise all weights get that type. Raise UserError if `out` cannot be written, or if fp16 cannot hold a
    weight. Raise RuntimeError if the tensors of a trained component differ from the source's in name or shape.
    """
    check_target(source, out)
    configs = configs_of(source)
    said = modelspec.metadata(configs, title or out.stem, resolution, trigger_phrase)
    specs = _file_specs(source, precision, trains)
    try:
        with publish(out) as staging:
            file = SafetensorsFile(staging, specs, said)
            _write_weights(source, file, ldm_layout.inverse(ldm_layout.table(configs)), trained, trains)
            for key, array in ldm_layout.unused(configs).items():
                file.write(key, array)
            file.seal()
            if text := modelspec.original_config(configs, resolution):
                write_text(modelspec.config_path(out), text)  # before the checkpoint, which is to appear last
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"export to {out} failed ({' '.join(str(error).split())}):"
            f" {disk_space.readable(file_size(source, precision, trains))} are needed and"
            f" {disk_space.readable(disk_space.free(out.parent))} are free; fix that, export again"
        ) from error


def _write_weights(
    source: PipelineDir,
    file: SafetensorsFile,
    places: Mapping[tuple[str, str], tuple[str, int]],
    trained: Iterable[tuple[str, str, np.ndarray]],
    trains: Collection[str],
) -> None:
    parts = {key: 1 + part for key, part in places.values()}  # the last part's number gives the count
    missing, unexpected = set(places), []
    for component, name, array in _all_weights(source, trained, trains):
        if (component, name) not in missing:  # unknown, or given twice
            unexpected.append(f"{component}.{name}")
            continue
        missing.remove((component, name))
        key, part = places[component, name]
        if len(file.specs[key].shape) == array.ndim + 2:
            array = array[..., None, None]
        file.write(key, array, part, parts[key])
    if missing or unexpected:
        raise RuntimeError(
            f"the weights to export are not those of the source; missing: {sorted(missing)}, unexpected: {unexpected}"
        )


def _all_weights(
    source: PipelineDir, trained: Iterable[tuple[str, str, np.ndarray]], trains: Collection[str]
) -> Iterator[tuple[str, str, np.ndarray]]:
    yield from trained
    for component in source.family.networks:
        if component not in trains:
            for key, array in source.weights[component].read():
                if name := canonical_name(component, key):
                    yield component, name, array


def _source_specs(source: PipelineDir) -> dict[tuple[str, str], TensorSpec]:
    """Return the dtype and shape of every weight, by component and canonical name."""
    return {
        (component, name): spec
        for component in source.family.networks
        for specs in source.weights[component].specs.values()
        for key, spec in specs.items()
        if (name := canonical_name(component, key))
    }


def _file_specs(source: PipelineDir, precision: Precision, trains: Collection[str]) -> dict[str, TensorSpec]:
    """Return the dtype and shape of every tensor, by its key in the file."""
    configs, there = configs_of(source), _source_specs(source)
    wanted = {}
    for key, piece in ldm_layout.table(configs).items():
        spec = there[piece.component, piece.names[0]]
        code = CODES.get(precision, "F32" if piece.component in trains else spec.dtype)
        wanted[key] = TensorSpec(code, piece.in_file(spec.shape))
    code = CODES.get(precision, "F32" if "text_encoder" in trains else there[_TEXT_NORM].dtype)
    for key, array in ldm_layout.unused(configs).items():
        wanted[key] = TensorSpec("I64" if array.dtype.kind == "i" else code, array.shape)
    return wanted


def _check_weights(source: PipelineDir) -> None:
    """Raise UserError unless the weights are those of the layout. The message names a weight without a key
    COMPONENT/NAME."""
    pieces = ldm_layout.table(configs_of(source))
    places, found = ldm_layout.inverse(pieces), _source_specs(source)
    whole = {key for key, piece in pieces.items() if all((piece.component, name) in found for name in piece.names)}
    strange = {"/".join(place) for place in found if place not in places}
    ldm_layout.check_complete(str(source.where), whole | strange, pieces)


def _check_vocabulary(source: PipelineDir) -> None:
    """Raise UserError if words were added to the tokenizer: WebUIs use CLIP's own vocabulary and read no other."""
    rows = source.component_config("text_encoder").get("vocab_size", 49408)
    folder = source.tokenizer_path
    if (folder / "vocab.json").is_file():
        words = len(read_json(folder / "vocab.json"))
    else:
        with reading(f"{folder / 'tokenizer.json'} is broken", "download it again"):
            words = len(read_json(folder / "tokenizer.json")["model"]["vocab"])
    if rows > words:
        raise UserError(
            f"{source.where} knows {rows - words} words more than CLIP's tokenizer, which WebUIs use; export its run"
            " with --run, which writes them to files beside it"
        )


def _is_our_config(path: Path) -> bool:
    """Return whether a .yaml is a config of the original code, and not, for example, that of a run."""
    return path.read_bytes().lstrip().startswith(b"model:") and b"ldm.models.diffusion.ddpm" in path.read_bytes()
