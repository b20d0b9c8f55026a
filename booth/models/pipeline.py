"""The diffusers pipeline folder: model_index.json, component configs, safetensors weights as NumPy arrays.

    model_index.json                        pipeline class, components and their classes
    unet/ vae/ text_encoder/                config.json and weights, in one file or in shards with an index
    tokenizer/ scheduler/                   vocabulary, noise schedule

Weights have the names here that current diffusers and transformers 4 give them, whatever the files call them. A model
from the hub is such a folder too; its weights are downloaded when they are first needed.
"""

import copy
import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from booth.common import host_memory
from booth.common.errors import UserError
from booth.models.component_rules import check_values
from booth.models.family import Family, detect_family
from booth.models.hub import HubModel
from booth.models.safetensors_reader import TensorSpec, again, opened
from booth.models.weight_names import canonical_name

log = logging.getLogger("booth")

PICKLES = (".ckpt", ".pt", ".pth", ".bin")  # never read

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors' name -> configs'
_INTEGERS = ("I64", "I32")
_MAX_DIMENSIONS = 8  # more than any layer has, fewer than NumPy's limit


@dataclass(frozen=True)
class Weights:
    """A component's weight files, and the keys in each as the file has them."""

    index: Path | None  # the index file of shards
    specs: Mapping[Path, Mapping[str, TensorSpec]]
    whole_files: ClassVar[bool] = True  # whether the files hold nothing else

    def read(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (key as in the file, array) of all files, one at a time."""
        for path, specs in self.specs.items():
            with opened(path) as file:
                for key in specs:
                    yield key, file.tensor(key)

    def tensor(self, path: Path, key: str) -> np.ndarray:
        with opened(path) as file:
            return file.tensor(key)


class PipelineDir:
    """An opened pipeline folder; `open_pipeline` makes it."""

    def __init__(
        self, path: Path, variant: str, model_index: Mapping[str, Any], family: Family, model: HubModel | None = None
    ) -> None:
        self.path = path
        self.where = path  # the folder that the user gave, which holds the weights
        self.variant = variant
        self.model_index = model_index
        self.family = family
        self.model = model  # None for a local folder
        self.changed_scheduler: dict[str, Any] | None = None  # the config that replaces the folder's
        self._hashes: dict[str, str] = {}

    @cached_property
    def weight_files(self) -> dict[str, Path]:
        """Each network's weight file, or the index of its shards. Raise UserError if it is missing."""
        return {component: self._weight_file(component) for component in self.family.networks}

    @cached_property
    def weights(self) -> dict[str, Weights]:
        """The networks' weights by component; those of a hub model are downloaded first. Raise UserError if they cannot
        be read."""
        if self.model:
            self.model.fetch(self.to_download)
        return {component: self._read_weights(component) for component in self.family.networks}

    @property
    def to_download(self) -> list[str]:
        """Return the weight files that are not downloaded from the hub yet."""
        if not self.model:
            return []
        _, weights = self.model.files(components(self.model_index), self.variant)
        return self.model.missing(weights)

    def verify(self) -> None:
        """Compare the files of a hub model in the cache with their hashes. Raise UserError with the names of those that
        were damaged after the download. For a local folder, log that there is nothing to compare with."""
        if not self.model:
            log.info("%s is a local folder: only the manifest of a run knows what was in its files", self.path)
            return
        configs, weights = self.model.files(components(self.model_index), self.variant)
        self.model.verify(["model_index.json", *configs, *weights])

    def component_files(self) -> dict[str, list[Path]]:
        """Return the files of each component that exists; of a hub model only those that belong to the pipeline,
        whatever else is in the cache."""
        named = [name for name in components(self.model_index) if name.isidentifier()]
        if self.model:
            wanted = {name for names in self.model.files(named, self.variant) for name in names}
            paths = sorted(self.path / name for name in wanted)
        else:
            paths = sorted(path for name in named for path in self.path.glob(f"{name}/*") if path.is_file())
        found = {name: [path for path in paths if path.parent.name == name] for name in named}
        return {name: files for name, files in found.items() if files}

    @property
    def tokenizer_path(self) -> Path:
        return self.path / "tokenizer"

    def component_config(self, component: str) -> dict[str, Any]:
        """Return a component's config.json (the scheduler's scheduler_config.json). Raise UserError if it is broken."""
        if component == "scheduler" and self.changed_scheduler is not None:
            return dict(self.changed_scheduler)
        return _component_config(self.path, component)

    def with_scheduler(self, config: Mapping[str, Any]) -> "PipelineDir":
        """Return a copy of the pipeline with another scheduler config, which is exported in place of the folder's."""
        pipeline = copy.copy(self)
        pipeline.changed_scheduler = dict(config)
        pipeline.model_index = {**self.model_index, "scheduler": ["diffusers", config["_class_name"]]}
        return pipeline

    @property
    def latent_scaling(self) -> tuple[float, float]:
        """Return (scale, shift) of the VAE: latents = (posterior sample - shift) * scale."""
        config = self.component_config("vae")
        # Configs without the key are older than it and belong to Stable Diffusion 1.
        return config.get("scaling_factor", 0.18215), config.get("shift_factor") or 0.0

    def tensors(self, component: str) -> dict[str, np.ndarray]:
        """Return all weights of a network by canonical name, in the dtype of the file (bfloat16 is ml_dtypes').

        Raise UserError if there is too little memory for all of them.
        """
        specs = self.weights[component].specs.values()
        size = sum(spec.nbytes for each in specs for spec in each.values())
        host_memory.require(size, f"the {component} of {self.where}")
        named = ((canonical_name(component, key), array) for key, array in self.weights[component].read())
        return {name: array for name, array in named if name is not None}

    def weights_hash(self, component: str) -> str:
        """Return the sha256 of the content of a network's weight files, in the order of their names; computed once."""
        if component not in self._hashes:
            digest = hashlib.sha256()
            for path in self.weights[component].specs:
                with path.open("rb") as file:
                    while chunk := file.read(1 << 22):
                        digest.update(chunk)
            self._hashes[component] = digest.hexdigest()
        return self._hashes[component]

    def config_hashes(self) -> dict[str, str]:
        """Return the sha256 of the config of each network and of the scheduler.

        A config that names a type is hashed as if it named the type of the weights, as libraries write it.
        `booth.models.plain_opening` changes the named type, which has no effect on what is computed here.
        """
        configs = {name: self.component_config(name) for name in (*self.family.networks, "scheduler")}
        for name, weights in self.weights.items():
            types = {spec.dtype for specs in weights.specs.values() for spec in specs.values() if spec.dtype in FLOATS}
            if "dtype" in configs[name] and len(types) == 1:
                configs[name]["dtype"] = FLOATS[types.pop()]
        texts = {name: json.dumps(config, sort_keys=True) for name, config in configs.items()}
        return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}

    def hashes(self) -> dict[str, str]:
        """Return the hashes of all weights and configs that are used, by a description of each."""
        weights = {f"weights of {name}": self.weights_hash(name) for name in self.family.networks}
        return weights | {f"config of {name}": sha256 for name, sha256 in self.config_hashes().items()}

    def _weight_file(self, component: str) -> Path:
        """Return a network's weight file, or the index of its shards. Raise UserError if there is neither."""
        stem = "model" if self.model_index[component][0] == "transformers" else "diffusion_pytorch_model"
        suffix = f".{self.variant}" if self.variant else ""
        wanted = f"{stem}{suffix}.safetensors"
        if self.model:
            names = sorted(name.partition("/")[2] for name in self.model.sizes if name.startswith(f"{component}/"))
        else:
            names = sorted(path.name for path in (self.path / component).iterdir() if path.is_file())
        for name in (wanted, f"{stem}.safetensors.index{suffix}.json"):
            if name in names:
                return self.path / component / name
        if self.model and not self.model.listed:
            raise UserError(
                f"model.source={self.model.source}: {component}/{wanted} is not in the cache and the hub cannot be"
                " asked; unset HF_HUB_OFFLINE or fix the network"
            )
        where = self.model.source if self.model else self.path
        raise UserError(f"model.source={where}: {_why_no_weights(component, names, wanted)}")

    def _read_weights(self, component: str) -> Weights:
        path = self.weight_files[component]
        if path.suffix == ".safetensors":
            return Weights(None, {path: read_specs(path)})
        weight_map = read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not all(map(_is_shard_name, weight_map.values())):
            raise UserError(f"model.source={self.path}: {component}/{path.name} is broken; {again(path)}")
        shards = [path.with_name(name) for name in sorted(set(weight_map.values()))]
        return Weights(path, {shard: read_specs(shard) for shard in shards})


