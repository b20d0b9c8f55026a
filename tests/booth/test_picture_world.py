"""The picture world: what is true of a picture is in it, and everything is a function of integers."""

from itertools import combinations

import numpy as np
import pytest
from make_pipeline import WORDS
from picture_world.captions import TEMPLATES, caption, example_caption
from picture_world.identity import PATTERNS, identity_vector, is_reserved, sample_instance
from picture_world.settings import SETTINGS
from picture_world.subjects import SUBJECTS, subject_scenes
from picture_world.world import CLASSES, example, generator, render, render_with_truth, sample_scene
from PIL import Image


def test_there_are_enough_of_each():
    assert len(CLASSES) >= 8 and len(SETTINGS) >= 8 and len(SUBJECTS) >= 3


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_in_every_setting(name):
    pictures = []
    for number, setting in enumerate(SETTINGS):
        picture, mask = render_with_truth(*example(0, number, name, setting), 32)
        assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
        assert 0.02 < mask.mean() < 0.75, "an object that can be seen, and something around it"
        edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert edge.max() < 0.5, "nothing is cut off"
        pictures.append(picture)
    assert all(not np.array_equal(a, b) for a, b in combinations(pictures, 2))


def test_the_same_numbers_give_the_same_picture():
    assert np.array_equal(render(*example(5, 7), 64), render(*example(5, 7), 64))
    assert not np.array_equal(render(*example(5, 7), 64), render(*example(5, 8), 64))
    assert not np.array_equal(render(*example(5, 7), 64), render(*example(6, 7), 64))


def test_a_picture_is_the_same_at_any_size():
    for index in range(4):
        small, large = (render(*example(1, index), size) for size in (64, 128))
        reduced = np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BOX), float)
        other = render(*example(1, index + 10), 64).astype(float)
        assert np.abs(small - reduced).mean() < 10 < np.abs(other - reduced).mean()


def test_settings_are_told_apart_by_what_is_around_the_object():
    """By the mean colours of a coarse grid, nearest to those of other pictures in the settings."""

    def look(index, setting):
        return render(*example(2, index, None, setting), 32).reshape(4, 8, 4, 8, 3).mean(axis=(1, 3)).ravel()

    known = {setting: np.mean([look(n, setting) for n in range(12)], axis=0) for setting in SETTINGS}
    right = [
        min(known, key=lambda name: np.linalg.norm(known[name] - look(n, setting))) == setting
        for setting in SETTINGS
        for n in range(100, 105)
    ]
    assert np.mean(right) > 0.8


@pytest.mark.parametrize("name", CLASSES)
def test_instances_of_a_class_differ_and_one_stays_itself(name):
    scene = sample_scene(generator(0, 0), "moon")
    instances = [sample_instance(name, generator(1, n)) for n in range(6)]
    pictures = [render(instance, scene, 48).astype(float) for instance in instances]
    masks = [render_with_truth(instance, scene, 48).mask for instance in instances]
    for (a, p, m), (b, q, n) in combinations(zip(instances, pictures, masks, strict=True), 2):
        both = np.maximum(m, n)[..., None]
        assert (both * np.abs(p - q)).sum() / (3 * both.sum()) > 12, "on average 12 of 255 in every pixel of the object"
        assert np.abs(identity_vector(a) - identity_vector(b)).max() > 0.1
    shapes = [render_with_truth(instance, scene, 48).mask > 0.5 for instance in instances]
    assert len({shape.tobytes() for shape in shapes}) == len(shapes), "not in colour alone"


def test_captions_say_what_is_there_in_known_words():
    known = {*WORDS, "a", "an"}
    for index in range(300):
        instance, scene = example(3, index)
        words = example_caption(instance, scene)
        assert words == example_caption(instance, scene)
        assert instance.class_name in words.split()
        told = [setting for setting in SETTINGS if words.endswith(f" {SETTINGS[setting].phrase}")]
        assert told in ([], [scene.setting])
        others = {name for name in ("red", "green", "blue", "white") if name in words.split()}
        assert others <= {instance.colour_names[0]}
    for setting in SETTINGS:
        for name in CLASSES:
            unknown = set(caption(name, setting).split()) - known
            assert len(unknown) <= 2, "a new word costs several tokens"
    assert caption("robot", "beach", "orange") == "a photo of an orange robot on the beach"
    assert len(set(TEMPLATES)) > 3


def test_subjects_are_none_that_training_sees():
    sampled = [sample_instance("robot", generator(4, n)) for n in range(500)]
    assert not any(map(is_reserved, sampled)) and {instance.pattern for instance in sampled} == set(PATTERNS)
    for name, subject in SUBJECTS.items():
        assert is_reserved(subject) and subject.class_name in CLASSES
        scenes = subject_scenes(name)
        assert len(scenes) == 5 and len({scene.setting for scene in scenes}) == 5
        assert len({render(subject, scene, 32).tobytes() for scene in scenes}) == 5
