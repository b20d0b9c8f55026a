"""Configs as ConfigDicts over `booth.config.fields`, from files and the command line.

`default_config()` builds the locked ConfigDict, `load_config()` reads a file and command-line overrides onto it;
`booth.config.validation` checks values and how they go together before any work is done.
"""

import difflib
import importlib.util
import os
import re
import reprlib
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from booth.common.errors import UserError
from booth.config import data_file, foreign_flags
from booth.config.fields import ANY, AUTO, FIELDS, Field
from booth.config.sources import DATASET, EMBEDDED, MODEL, is_id, of_page

CONCEPTS = "concepts"  # the one field that is not in a section; `booth.config.concepts` reads it
WEIGHT = "weight"  # what a concept has beside fields
_MODEL_CONFIG = "model.config"
_EXAMPLE = "[{instance.images: photos/dog, instance.prompt: a photo of sks dog, prior.prompt: a photo of dog}]"
_BY_NAME = {field.name: field for field in FIELDS}
_ONCE_ZERO = ("train.text_encoder_learning_rate", "adapter.alpha")
_SECTIONS = {field.name.partition(".")[0] for field in FIELDS}

_short = reprlib.Repr()  # what a file holds may be large, and deeper nested than repr() goes
_short.maxstring = _short.maxother = 200


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
    local = name in _BY_NAME and _BY_NAME[name].is_path and isinstance(value, str) and value and not is_remote(value)
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
    return _BY_NAME[name].default


def set_field(config: ConfigDict, name: str, value: Any) -> None:
    """Sets one field by its dotted name; UserError for an unknown name or a value of another type."""
    if name not in _BY_NAME:
        raise UserError(f"config field {_short.repr(name)} does not exist{_suggestion(name)}")
    section, _, key = name.partition(".")
    if key:
        config[section][key] = typed(name, value)
    else:
        config[section] = typed(name, value)


def similar(name: str) -> list[str]:
    """The fields that an unknown name may mean: a key of the same section in other words, what scripts of others call
    so, a similar key of the same section, else the same or a similar key of any section."""
    section, key = name.partition(".")[0], name.rpartition(".")[2]
    inside = [field.partition(".")[2] for field in _BY_NAME if field.startswith(section + ".")]
    everywhere = {field.rpartition(".")[2] for field in _BY_NAME}
    if (spelled_out := re.sub(r"(?<![^_])lr(?![^_])", "learning_rate", key)) in {*inside} - {key}:
        return [f"{section}.{spelled_out}"]
    if key not in everywhere and (field := foreign_flags.field_of(key)):
        return [field]
    if close := difflib.get_close_matches(key, inside, n=1, cutoff=0.8):
        return [f"{section}.{close[0]}"]
    close = difflib.get_close_matches(key, everywhere, n=1, cutoff=0.8)
    return [field for field in _BY_NAME if field.rpartition(".")[2] in close]


def _suggestion(name: str) -> str:
    """What may be meant, or what there is."""
    if close := similar(name):
        return f"; did you mean {' or '.join(map(repr, close))}?"
    section = name.partition(".")[0]
    inside = [field.partition(".")[2] for field in _BY_NAME if field.startswith(section + ".")]
    return f"; {section} has: {', '.join(inside)}" if inside else "; --help lists the fields"


def typed(name: str, value: Any) -> Any:
    """The value in the field's type, or "auto" where it may be that; lossless conversions only (1 -> 1.0, list ->
    tuple).

    UserError for another type, a number beyond 64 bits, and text that no path or no prompt can be.
    """
    field = _BY_NAME[name]
    kind = field.kind
    if field.auto and isinstance(value, str) and value == AUTO:
        return AUTO
    if type(value) is int and abs(value) >= 2**64:
        raise UserError(f"{name} must be less than 2**64")
    if kind is float and type(value) is int:
        return float(value)
    of = Mapping if name == CONCEPTS else str
    fits = type(value) is kind
    if kind is tuple and isinstance(value, list | tuple):
        fits = all(isinstance(item, of) for item in value)
        value = tuple(flat(item) if of is Mapping else item for item in value) if fits else value
    if not fits:
        names: dict[type, str] = {
            tuple: f"a list of {'fields, such as ' + _EXAMPLE if of is Mapping else 'strings'}",
            bool: "true or false",
        }
        wanted = names.get(kind, f"of type {kind.__name__}")
        wanted += f" or {AUTO!r}" if field.auto else f", as its default {field.default!r} is"
        raise UserError(f"{name}={_short.repr(value)} must be {wanted}")
    for text in value if kind is tuple and of is str else (value,) if kind is str else ():
        if field.is_path and "\0" in text:
            raise UserError(f"{name}={text!r} must be a path, and no path has a NUL character in it")
        if not field.is_path and re.search(r"[\ud800-\udfff]", text):  # a path may be any bytes
            raise UserError(f"{name}={text!r} must be text, and that is not all UTF-8")
    return value


