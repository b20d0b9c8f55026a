"""Settings by their dotted names: the config that holds them, their values and types, and the names that may be meant.

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
WEIGHT = "weight"  # what a concept has beside fields
_MODEL_CONFIG = "model.config"
_EXAMPLE = "[{instance.images: photos/dog, instance.prompt: a photo of sks dog, prior.prompt: a photo of dog}]"


class _Section(ConfigDict):
    """Takes "auto" in place of a number where a field may be that, and a number again in place of it."""

    _may_be_auto = frozenset(field.name.rpartition(".")[2] for field in FIELDS if field.auto)

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self._may_be_auto and any(one == AUTO for one in (value, self.get(key)) if isinstance(one, str)):
            with self.ignore_type():  # which every use checks once more: see `typed`
                super().__setitem__(key, value)
        else:
            super().__setitem__(key, value)


def default_config() -> ConfigDict:
    """The locked ConfigDict with every field at its default."""
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
    """A copy whose paths are absolute and written one way: `~`, a trailing slash or another folder change nothing.

    A hub id and "embedded" stay as they are; the address of a page on the hub becomes the id. UserError for a page that
    names neither a model nor a dataset.
    """
    config = config.copy_and_resolve_references()
    for name, value in _written_one_way(flatten(config)).items():
        set_field(config, name, value)
    config.concepts = tuple(_written_one_way(entry) for entry in config.concepts)
    return config


def _written_one_way(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Flat fields of a config or of a concept, their paths as `resolved` has them."""
    fields = dict(fields)
    for kind in (MODEL, DATASET):
        if isinstance(source := fields.get(kind.source), str):
            fields[kind.source], revision = of_page(source, kind, str(fields.get(kind.revision, "")))
            fields |= {kind.revision: revision} if revision else {}
    if isinstance(source := fields.get(_MODEL_CONFIG), str):
        fields[_MODEL_CONFIG], _ = of_page(source, MODEL, None, _MODEL_CONFIG)
    return {name: _absolute(name, value) for name, value in fields.items()}


def _absolute(name: str, value: Any) -> Any:
    """A field's value; if it is a local path, from the root."""
    local = name in BY_NAME and BY_NAME[name].is_path and isinstance(value, str) and value and not is_remote(value)
    model = name in (MODEL.source, _MODEL_CONFIG)
    if not local or (model and value == EMBEDDED) or ((model or name == DATASET.source) and is_id(value)):
        return value
    return str(Path(os.path.expanduser(value)).absolute())  # noqa: PTH111 (Path's own raises for an unknown user)


def is_remote(path: str) -> bool:
    """Whether a path names a scheme, such as gs://."""
    return re.match(r"\w{2,}://", path) is not None  # C:// is a drive


def flatten(config: ConfigDict) -> dict[str, Any]:
    """`{"train.steps": 800, ...}` in the order of FIELDS."""
    return {field.name: get(config, field.name) for field in FIELDS}


def get(config: ConfigDict, name: str) -> Any:
    section, _, key = name.partition(".")
    return config[section][key] if key else config[section]


def default_of(name: str) -> Any:
    """The default of one field by its dotted name."""
    return BY_NAME[name].default


def set_field(config: ConfigDict, name: str, value: Any) -> None:
    """Set one field by its dotted name; UserError for an unknown name or a value of another type."""
    value = typed(name, value)
    section, _, key = name.partition(".")
    if key:
        config[section][key] = value
    else:
        config[section] = value


def typed(name: str, value: Any) -> Any:
    """Return the value in the field's type, or "auto" where it may be that.

    Only conversions that lose nothing are made: 1 becomes 1.0, and a list a tuple. UserError for an unknown name,
    another type, a number beyond 64 bits, and a text that no path or no prompt can be.
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
    """Return a list of texts, or of concepts, as a tuple."""
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
    """`{"train.steps": 800}` of `{"train": {"steps": 800}}`; names with dots stay as they are."""
    fields: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        fields |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return fields


def without_effect(fields: Mapping[str, Any]) -> list[Field]:
    """The fields of a flat config that are not at their defaults and yet do not count, by what others are."""
    return [
        field
        for field in FIELDS
        if field.needs
        and fields[field.name] != field.default
        and not any(need.hold(fields[need.name]) for need in field.needs)
    ]


def may_change(name: str) -> bool:
    """Whether a resumed run may have another value of this field than the run began with."""
    name = re.sub(rf"^{CONCEPTS}\[\d+\]\.", "", name)
    return name in BY_NAME and BY_NAME[name].may_change


def is_place(name: str) -> bool:
    """Whether a field says where something is."""
    return name in BY_NAME and BY_NAME[name].is_path


def must_be_meant(name: str) -> bool:
    """Whether such a value changes what a resumed run becomes, so that the command line must say that it is meant."""
    chosen = name in BY_NAME and BY_NAME[name].auto is not None
    return may_change(name) and (chosen or name.startswith(("train.lr_", "tokens.")))
