"""Before and after in one picture: of the untouched base and the tuned model, the same prompts and seeds."""

import numpy as np
import pytest
from fake_backend import FakeBackend, watched
from PIL import Image

from booth.commands.cli import main
from booth.common.errors import UserError
from booth.data import pictures
from booth.train import loop, previews

PROMPTS = ("a robot", "a toy")


@pytest.fixture
def config(tiny_config):
    tiny_config.train.learning_rate, tiny_config.train.steps = 0.5, 3
    tiny_config.samples.before_after, tiny_config.samples.prompts = True, PROMPTS
    tiny_config.samples.inference_steps, tiny_config.samples.images_per_prompt = 2, 3
    return tiny_config


@pytest.fixture
def shown(monkeypatch):
    """What the pictures of before and after were made of, run by run: {label: images}."""
    shown, real = [], pictures.labelled_rows

    def labelled_rows(rows):
        assert len(dict(rows)) == len(rows)
        shown.append(dict(rows))
        return real(rows)

    monkeypatch.setattr(previews.pictures, "labelled_rows", labelled_rows)
    return shown


def sampled(config, model, out, monkeypatch):
    """The same prompts and seeds by the `sample` command: {prompt: images}."""
    monkeypatch.setattr("booth.commands.sample.load_backend", lambda package: FakeBackend)
    prompts = [word for prompt in config.samples.prompts for word in ("--prompt", prompt)]
    seeds = [str(seed) for seed in range(config.samples.images_per_prompt)]
    arguments = ["--model", str(model), *prompts, "--seeds", *seeds, "--steps", "2", "--size", "64", "--out", str(out)]
    assert main("torchbooth", ["sample", *arguments]) == 0
    images = [np.asarray(Image.open(path)) for path in sorted(out.glob("0*.png"))]
    count = len(seeds)
    return {prompt: images[n * count : (n + 1) * count] for n, prompt in enumerate(config.samples.prompts)}


def base_files(run):
    return {path.name: path.stat().st_mtime_ns for path in (run.path / "samples" / "base").iterdir()}


def test_base_and_tuned_model_at_the_same_prompts_and_seeds(config, shown, tmp_path, monkeypatch):
    run = loop.train(FakeBackend, config, tmp_path / "run")
    assert [path.name for path in (run.path / "samples").glob("*.png")] == ["before_after.png"]
    (rows,) = shown
    assert list(rows) == ["instance pictures", "base: a robot", "tuned: a robot", "base: a toy", "tuned: a toy"]
    before = sampled(config, config.model.source, tmp_path / "before", monkeypatch)
    after = sampled(config, run.pipeline, tmp_path / "after", monkeypatch)
    for prompt in PROMPTS:
        assert np.array_equal(rows[f"base: {prompt}"], before[prompt])
        assert np.array_equal(rows[f"tuned: {prompt}"], after[prompt])
        assert not np.array_equal(before[prompt], after[prompt]), "it learned something"
    with Image.open(run.path / "samples" / "before_after.png") as picture:
        assert np.array_equal(np.asarray(picture), pictures.labelled_rows(list(rows.items())))


def test_the_instance_pictures_are_shown_as_trained_on(config, shown, photos, tmp_path):
    """Cropped, reduced and at most five; the prompts are those of previews where none are given."""
    (tmp_path / "photos").mkdir()
    for number in range(7):
        wide = Image.new("RGB", (256, 128), "white")
        wide.paste((10 * number, 0, 0), (64, 0, 192, 128))
        wide.save(tmp_path / "photos" / f"{number}.png")
    config.instance.images, config.samples.prompts = str(tmp_path / "photos"), ()
    loop.train(FakeBackend, config, tmp_path / "run")
    assert list(shown[0])[1::2] == ["base: a photo of sks robot", "base: a photo of robot"]
    images = shown[0]["instance pictures"]
    assert [image.shape for image in images] == [(64, 64, 3)] * 5
    assert [image[32, 32, 0] for image in images] == [0, 10, 20, 30, 40] and images[1][32, 2, 0] < 50, "the middle"


def test_a_resumed_run_has_the_bases_pictures(config, shown, tmp_path):
    """Also when it was interrupted while it made them, and the picture at the end is that of a run without a stop."""
    whole = loop.train(FakeBackend, config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):  # one batch of class images, then the second of six, two at a time
        loop.train(watched(("sample", 3)), config, tmp_path / "run")
    config.train.steps = 2
    run = loop.train(FakeBackend, config, tmp_path / "run")
    made = base_files(run)
    assert len(made) == 6
    config.train.steps = 3
    backend_class = watched()
    run = loop.train(backend_class, config, tmp_path / "run")
    assert base_files(run) == made and backend_class.calls == ["train_step", "save"] + ["sample"] * 3
    for label, images in shown[0].items():
        assert np.array_equal(images, shown[-1][label])
    before_after = "samples/before_after.png"
    assert (run.path / before_after).read_bytes() == (whole.path / before_after).read_bytes()


def test_only_what_is_missing_is_made_by_the_base(config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        loop.train(watched(("sample", 3)), config, tmp_path / "run")
    assert len(list((tmp_path / "run" / "samples" / "base").iterdir())) == 2
    backend_class = watched()
    loop.train(backend_class, config, tmp_path / "run")
    assert backend_class.calls.count("sample") == 2 + 3, "two batches of the base, three of the tuned model"


@pytest.mark.parametrize(
    ("field", "value", "new"),
    [("prompts", ("a robot", "a lamp"), 3), ("images_per_prompt", 4, 2), ("solver", "ddim", 6),
     ("inference_steps", 3, 6), ("guidance", 2.0, 6)],
)  # fmt: skip
def test_what_changed_is_made_anew(config, shown, tmp_path, field, value, new):
    run = loop.train(FakeBackend, config, tmp_path / "run")
    made = base_files(run)
    config.samples[field], config.train.steps = value, 4
    run = loop.train(FakeBackend, config, run.path)
    again = base_files(run)
    assert len(again) == 6 + new and made.items() <= again.items()
    expected = loop.train(FakeBackend, config, tmp_path / "expected")
    assert list(shown[1]) == list(shown[2])
    for label, images in shown[2].items():
        assert np.array_equal(shown[1][label], images), label
    assert (run.path / "samples/before_after.png").read_bytes() == (
        expected.path / "samples/before_after.png"
    ).read_bytes()


def test_a_finished_run_has_nothing_left_to_do(config, tmp_path):
    config.samples.before_after = False
    run = loop.train(FakeBackend, config, tmp_path / "run")
    config.samples.before_after = True
    backend_class = watched()
    loop.train(backend_class, config, run.path)
    assert backend_class.calls == [] and not (run.path / "samples").exists()
    config.train.steps = 4
    loop.train(FakeBackend, config, run.path)
    assert (run.path / "samples" / "before_after.png").is_file()


def test_what_cannot_be_sampled_is_refused_before_anything_is_written(config, tmp_path):
    config.samples.inference_steps = 1001
    with pytest.raises(UserError, match=r"^samples\.inference_steps: inference steps 1001 must be from 1 to 999"):
        loop.train(FakeBackend, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
