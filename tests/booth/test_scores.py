"""What checkpoints are ranked by, on vectors that can be checked by hand; the prompts of an evaluation."""

import numpy as np
import pytest
from picture_world.settings import SETTINGS

from booth.common.errors import UserError
from booth.evaluate import scores
from booth.evaluate.judges import Yardstick
from booth.evaluate.prompts import LIVE_SUBJECTS, OBJECTS, WORLD, evaluation_prompts, is_alive, subject_of, templates_of
from booth.evaluate.scores import Seen, SeenModel

RIGHT, UP, HALF = (1.0, 0.0), (0.0, 1.0), (0.8, 0.6)


def seen(*vectors, content=None):
    return Seen({"dino": np.array(vectors, np.float32)}, None if content is None else np.array(content, np.float32))


def test_fidelity_is_over_all_pairs():
    generated, real = np.array([RIGHT, UP]), np.array([RIGHT, HALF, HALF])
    assert scores.fidelity(generated, real) == pytest.approx((1 + 0.8 + 0.8 + 0 + 0.6 + 0.6) / 6)
    assert scores.fidelity(np.array([(-1.0, 0.0)]), real[:1]) == -1, "as in the paper: negative cosines count"
    assert scores.likeness(np.array([RIGHT, HALF, UP])) == pytest.approx((0.8 + 0.6 + 0) / 3)
    assert scores.likeness(np.array([RIGHT])) == 1
    assert scores.diversity(np.array([RIGHT, RIGHT])) == 0
    assert scores.diversity(np.array([RIGHT, HALF, UP])) == pytest.approx(1 - (0.8 + 0.6 + 0) / 3)
    assert scores.prompt_fidelity(np.array([RIGHT, UP]), np.array([RIGHT, HALF])) == pytest.approx((1 + 0.6) / 2)


def test_the_measures_of_a_model():
    photos, texts = seen(RIGHT, HALF, content=[RIGHT, UP]), np.array([UP, RIGHT])
    base = SeenModel(seen(UP), seen(UP, UP, content=[UP, RIGHT]), seen(UP, RIGHT))
    tuned = SeenModel(seen(RIGHT), seen(HALF, UP, content=[RIGHT, HALF]), seen(UP, HALF))
    found = scores.of_model(tuned, photos, texts, "clip_t", base)
    assert found == pytest.approx({
        "dino": (1 + 0.8 + 0.8 + 1 + 0 + 0.6) / 6, "clip_t": (0 + 0.8) / 2,
        "pres": (0 + 0.6 + 0.8 + 1) / 4, "like_base": (1 + 0.8) / 2, "diversity": 1 - 0.6,
    })  # fmt: skip
    assert list(found) == ["dino", "clip_t", "pres", "like_base", "diversity"]
    assert scores.of_model(base, photos, texts, "clip_t", base)["like_base"] == 1
    assert scores.of_photos(photos, texts, "clip_t") == pytest.approx({"dino": 0.8, "clip_t": 0.5})
    silent = SeenModel(seen(UP), seen(UP), seen(UP, RIGHT))
    assert "" not in scores.of_model(silent, seen(RIGHT), None, "", silent)


PHOTOS = {"dino": 0.8, "clip_t": 0.1}
BASE = {"dino": 0.2, "clip_t": 0.3, "pres": 0.3, "like_base": 1.0, "diversity": 0.5}


def shares(photos=PHOTOS, **changed):
    return scores.shares(BASE | changed, BASE, photos, "dino", "clip_t")


def test_shares_lie_between_their_anchors():
    assert shares() == pytest.approx({"subject": 0, "prompt": 1, "prior": 1, "score": 0})
    found = shares(dino=0.5, clip_t=0.25, pres=0.4, diversity=0.25)
    assert found == pytest.approx({"subject": 0.5, "prompt": 0.75, "prior": 0.5 * 0.8, "score": 0.15 ** (1 / 3)})
    assert shares(dino=0.9, clip_t=0.4, pres=0.1, diversity=0.6)["score"] == 1, "cut: no more than all"
    assert shares(dino=0.8, clip_t=0.05)["score"] == 0, "the photos again and again"


def test_a_share_is_the_way_between_two_anchors():
    assert scores.share(0.78, 0.3, 0.8) == pytest.approx((0.78 - 0.3) / (0.8 - 0.3))
    assert scores.share(0.9, 0.3, 0.8) == 1 and scores.share(0.2, 0.3, 0.8) == 0, "cut"
    assert scores.share(0.5, 0.8, 0.8) is None and scores.share(0.5, 0.9, 0.8) is None


