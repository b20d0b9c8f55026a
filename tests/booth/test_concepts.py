"""Several concepts and sizes in one run: every row shows its own image, says its own prompt, and counts alike."""

import json
import logging
import shutil
from collections import Counter

import numpy as np
import pytest
from fake_backend import FakeBackend
from PIL import Image

from booth.common.errors import UserError
from booth.config import auto
from booth.config.concepts import concepts_of
from booth.config.loading import load_config
from booth.config.values import flatten, resolved, set_field
from booth.data.class_image_files import to_make
from booth.data.input_rules import validate
from booth.data.inputs import check_inputs
from booth.train import loop
from booth.train.preparation import prepare
from booth.train.run_folder import RunDir

SIZES = {"wide": (90, 60), "square": (64, 64), "tall": (50, 80)}  # pictures, of which "auto" makes 80x48, 64x64, 48x80


@pytest.fixture
def config(tiny_config, tmp_path):
    """A dog of three red pictures, two of them wide, and a cat of two green ones, one of them tall."""
    for name, grey, shapes in (("dog", 200, ["wide", "square", "wide"]), ("cat", 100, ["square", "tall"])):
        (tmp_path / name).mkdir()
        for number, shape in enumerate(shapes):
            Image.new("RGB", SIZES[shape], (grey, 20 * number, 0)).save(tmp_path / name / f"{number}.png")
    tiny_config.instance.images = tiny_config.instance.prompt = tiny_config.prior.prompt = ""
    tiny_config.concepts = (
        {"instance": {"images": str(tmp_path / "dog"), "prompt": "a photo of sks dog"},
         "prior": {"prompt": "a photo of dog", "weight": 0.5}},
        {"instance.images": str(tmp_path / "cat"), "instance.prompt": "a photo of zwx cat",
         "prior.prompt": "a photo of cat", "weight": 2},
    )  # fmt: skip
    tiny_config.prior.count, tiny_config.train.batch_size = 6, 1
    return tiny_config


@pytest.fixture
def batches(config, tmp_path):
    def batches(run="run", **fields):
        for name, value in fields.items():
            set_field(config, name.replace("_", ".", 1), value)
        whole = resolved(config)
        validate(whole, "numpy")
        inputs, backend = check_inputs(whole), FakeBackend(whole)
        with RunDir.open(tmp_path / run, "numpy", whole) as run:
            return prepare(whole, inputs, run, backend, backend.load(inputs.pipeline))

    return batches


def shown(make, batch, row):
    """Which picture a row shows, by the mean of its latents: (200 or 100, number), or None for a class image."""
    red, green = (batch.latents[row].mean((0, 1)) / make.latent_scale + 1)[:2] * 127.5
    found = [(kind, number) for kind, count in ((200, 3), (100, 2)) for number in range(count)
             if abs(red - kind) < 8 and abs(green - 20 * number) < 8]  # fmt: skip
    return found[0] if found else None


def test_rows_of_all_concepts(batches, tmp_path):
    make = batches()
    weights, prompts = {200: set(), 100: set()}, {200: set(), 100: set()}
    counted = Counter()
    for step in range(10):
        batch = make(step, {})
        kind, number = shown(make, batch, 0)
        counted[kind, number] += 1
        weights[kind].add(float(batch.weight[0]))
        prompts[kind].add(batch.prompts[batch.prompt_index[0]].tobytes())
        assert batch.latents.shape == (2, 8, 8, 4), "all squares without buckets"
        assert batch.instance_weight.tolist() == [1, 0] and batch.prior_weight.tolist() == [0, 1]
    assert set(counted.values()) == {2}, "all photos equally often, whatever their concept"
    assert weights == {200: {1.0}, 100: {2.0}}
    assert len(prompts[200]) == len(prompts[100]) == 1 and prompts[200] != prompts[100]
    of_class = [float(make(step, {}).weight[1]) for step in range(24)]
    assert Counter(of_class) == {0.5: 12, 2.0: 12}, "lambda of each, times its concept's weight"
    for place, prompt in enumerate(["a photo of dog", "a photo of cat"]):
        folder = tmp_path / "run" / "class_images" / str(place)
        assert len(list(folder.glob("*.png"))) == 6
        assert json.loads((folder / "class_images.json").read_text())["prompt"] == prompt


def test_repeats(batches, config):
    config.concepts = (config.concepts[0], {**config.concepts[1], "instance.repeats": 3})
    make = batches(prior_weight=0.0)
    counted = Counter(shown(make, make(step, {}), 0) for step in range(9))
    assert counted == {(200, 0): 1, (200, 1): 1, (200, 2): 1, (100, 0): 3, (100, 1): 3}


