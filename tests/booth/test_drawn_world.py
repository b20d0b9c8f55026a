"""The world of the next base: integers determine every picture, and what differs can be told apart."""

from dataclasses import replace

import numpy as np
import pytest
from drawn_world.captions import caption, training_caption
from drawn_world.individuals import CLASSES, PAIRS, PATTERNS, RESERVED, Individual, drawn_individual
from drawn_world.settings import SETTINGS
from drawn_world.subjects import SUBJECTS, subject_scenes
from drawn_world.world import Scene, drawn_scene, example, render
from make_pipeline import WORDS

SCENE = Scene("garden", False, 0.8, 0.5, 1)


def object_of(individual, scene=SCENE):
    return np.where(render(individual, scene)[..., 3:] > 127, render(individual, scene), 0)


def test_integers_determine_a_picture():
    pictures = [render(*example(3, 17)) for _ in range(2)]
    assert pictures[0].shape == (64, 64, 4) and pictures[0].dtype == np.uint8
    assert np.array_equal(*pictures)
    assert not np.array_equal(pictures[0], render(*example(3, 18)))


def test_examples_have_all_classes_and_settings_and_no_reserved_colours():
    examples = [example(0, index) for index in range(400)]
    assert {individual.class_name for individual, _ in examples} == set(CLASSES)
    assert {scene.setting for _, scene in examples} == set(SETTINGS)
    assert {individual.colours for individual, _ in examples} <= set(PAIRS)
    assert set(PAIRS).isdisjoint(RESERVED)


@pytest.mark.parametrize("name", CLASSES)
def test_objects_are_large_and_inside_the_picture(name):
    rng = np.random.default_rng(0)
    for _ in range(12):
        share = render(drawn_individual(name, rng), drawn_scene(rng))[..., 3]
        rows, columns = (np.flatnonzero(share.max(axis) > 127) for axis in (1, 0))
        assert max(np.ptp(rows), np.ptp(columns)) >= 32
        assert rows[0] > 0 and rows[-1] < 63 and columns[0] > 0 and columns[-1] < 63


@pytest.mark.parametrize("name", CLASSES)
def test_every_detail_shows(name):
    """Each form of each detail, each pattern and each pair of colours makes another picture."""
    one = Individual(name, ("red", "yellow"), "plain", (0, 0, 0), (1.0, 1.0))
    others = [replace(one, pattern=pattern) for pattern in PATTERNS[1:]] + [replace(one, colours=("blue", "white"))]
    for place in range(3):
        others += [replace(one, details=(0,) * place + (form,) + (0,) * (2 - place)) for form in (1, 2)]
    pictures = [object_of(each).astype(int) for each in (one, *others)]
    for number, picture in enumerate(pictures):
        for other in pictures[:number]:
            assert (np.abs(picture - other).max(-1) > 60).sum() >= 12, "at least a dozen pixels differ clearly"


def test_a_mirrored_object_is_mirrored():
    individual = SUBJECTS["bird"]
    there, back = (render(individual, replace(SCENE, mirrored=mirrored))[..., 3] for mirrored in (False, True))
    assert np.abs(there.astype(int) - back[:, ::-1]).mean() < 12 < np.abs(there.astype(int) - back).mean()


def test_captions_are_true_in_words_that_the_tokenizer_knows():
    rng, told = np.random.default_rng(0), set()
    for index in range(300):
        individual, scene = example(0, index)
        words = training_caption(0, index, rng)
        told.add(words)
        assert individual.class_name in words.split()
        assert [name for name in SETTINGS if words.endswith(SETTINGS[name].phrase)] in ([], [scene.setting])
    assert len(told) > 200
    named = " ".join([*(caption(name, setting) for name in CLASSES for setting in SETTINGS), *sum(PAIRS, ())])
    assert set(named.split()) - set(WORDS) == {"night"}, "it is spelled in a few pieces"


def test_the_subjects_are_individuals_that_no_training_picture_shows():
    assert {subject.colours for subject in SUBJECTS.values()} == set(RESERVED)
    for name, subject in SUBJECTS.items():
        scenes = subject_scenes(name)
        assert subject.class_name == name and len(set(scenes)) == 5
        assert {scene.setting for scene in scenes}.isdisjoint({"snow", "night", "forest", "water"})