def test_prior_preservation_is_the_product_of_what_is_left():
    subject, a, b = (1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)

    def prior(*of_class):
        base, tuned = (SeenModel(seen(a), seen(a), seen(*vectors)) for vectors in ((a, b), of_class))
        photos = seen(subject, subject)
        model, untouched = (scores.of_model(each, photos, None, "", base) for each in (tuned, base))
        return scores.shares(model, untouched, scores.of_photos(photos, None, ""), "dino", "")["prior"]

    assert prior(a, b) == pytest.approx(1)
    assert prior((0.5, np.sqrt(0.75), 0), b) == pytest.approx(0.75), (
        "likeness to the subject 0.25, all of the diversity"
    )
    assert prior(a, a) == 0


def test_what_has_no_anchors_is_left_out():
    blind = scores.shares({**BASE, "dino": 0.5}, BASE, {**PHOTOS, "clip_t": 0.3}, "dino", "clip_t")
    assert blind == pytest.approx({"subject": 0.5, "prior": 1, "score": 0.5**0.5})
    alike = shares({"dino": 0.2, "clip_t": 0.1}, dino=0.5)
    assert "subject" not in alike and "score" not in alike and alike["prompt"] == 1


def test_the_best_has_the_highest_score_and_of_equals_the_fewest_steps():
    def best(*values):
        return scores.best((100 * place, {"score": value}) for place, value in enumerate(values, start=1))

    assert best(0.2, 0.5, 0.4) == 200 and best(0.2, 0.5, 0.5, 0.4) == 200
    assert best(0, 0) is None and best() is None and scores.best([(1, {"prior": 1.0})]) is None


def test_dreambench_has_25_prompts_for_each_kind(caplog):
    caplog.set_level("INFO", "booth")
    assert len(set(OBJECTS)) == len(set(LIVE_SUBJECTS)) == 25 and len({*OBJECTS, *LIVE_SUBJECTS}) == 35
    assert all(template.count("{}") == 1 for template in OBJECTS + LIVE_SUBJECTS)
    assert templates_of("auto", "a photo of dog") == LIVE_SUBJECTS
    assert templates_of("auto", "a photo of a backpack") == OBJECTS == templates_of("objects", "a photo of dog")
    assert "settings: DreamBench's for live subjects; --settings objects for the other" in caplog.messages
    assert "settings: DreamBench's for objects; --settings live for the other" in caplog.messages


# The 30 subjects of DreamBench by class; those of its live prompts are its dogs and cats.
DREAMBENCH = (
    "backpack, backpack, stuffed animal, bowl, can, candle, cat, cat, clock, sneaker, dog, dog, dog, dog, dog, dog,"
    " dog, toy, boot, stuffed animal, toy, glasses, toy, toy, cartoon, toy, sneaker, teapot, vase, stuffed animal"
)


def test_living_things_are_told_by_the_head_noun():
    classes = DREAMBENCH.split(", ")
    assert len(classes) == 30
    assert [name for name in classes if is_alive(f"a photo of a {name}")] == ["cat"] * 2 + ["dog"] * 7
    alive = "dogs, puppies, foxes, wolves, geese, fox, face, toddler, Corgi, people, women, golden retriever, sloth"
    for name in [*alive.split(", "), "cat with blue eyes", "dog in the snow", "dog, best quality"]:
        assert is_alive(f"a photo of a {name}"), name
    dead = "dog statue, statue of a dog, dog backpack, duck toy, toy duck, plush cat, man's shoe, robot, glasses, bus"
    for name in [*dead.split(", "), "teddy bear", "wolf plushie", "bowl with a fish", "figurine", "baby doll", ""]:
        assert not is_alive(f"a photo of a {name}"), name


def test_prompts_name_the_subject_and_texts_its_class():
    said = evaluation_prompts("a photo of sks dog", "A photo of a dog", ("a {} in the snow", "a red {}"))
    assert said.settings == ("a sks dog in the snow", "a red sks dog") and said.texts == (
        "a dog in the snow",
        "a red dog",
    )
    assert [subject_of(text) for text in ("picture of the old man", "sks", "a sks dog, oil", "an apple")] == [
        "old man", "sks", "sks dog, oil", "apple"
    ]  # fmt: skip


def test_the_yardstick_knows_the_settings_of_its_world():
    assert {name: setting.phrase for name, setting in SETTINGS.items()} == WORLD
    texts = evaluation_prompts("a photo of a sks robot", "a photo of a robot", templates_of("world", "")).texts
    assert texts[1] == "a photo of a robot in the snow"
    assert np.array_equal(Yardstick().read(texts), np.eye(12))
    with pytest.raises(UserError, match="'a dog in the jungle' must end with a setting of the drawn world"):
        Yardstick().read(["a dog in the jungle"])


def test_templates_from_a_file(tmp_path):
    file = tmp_path / "settings.txt"
    file.write_text("# mine\na {} in a box\n\n {} at sea \n")
    assert templates_of(str(file), "") == ("a {} in a box", "{} at sea")
    for text, said in (("", "has no line"), ("a {}\nin a box", "has the line 'in a box'")):
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            templates_of(str(file), "")
    with pytest.raises(UserError, match="must be auto, objects, live, world, or a file"):
        templates_of(str(tmp_path / "none"), "")