def parse_text(name: str, text: str) -> Any:
    """A command-line value in the field's type: booleans are true/false, never "any text is true"."""
    if name not in _BY_NAME:
        raise UserError(f"config field {_short.repr(name)} does not exist{_suggestion(name)}")
    if _BY_NAME[name].kind is not tuple:
        return _of_text(name, text)
    if not text.startswith("["):  # one prompt, whatever its ":" and "#" mean in YAML
        return (text,) if text else ()
    try:
        return _of_text(name, data_file.from_yaml(text))
    except Exception:  # PyYAML raises what it likes
        return text


_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


def _of_text(name: str, value: Any) -> Any:
    """What text from YAML or the command line means in a field, or as a concept's weight; the text itself if that is
    nothing. Other values stay."""
    if name == CONCEPTS and isinstance(value, list):
        return [_concept_of_text(entry) for entry in value]
    kind = float if name == WEIGHT else _BY_NAME[name].kind if name in _BY_NAME else str
    if not isinstance(value, str):
        return value
    if kind is bool and value.lower() in (*_TRUE, *_FALSE):
        return value.lower() in _TRUE
    with suppress(ValueError, OverflowError):  # also of more digits than Python reads
        if kind is int:  # 010 is ten: who writes it aligns columns; 0x10 can only be sixteen
            return int(value, 0 if re.match(r"[+-]?0[xo]", value, re.IGNORECASE) else 10)
        if kind is float:
            return float(value)
    return value


def _concept_of_text(entry: Any) -> Any:
    return {key: _of_text(key, value) for key, value in flat(entry).items()} if isinstance(entry, Mapping) else entry


