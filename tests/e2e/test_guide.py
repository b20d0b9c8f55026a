"""docs/GUIDE.md: its commands are run one after another, each on what those before it made."""

import re
import shutil
from pathlib import Path

import pytest
from page_commands import commands, parts, smaller
from PIL import Image

from booth.fields import FIELDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "GUIDE.md").read_text(encoding="utf-8")
COMMANDS = commands(PAGE)
MADE = {
    "runs/dog": ("report.html", "lora/pytorch_lora_weights.safetensors"), "pictures": ("grid.png",),
    "which": ("xy.png",), "weights": ("xy.png",), "sks-dog-diffusers": ("model_index.json",),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all commands are given."""
    folder = tmp_path_factory.mktemp("guide")
    shutil.copytree(ROOT / "configs", folder / "configs")
    return folder


@pytest.mark.parametrize("words", COMMANDS, ids=[f"{n}-{parts(words)[1]}" for n, words in enumerate(COMMANDS)])
def test_commands(words, folder, tiny_pipeline, photos, measuring_networks, main, monkeypatch):
    monkeypatch.chdir(folder)
    package, command, _ = parts(words)
    done = main(package, command, *smaller(words, tiny_pipeline, photos, measuring_networks))
    assert done.code == 0, done.err
    if command == "evaluate":
        assert (Path(words[words.index("--run") + 1]) / "evaluation" / "scores.png").is_file()
        return
    if command in ("doctor", "plan"):
        assert done.out or done.err
        return
    made = words[words.index("--workdir" if command == "train" else "--out") + 1]
    for name in MADE.get(made, ("",)):
        path = Path(made) / name
        assert path.is_file() and path.stat().st_size > 0
        if path.suffix == ".png":
            Image.open(path).verify()


def test_every_field_and_config_named_exists():
    names = {field.name for field in FIELDS}
    sections = "|".join(sorted({name.partition(".")[0] for name in names if "." in name}))
    named = set(re.findall(rf"(?<![\w/.])(?:{sections})\.\w+", PAGE.replace("--config.", "")))
    assert len(named) > 20 and named <= names | {"model.safetensors"}
    configs = re.findall(r"configs/\w+\.py|`(gpu_\w+\.py)`", PAGE)
    assert configs and all((ROOT / name).is_file() for name in set(re.findall(r"configs/\w+\.py", PAGE)))