def test_folders_with_repeats(batches, config, tmp_path, caplog):
    """kohya's folders, as they are: their names say the prompts, and how often their photos are shown."""
    (tmp_path / "all").mkdir()
    (tmp_path / "dog").rename(tmp_path / "all" / "2_sks dog")
    (tmp_path / "cat").rename(tmp_path / "all" / "3_zwx cat")
    (tmp_path / "all" / "3_zwx cat" / "1.png").write_bytes((tmp_path / "all" / "2_sks dog" / "1.png").read_bytes())
    config.concepts, config.instance.images, config.prior.weight = (), str(tmp_path / "all"), 0.0
    with caplog.at_level(logging.INFO, "booth"):
        make = batches()
    assert "instance.images: each photo in '3_zwx cat' is shown 3 times an epoch" in caplog.messages
    counted, prompts = Counter(), set()
    for step in range(24):
        batch = make(step, {})
        counted[shown(make, batch, 0)] += 1
        prompts.add(batch.prompts[batch.prompt_index[0]].tobytes())
    assert counted == {(200, 0): 4, (200, 1): 4 + 6, (200, 2): 4, (100, 0): 6}
    assert len(prompts) == 2
    assert {"2_sks dog/1.png", "3_zwx cat/1.png"} <= {image.name for image in check_inputs(resolved(config)).instances}


def test_folders_beside_those_with_repeats(config, tmp_path, caplog):
    """Photos that are passed over, and numbers that may have meant an order, are said."""
    for source, names in (("dog", ("1_front", "2_side")), ("cat", ("extra",))):
        for name in names:
            shutil.copytree(tmp_path / source, tmp_path / "all" / name)
    config.concepts, config.instance.images, config.prior.weight = (), str(tmp_path / "all"), 0.0
    config.instance.prompt = "a photo of sks dog"
    with caplog.at_level(logging.WARNING, "booth"):
        inputs = check_inputs(resolved(config))
    assert [example.repeats for example in inputs.instances] == [1] * 3 + [2] * 3
    assert caplog.messages == [
        "instance.images: the images in these folders are ignored: extra (2)",
        "instance.images: the numbers of 1_front, 2_side are taken for repeats; if they are an order, put all photos"
        " into one folder",
    ]


def test_buckets(batches, config, tmp_path):
    make = batches(data_buckets=("auto",))
    assert {bucket.size for bucket in make.buckets} == {(80, 48), (64, 64), (48, 80)}
    of_shape = {(80, 48): [(200, 0), (200, 2)], (64, 64): [(200, 1), (100, 0)], (48, 80): [(100, 1)]}
    counted = Counter()
    for step in range(20):
        batch = make(step, {})
        width, height = batch.latents.shape[2] * 8, batch.latents.shape[1] * 8
        picture = shown(make, batch, 0)
        assert picture in of_shape[width, height] and batch.noise.shape == batch.latents.shape
        counted[picture] += 1
    assert set(counted.values()) == {4}, "all photos equally often, whatever their size"
    names = Counter(path.name.rpartition("-")[0] for path in (tmp_path / "run" / "class_images" / "0").glob("*.png"))
    assert names == {"class-80x48": 3, "class": 2, "class-48x80": 1}
    for path in (tmp_path / "run" / "class_images").rglob("class-80x48-*.png"):
        assert Image.open(path).size == (80, 48)


def test_a_bucketed_batch_is_that_of_its_step(batches):
    """Batches can be made in any order, as a resumed run does."""
    make = batches(data_buckets=("auto",), train_batch_size=2)
    there = [make(step, {}) for step in range(12)]
    for step in (11, 3, 7):
        assert np.array_equal(make(step, {}).latents, there[step].latents)
        assert np.array_equal(make(step, {}).prompt_index, there[step].prompt_index)


def test_one_bucket_is_as_none(batches, config):
    """Squares alone, however they are asked for, give the batches that runs had before there were buckets."""
    plain, listed = batches(), batches("other", data_buckets=("64x64",))
    for step in range(7):
        assert np.array_equal(plain(step, {}).latents, listed(step, {}).latents)


