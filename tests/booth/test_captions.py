"""Captions: where they are found, what is refused, and that each row is trained with its own image's."""

import json
import logging
import shutil

import numpy as np
import pytest
from fake_backend import FakeBackend
from PIL import Image

from booth import loop
from booth.captions import read_captions, variants
from booth.errors import UserError
from booth.inputs import check_inputs
from booth.preparation import prepare
from booth.rundir import RunDir

COLOURS = {"red car.png": "red", "blue car.png": "blue", "green_car-02.png": "green"}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "cars"
    folder.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (64, 64), colour).save(folder / name)
    return folder


def read(folder, source, column="text", prompt=""):
    return read_captions(folder, [folder / name for name in COLOURS], source, column, prompt)


def write_table(folder, rows):
    lines = [json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


TABLE = [{"file_name": name, "text": f"a {colour} sks car", "wheels": 4} for name, colour in COLOURS.items()]


def test_without_captions_all_have_the_prompt(folder):
    assert read(folder, "none", prompt="a photo of sks car") == ["a photo of sks car"] * 3


def test_text_files(folder, caplog):
    for name, colour in COLOURS.items():
        (folder / name).with_suffix(".txt").write_text(f"\ufeffa {colour}\n car ", encoding="utf-8")
    (folder / "notes.txt").write_text("call the garage", encoding="utf-8")
    with caplog.at_level(logging.WARNING, "booth"):
        assert read(folder, "text") == ["a red car", "a blue car", "a green car"]
    assert caplog.messages == ["instance.captions='text': notes.txt belong to no image"]


def test_names(folder):
    assert read(folder, "names", prompt="a photo of sks, {caption}") == [
        "a photo of sks, red car", "a photo of sks, blue car", "a photo of sks, green car"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_tables(folder, kind):
    if kind == "jsonl":
        write_table(folder, TABLE)
    else:
        rows = [f'{row["file_name"]},4,"{row["text"]}, parked"' for row in TABLE]
        (folder / "metadata.csv").write_text("file_name,wheels,text\n" + "\n".join(rows), encoding="utf-8")
    wanted = ["a red sks car", "a blue sks car", "a green sks car"]
    assert read(folder, "metadata") == [text + ", parked" * (kind == "csv") for text in wanted]
    assert read(folder, "metadata", column="wheels") == ["4", "4", "4"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [(TABLE[:2], r"no caption for green_car-02\.png in "),
     ([*TABLE, {"file_name": "gone.png", "text": "a ghost"}], r"captions of gone\.png, but no such images lie in "),
     ([*TABLE[:2], TABLE[2] | {"text": " "}], r"no caption for green_car-02\.png in "),
     ([{"image": "red car.png", "text": "x"}], r"has no column 'file_name' but image, text; it is what ties"),
     ([*TABLE, {"file_name": "../red car.png", "text": "x"}], r"captions of \.\./red car\.png, but no such images")],
)  # fmt: skip
def test_bad_tables(folder, rows, said):
    write_table(folder, rows)
    with pytest.raises(UserError, match=said):
        read(folder, "metadata")


def test_a_column_that_is_not_there_lists_those_that_are(folder):
    write_table(folder, TABLE)
    with pytest.raises(
        UserError, match=r"has no column 'caption' but file_name, text, wheels; set instance\.caption_co"
    ):
        read(folder, "metadata", column="caption")
    (folder / "metadata.jsonl").write_text('{"file_name": 1\n', encoding="utf-8")
    with pytest.raises(UserError, match="line 1: no JSON object"):
        read(folder, "metadata")
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match=r"there is no metadata\.jsonl or metadata\.csv in"):
        read(folder, "metadata")


def test_an_image_without_a_text_file(folder):
    (folder / "red car.txt").write_text("a red car", encoding="utf-8")
    with pytest.raises(UserError, match=r"no caption for blue car\.png, green_car-02\.png in"):
        read(folder, "text")


def test_shuffled_tags():
    made = variants("sks car, red, shiny, parked, night", 6, 1, 0, "a" * 64)
    assert len(made) == len(set(made)) > 3 and all(text.startswith("sks car, ") for text in made)
    assert all(sorted(text.split(", ")) == sorted(made[0].split(", ")) for text in made)
    assert made == variants("sks car, red, shiny, parked, night", 6, 1, 0, "a" * 64)
    assert made != variants("sks car, red, shiny, parked, night", 6, 1, 0, "b" * 64)
    assert variants("sks car, red", 6, 1, 0, "a" * 64) == ["sks car, red"]
    assert variants("no tags at all", 6, 1, 0, "a" * 64) == ["no tags at all"]


@pytest.fixture
def batches(tiny_config, folder, tmp_path):
    """fields -> (captions, step -> Batch)."""

    def batches(prior=True, **fields):
        write_table(folder, TABLE)
        config = tiny_config
        config.instance.images, config.instance.prompt, config.instance.captions = str(folder), "", "metadata"
        config.prior.weight = float(prior)
        for name, value in fields.items():
            config.instance[name] = value
        inputs, backend = check_inputs(config), FakeBackend(config)
        with RunDir.open(tmp_path / "run", "numpy", config) as run:
            return config, prepare(config, inputs, run, backend, backend.load(inputs.pipeline)), inputs

    return batches


def contexts(config, inputs, texts):
    return [FakeBackend(config).encode_prompts(None, inputs.tokenizer([text]))[0] for text in texts]


@pytest.mark.parametrize("prior", [True, False])
def test_each_row_has_its_own_images_caption(batches, prior):
    """With a prior the table of all four prompts is sent, without as many as there are rows."""
    config, make, inputs = batches(prior)
    wanted = dict(zip(COLOURS.values(), contexts(config, inputs, [row["text"] for row in TABLE]), strict=True))
    (of_class,) = contexts(config, inputs, [config.prior.prompt])
    means = {"red": (1, -1, -1), "blue": (-1, -1, 1), "green": (-1, 0, -1)}
    seen = set()
    for step in range(12):
        batch = make(step, {})
        assert len(batch.prompts) == (4 if prior else 2)
        for row in range(2):
            colour = next(name for name, mean in means.items()
                          if np.abs(batch.latents[row].mean((0, 1))[:3] / 0.18215 - mean).max() < 0.2)  # fmt: skip
            assert np.array_equal(batch.prompts[batch.prompt_index[row]], wanted[colour])
            seen.add(colour)
        assert all(np.array_equal(batch.prompts[index], of_class) for index in batch.prompt_index[2:])
    assert seen == {"red", "blue", "green"}


def test_dropped_captions(batches):
    config, make, inputs = batches(caption_dropout=0.3)
    (nothing,) = contexts(config, inputs, [""])
    dropped = [np.array_equal(make(step, {}).prompts[make(step, {}).prompt_index[row]], nothing)
               for step in range(200) for row in range(4)]  # fmt: skip
    instances, classes = np.reshape(dropped, (200, 2, 2)).transpose(1, 0, 2)
    assert 0.24 < instances.mean() < 0.36 and not classes.any()


def test_a_captioned_run_resumes_exactly_and_notices_other_captions(tiny_config, folder, tmp_path):
    write_table(folder, TABLE)
    config = tiny_config
    config.instance.images, config.instance.captions, config.instance.prompt = (
        str(folder),
        "metadata",
        "photo, {caption}",
    )
    config.instance.caption_dropout = 0.2
    whole = loop.train(FakeBackend, config, tmp_path / "whole")
    config.train.steps = 3
    loop.train(FakeBackend, config, tmp_path / "parts")
    config.train.steps = 4
    parts = loop.train(FakeBackend, config, tmp_path / "parts")
    assert [line["loss"] for line in parts.metrics] == [line["loss"] for line in whole.metrics]
    write_table(folder, [TABLE[0] | {"text": "a truck"}, *TABLE[1:]])
    config.train.steps = 5
    with pytest.raises(UserError, match=r"captions changed since this run began \(red car\.png\)"):
        loop.train(FakeBackend, config, tmp_path / "parts")


def test_a_prompt_without_a_place_for_the_caption(tiny_config, tmp_path):
    tiny_config.instance.captions = "names"
    with pytest.raises(UserError, match=r"instance\.prompt='a photo of sks robot' has no \{caption\}"):
        loop.train(FakeBackend, tiny_config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
