"""The small base model that is installed with booth, and pictures of three subjects that it has never seen.

    embedded_base/                 a Stable Diffusion 1 pipeline for 64 pixels; its README.md says what it can draw
    example_subjects/NAME/         five pictures of each subject, drawn by scripts/draw_subjects.py

`embedded` means that base in every option that takes a model; a folder of this name is given as `./embedded`.
"""

from pathlib import Path

from booth.common.errors import UserError
from booth.config.sources import EMBEDDED

BASE = Path(__file__).parents[1] / "embedded_base"
SUBJECTS = Path(__file__).parents[1] / "example_subjects"

_REINSTALL = "this installation of booth is incomplete, install it again"


def base_path() -> Path:
    """Return the diffusers folder of the embedded base. Raise UserError if it was not installed."""
    if not (BASE / "model_index.json").is_file():
        raise UserError(f"model.source={EMBEDDED}: {BASE} has no model_index.json; {_REINSTALL}")
    return BASE


def subject_path(name: str) -> Path:
    """Return the folder with a subject's pictures, for `instance.images`. Raise UserError for an unknown subject."""
    names = sorted(path.name for path in SUBJECTS.glob("*") if path.is_dir())
    if name not in names:
        fix = f"take one of {', '.join(names)}" if names else f"{SUBJECTS} is empty: {_REINSTALL}"
        raise UserError(f"there is no example subject {name!r}; {fix}")
    return SUBJECTS / name
