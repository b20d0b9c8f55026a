"""Masked loss: what lies outside of a photo's mask counts less, or nothing, and the rest as much as a whole photo."""

import logging
import shutil

import numpy as np
import pytest
from fake_backend import FakeBackend
from PIL import Image

from booth.common.errors import UserError
from booth.config.values import resolved
from booth.data.images import instance_examples, read_examples
from booth.data.inputs import check_inputs
from booth.data.masks import loss_weights, with_masks
from booth.data.views import views
from booth.train import loop
from booth.train.preparation import prepare
from booth.train.run_folder import RunDir

SUBJECT = (slice(16, 48), slice(8, 40))  # rows and columns of 64x64, in whole latents


def photo(number, background=(30, 90, 160)):
    pixels = np.full((64, 64, 3), background, np.uint8)
    pixels[SUBJECT] = np.random.default_rng(number).integers(0, 255, (32, 32, 3))
    return Image.fromarray(pixels)


def mask(size=64):
    white = np.zeros((64, 64), np.uint8)
    white[SUBJECT] = 255
    return Image.fromarray(white).resize((size, size), Image.Resampling.NEAREST)


def cut_out(number, background=(30, 90, 160)):
    image = photo(number, background)
    image.putalpha(mask())
    return image


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def config(tiny_config, folder):
    tiny_config.instance.images, tiny_config.prior.weight = str(folder), 0.0
    return tiny_config


def losses(config, workdir):
    return [line["loss"] for line in loop.train(FakeBackend, config, workdir).metrics]


@pytest.mark.parametrize("source", ["files", "alpha"])
def test_what_is_masked_teaches_nothing(config, folder, tmp_path, source):
    """The fake network and its VAE are local: another background changes what is masked and nothing else."""
    config.instance.masks, found = source, {}
    for background in ((30, 90, 160), (250, 240, 10)):
        for number in range(3):
            if source == "alpha":
                cut_out(number, background).save(folder / f"{number}.png")
            else:
                photo(number, background).save(folder / f"{number}.png")
                mask().save(folder / f"{number}-mask.png")
        found[background] = losses(config, tmp_path / f"{source}-{background[0]}")
    config.instance.background_weight = 0.5
    halves = losses(config, tmp_path / "half")
    masked = list(found.values())
    assert masked[0] == masked[1] and halves != masked[0]
    config.instance.masks, config.instance.background_weight = "none", 0.0
    if source == "files":
        shutil.rmtree(folder)
        folder.mkdir()
        for number in range(3):
            photo(number).save(folder / f"{number}.png")
    assert losses(config, tmp_path / "whole") not in (masked[0], halves)


def test_a_batchs_masks_are_those_of_its_rows(config, folder, tmp_path):
    for number in range(2):
        cut_out(number).save(folder / f"{number}.png")
    config.instance.masks, config.prior.weight, config.data.flip = "alpha", 1.0, True
    config = resolved(config)
    inputs, backend = check_inputs(config), FakeBackend(config)
    with RunDir.open(tmp_path / "run", "numpy", config) as run:
        make = prepare(config, inputs, run, backend, backend.load(inputs.pipeline))
    batch = make(0, {})
    assert batch.mask.shape == (4, 8, 8, 1) and batch.mask.dtype == np.float32
    expected = np.zeros((8, 8), np.float32)
    expected[2:6, 1:5] = 4.0  # a quarter of the picture
    for row in range(2):
        assert any(np.array_equal(batch.mask[row, ..., 0], shown) for shown in (expected, expected[:, ::-1]))
    assert (batch.mask[2:] == 1).all(), "class images count as a whole"
    flips = {make(step, {}).mask[0, 3, 1, 0] for step in range(12)}
    assert flips == {0.0, 4.0}, "a mask is turned with its photo"


def one_example(path):
    return read_examples([path], "a photo", "instance", "instance.images")[0]


