"""Class images: what is there is used, what is missing is made, and never by another recipe."""

import json
import logging

import numpy as np
import pytest
from fake_backend import FakeBackend, watched
from PIL import Image

from booth.common.errors import UserError
from booth.config.values import default_config
from booth.data import class_image_files
from booth.data.inputs import check_inputs
from booth.diffusion.sampling import Sampler
from booth.models.open import open_pipeline
from booth.models.tokenizer import load_tokenizer
from booth.train.class_images import RECIPE_FILE, class_images


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline):
    return open_pipeline(tiny_pipeline)


@pytest.fixture(scope="module")
def tokenizer(pipeline):
    return load_tokenizer(pipeline)


@pytest.fixture
def make(tmp_path, pipeline, tokenizer):
    """Fills tmp_path/class, or the folder given; returns the names of the files to train on."""
    folder = tmp_path / "class"

    def make(
        count=5, *, batch_size=2, backend_class=FakeBackend, folder=folder, weights="weights", vae="vae", **changes
    ):
        config = default_config()
        config.prior.prompt, config.prior.count, config.prior.inference_steps = "a photo of robot", count, 2
        config.data.resolution = 64
        for name, value in changes.items():
            section, _, key = name.partition("_")
            config[section][key] = value
        side = config.data.resolution
        steps = config.prior.inference_steps
        sampler = Sampler(pipeline, tokenizer, (side, side), config.prior.solver, steps, 3.0, batch_size)
        backend = backend_class(config)
        square, models = (side, side), backend.load(pipeline)
        hashes = {"unet": weights, "vae": vae}
        files = class_images(folder, config, {square: sampler}, {square: 5}, backend, models, hashes)
        assert all(folder in file.parents for file in files)
        return [file.name for file in files]

    make.folder = folder
    return make


def ours(*numbers):
    return [f"class-{number:05d}.png" for number in numbers]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def save_own(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (80, 64), "teal").save(folder / name)


def test_a_missing_folder_is_made_and_filled(make, tmp_path):
    folder = tmp_path / "not" / "there" / "yet"
    assert make(3, folder=folder) == ours(0, 1, 2)
    with Image.open(folder / "class-00000.png") as image:
        assert image.size == (64, 64) and image.mode == "RGB", "at the training resolution"
    assert len(set(contents(folder).values())) == 3, "each has its own seed"
    assert sorted(path.name for path in folder.iterdir()) == [".lock", *ours(0, 1, 2), RECIPE_FILE]


def test_only_what_is_missing_is_made(make):
    make(3)
    before = contents(make.folder)
    nothing = watched()
    assert make(3, backend_class=nothing) == ours(0, 1, 2) and nothing.calls == []
    (make.folder / "class-00001.png").unlink()
    one_batch = watched()
    make(3, backend_class=one_batch)
    assert contents(make.folder) == before and one_batch.calls == ["sample"]
    make(7)
    assert contents(make.folder).items() > before.items()


def test_image_i_is_the_same_however_many_are_asked_for(make, tmp_path):
    make(5, batch_size=2)
    make(9, batch_size=2, folder=tmp_path / "more")
    make(1, batch_size=2, folder=tmp_path / "less")
    make(5, batch_size=2, folder=tmp_path / "other seed", prior_seed=1)
    five = contents(make.folder)
    assert five.items() <= contents(tmp_path / "more").items()
    assert contents(tmp_path / "less").items() <= five.items()
    assert not set(five.values()) & set(contents(tmp_path / "other seed").values())


def test_interrupted_in_the_middle(make, tmp_path):
    """Killed at the third batch: what is complete stays, what was begun leaves nothing."""
    with pytest.raises(KeyboardInterrupt):
        make(6, backend_class=watched(("sample", 3)))
    assert sorted(contents(make.folder)) == ours(0, 1, 2, 3)
    rest = watched()
    make(6, backend_class=rest)
    make(6, folder=tmp_path / "whole")
    assert rest.calls == ["sample"] and contents(make.folder) == contents(tmp_path / "whole")


def test_fewer_than_there_are(make):
    make(5)
    nothing = watched()
    assert make(2, backend_class=nothing) == ours(0, 1)
    assert nothing.calls == [] and len(contents(make.folder)) == 5, "none is deleted"


def test_own_images_come_first(make):
    save_own(make.folder, "robot 10.jpg", "robot 2.jpg", "class-1.png")
    (make.folder / "notes.txt").write_text("not an image")
    assert make(5) == ["class-1.png", "robot 2.jpg", "robot 10.jpg", *ours(0, 1)]
    assert make(2) == ["class-1.png", "robot 2.jpg"]
    assert [path.name for path in class_image_files.own_images(make.folder)] == [
        "class-1.png",
        "robot 2.jpg",
        "robot 10.jpg",
    ]