def test_a_run_of_concepts_and_buckets_resumes_exactly(config, tmp_path):
    config.data.buckets, config.train.steps = ("auto",), 8
    whole = loop.train(FakeBackend, config, tmp_path / "whole")
    config.train.steps = 5
    loop.train(FakeBackend, config, tmp_path / "parts")
    config.train.steps = 8
    moved = tmp_path / "moved"
    (tmp_path / "dog").rename(moved)
    config.concepts = ({**config.concepts[0], "instance.images": str(moved), "instance": {}}, config.concepts[1])
    config.concepts = ({"instance.images": str(moved), "instance.prompt": "a photo of sks dog",
                        "prior.prompt": "a photo of dog", "prior.weight": 0.5}, config.concepts[1])  # fmt: skip
    parts = loop.train(FakeBackend, config, tmp_path / "parts")
    assert [line["loss"] for line in parts.metrics] == [line["loss"] for line in whole.metrics]
    config.concepts = (config.concepts[0], {**config.concepts[1], "weight": 3})
    with pytest.raises(UserError, match=r"concepts\[1\]\.weight was 2, is 3"):
        loop.train(FakeBackend, config, tmp_path / "parts")


def test_previews_show_every_concept(config, tmp_path):
    from booth.train.previews import Previews

    inputs = check_inputs(resolved(config))
    prompts = Previews(config, inputs, FakeBackend(config), None).prompts
    assert prompts == ("a photo of sks dog", "a photo of dog", "a photo of zwx cat", "a photo of cat")


def test_concepts_that_share_a_class_share_its_images(config, batches, tmp_path):
    config.concepts = tuple({**entry, "prior.prompt": "a photo of pet", "prior": {}} for entry in config.concepts)
    batches()
    assert [path.name for path in (tmp_path / "run" / "class_images").iterdir()] == ["0"]


@pytest.mark.parametrize("suffix", [".yaml", ".json", ".py"])
def test_config_files(suffix, tmp_path):
    entries = [{"instance": {"images": "dog", "prompt": "sks"}, "weight": 1.5}, {"instance.images": "cat"}]
    body = json.dumps({"concepts": entries})  # which is YAML too
    if suffix == ".py":
        body = f"from booth.config.values import default_config\ndef get_config():\n    config = default_config()\n" \
               f"    config.concepts = tuple({entries!r})\n    return config\n"  # fmt: skip
    (tmp_path / f"config{suffix}").write_text(body)
    config = load_config(tmp_path / f"config{suffix}")
    flat = ({"instance.images": "dog", "instance.prompt": "sks", "weight": 1.5}, {"instance.images": "cat"})
    assert config.concepts == flat and flatten(config)["concepts"] == flat
    config = load_config(
        tmp_path / f"config{suffix}",
        [("concepts", "[{instance: {images: bird}, prior: {weight: 5e-1}, weight: 1e-1}]")],
    )
    assert config.concepts == ({"instance.images": "bird", "prior.weight": 0.5, "weight": 0.1},)
    assert concepts_of(config)[0].weight == 0.1


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"instance.promt": "x"}, r"concepts\[0\]: config field 'instance\.promt' does not exist; did you mean"),
        ({"train.steps": 3}, r"concepts\[0\]\.train\.steps: a concept has fields of instance and prior"),
        ({"weight": 0}, r"concepts\[0\]\.weight=0 must be a number greater than 0"),
        ({"weight": True}, r"concepts\[0\]\.weight=True must be a number"),
        ({"prior.count": "many"}, r"concepts\[0\]: prior\.count='many' must be of type int"),
        ({"prior.count": 0}, r"concepts\[0\]: prior\.count=0 must be at least 1, or 'auto'; .* set prior\.weight=0"),
        ({"weight": "1"}, r"concepts\[0\]\.weight='1' must be a number"),
        ({"instance.images": ""}, r"concepts\[0\]: instance\.images is empty"),
        ({"prior.prompt": "a photo of sks dog"}, r"concepts\[0\]: .* is the same as prior\.prompt"),
    ],
)
def test_what_a_concept_cannot_have(config, entry, said):
    config.concepts = ({**resolved(config).concepts[0], **entry}, config.concepts[1])
    with pytest.raises(UserError, match=said):
        validate(resolved(config), "numpy")


def test_two_concepts_of_one_folder(config):
    (first, second) = resolved(config).concepts
    config.concepts = (first, {**second, "instance.images": first["instance.images"]})
    with pytest.raises(UserError, match="is used by 2 concepts; give each a folder of its own"):
        validate(resolved(config), "numpy")


def test_a_concept_without_photos_is_named(config, tmp_path):
    (tmp_path / "none").mkdir()
    config.concepts = (config.concepts[0], {**resolved(config).concepts[1], "instance.images": str(tmp_path / "none")})
    with pytest.raises(UserError, match=r"concepts\[1\]: instance\.images='.*none' holds no images"):
        check_inputs(resolved(config))