def open_folder(
    where: str, path: Path, variant: str = "", model: HubModel | None = None, *, weights: bool = True
) -> PipelineDir:
    """Open a pipeline folder and check that it is complete, readable and of a supported family.

    `where` names the folder in messages; `model` is the commit on the hub that it belongs to. Without `weights` only
    the configs must exist. Raise UserError if a check fails.
    """
    if not (path / "model_index.json").is_file():
        raise UserError(f"{where}: no model_index.json in it; give the top folder of a diffusers pipeline")
    model_index = read_json(path / "model_index.json")
    if model:
        model.fetch(model.files(components(model_index), variant)[0])
    family = detect_family(where, model_index, lambda component: _component_config(path, component))
    for component in ("scheduler", *family.networks):
        check_values(where, component, _component_config(path, component))
    tokenizer = path / "tokenizer"
    if not ((tokenizer / "tokenizer.json").is_file() or has_vocabulary(tokenizer)):
        raise UserError(
            f"{where}: tokenizer/ has neither vocab.json and merges.txt nor tokenizer.json; download it again"
        )
    pipeline = PipelineDir(path, variant, model_index, family, model)
    if weights:
        _ = pipeline.weight_files  # missing ones are refused now
    if weights and not pipeline.to_download:
        _ = pipeline.weights  # and broken ones
    return pipeline


