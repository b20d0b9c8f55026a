"""The table of what the base can do, and the training of the yardstick that it asks."""

import sys

import check_base
import numpy as np
import pytest
import torch
from base_training.autoencoder import CONFIG
from diffusers import AutoencoderKL
from picture_world.captions import caption
from picture_world.identity import sample_instance
from picture_world.settings import SETTINGS
from picture_world.world import CLASSES, generator, render, sample_scene
from PIL import Image
from train_yardstick import train_yardstick

TRUTH = {caption(name, setting): (name, setting) for name in CLASSES for setting in SETTINGS}


def rendered(backend_class, model, requests, guidance):
    """Drawn pictures of what is asked for, but always on the moon where the beach is meant."""
    pictures = []
    for request in requests:
        name, setting = TRUTH[request.prompt]
        rng = generator(99, request.seed)
        scene = sample_scene(rng, "moon" if setting == "beach" else setting)
        pictures.append(render(sample_instance(name, rng), scene, 64))
    return np.stack(pictures)


def test_the_table_says_what_the_pictures_show(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(check_base, "sample", rendered)
    monkeypatch.setattr(sys, "argv", ["check_base.py", "--out", str(tmp_path), "--pictures", "1"])
    check_base.main()
    lines = capsys.readouterr().out.splitlines()
    right = {line.split()[0]: float(line.split("right: ")[1].split("%")[0]) for line in lines if "right: " in line}
    assert right["class"] >= 95
    assert right["setting"] == pytest.approx(100 * 11 / 12, abs=1)
    beach = next(line for line in lines if line.strip().startswith("beach"))
    assert "0.0%" in beach and "taken for moon 11" in beach
    assert Image.open(tmp_path / "judged.png").width > 640


@pytest.mark.full  # half a minute of training, twice
def test_a_yardstick_is_trained_from_a_seed():
    torch.manual_seed(0)
    vae = AutoencoderKL(**CONFIG).eval()
    first, second = (train_yardstick(vae, individuals=200, steps=2, seed=0).folded() for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert all(np.isfinite(array).all() for array in first.values())
    assert not any(name.startswith("truth") for name in first), "a head that only helps it learn"
