"""The script that measures DreamBooth keeps results apart and adds them up right."""

import json

import check_dreambooth
import numpy as np
import pytest
from check_dreambooth import COLUMNS, claim, prior_picture, table
from dreambooth_scores import Pictures, likenesses, new_settings
from PIL import Image


def test_the_table_has_every_run_and_each_kind(tmp_path):
    for name, value in (("robot-torch-prior-0", 0.25), ("mug-torch-prior-1", 0.75), ("robot-torch-alone-0", 0.5)):
        (tmp_path / f"{name}.json").write_text(json.dumps(dict.fromkeys(COLUMNS, value)))
    lines = table(tmp_path).splitlines()
    assert len(lines) == 2 + 3 + 2
    assert "| robot-torch-alone-0 | 0.50 |" in table(tmp_path)
    assert "| **torch-prior**, 2 runs | 0.50 (0.25 to 0.75) |" in table(tmp_path)
    assert "| **torch-alone**, 1 runs | 0.50 (0.50 to 0.50) |" in table(tmp_path)


def test_results_of_another_recipe_are_not_mixed(tmp_path):
    claim(tmp_path, [])
    claim(tmp_path, [])
    with pytest.raises(SystemExit, match="another recipe"):
        claim(tmp_path, [("train.steps", "7")])


def test_pictures_are_all_kept_and_shown_beside_each_other(tmp_path):
    settings = [name for name in new_settings("robot") for _ in range(6)]
    rng = np.random.default_rng(0)
    made = Pictures(*(rng.integers(0, 255, (n, 64, 64, 3), np.uint8) for n in (24, 42)), tuple(settings),
                    rng.integers(0, 255, (48, 64, 64, 3), np.uint8))  # fmt: skip
    for name in ("robot-base", "robot-torch-prior-0", "robot-torch-alone-0"):
        check_dreambooth._save(made, tmp_path, name)
    in_settings = np.asarray(Image.open(tmp_path / "robot-base-new_settings.png"))
    assert in_settings.shape == (7 * 64, 6 * 64, 3)
    assert np.array_equal(in_settings[-64:, -64:], made.new_settings[-1])
    prior_picture(tmp_path, "robot", "torch", 1)
    assert not list(tmp_path.glob("prior-*"))
    prior_picture(tmp_path, "robot", "torch", 0)
    assert Image.open(tmp_path / "prior-robot-torch-0.png").width > 12 * 64


def test_what_a_score_is_worth():
    """Its colours are most of an individual; the subject itself is all of it."""
    learned = likenesses("bird", pictures=8)
    itself, dressed, coloured, shape = learned.values()
    assert itself > 0.9 > coloured > shape + 0.3 and itself > dressed > coloured
