"""The config that holds all settings: get and set values by dotted names, and check their types.

`booth.config.loading` reads configs from files, and `booth.config.validation` checks how the values go together.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from booth.common.errors import UserError
from booth.config.fields import AUTO, FIELDS, Field
from booth.config.names import BY_NAME, field_named, short
from booth.config.sources import DATASET, EMBEDDED, MODEL, is_id, of_page

CONCEPTS = "concepts"  # the one field that is not in a section; `booth.config.concepts` reads it
WEIGHT = "weight"  # a concept has this number beside fields
_MODEL_CONFIG = "model.config"
_EXAMPLE = "[{instance.images: photos/dog, instance.prompt: a photo of sks dog, prior.prompt: a photo of dog}]"


class _Section(ConfigDict):
    """A section of the config in which fields that may be "auto" can change between "auto" and a number."""

    _may_be_auto = frozenset(field.name.rpartition(".")[2] for field in FIELDS if field.auto)

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self._may_be_auto and any(one == AUTO for one in (value, self.get(key)) if isinstance(one, str)):
            with self.ignore_type():  # `typed` checks the value before each use
                super().__setitem__(key, value)
        else:
            super().__setitem__(key, value)


def default_config() -> ConfigDict:
    """Return a locked ConfigDict with every field at its default."""
    tree: dict[str, Any] = {}
    for field in FIELDS:
        section, _, key = field.name.partition(".")
        if key:
            tree.setdefault(section, {})[key] = field.default
        else:
            tree[section] = field.default
    sections = {name: _Section(value) if isinstance(value, dict) else value for name, value in tree.items()}
    return ConfigDict(sections).lock()


def resolved(config: ConfigDict) -> ConfigDict:
    """Return a copy of a config whose paths are absolute, without `~` or a slash at the end.

    A hub id and "embedded" stay as they are; the address of a page on the hub becomes the id. Raise UserError for a
    page that names neither a model nor a dataset.
    """
    config = config.copy_and_resolve_references()
    for name, value in _written_one_way(flatten(config)).items():
        set_field(config, name, value)
    config.concepts = tuple(_written_one_way(entry) for entry in config.concepts)
    return config


def _written_one_way(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flat fields of a config or a concept with paths and ids in the form that `resolved` describes."""
    fields = dict(fields)
    for kind in (MODEL, DATASET):
        if isinstance(source := fields.get(kind.source), str):
            fields[kind.source], revision = of_page(source, kind, str(fields.get(kind.revision, "")))
            fields |= {kind.revision: revision} if revision else {}
    if isinstance(source := fields.get(_MODEL_CONFIG), str):
        fields[_MODEL_CONFIG], _ = of_page(source, MODEL, None, _MODEL_CONFIG)
    return {name: _absolute(name, value) for name, value in fields.items()}


def _absolute(name: str, value: Any) -> Any:
    """Return a field's value; if it is a local path, return it absolute."""
    local = name in BY_NAME and BY_NAME[name].is_path and isinstance(value, str) and value and not is_remote(value)
    model = name in (MODEL.source, _MODEL_CONFIG)
    if not local or (model and value == EMBEDDED) or ((model or name == DATASET.source) and is_id(value)):
        return value
    return str(Path(os.path.expanduser(value)).absolute())  # noqa: PTH111 (Path.expanduser raises for an unknown user)