def test_weights_of_a_crop(folder):
    """What a crop does not show of the subject, its mask does not either; the mean is 1 all the same."""
    photo(0).resize((128, 64)).save(folder / "0.png")
    mask().resize((128, 64)).save(folder / "0-mask.png")
    (example,) = with_masks([one_example(folder / "0.png")], "files")
    (view,) = views(example, (64, 64), "center", 1, False, 0)
    weights = loss_weights(view, (8, 8), 0.25)[..., 0]
    assert weights.mean() == pytest.approx(1) and weights.max() / weights.min() == pytest.approx(4, rel=0.05)
    assert (weights[2:6, :6] > 1).all() and (weights[:2] < 1).all() and (weights[:, 7] < 1).all()


def test_a_crop_without_the_subject(folder):
    white = np.zeros((64, 256), np.uint8)
    white[:, :30] = 255
    Image.new("RGB", (256, 64)).save(folder / "0.png")
    Image.fromarray(white).save(folder / "0-mask.png")
    (example,) = with_masks([one_example(folder / "0.png")], "files")
    (view,) = views(example, (64, 64), "center", 1, False, 0)
    with pytest.raises(UserError, match=r"the crop of 0\.png shows nothing that its mask keeps; raise "):
        loss_weights(view, (8, 8), 0.0)
    assert (loss_weights(view, (8, 8), 0.1) == 1).all()


def test_a_changed_mask_is_noticed(config, folder, tmp_path):
    photo(0).save(folder / "0.png")
    mask().save(folder / "0-mask.png")
    config.instance.masks, config.train.steps = "files", 2
    losses(config, tmp_path / "run")
    Image.new("L", (64, 64), 255).save(folder / "0-mask.png")
    config.train.steps = 3
    with pytest.raises(UserError, match=r"masks changed since this run began \(0\.png\)"):
        losses(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("source", "spoil", "said"),
    [
        ("files", lambda folder: (folder / "1-mask.png").unlink(), r"1\.png: no -mask\.png beside it; give each photo"),
        ("alpha", lambda folder: photo(1).save(folder / "1.png"), r"1\.png: no transparency; give each photo"),
        ("files", lambda folder: Image.new("L", (64, 64)).save(folder / "1-mask.png"), r"mask of 1\.png is all black"),
        ("files", lambda folder: Image.new("L", (64, 48), 255).save(folder / "1-mask.png"),
         r"the mask of 1\.png is 64x48 and the photo 64x64; they must have the same proportions"),
        ("files", lambda folder: (folder / "1-mask.png").write_bytes(b"no"),
         r"the mask of 1\.png cannot be read \(a text and no image: 'no'\); replace it by one that can"),
        ("files", lambda folder: mask().save(folder / "1-mask.tif"),
         r"1\.png has several masks: 1-mask\.png, 1-mask\.tif; keep one of them"),
    ],
)  # fmt: skip
def test_refusals(config, folder, source, spoil, said):
    for number in range(2):
        (cut_out if source == "alpha" else photo)(number).save(folder / f"{number}.png")
        if source == "files":
            mask().save(folder / f"{number}-mask.png")
    config.instance.masks = source
    check_inputs(resolved(config))
    spoil(folder)
    with pytest.raises(UserError, match=said):
        check_inputs(resolved(config))


@pytest.mark.parametrize("name", ["é 1-mask.png", "e\u0301 1-mask.png", "é 1-MASK.PNG"])
def test_masks_from_other_systems(folder, caplog, name):
    """And files that belong to a mask (its caption) are none."""
    photo(0).save(folder / "é 1.JPG")
    mask().save(folder / name)
    mask().save(folder / "2-mask.png")
    (folder / "é 1-mask.json").write_text("{}")
    with caplog.at_level(logging.WARNING, "booth"):
        found = instance_examples(str(folder), "a photo", masks=True)
    (example,) = with_masks(found, "files")
    assert example.mask == folder / name
    assert caplog.messages == ["instance.masks: 2-mask.png belong to no photo, and are ignored"]