def test_own_images_alone_need_no_recipe(make):
    save_own(make.folder, "1.jpg", "2.jpg")
    nothing = watched()
    make(2, backend_class=nothing)
    assert nothing.calls == [] and not (make.folder / RECIPE_FILE).exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [({"prior_prompt": "a robot"}, "prompt 'a photo of robot' there, 'a robot' here"),
     ({"prior_seed": 3}, "seed 0 there, 3 here"), ({"data_resolution": 128}, "resolution 64 there, 128 here"),
     ({"prior_solver": "ddim"}, "solver 'dpm++' there, 'ddim' here"),
     ({"prior_inference_steps": 3}, "inference_steps 2 there, 3 here"),
     ({"prior_guidance": 2.0}, "guidance 7.5 there, 2.0 here"),
     ({"weights": "other"}, "unet_sha256 'weights' there, 'other' here"),
     ({"vae": "other"}, "vae_sha256 'vae' there, 'other' here")],
)  # fmt: skip
def test_another_recipe_is_refused(make, change, said):
    make(2)
    before, manifest = contents(make.folder), (make.folder / RECIPE_FILE).read_bytes()
    for count in (2, 4):
        with pytest.raises(UserError) as caught:
            make(count, **change)
        assert f"({said});" in str(caught.value) and "\n" not in str(caught.value)
    assert contents(make.folder) == before and (make.folder / RECIPE_FILE).read_bytes() == manifest
    make(2, folder=make.folder / "another", **change)  # as the message says


def test_the_manifest_says_how_they_were_made(make):
    make(2)
    recipe = json.loads((make.folder / RECIPE_FILE).read_text())
    assert recipe == {"prompt": "a photo of robot", "seed": 0, "resolution": 64, "solver": "dpm++",
                      "inference_steps": 2, "guidance": 7.5, "unet_sha256": "weights", "vae_sha256": "vae"}  # fmt: skip


def test_files_of_our_name_without_a_manifest_are_refused(make):
    save_own(make.folder, "class-00000.png")
    with pytest.raises(UserError, match=r"which says how they were made, is not there; put it back, or give another"):
        make(2)


@pytest.mark.parametrize("damaged", ["", "{", "[1]", "3"])
def test_a_damaged_manifest_is_none(make, damaged):
    make(2)
    (make.folder / RECIPE_FILE).write_text(damaged)
    with pytest.raises(UserError, match=r"which says how they were made, is damaged; put it back, or give another"):
        make(3)


def test_the_pictures_are_no_flat_colour(make):
    make(1)
    assert np.asarray(Image.open(make.folder / "class-00000.png")).std() > 10


def test_kohyas_folders_of_class_images(make, tmp_path):
    """They are used as they are, and filled up beside them, not made anew."""
    save_own(make.folder / "1_robot", "b.jpg", "a.jpg")
    save_own(make.folder / "1_toy robot", "c.jpg")
    assert make(5) == ["a.jpg", "b.jpg", "c.jpg", *ours(0, 1)]
    nothing = watched()
    assert make(5, backend_class=nothing) == ["a.jpg", "b.jpg", "c.jpg", *ours(0, 1)] and nothing.calls == []
    save_own(make.folder, "d.jpg")
    with pytest.raises(UserError, match=r"prior\.images='.*' holds images \(d\.jpg\) and folders with repeats"):
        make(5)
    (make.folder / "d.jpg").unlink()
    (make.folder / "1_robot").rename(make.folder / "2_robot")
    with pytest.raises(UserError, match=r"folders with several repeats \(1_toy robot, 2_robot\), and class images are"):
        make(5)


def test_class_images_in_other_folders_are_not_lost_without_a_word(tiny_config, tmp_path, caplog):
    save_own(tmp_path / "reg" / "dog", "1.jpg", "2.jpg")
    tiny_config.prior.images = str(tmp_path / "reg")
    with caplog.at_level(logging.WARNING, "booth"):
        check_inputs(tiny_config)
    assert "prior.images: the images in these folders are ignored: dog (2)" in caplog.messages


@pytest.mark.parametrize(("folder", "class_images"), [("train/1_robot", "train"), ("train", "train/1_robot")])
def test_photos_are_no_class_images(tiny_config, tmp_path, folder, class_images):
    """Of one of kohya's folders, whichever way it is named."""
    save_own(tmp_path / "train" / "1_robot", "1.jpg")
    save_own(tmp_path / "train" / "5_sks robot", "1.jpg")
    tiny_config.instance.images, tiny_config.prior.images = str(tmp_path / folder), str(tmp_path / class_images)
    if folder == "train/1_robot":
        (tmp_path / "train" / "5_sks robot").rename(tmp_path / "1_more")
    with pytest.raises(
        UserError, match=r"prior\.images=.* is also instance\.images \(1_robot\); give class images a fo"
    ):
        check_inputs(tiny_config)