def components(model_index: Mapping[str, Any]) -> list[str]:
    """Return the components that a model_index.json names with a class."""
    return [name for name, entry in model_index.items() if isinstance(entry, list) and len(entry) == 2 and entry[1]]


def has_vocabulary(tokenizer: Path) -> bool:
    return (tokenizer / "vocab.json").is_file() and (tokenizer / "merges.txt").is_file()


def _is_shard_name(name: Any) -> bool:
    """Return whether this is the name of a file beside the index, with no folder in it."""
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name and name.isprintable()


def _component_config(path: Path, component: str) -> dict[str, Any]:
    return read_json(path / component / ("scheduler_config.json" if component == "scheduler" else "config.json"))


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {again(path)}") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, nested too deep
        raise UserError(f"{path} is no JSON ({' '.join(str(error).split())}); {again(path)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object; {again(path)}")
    return content


def read_specs(path: Path, *, whole: bool = True) -> dict[str, TensorSpec]:
    """Return keys, dtypes and shapes of a safetensors file, and check its size against them. Raise UserError if it is
    broken, or if a file that belongs to a network as a `whole` has anything but floats."""
    with opened(path) as file:
        specs = file.specs()
    for key, spec in specs.items():
        if not key.isprintable() or 0 in spec.shape or len(spec.shape) > _MAX_DIMENSIONS:
            raise UserError(f"{path} is broken (it has a tensor {key!r} of shape {spec.shape}); {again(path)}")
        if whole and spec.dtype not in ((*FLOATS, *_INTEGERS) if key.endswith("position_ids") else FLOATS):
            raise UserError(
                f"{path}: {key} has type {spec.dtype}, not a float type; use the model without quantization"
            )
    return specs


def _why_no_weights(component: str, names: Collection[str], wanted: str) -> str:
    where = f"{component}/ has no {wanted}"
    if found := [name for name in names if ".safetensors" in name]:
        return f"{where} but {', '.join(found)}; set model.variant to the part between (empty if none)"
    if any(name.endswith((".bin", ".ckpt", ".pt")) for name in names):
        return f"{where}, only PyTorch pickles (.bin); use the model's safetensors files, or convert it to them"
    if any(name.endswith(".msgpack") for name in names):
        return f"{where}, only Flax weights (.msgpack), which are not readable; use the same model's safetensors"
    return f"{where}; download the model completely"
