"""docs/guide: the commands are run one after another, each on what those before it made; the README's map."""

import json
import re
import shutil
from pathlib import Path

import pytest
from page_commands import commands, parts, smaller
from PIL import Image
from safetensors import safe_open

from booth.config.fields import FIELDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guide" / "from-photos-to-a-webui.md").read_text(encoding="utf-8")
COMMANDS = commands(PAGE)
MADE = {
    "runs/dog": ("report.html", "lora/pytorch_lora_weights.safetensors"), "pictures": ("grid.png",),
    "which": ("xy.png",), "weights": ("xy.png",), "sks-dog-diffusers": ("model_index.json",),
}  # fmt: skip

SAID = {"doctor": "photos", "plan": "GiB"}


def read_tensors(path):
    with safe_open(path, "np") as file:
        assert all(file.get_tensor(name).size for name in file.keys()) and file.keys()  # noqa: SIM118 (no mapping)


READABLE = {
    ".png": lambda path: Image.open(path).load(), ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".safetensors": read_tensors,
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
    if command in SAID:
        assert SAID[command] in done.out
        return
    made = words[words.index("--workdir" if command == "train" else "--out") + 1]
    for name in MADE.get(made, ("",)):
        path = Path(made) / name
        assert path.is_file() and path.stat().st_size > 0
        if path.suffix in READABLE:
            READABLE[path.suffix](path)


def test_every_field_and_config_named_exists():
    names = {field.name for field in FIELDS}
    sections = "|".join(sorted({name.partition(".")[0] for name in names if "." in name}))
    named = set(re.findall(rf"(?<![\w/.])(?:{sections})\.\w+", PAGE.replace("--config.", "")))
    assert len(named) > 20 and named <= names | {"model.safetensors"}
    configs = re.findall(r"configs/\w+\.py|`(gpu_\w+\.py)`", PAGE)
    assert configs and all((ROOT / name).is_file() for name in set(re.findall(r"configs/\w+\.py", PAGE)))


def test_the_readme_names_every_script():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files = readme[readme.index("\n    scripts/\n") :]
    scripts = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))
    assert scripts and [name for name in scripts if f"      {name} " not in files] == []
    assert re.findall(r"[^\n]\n(##+ .*)", readme) == [], "a blank line before each heading"
