"""docs/guide: its commands are run one after another, each on what those before it made.

Those of the first page run always; those of the other pages, which go on with what it made, in the full suite.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
from page_commands import commands, parts, smaller, unrun
from PIL import Image
from safetensors import safe_open

from booth.config.fields import FIELDS

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide"
FIRST, OTHERS = "from-photos-to-a-webui", (
    "lora", "captions-and-concepts", "crops-and-masks", "datasets", "tokens", "training-options", "sampling",
    "which-checkpoint", "webui-files", "sharing", "small-gpus", "several-gpus-and-hosts", "tpus",
)  # fmt: skip
PAGES = {name: (GUIDE / f"{name}.md").read_text(encoding="utf-8") for name in (FIRST, *OTHERS)}
MADE = {
    "runs/sks-dog-lora": ("lora/pytorch_lora_weights.safetensors",),
    "runs/dog": ("report.html", "lora/pytorch_lora_weights.safetensors"), "pictures": ("grid.png",),
    "which": ("xy.png",), "weights": ("xy.png",), "sks-dog-diffusers": ("model_index.json",),
    "runs/mydog": ("tokens/mydog.safetensors",), "mixed": ("model_index.json",), "beach": ("grid.png",),
    "any-dog": ("grid.png",), "step-600": ("grid.png",), "xy": ("xy.png",), "lora-weights": ("xy.png",),
    "dog": ("model_index.json",), "dog-folder": ("model_index.json",),
}  # fmt: skip
SAID = {"doctor": "photos", "plan": "GiB"}
COMMANDS = [
    pytest.param(words, id=f"{page}-{n}-{parts(words)[1]}", marks=[pytest.mark.full] * (page != FIRST))
    for page, text in PAGES.items()
    for n, words in enumerate(commands(text))
]


def read_tensors(path):
    with safe_open(path, "np") as file:
        assert all(file.get_tensor(name).size for name in file.keys()) and file.keys()  # noqa: SIM118 (no mapping)


READABLE = {
    ".png": lambda path: Image.open(path).load(), ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".safetensors": read_tensors,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photos):
    """Where all commands are given."""
    folder = tmp_path_factory.mktemp("guide")
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copytree(photos, folder / "photos")
    return folder


@pytest.fixture
def prepared(folder):
    """Makes what a command takes from elsewhere: somebody's LoRA, a checkpoint that is a pickle, a run that learned."""

    def make(words):
        if "style.safetensors" in words:
            shutil.copyfile(folder / "dog.safetensors", folder / "style.safetensors")
        if "dog.ckpt" in words:
            import torch
            from safetensors.torch import load_file

            torch.save({"state_dict": load_file(folder / "dog-model.safetensors")}, folder / "dog.ckpt")
        if "--best" in words:  # networks with random weights see no subject
            scores = folder / "runs" / "dog" / "evaluation" / "scores.json"
            content = json.loads(scores.read_text(encoding="utf-8"))
            content["checkpoints"][-1]["shares"] = {"subject": 0.5, "prompt": 0.5, "prior": 0.5, "score": 0.5}
            scores.write_text(json.dumps(content), encoding="utf-8")

    return make


@pytest.mark.parametrize("words", COMMANDS)
def test_commands(words, folder, tiny_pipeline, photos, measuring_networks, prepared, main, monkeypatch, request):
    monkeypatch.chdir(folder)
    package, command, _ = parts(words)
    if command == "push":
        hub = request.getfixturevalue("hub")
        monkeypatch.setenv("HF_TOKEN", hub.account("secret"))
    prepared(words)
    done = main(package, command, *smaller(words, tiny_pipeline, photos, measuring_networks))
    assert done.code == 0, done.err
    if command == "push":
        assert "pytorch_lora_weights.safetensors" in hub.files("owner/dog")
    elif command == "evaluate":
        if "--run" in words:
            assert (Path(words[words.index("--run") + 1]) / "evaluation" / "scores.png").is_file()
    elif command in SAID:
        assert SAID[command] in done.out
    else:
        assert_made(words[words.index("--workdir" if command == "train" else "--out") + 1])


def assert_made(made):
    for name in MADE.get(made, ("",)):
        path = Path(made) / name
        assert path.is_file() and path.stat().st_size > 0
        if path.suffix in READABLE:
            READABLE[path.suffix](path)


def test_every_page_of_the_guide_is_run():
    assert {*PAGES, "migrating", "cluster-recipes"} == {path.stem for path in GUIDE.glob("*.md")}
    assert sum(command.marks == [] for command in COMMANDS) > 8 and len(COMMANDS) > 25


def test_what_is_not_run_needs_more_than_this_machine():
    for page in PAGES.values():
        assert all(re.search("torchrun|--coordinator|--topology", command) for command in unrun(page))
    assert not re.search(r"^ {4}(torchbooth|jaxbooth|python -m \w+booth)", "".join(PAGES.values()), re.MULTILINE)


def test_the_readme_gives_the_commands_of_the_guide():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert commands(readme) and [command for command in commands(readme) if command not in commands(PAGES[FIRST])] == []
    assert re.findall(r"[^\n]\n(##+ .*)", readme) == [], "a blank line before each heading"


def test_every_field_and_config_named_exists():
    names = {field.name for field in FIELDS}
    sections = "|".join(sorted({name.partition(".")[0] for name in names if "." in name}))
    text = "".join(PAGES.values())
    named = set(re.findall(rf"(?<![\w/.])(?:{sections})\.(?!md\b)\w+", text.replace("--config.", "")))
    assert len(named) > 60 and named <= names | {"model.safetensors", "model.yaml"}
    configs = set(re.findall(r"(?:--config |configs/|`(?=gpu_|tpu_))(\w+)(?:\.py)?", text))
    assert len(configs) > 10 and all((ROOT / "configs" / f"{name}.py").is_file() for name in configs)


def test_the_page_of_tests_names_every_script():
    page = (ROOT / "docs" / "developers" / "testing.md").read_text(encoding="utf-8")
    scripts = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))
    assert scripts and [name for name in scripts if f"| `scripts/{name}` |" not in page] == []
