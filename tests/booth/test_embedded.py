"""What is installed with booth: found by one word wherever a source is given, and complete in a wheel."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from draw_subjects import draw_subjects
from fake_backend import FakeBackend, watched
from PIL import Image

from booth.commands import cli, export, sample
from booth.common.errors import UserError
from booth.config.loading import load_config
from booth.config.sources import EMBEDDED
from booth.config.values import resolved
from booth.data.input_rules import validate
from booth.data.inputs import check_inputs
from booth.models import embedded
from booth.models.embedded import base_path, subject_path
from booth.models.open import open_pipeline
from booth.train import loop

ROOT = Path(__file__).parents[2]
SUBJECTS = ("bird", "mug", "robot")


@pytest.fixture
def base(tiny_pipeline, monkeypatch):
    """The tiny pipeline in the place of the embedded base, which is larger."""
    monkeypatch.setattr(embedded, "BASE", tiny_pipeline)
    return tiny_pipeline


@pytest.fixture
def main(monkeypatch):
    """The command line with the backend in NumPy."""
    for module in (sample, export):
        monkeypatch.setattr(module, "load_backend", lambda package: FakeBackend)
    return lambda *arguments: cli.main("torchbooth", [*map(str, arguments)])


def test_the_word_names_the_folder(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_pipeline(EMBEDDED).path == base == base_path()
    shutil.copytree(base, tmp_path / "embedded")
    assert open_pipeline(EMBEDDED).path == base, "also where a folder has that name"
    assert open_pipeline("./embedded").path.resolve() == tmp_path / "embedded"


def test_a_config_keeps_the_word(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_config.model.source = EMBEDDED
    assert resolved(tiny_config).model.source == EMBEDDED
    tiny_config.model.source = "./embedded"
    assert resolved(tiny_config).model.source == str(tmp_path / "embedded")
    tiny_config.model.source, tiny_config.instance.images = EMBEDDED, EMBEDDED
    assert resolved(tiny_config).instance.images == str(tmp_path / "embedded"), "it means nothing in other fields"


def test_a_run_is_resumed_sampled_and_exported_with_the_word_alone(base, main, tiny_config, tmp_path, capsys):
    tiny_config.model.source, tiny_config.train.steps = EMBEDDED, 2
    run = loop.train(FakeBackend, tiny_config, tmp_path / "run")
    assert json.loads((run.path / "config.json").read_text())["config"]["model.source"] == EMBEDDED
    tiny_config.train.steps = 3
    backend_class = watched()
    loop.train(backend_class, tiny_config, run.path)
    assert backend_class.calls == ["train_step", "save"]
    small = ("--prompt", "a robot", "--size", 64, "--steps", 2, "--out")
    assert main("sample", "--run", run.path, *small, tmp_path / "tuned") == 0
    assert main("sample", "--model", EMBEDDED, *small, tmp_path / "base") == 0
    assert main("export", "--run", run.path, "--step", 3, "--out", tmp_path / "export") == 0
    assert open_pipeline(tmp_path / "export").tensors("vae").keys() == open_pipeline(base).tensors("vae").keys()
    assert main("sample", "--model", EMBEDDED, "--revision", "main", *small, tmp_path / "base") == 2
    assert "is for hub ids, and model.source=embedded is a local folder" in capsys.readouterr().err.splitlines()[-1]


def test_no_revision(base, tiny_config, tmp_path):
    tiny_config.model.source, tiny_config.model.revision = EMBEDDED, "main"
    with pytest.raises(UserError, match=r"^model\.revision='main' is for hub ids, and model\.source=embedded is a"):
        loop.train(FakeBackend, tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("there", [False, True])
def test_a_base_that_was_not_installed(tiny_config, tmp_path, monkeypatch, there):
    monkeypatch.setattr(embedded, "BASE", tmp_path / "embedded_base")
    if there:
        (tmp_path / "embedded_base" / "unet").mkdir(parents=True)
    tiny_config.model.source = EMBEDDED
    with pytest.raises(UserError, match=r"^model\.source=embedded: .*embedded_base has no .*, install it again$"):
        loop.train(FakeBackend, tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_subjects(tmp_path, monkeypatch):
    for name in SUBJECTS:
        pictures = [f"{name}-{number}.png" for number in range(5)]
        assert sorted(path.name for path in subject_path(name).iterdir()) == pictures
    with pytest.raises(UserError, match=r"^there is no example subject 'dog'; take one of bird, mug, robot$"):
        subject_path("dog")
    monkeypatch.setattr(embedded, "SUBJECTS", tmp_path / "example_subjects")
    with pytest.raises(UserError, match=r"^there is no example subject 'mug'; \S*example_subjects is empty: .* again$"):
        subject_path("mug")


def test_the_pictures_are_those_that_the_script_draws(tmp_path):
    draw_subjects(tmp_path)
    drawn = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.png"))
    assert len(drawn) == 15
    for name in drawn:
        with Image.open(tmp_path / name) as wanted, Image.open(embedded.SUBJECTS / name) as shipped:
            assert shipped.mode == "RGB" and shipped.size == (256, 256)
            difference = np.abs(np.asarray(wanted, int) - np.asarray(shipped, int))
        assert difference.mean() < 0.5, f"{name}: other versions of Pillow draw an edge or two differently, no more"


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_demo_is_valid_for_both_backends(base, backend):
    config = resolved(load_config(ROOT / "configs" / "demo.py"))
    validate(config, backend)
    assert config.model.source == EMBEDDED and config.instance.images == str(subject_path("robot"))
    assert len(check_inputs(config).instances) == 5
    assert config.samples.prompts[0] == config.instance.prompt and config.samples.prompts[-1] == config.prior.prompt


def test_the_demo_shows_the_robot_where_its_pictures_do_not():
    from picture_world.settings import SETTINGS
    from picture_world.subjects import subject_scenes

    config = load_config(ROOT / "configs" / "demo.py")
    phrases = {setting.phrase: name for name, setting in SETTINGS.items()}
    shown = [phrases[prompt.removeprefix(config.instance.prompt).strip()] for prompt in config.samples.prompts[1:-1]]
    assert len(shown) == 4 and not set(shown) & {scene.setting for scene in subject_scenes("robot")}


def test_it_opens_by_the_plainest_call():
    """Without a type; and with one, all networks are of that."""
    pipe = StableDiffusionPipeline.from_pretrained(embedded.BASE)
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a robot", num_inference_steps=1, width=64, height=64, output_type="np").images[0]
    assert picture.shape == (64, 64, 3) and np.isfinite(picture).all()
    half = StableDiffusionPipeline.from_pretrained(embedded.BASE, torch_dtype=torch.float16)
    assert half.text_encoder.dtype == half.unet.dtype == half.vae.dtype == torch.float16


def test_runs_begun_before_its_config_named_another_type_go_on(tmp_path):
    """Their manifests have the sha256 of the config that it had then."""
    config = json.loads((embedded.BASE / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    before = hashlib.sha256(json.dumps({**config, "dtype": "float16"}, sort_keys=True).encode()).hexdigest()
    assert open_pipeline(EMBEDDED).config_hashes()["text_encoder"] == before


def test_the_base_is_a_small_whole_pipeline():
    """The one that comes with booth, not a stand-in."""
    pipeline = open_pipeline("embedded")
    assert pipeline.family.name == "sd1" and (embedded.BASE / "README.md").is_file()
    assert {spec.dtype for name in pipeline.weights for specs in pipeline.weights[name].specs.values()
            for spec in specs.values()} == {"F16"}  # fmt: skip
    assert sum(path.stat().st_size for path in embedded.BASE.rglob("*") if path.is_file()) < 25e6
    tensors = [tensor for name in pipeline.weights for tensor in pipeline.tensors(name).values()]
    assert all(np.isfinite(tensor.astype(np.float32)).all() for tensor in tensors)
