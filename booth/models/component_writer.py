"""One component of an exported pipeline: its trained weights, in the type that the user chose."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from booth.models.exported_files import plain_name, relative, write_json
from booth.models.pipeline import PipelineDir
from booth.models.safetensors_file import CODES, Precision, SafetensorsFile
from booth.models.safetensors_reader import TensorSpec
from booth.models.weight_names import canonical_name, written_key


class ComponentWriter:
    """Writes a network's weights, given in any order, under the source's keys into files of the source's names."""

    def __init__(
        self,
        source: PipelineDir,
        component: str,
        out: Path,
        code: str | None,
        more_rows: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Open the files. `code` is the dtype to write; None keeps each tensor's own. `more_rows` says by name how many
        more rows a tensor has than in the source."""
        self._component = component
        self._weights = source.weights[component]
        self._index = out / component / plain_name(self._weights.index, source) if self._weights.index else None
        self._files: dict[Path, SafetensorsFile] = {}  # by the source's file
        self._places: dict[str, tuple[SafetensorsFile, str]] = {}  # by canonical name: file and key
        for path, specs in self._weights.specs.items():
            keys = {key: written_key(component, key) for key in specs}
            names = {key: canonical_name(component, key) for key in specs}
            wanted = {}
            for key, spec in specs.items():
                more = more_rows.get(names[key] or "", 0)
                shape = (spec.shape[0] + more, *spec.shape[1:]) if more else spec.shape
                wanted[keys[key]] = TensorSpec(code, shape) if code and names[key] else spec
            file = self._files[path] = SafetensorsFile(out / component / plain_name(path, source), wanted)
            for key, name in names.items():
                if name is None:  # a buffer, which no backend has
                    file.write(keys[key], self._weights.tensor(path, key))
                else:
                    self._places[name] = file, keys[key]
        self._missing = set(self._places)
        self._unexpected: list[str] = []

    def add(self, name: str, array: np.ndarray) -> None:
        if name not in self._missing:  # unknown, or given twice
            self._unexpected.append(name)
            return
        self._missing.remove(name)
        file, key = self._places[name]
        file.write(key, array)

    def finish(self, reason: str, changes: dict[str, str]) -> None:
        if self._missing or self._unexpected:
            raise RuntimeError(
                f"{self._component}: the weights to export are not those of the source;"
                f" missing: {sorted(self._missing)}, unexpected: {sorted(self._unexpected)}"
            )
        for path, file in self._files.items():
            prefixed = file.specs.keys() != self._weights.specs[path].keys()
            changes[relative(file.path)] = reason + (", keys given the text_model. prefix" if prefixed else "")
        if self._index:
            files = self._files.values()
            content = {
                "metadata": {"total_size": sum(file.data_bytes for file in files)},
                "weight_map": {key: file.path.name for file in files for key in file.specs},
            }
            write_json(self._index, content)
            changes[relative(self._index)] = "index of these shards"


def is_as_wanted(source: PipelineDir, component: str, code: str | None) -> bool:
    """Return whether the files of a network that was not trained can be copied byte for byte."""
    return source.weights[component].whole_files and all(
        key == written_key(component, key) and (code in (None, spec.dtype) or canonical_name(component, key) is None)
        for specs in source.weights[component].specs.values()
        for key, spec in specs.items()
    )


def convert_weights(
    source: PipelineDir, component: str, out: Path, precision: Precision, changes: dict[str, str]
) -> None:
    writer = ComponentWriter(source, component, out, CODES.get(precision))
    for key, array in source.weights[component].read():
        if name := canonical_name(component, key):
            writer.add(name, array)
    writer.finish("rewritten" if precision == "source" else f"converted to {precision}", changes)
