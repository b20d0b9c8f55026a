"""What the embedded base learns from, and that its training goes on where it was interrupted."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import train_base
from base_training import denoiser
from base_training.autoencoder import psnr, to_pixels
from base_training.captions import training_caption
from base_training.optimization import optimizer, rows_of_step
from make_pipeline import SIZES, build_tokenizer
from picture_world.settings import SETTINGS
from picture_world.world import example
from train_base import Recipe

from booth.models.open import open_pipeline


def test_training_captions_are_true_and_vary():
    rng = np.random.default_rng(0)
    told, made_up = set(), 0
    for index in range(400):
        instance, scene = example(3, index)
        words = training_caption(3, index, rng)
        told.add(words)
        assert instance.class_name in words.split()
        phrases = [setting for setting in SETTINGS if words.endswith(f" {SETTINGS[setting].phrase}")]
        assert phrases in ([], [scene.setting])
        *article, last = words.split(instance.class_name)[0].split()[-2:] or [""]
        if last and last not in ("a", "an", *instance.colour_names):
            made_up += 1
            assert not article or article[0] in ("an" if last[0] in "aeiou" else "a", *instance.colour_names)
    assert len(told) > 300
    assert 30 < made_up < 100, "about 15 %"


def test_every_epoch_shows_every_picture_once_in_an_order_of_its_own():
    first, second, other_seed, other_stage = (
        np.concatenate([rows_of_step(64, 16, start + step, seed, stage) for step in range(4)])
        for start, seed, stage in ((0, 0, "decoder"), (4, 0, "decoder"), (0, 1, "decoder"), (0, 0, "denoiser"))
    )
    assert sorted(first) == sorted(second) == list(range(64))
    assert all(not np.array_equal(first, others) for others in (second, other_seed, other_stage))
    with pytest.raises(ValueError, match="10 examples must be at least a batch of 16"):
        rows_of_step(10, 16, 0, 0, "decoder")


def test_the_learning_rate_rises_and_ends_at_zero():
    adam, schedule = optimizer([torch.nn.Parameter(torch.zeros(1))], 1.0, [100, 50])
    rates = []
    for _ in range(150):
        rates.append(adam.param_groups[0]["lr"])
        adam.step()
        schedule.step()
    first, second = rates[:100], rates[100:]
    assert first[0] == 0.5 and max(first) == 1.0 and first[-1] < 1e-3
    assert max(second) == 0.5 and second[-1] < 2e-3, "each cycle peaks at half of the one before"
    for cycle in (first, second):
        assert cycle[2:] == sorted(cycle[2:], reverse=True)


def test_timesteps_gather_in_the_middle_and_leave_none_out():
    drawn = denoiser.timesteps(np.random.default_rng(0), 200_000, 1000)
    assert drawn.dtype == np.int64 and drawn.min() == 0 and drawn.max() == 999
    assert 400 < np.median(drawn) < 450
    counts = np.histogram(drawn, 10, (0, 1000))[0] / 200_000
    assert counts[4] > 0.15 and counts[9] < 0.03 and counts.min() > 0.008


def test_psnr():
    black = to_pixels(np.zeros((1, 4, 4, 3), np.uint8))
    assert black.shape == (1, 3, 4, 4) and black.min() == black.max() == -1
    assert psnr(black + 0.2, black) == pytest.approx(20.0)


@pytest.mark.full
def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(denoiser, "SAVE_EVERY", 1)
    monkeypatch.setattr(denoiser, "BATCH", 2)
    rng = np.random.default_rng(0)
    moments = rng.uniform(0, 1, (2, 8, 4, 8, 8)).astype(np.float16)
    shares = rng.uniform(0, 1, (8, 8, 8)).astype(np.float16)
    tokenizer = build_tokenizer(denoiser.TEXT_ENCODER["vocab_size"], **SIZES["tiny"]["tokenizer"])

    class Interrupted(Exception):
        pass

    def interrupt(step, networks):
        if step == 2:
            raise Interrupted

    def train(path, look):
        networks = denoiser.train_denoiser(
            moments, shares, partial(training_caption, 0), tokenizer, (2, 1), 0, path, look
        )
        return {name: tensor for network in networks for name, tensor in network.state_dict().items()}

    whole = train(tmp_path / "whole.pt", lambda step, networks: None)
    with pytest.raises(Interrupted):
        train(tmp_path / "broken.pt", interrupt)
    resumed = train(tmp_path / "broken.pt", lambda step, networks: None)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    fresh = train(tmp_path / "other.pt", lambda step, networks: None)
    assert all(torch.equal(whole[name], fresh[name]) for name in whole), "the seed decides"


@pytest.mark.full
def test_all_stages_make_a_pipeline(tmp_path, monkeypatch):
    monkeypatch.setattr(denoiser, "SAVE_EVERY", 2)
    monkeypatch.setattr(train_base, "sheet", partial(train_base.sheet, steps=2))
    recipe = Recipe(pictures=64, autoencoder_steps=2, denoiser_cycles=(1, 1), decoder_steps=2)
    work, out = tmp_path / "work", tmp_path / "pipeline"
    train_base.train_base(work, out, recipe)
    pipeline = open_pipeline(out)
    assert pipeline.family.name == "sd1" and (out / "README.md").is_file()
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 25e6
    assert {tensor.dtype.name for name in pipeline.family.networks for tensor in pipeline.tensors(name).values()} == {
        "float16"
    }
    for name in pipeline.family.networks:
        assert str(tmp_path) not in json.dumps(pipeline.component_config(name))
    assert pipeline.component_config("text_encoder")["dtype"] == "float32", "so that it opens without a type"
    assert [path.name for path in (work / "looks").iterdir()] == ["000002.png"]

    with pytest.raises(SystemExit, match="exists already"):
        train_base.train_base(work, out, recipe)
    with pytest.raises(SystemExit, match="stages of another recipe"):
        train_base.train_base(work, tmp_path / "other", Recipe(seed=1))