def test_concepts_are_a_list_of_fields():
    from booth.config.texts import parse_text
    from booth.config.values import typed

    for text in ("dog", "[dog, cat]"):
        with pytest.raises(UserError, match=r"concepts=.* must be a list of fields"):
            typed("concepts", parse_text("concepts", text))


def test_automatic_counts(config, tmp_path, monkeypatch):
    monkeypatch.setattr(auto, "CLASS_IMAGES", 3)
    config.concepts = (config.concepts[0], {**resolved(config).concepts[1], "prior.count": "auto"})
    config.prior.count, config.data.buckets = "auto", ("auto",)
    run = loop.train(FakeBackend, config, tmp_path / "run")
    assert [len(list((run.path / "class_images" / place).glob("*.png"))) for place in "01"] == [3, 3]


def test_what_fitting_chooses_holds_for_every_concept(config, tmp_path, monkeypatch):
    """As `memory.fit` does on a small card."""
    batches, sample = [], FakeBackend.sample

    class Fitting(FakeBackend):
        @staticmethod
        def fit(config, pipeline, recorded):
            config.prior.batch_size = 1
            return config

        def sample(self, models, noise, *rest):
            batches.append(len(noise))
            return sample(self, models, noise, *rest)

    loop.train(Fitting, config, tmp_path / "run")
    assert set(batches) == {1}


def test_class_images_of_two_concepts_in_one_folder(config, tmp_path):
    config.prior.images = str(tmp_path / "class")
    with pytest.raises(
        UserError, match=r"concepts\[1\]: prior\.images='.*class' is also prior\.images of concepts\[0\]"
    ):
        loop.train(FakeBackend, config, tmp_path / "run")
    config.concepts = tuple({**entry, "prior.prompt": "a photo of pet"} for entry in resolved(config).concepts)
    loop.train(FakeBackend, config, tmp_path / "run")
    assert len(list((tmp_path / "class").glob("*.png"))) == 6


def test_class_images_in_the_proportions_of_the_photos():
    shares = {(80, 48): 3, (64, 64): 6, (48, 80): 1}
    assert to_make(20, shares, []) == {(80, 48): 6, (64, 64): 12, (48, 80): 2}
    assert to_make(4, shares, []) == {(80, 48): 1, (64, 64): 2, (48, 80): 1}, "each has one"
    assert to_make(20, shares, [(640, 640)] * 12) == {(80, 48): 6, (64, 64): 0, (48, 80): 2}
    assert to_make(20, {(64, 64): 5}, [(90, 30)] * 20) == {(64, 64): 0}


def test_a_bucket_without_a_class_image(config, tmp_path):
    config.data.buckets, config.prior.count = ("auto",), 2
    with pytest.raises(UserError, match=r"prior\.count=2 must be at least 3: photos are in buckets of 3 sizes, and "):
        loop.train(FakeBackend, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_said_of_too_few_class_images_helps():
    shares, own = {(80, 48): 1, (64, 64): 1, (48, 80): 1}, [(64, 64)] * 12
    with pytest.raises(UserError, match=r"must be at least 14"):
        to_make(4, shares, own)
    assert to_make(14, shares, own) == {(80, 48): 1, (64, 64): 0, (48, 80): 1}


def test_a_bucket_that_no_photo_is_near(config, caplog):
    config.data.buckets = ("64x64", "80x48", "48x80", "128x32")
    with caplog.at_level(logging.WARNING, "booth"):
        check_inputs(resolved(config))
    assert caplog.messages == ["data.buckets: no photo is nearest to 128x32, so they are not used"]


@pytest.mark.parametrize(("buckets", "said"), [(("60x64",), "data.buckets: image size 60x64 must be a multiple of 8")])
def test_buckets_that_the_model_cannot_have(config, buckets, said):
    config.data.buckets = buckets
    with pytest.raises(UserError, match=said):
        check_inputs(resolved(config))


def test_enlarged_images_are_named(config, batches, tmp_path, caplog):
    Image.new("RGB", (20, 33)).save(tmp_path / "cat" / "small.png")
    with caplog.at_level(logging.WARNING, "booth"):
        batches(prior_weight=0.0)
    assert caplog.messages == [
        "images smaller than 64x64 are enlarged: 0/0.png (90x60), 0/2.png (90x60), 1/1.png (50x80), 1/small.png (20x33)"
    ]
