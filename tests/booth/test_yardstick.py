"""The yardstick on renderings whose truth is known: what it sees, and what the measures make of that."""

import numpy as np
import pytest
import torch
from base_training.autoencoder import through
from diffusers import AutoencoderKL
from picture_world.identity import sample_instance
from picture_world.settings import SETTINGS
from picture_world.subjects import SUBJECTS, subject_scenes
from picture_world.world import CLASSES, generator, render, sample_scene
from train_yardstick import Network

from booth.common.errors import UserError
from booth.evaluate import scores, yardstick
from booth.evaluate.judges import Yardstick
from booth.evaluate.yardstick import look
from booth.models.embedded import base_path

INDIVIDUALS, VIEWS = 12, 6  # of each class
SEED = 4242  # neither the base's world nor the yardstick's


@pytest.fixture(scope="module", params=["as drawn", pytest.param("through the autoencoder", marks=pytest.mark.full)])
def world(request):
    """Looks of [classes, INDIVIDUALS, VIEWS] renderings, and the settings they are in.

    Generated pictures come out of the base's autoencoder: the yardstick must be right about such pictures too.
    """
    pictures, settings = [], []
    for c, name in enumerate(CLASSES):
        for i in range(INDIVIDUALS):
            rng = generator(SEED, 1000 * c + i)
            instance = sample_instance(name, rng)
            for _ in range(VIEWS):
                scene = sample_scene(rng)
                pictures.append(render(instance, scene, 64))
                settings.append(scene.setting)
    if request.param == "through the autoencoder":
        vae = AutoencoderKL.from_pretrained(base_path(), subfolder="vae", torch_dtype=torch.float32).eval()
        pictures = np.concatenate(list(through(vae, np.stack(pictures))))
    return look(pictures), settings


def _rows(c, individuals, views):
    return np.array([(c * INDIVIDUALS + i) * VIEWS + v for i in individuals for v in views])


def test_class_and_setting_are_told_right(world):
    looks, settings = world
    names = np.repeat(list(CLASSES), INDIVIDUALS * VIEWS)
    assert np.mean(np.array(looks.class_names) == names) >= 0.95
    assert np.mean(np.array(looks.setting_names) == np.array(settings)) >= 0.95


def test_pictures_in_the_asked_setting_score_above_others(world):
    looks, settings = world
    seen = np.array(looks.setting_names)[:, None] == list(SETTINGS)  # as `Yardstick.look` gives them
    for setting, text in zip(SETTINGS, Yardstick().read([each.phrase for each in SETTINGS.values()]), strict=True):
        inside = np.array(settings) == setting
        assert scores.fidelity(seen[inside], text[None]) >= 0.9
        assert scores.fidelity(seen[~inside], text[None]) <= 0.02


def test_the_subject_is_told_from_others_of_its_class(world):
    """A new picture of an individual, and one of each other of its class: which is nearer to two real ones?"""
    looks, _ = world
    right = []
    for c in range(len(CLASSES)):
        for i in range(INDIVIDUALS):
            real = looks.identity[_rows(c, [i], [0, 1])]
            new = [scores.fidelity(looks.identity[_rows(c, [j], [2])], real) for j in range(INDIVIDUALS)]
            right += [new[i] > other for j, other in enumerate(new) if j != i]
    assert np.mean(right) >= 0.95


def test_example_subjects_are_alike_among_themselves_and_unlike_their_class(world):
    looks, _ = world
    for name, instance in SUBJECTS.items():
        own = look([render(instance, scene, 64) for scene in subject_scenes(name)]).identity
        others = looks.identity[_rows(list(CLASSES).index(name), range(INDIVIDUALS), range(VIEWS))]
        assert scores.likeness(own) > 0.6
        assert scores.fidelity(others, own) < 0.3


def test_a_class_that_turns_into_the_subject_loses_diversity_and_prior(world):
    """Of 11 class pictures some show the subject, each in a scene of its own: a quarter of them is seen in the prior,
    half of them in the diversity alone, which knows nothing of the subject."""
    looks, _ = world
    noticed = {"prior": [], "diversity": []}
    for c in range(len(CLASSES)):
        for subject in range(INDIVIDUALS):
            others = [i for i in range(INDIVIDUALS) if i != subject]
            real = looks.identity[_rows(c, [subject], [0])]
            base, kept = (looks.identity[_rows(c, others, [view])] for view in (0, 1))

            quarter, half = (
                looks.identity[
                    np.concatenate([_rows(c, [subject], range(1, 1 + count)), _rows(c, others[count:], [1])])
                ]
                for count in (3, 5)
            )
            noticed["prior"].append(_prior(kept, base, real) > _prior(quarter, base, real))
            noticed["diversity"].append(scores.diversity(kept) > scores.diversity(half))
    assert np.mean(noticed["prior"]) >= 0.95
    assert np.mean(noticed["diversity"]) >= 0.95


def _prior(tuned, base, real):
    """`real` is one picture here, as alike to itself as can be."""
    model, untouched = (
        {"identity": 0.0, "pres": scores.fidelity(vectors, real), "diversity": scores.diversity(vectors)}
        for vectors in (tuned, base)
    )
    return scores.shares(model, untouched, {"identity": scores.likeness(real)}, "identity", "")["prior"]


def test_pictures_of_other_sizes_are_seen_the_same():
    instance, scene = SUBJECTS["robot"], subject_scenes("robot")[0]
    small, large = (look([render(instance, scene, size)]) for size in (64, 256))
    assert scores.fidelity(small.identity, large.identity) > 0.9
    assert small.class_names == large.class_names == ["robot"]


def test_the_network_in_numpy_is_the_one_that_was_trained():
    torch.manual_seed(0)
    network = Network()
    network(torch.randn(16, 3, 64, 64))  # the batch norms get statistics of their own
    network.eval()
    weights = {name: tensor.astype(np.float32) for name, tensor in network.folded().items()}
    pixels = torch.randn(3, 3, 64, 64)
    ours = yardstick._forward(weights, pixels.permute(0, 2, 3, 1).numpy())
    with torch.no_grad():
        theirs = network(pixels)
    for name, mine in zip(("class", "setting", "identity"), ours, strict=True):
        reference = theirs[name].numpy()
        assert np.abs(mine - reference).max() < 5e-3 * np.abs(reference).max(), "stored in half precision"


def test_missing_weights_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(yardstick, "WEIGHTS", tmp_path / "none.safetensors")
    yardstick._load.cache_clear()
    with pytest.raises(UserError, match=r"is missing, truncated or broken .*; install"):
        look([np.zeros((64, 64, 3), np.uint8)])
    yardstick._load.cache_clear()
