"""The dataset doctor: each piece of advice where it is due, and none where it is not."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from booth.config.values import default_config
from booth.data.doctor import advice
from booth.data.inputs import check_inputs


def picture(seed, size=(300, 260)):
    """Patches and lines: sharp, and unlike those of other seeds."""
    draw = np.random.default_rng(seed)
    patches = draw.integers(0, 255, (7, 8, 3), np.uint8)
    image = np.asarray(Image.fromarray(patches).resize(size, Image.Resampling.NEAREST)).copy()
    image[::9] = draw.integers(0, 255, 3)
    return Image.fromarray(image)


@pytest.fixture
def config(tiny_config, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        picture(number).save(folder / f"{number}.png")
    tiny_config.instance.images = str(folder)
    return tiny_config


class Words:
    """CLIP's tokenizer has 49,408 tokens: frequent words first."""

    size = 49408
    known = {"sks": [48136], "cat": [2368], "zqxv": [1, 2, 3, 4]}  # noqa: RUF012

    def ids(self, text):
        return self.known.get(text, [30000])


def said(config, tokenizer=None):
    inputs = check_inputs(config)
    return list(advice(config, replace(inputs, tokenizer=tokenizer or Words())))


def test_nothing_to_say(config):
    assert said(config) == []


def test_captions_that_are_not_read(config, tmp_path):
    folder = tmp_path / "photos"
    (folder / "notes.txt").write_text("of no photo")
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "licence": "text"}\n')
    (folder / "metadata.csv").write_text("file_name,texts\n0.png,no caption\n")
    assert said(config) == ["metadata.jsonl: captions lie with the photos and are not read; set instance.captions="
                            "metadata"], "a value is taken for a column here"  # fmt: skip
    (folder / "metadata.jsonl").unlink()
    assert said(config) == []
    (folder / "metadata.csv").write_text("file_name,text\n0.png,a cat\n")
    for number in (3, 1):
        (folder / f"{number}.txt").write_text("a sks cat on a wall")
    said_of = "captions lie with the photos and are not read; set instance.captions="
    assert said(config) == [f"1.txt, 3.txt: {said_of}text", f"metadata.csv: {said_of}metadata"]
    config.instance.captions, config.instance.prompt = "text", ""
    for number in range(5):
        (folder / f"{number}.txt").write_text("a sks cat on a wall")
    assert said(config) == []


def test_tags_that_are_too_few_to_shuffle(config):
    config.instance.shuffled_captions, config.instance.prompt = 4, "a photo of sks cat, on a wall"
    config.prior.prompt = "a photo of cat"
    (line,) = said(config)
    assert line.startswith("instance.shuffled_captions=4: no caption has two tags to shuffle, between commas, beside")
    config.instance.prompt += ", in the sun"
    assert said(config) == []


def test_settings_that_are_switched_off(config):
    config.prior.weight, config.prior.count = 0.0, 3
    assert said(config) == [
        "prior.count=3, prior.inference_steps=2: no effect, as prior.weight must be greater than 0, and is 0.0"
    ]


def test_few_photos(config, tmp_path):
    for number in (0, 1, 2):
        (tmp_path / "photos" / f"{number}.png").unlink()
    assert said(config) == ["2 photos: 3 to 12 from several sides and places teach more"]


def test_many_photos_with_one_prompt(config, tmp_path):
    for number in range(5, 40):
        picture(number, (64, 64)).save(tmp_path / "photos" / f"{number}.png")
    (line,) = [line for line in said(config) if line.startswith("40 photos with one prompt")]
    config.instance.captions, config.instance.prompt = "names", "{caption}"
    for path in (tmp_path / "photos").iterdir():
        path.rename(path.with_name(f"a robot {path.stem}.png"))
    assert line not in said(config)


def test_small_and_long_photos(config, tmp_path):
    picture(7, (31, 31)).save(tmp_path / "photos" / "tiny.png")
    picture(8, (300, 100)).save(tmp_path / "photos" / "long.png")
    lines = said(config)
    assert "tiny.png: less than half of data.resolution=64, so they will teach blur" in lines
    assert any(
        line.startswith("long.png: more than twice as long as wide, and only the middle is seen") for line in lines
    )
    assert len(lines) == 2


def test_duplicates(config, tmp_path):
    folder = tmp_path / "photos"
    shutil.copy(folder / "1.png", folder / "copy.png")
    picture(2).resize((150, 130)).save(folder / "smaller.jpg", quality=80)
    assert said(config) == [
        "1.png, copy.png: the same file, which would count 2 times",
        "2.png, smaller.jpg: nearly the same picture; keep the better one",
    ]


def test_blur(config, tmp_path):
    picture(3).filter(ImageFilter.GaussianBlur(6)).save(tmp_path / "photos" / "3.png")
    assert said(config) == ["3.png: blurred, and the model would learn that"]


@pytest.mark.parametrize(
    ("prompt", "line"),
    [("a photo of sks robot", None),
     ("a photo of zqxv robot", "the identifier 'zqxv' is 4 tokens to this model: a short rare word"),
     ("a photo of cat robot", "the identifier 'cat' is a common word, whose meaning would be lost"),
     ("a photo of sks thing", "instance.prompt has no 'robot', the class noun of prior.prompt")],
)  # fmt: skip
def test_prompts(config, prompt, line):
    config.instance.prompt = prompt
    lines = said(config)
    assert lines == [] if line is None else lines[0].startswith(line)
    config.prior = default_config().prior
    config.prior.weight = 0.0
    assert said(config) == []


def test_small_vocabularies_know_no_common_words(config):
    tokenizer = Words()
    tokenizer.size = 1024
    config.instance.prompt = "a photo of cat robot"
    assert said(config, tokenizer) == []


def test_class_images_of_the_subject(config, tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()
    picture(99).save(folder / "other.png")
    picture(4).resize((200, 180)).save(folder / "mine.png")
    config.prior.images = str(folder)
    assert said(config) == ["class image mine.png looks like 4.png: class images should show others of the class"]


def test_masks_and_shapes(config, tmp_path):
    folder = tmp_path / "photos"
    picture(1).save(folder / "1-mask.png")
    config.data.buckets = ("64x64",)
    picture(8, (300, 120)).save(folder / "long.png")
    lines = said(config)
    assert "1-mask.png: named as masks, and trained on as photos; set instance.masks=files" in lines
    assert "long.png: less than two thirds are seen, as no size in data.buckets has such a shape; add one" in lines


def test_two_subjects_with_one_prompt(config, tmp_path):
    (tmp_path / "other").mkdir()
    picture(9).save(tmp_path / "other" / "9.png")
    config.concepts = ({"instance.images": config.instance.images}, {"instance.images": str(tmp_path / "other")})
    assert "concepts[0] and concepts[1] have the same prompt, 'a photo of sks robot': give each subject an identifier" \
           " of its own" in said(config)  # fmt: skip
