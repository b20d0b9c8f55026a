"""Load configs from `.py`, `.yaml` and `.json` files, or by name if they come with booth, and apply overrides."""

import importlib.util
import re
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from booth.common.errors import UserError
from booth.config import data_file
from booth.config.changes import of_record
from booth.config.names import BY_NAME, SECTIONS, suggestion
from booth.config.texts import of_text, parse_text
from booth.config.values import default_config, flat, set_field, with_values

_DATA = (".yaml", ".yml", ".json")
_PACKAGE = Path(__file__).parents[1]


def load_config(config: str | Path, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Read a config and apply (name, text) overrides in order.

    `config` is a file, or the name, without a suffix, of a config that comes with booth; "" stands for the defaults.
    A `.py` config is a program and is run; `.yaml` and `.json` are data only. Raise UserError if the config cannot be
    read, or if a name or value is wrong.
    """
    loaded = _read_config(config_file(config)) if config else default_config()
    for name, text in overrides:
        set_field(loaded, name, parse_text(name, text))
    return loaded


def _read_config(path: Path) -> ConfigDict:
    return _run_config_file(path) if path.suffix.lower() == ".py" else with_values(_read_data_file(path))


def config_file(config: str | Path) -> Path:
    """Return the file of a config that is given as `--config`. Raise UserError if there is none."""
    path, own = Path(config), configs()
    is_name = str(config) == path.name and not path.suffix
    if is_name and path.name in own:
        return own[path.name]
    if path.is_file() and path.suffix.lower() in (".py", *_DATA):
        return path
    if path.is_file():
        raise UserError(f"--config {path} has suffix {path.suffix!r}; it must be .py, .yaml or .json")
    if is_name:
        raise UserError(f"--config {path} is no file and no config that comes with booth; those are {', '.join(own)}")
    hint = f", or {path.stem}, which comes with booth" if path.stem in own else ""
    raise UserError(f"--config {path} is not a file; give a .py, .yaml or .json config{hint}")


def configs() -> dict[str, Path]:
    """Return {name: file} of the configs that come with booth, in the package or beside it in a checkout."""
    folder = next(filter(Path.is_dir, (_PACKAGE / "configs", _PACKAGE.parent / "configs")), _PACKAGE)
    return {file.stem: file for file in sorted(folder.glob("[!_]*.py"))}


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
        if unknown := _unknown_field(error, path):  # the locked ConfigDict's own message lists the whole section
            raise UserError(f"--config {path}: {unknown!r} does not exist{suggestion(unknown)}") from error
        raise UserError(f"--config {path}: {' '.join(str(error).split()) or type(error).__name__}") from error
    if not isinstance(loaded, ConfigDict):
        raise UserError(f"--config {path}: get_config() gave {loaded!r}; it must return the config")
    return with_values(flat(loaded.to_dict()))


def _unknown_field(error: Exception, path: Path) -> str | None:
    """Return `train.step` from the line `config.train.step = 3` of the user's file, if ConfigDict refused it."""
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, AttributeError | KeyError) or "ml_collections" not in frames[-1].filename:
        return None
    lines = [frame.line or "" for frame in frames if frame.filename == str(path)]
    names = re.findall(r"\b[A-Za-z_]\w*\.([\w.]+)(?![\w.(])", lines[-1]) if lines else []
    written = [name for name in names if name not in BY_NAME and name not in SECTIONS]
    return next(iter(written + re.findall(r'Key "(\w+)" does not exist', str(error))), None)


def _read_data_file(path: Path) -> dict[str, Any]:
    try:
        tree = data_file.read(path)
        if not isinstance(tree, dict):
            raise UserError(f"--config {path} must hold sections such as 'train:' with fields in them")
        if tree.keys() == {"backend", "run_id", "config"}:  # a run's own config.json
            tree = of_record(tree["config"])
        # Empty sections are None.
        tree = {name: value for name, value in tree.items() if value is not None or name not in SECTIONS}
        fields = flat(tree)
        return fields if path.suffix == ".json" else {name: of_text(name, value) for name, value in fields.items()}
    except (OSError, UserError):
        raise
    except Exception as error:  # PyYAML may raise anything; deep nesting is a RecursionError
        raise UserError(f"--config {path} cannot be read: {' '.join(str(error).split())[:300]}") from error