def is_remote(path: str) -> bool:
    """Return whether a path begins with a scheme, such as gs://."""
    return re.match(r"\w{2,}://", path) is not None  # C:// is a drive


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Return all values by dotted names, `{"train.steps": 800, ...}`, in the order of FIELDS."""
    return {field.name: get(config, field.name) for field in FIELDS}


def get(config: ConfigDict, name: str) -> Any:
    section, _, key = name.partition(".")
    return config[section][key] if key else config[section]


def default_of(name: str) -> Any:
    """Return the default of a field, given by its dotted name."""
    return BY_NAME[name].default


def set_field(config: ConfigDict, name: str, value: Any) -> None:
    """Set a field by its dotted name. Raise UserError for an unknown name or a value of another type."""
    value = typed(name, value)
    section, _, key = name.partition(".")
    if key:
        config[section][key] = value
    else:
        config[section] = value


def with_values(values: Mapping[str, Any]) -> ConfigDict:
    """Return the default config with these values, given by dotted names. Raise UserError as `set_field`."""
    config = default_config()
    for name, value in values.items():
        set_field(config, name, value)
    return config


def typed(name: str, value: Any) -> Any:
    """Return the value in the field's type, or "auto" if the field allows it.

    Only lossless conversions are made: 1 becomes 1.0, and a list becomes a tuple. Raise UserError for an unknown name,
    a value of another type, a number of more than 64 bits, and a text that cannot be a path or a prompt.
    """
    field = field_named(name)
    if field.auto and isinstance(value, str) and value == AUTO:
        return AUTO
    if type(value) is int and abs(value) >= 2**64:
        raise UserError(f"{name} must be less than 2**64")
    if field.kind is float and type(value) is int:
        return float(value)
    if field.kind is tuple and isinstance(value, list | tuple):
        return _typed_list(field, value)
    if type(value) is not field.kind:
        raise _wrong_type(field, value)
    if isinstance(value, str):
        _check_text(field, value)
    return value


def _typed_list(field: Field, values: Sequence[Any]) -> tuple[Any, ...]:
    """Return a list of texts or of concepts as a tuple. Raise UserError if it holds anything else."""
    kind = Mapping if field.name == CONCEPTS else str
    if not all(isinstance(value, kind) for value in values):
        raise _wrong_type(field, values)
    if kind is Mapping:
        return tuple(map(flat, values))
    for value in values:
        _check_text(field, value)
    return tuple(values)


def _wrong_type(field: Field, value: Any) -> UserError:
    entries = f"fields, such as {_EXAMPLE}" if field.name == CONCEPTS else "strings"
    names: dict[type, str] = {tuple: f"a list of {entries}", bool: "true or false"}
    wanted = names.get(field.kind, f"of type {field.kind.__name__}")
    wanted += f" or {AUTO!r}" if field.auto else f", as its default {field.default!r} is"
    return UserError(f"{field.name}={short.repr(value)} must be {wanted}")


def _check_text(field: Field, text: str) -> None:
    if field.is_path and "\0" in text:
        raise UserError(f"{field.name}={text!r} must be a path, and no path has a NUL character in it")
    if not field.is_path and re.search(r"[\ud800-\udfff]", text):  # a path may be any bytes
        raise UserError(f"{field.name}={text!r} must be text, and that is not all UTF-8")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `{"train.steps": 800}` for `{"train": {"steps": 800}}`; names with dots stay as they are."""
    fields: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        fields |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return fields


def without_effect(fields: Mapping[str, Any]) -> list[Field]:
    """Return the fields of a flat config that differ from their defaults but have no effect with the other values."""
    return [
        field
        for field in FIELDS
        if field.needs
        and fields[field.name] != field.default
        and not any(need.hold(fields[need.name]) for need in field.needs)
    ]


def may_change(name: str) -> bool:
    """Return whether a resumed run may have another value of this field than it began with."""
    name = re.sub(rf"^{CONCEPTS}\[\d+\]\.", "", name)
    return name in BY_NAME and BY_NAME[name].may_change


def is_place(name: str) -> bool:
    """Return whether the values of a field are paths."""
    return name in BY_NAME and BY_NAME[name].is_path


def must_be_meant(name: str) -> bool:
    """Return whether the user must confirm another value of a field on resume, because it changes the result.

    The user confirms it on the command line, with NAME=VALUE or --accept-changes.
    """
    chosen = name in BY_NAME and BY_NAME[name].auto is not None
    return may_change(name) and (chosen or name.startswith(("train.lr_", "tokens.")))
