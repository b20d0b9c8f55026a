"""Configs as ConfigDicts over `booth.fields`, from files and the command line.

`default_config()` builds the locked ConfigDict, `load_config()` reads a file and command-line overrides onto it;
`booth.validation` checks values and how they go together before any work is done.
"""

import difflib
import importlib.util
import json
import os
import re
import reprlib
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from ml_collections import ConfigDict
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from booth.embedded import EMBEDDED
from booth.errors import UserError
from booth.fields import ANY, AUTO, FIELDS
from booth.hub import DATASET, MODEL, is_id

CONCEPTS = "concepts"  # the one field that is not in a section; `booth.concepts` reads it
_EXAMPLE = "[{instance.images: photos/dog, instance.prompt: a photo of sks dog, prior.prompt: a photo of dog}]"
_BY_NAME = {field.name: field for field in FIELDS}
_SECTIONS = {field.name.partition(".")[0] for field in FIELDS}

_short = reprlib.Repr()  # what a file holds may be large, and deeper nested than repr() goes
_short.maxstring = _short.maxother = 200


def default_config() -> ConfigDict:
    """The locked ConfigDict with every field at its default."""
    tree: dict[str, Any] = {}
    for field in FIELDS:
        section, _, key = field.name.partition(".")
        if key:
            tree.setdefault(section, {})[key] = field.default
        else:
            tree[section] = field.default
    return ConfigDict(tree).lock()


def resolved(config: ConfigDict) -> ConfigDict:
    """A copy whose paths are absolute and written one way: `~`, a trailing slash or another folder change nothing.

    A hub id and "embedded" stay as they are.
    """
    config = config.copy_and_resolve_references()
    for name in (field.name for field in FIELDS if field.is_path):
        set_field(config, name, _absolute(name, get(config, name)))
    config.concepts = tuple(
        {name: _absolute(name, value) for name, value in entry.items()} for entry in typed(CONCEPTS, config.concepts)
    )
    return config


def _absolute(name: str, value: Any) -> Any:
    """A field's value; if it is a local path, from the root."""
    local = name in _BY_NAME and _BY_NAME[name].is_path and isinstance(value, str) and value and not is_remote(value)
    model = name in (MODEL.source, "model.config")
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


def _suggestion(name: str) -> str:
    """What may be meant: a similar key of the same section, else the same or a similar key of any section."""
    section, key = name.partition(".")[0], name.rpartition(".")[2]
    inside = [field.partition(".")[2] for field in _BY_NAME if field.startswith(section + ".")]
    everywhere = {field.rpartition(".")[2] for field in _BY_NAME}
    close = [f"{section}.{similar}" for similar in difflib.get_close_matches(key, inside, n=1, cutoff=0.8)]
    if not close:
        similar = difflib.get_close_matches(key, everywhere, n=1, cutoff=0.8)
        close = [field for field in _BY_NAME if field.rpartition(".")[2] in similar]
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    return f"; {section} has: {', '.join(inside)}" if inside else "; --help lists the fields"


def typed(name: str, value: Any) -> Any:
    """The value in the type of the field's default; lossless conversions only (1 -> 1.0, list -> tuple).

    UserError for another type, a number beyond 64 bits, and text that no path or no prompt can be.
    """
    field = _BY_NAME[name]
    kind = type(field.default)
    if value == "auto" and name in AUTO:
        return kind(0)
    if type(value) is int and abs(value) >= 2**64:
        raise UserError(f"{name} must be less than 2**64")
    if kind is float and type(value) is int:
        return float(value)
    of = Mapping if name == CONCEPTS else str
    fits = type(value) is kind
    if kind is tuple and isinstance(value, list | tuple):
        fits = all(isinstance(item, of) for item in value)
        value = tuple(_concept(item) if of is Mapping else item for item in value) if fits else value
    if not fits:
        wanted = {
            tuple: f"a list of {'fields, such as ' + _EXAMPLE if of is Mapping else 'strings'}",
            bool: "true or false",
        }.get(kind, f"of type {kind.__name__}")
        raise UserError(f"{name}={_short.repr(value)} must be {wanted}, as its default {field.default!r} is")
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
    kind = type(_BY_NAME[name].default)
    if kind is str:
        return text
    if kind is tuple and not text.startswith("["):  # one prompt, whatever its ":" and "#" mean in YAML
        return (text,) if text else ()
    try:
        if kind in (int, float):
            return kind(text)
        return yaml.load(text, _Loader)
    except Exception:  # PyYAML raises what it likes
        return text


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
        text = path.read_text(encoding="utf-8-sig")  # with or without the mark that Windows editors put first
        tree = json.loads(text, object_pairs_hook=_once) if path.suffix == ".json" else yaml.load(text, _Loader)
        if not isinstance(tree, dict):
            raise UserError(f"--config {path} must hold sections such as 'train:' with fields in them")
        if tree.keys() == {"backend", "run_id", "config"}:  # a run's own config.json
            tree = dict(tree["config"])
        tree = {name: value for name, value in tree.items() if value is not None or name not in _SECTIONS}  # left empty
        return {name: _as_number(name, value) for name, value in flat(tree).items()}
    except (OSError, UserError):
        raise
    except Exception as error:  # PyYAML raises what it likes; what is nested too deep is a RecursionError
        raise UserError(f"--config {path} cannot be read: {' '.join(str(error).split())[:300]}") from error


class _Loader(yaml.SafeLoader):
    """Plain data: no tags that make objects, no aliases (a few lines of them stand for more than fits into memory), and
    no name twice in one place, of which only the last would count."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise ComposerError(None, None, f"*{event.anchor}: aliases are not read", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise ConstructorError(None, None, _twice(key.value for key, _ in node.value), node.start_mark)
        return mapping


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The same for JSON."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError(_twice(name for name, _ in pairs))
    return dict(pairs)


def _twice(names: Iterable[Any]) -> str:
    name, _ = Counter(map(str, names)).most_common(1)[0]
    return f"{name!r} is there twice"


def _as_number(name: str, value: Any) -> Any:
    # YAML 1.1 reads 5e-6 as text (it wants 5.0e-6); people mean the number.
    if name in _BY_NAME and isinstance(_BY_NAME[name].default, float) and isinstance(value, str):
        return parse_text(name, value)
    return value


def _concept(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _as_number(name, value) for name, value in flat(entry).items()}


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


def may_change(name: str) -> bool:
    """Whether a resumed run may have another value of this field than the run began with."""
    name = re.sub(rf"^{CONCEPTS}\[\d+\]\.", "", name)
    return name in _BY_NAME and _BY_NAME[name].may_change


def is_place(name: str) -> bool:
    """Whether a field says where something is."""
    return name in _BY_NAME and _BY_NAME[name].is_path


def must_be_meant(name: str) -> bool:
    """Whether such a value changes what a resumed run becomes, so that the command line must say that it is meant."""
    return may_change(name) and (name in AUTO or name.startswith(("train.lr_", "train.text_encoder_l", "tokens.")))


def describe() -> str:
    """The table of fields for --help and the documentation."""
    width = max(len(field.name) for field in FIELDS)
    rules = {field.name: f" ({field.rule.text})" if field.rule is not ANY else "" for field in FIELDS}
    return "\n".join(f"  {f.name:<{width}}  {f.default!r:<10}  {f.meaning}{rules[f.name]}" for f in FIELDS)