def load_config(path: str | Path, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Reads a `.py` (get_config()), `.yaml` or `.json` config and applies (name, text) overrides in order.

    A `.py` config is a program and is run; `.yaml` and `.json` are data only. Raises UserError.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--config {path} is not a file; give a .py, .yaml or .json config")
    if path.suffix.lower() == ".py":
        config = _run_config_file(path)
    elif path.suffix.lower() in (".yaml", ".yml", ".json"):
        config = default_config()
        for name, value in _read_data_file(path).items():
            set_field(config, name, value)
    else:
        raise UserError(f"--config {path} has suffix {path.suffix!r}; it must be .py, .yaml or .json")
    for name, text in overrides:
        set_field(config, name, parse_text(name, text))
    return config


def _run_config_file(path: Path) -> ConfigDict:
    spec = importlib.util.spec_from_file_location("booth_user_config", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        loaded = module.get_config()
    except UserError:
        raise
    except Exception as error:  # the user's file may raise anything
        if unknown := _unknown_field(error, path):  # the locked ConfigDict speaks, and lists the whole section
            raise UserError(f"--config {path}: {unknown!r} does not exist{_suggestion(unknown)}") from error
        raise UserError(f"--config {path}: {' '.join(str(error).split()) or type(error).__name__}") from error
    if not isinstance(loaded, ConfigDict):
        raise UserError(f"--config {path}: get_config() gave {loaded!r}; it must return the config")
    config = default_config()
    for name, value in flat(loaded.to_dict()).items():
        set_field(config, name, value)
    return config


def _unknown_field(error: Exception, path: Path) -> str | None:
    """`train.step` from the line `config.train.step = 3` of the user's file, if ConfigDict refused it."""
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, AttributeError | KeyError) or "ml_collections" not in frames[-1].filename:
        return None
    lines = [frame.line or "" for frame in frames if frame.filename == str(path)]
    names = re.findall(r"\b[A-Za-z_]\w*\.([\w.]+)(?![\w.(])", lines[-1]) if lines else []
    written = [name for name in names if name not in _BY_NAME and name not in _SECTIONS]
    return next(iter(written + re.findall(r'Key "(\w+)" does not exist', str(error))), None)


def _read_data_file(path: Path) -> dict[str, Any]:
    try:
        tree = data_file.read(path)
        if not isinstance(tree, dict):
            raise UserError(f"--config {path} must hold sections such as 'train:' with fields in them")
        if tree.keys() == {"backend", "run_id", "config"}:  # a run's own config.json
            tree = of_record(tree["config"])
        tree = {name: value for name, value in tree.items() if value is not None or name not in _SECTIONS}  # left empty
        fields = flat(tree)
        return fields if path.suffix == ".json" else {name: _of_text(name, value) for name, value in fields.items()}
    except (OSError, UserError):
        raise
    except Exception as error:  # PyYAML raises what it likes; what is nested too deep is a RecursionError
        raise UserError(f"--config {path} cannot be read: {' '.join(str(error).split())[:300]}") from error


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train.steps": 800}` of `{"train": {"steps": 800}}`; names with dots stay as they are."""
    fields: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        fields |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return fields


def trained_networks(config: ConfigDict) -> tuple[str, ...]:
    """The networks whose weights, or whose adapters, the run trains."""
    return ("unet",) * config.train.unet + ("text_encoder",) * config.train.text_encoder


def trains_text(config: ConfigDict) -> bool:
    """Whether contexts change while a run trains, so that updates begin with token ids."""
    return bool(config.train.text_encoder or config.tokens.add)


def is_trained(config: ConfigDict, name: str) -> bool:
    """Whether a tensor, by `component.name`, is one that the run trains."""
    if rate_group(name) == "tokens":
        return bool(config.tokens.add)
    trains = name.partition(".")[0] in trained_networks(config)
    return trains and (config.adapter.kind == "none" or ".lora_" in name)


def is_pulled(config: ConfigDict, name: str) -> bool:
    """Whether `train.pull` pulls a trained tensor, by `component.name`: not new tokens, which the base has not."""
    return bool(config.train.pull > 0 and rate_group(name) != "tokens")


def rate_group(name: str) -> str:
    """Of a trained tensor, by `component.name`: whose learning rate it has, the component's or that of new tokens."""
    return "tokens" if ".token_embedding.added." in name else name.partition(".")[0]


def rate_groups(config: ConfigDict) -> tuple[str, ...]:
    """All that have a learning rate."""
    return trained_networks(config) + ("tokens",) * bool(config.tokens.add)


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ between two flat configs: {name: (before, after)}; of each concept its own."""
    before, after = _with_concepts(before), _with_concepts(after)
    names = [*after, *(name for name in before if name not in after)]
    return {n: (before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)}


def _with_concepts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A flat config with names such as `concepts[0].instance.images` in place of the list."""
    entries = {f"{CONCEPTS}[{place}].{name}": value
               for place, entry in enumerate(fields.get(CONCEPTS, ())) for name, value in entry.items()}  # fmt: skip
    return {name: value for name, value in fields.items() if name != CONCEPTS} | entries


def without_effect(fields: Mapping[str, Any]) -> list[Field]:
    """The fields of a flat config that are not at their defaults and yet do not count, by what others are."""
    return [
        field
        for field in FIELDS
        if field.needs
        and fields[field.name] != field.default
        and not any(need.hold(fields[need.name]) for need in field.needs)
    ]


def of_record(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The flat config that a run recorded, in the words of now.

    Until "auto" was a value of its own, 0 stood for it; and fields that do not count could have any value.
    """
    fields = dict(fields)
    fields |= {name: AUTO for name in _ONCE_ZERO if fields.get(name) == 0}
    if CONCEPTS in fields:  # a weight could be text
        fields[CONCEPTS] = _of_text(CONCEPTS, fields[CONCEPTS])
    every = {**flatten(default_config()), **fields}
    every = {name: tuple(value) if isinstance(value, list) else value for name, value in every.items()}
    idle = [field for field in without_effect(every) if all(need.refused for need in field.needs)]
    return {**fields, **{field.name: field.default for field in idle if field.name in fields}}


def may_change(name: str) -> bool:
    """Whether a resumed run may have another value of this field than the run began with."""
    name = re.sub(rf"^{CONCEPTS}\[\d+\]\.", "", name)
    return name in _BY_NAME and _BY_NAME[name].may_change


def is_place(name: str) -> bool:
    """Whether a field says where something is."""
    return name in _BY_NAME and _BY_NAME[name].is_path


def must_be_meant(name: str) -> bool:
    """Whether such a value changes what a resumed run becomes, so that the command line must say that it is meant."""
    chosen = name in _BY_NAME and _BY_NAME[name].auto is not None
    return may_change(name) and (chosen or name.startswith(("train.lr_", "tokens.")))


def describe() -> str:
    """The table of fields for --help and the documentation."""
    width = max(len(field.name) for field in FIELDS)
    rules = {field.name: f" ({field.said_rule})" if field.rule is not ANY else "" for field in FIELDS}
    return "\n".join(f"  {f.name:<{width}}  {f.default!r:<10}  {f.meaning}{rules[f.name]}" for f in FIELDS)
