"""Captions: where they are found, what is refused, and that each row is trained with its own image's."""

import json
import logging
import shutil

import numpy as np
import pytest
from fake_backend import FakeBackend
from PIL import Image

from booth.common.errors import UserError
from booth.data.caption_names import captions_from_names
from booth.data.captions import read_captions, variants
from booth.data.inputs import check_inputs
from booth.train import loop
from booth.train.preparation import prepare
from booth.train.run_folder import RunDir

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


HEAD = "file_name,text\n"
REST = "blue car.png,blue\ngreen_car-02.png,green\n"


@pytest.mark.parametrize(
    ("table", "said"),
    [(HEAD + "red car.png,red, and parked\n" + REST, "line 2: 3 cells and 2 columns; put a value with a comma"),
     ("file_name,wheels,text\nred car.png,4,red\nblue car.png,blue\n", "line 3: 2 cells and 3 columns; add the"),
     (HEAD + 'red car.png,"red\n' + REST, "line 2: unexpected end of data; put a value with commas in double quotes"),
     (HEAD + 'red car.png,"red" car\n' + REST, "line 2: ',' expected after '\"'; put a value with commas in double"),
     (HEAD + 'red car.png,"red\n\nand parked"\nblue car.png,blue,sky\n', "line 5: 3 cells and 2 columns"),
     ("file_name,text,text\nred car.png,red,crimson\n", "has several columns text; give each a name of its own"),
     ("file_name;text\nred car.png;red\n", "has semicolons between its columns; save it with commas"),
     ("file_name\ttext\nred car.png\tred\n", "has tabs between its columns; save it with commas"),
     ("", "has no column 'file_name' but none"), ("file_name,caption\n", "has no column 'text' but file_name, caption"),
     (HEAD + ",red\n" + REST, "line 2: no file_name; correct the line")],
)  # fmt: skip
def test_a_csv_table_loses_nothing(folder, table, said):
    (folder / "metadata.csv").write_text(table, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read(folder, "metadata")
    assert said in str(caught.value) and str(caught.value).startswith(str(folder / "metadata.csv"))


@pytest.mark.parametrize(
    "table",
    [HEAD + "red car.png,red\n" + REST, "\ufeff" + HEAD + "red car.png,red\n" + REST,
     "\n file_name , text \r\n\r\nred car.png , red \r\n  \r\n" + REST,
     "file_name,text,,\nred car.png,red,,\n,,,\n" + "blue car.png,blue,,\ngreen_car-02.png,green,,,,\n",
     'text, file_name\n"red", "red car.png"\n"blue", "blue car.png"\n"gr""een", "green_car-02.png"\n'],
    ids=["plain", "mark", "blanks", "empty cells", "spaces before quotes"],
)  # fmt: skip
def test_csv_tables_as_people_and_programs_write_them(folder, table):
    (folder / "metadata.csv").write_text(table, encoding="utf-8", newline="")
    assert read(folder, "metadata") == ["red", "blue", 'gr"een' if '""' in table else "green"]


@pytest.mark.parametrize(
    ("row", "said"),
    [('{"file_name": "red car.png", "text": "red", "text": "crimson"}', "line 1: no JSON object (a key is in it tw"),
     ('[["file_name", "red car.png"], ["text", "red"]]', "line 1: no JSON object (but a list)"),
     ('{"file_name": "red car.png", "text": ["red", "car"]}', "line 1: text is ['red', 'car'], and must be text"),
     ('{"file_name": "red car.png", "text": true}', "line 1: text is True, and must be text"),
     ('{"text": "red"}', "line 1: no file_name"), ('{"file_name": "red car.png", "text": NaN}', "no caption for red"),
     ('{"file_name": "red car.png", "text": null}', "no caption for red car.png")],
)  # fmt: skip
def test_a_json_table_loses_nothing(folder, row, said):
    rest = "".join(json.dumps(entry) + "\n" for entry in TABLE[1:])
    (folder / "metadata.jsonl").write_text(row + "\n" + rest, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read(folder, "metadata")
    assert said in str(caught.value)


def test_a_string_may_have_what_ends_lines_elsewhere(folder):
    rows = [json.dumps(row, ensure_ascii=False) for row in [TABLE[0] | {"text": "red\u2028car\x85"}, *TABLE[1:]]]
    (folder / "metadata.jsonl").write_text("\n\n".join(rows), encoding="utf-8")
    assert read(folder, "metadata")[0] == "red car"


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("again", ["é.png", "./é.png", "e\u0301.png", "é.PNG"])
def test_a_file_that_is_listed_twice(tmp_path, kind, again):
    """The last row would win."""
    image = tmp_path / "é.png"
    Image.new("RGB", (8, 8)).save(image)
    rows = [("é.png", "one"), ("", ""), (again, "two")]
    if kind == "csv":
        table = "".join(f"{name},{text}\n" if name else "\n" for name, text in [("file_name", "text"), *rows])
    else:
        table = "\n" + "".join((json.dumps({"file_name": n, "text": t}) if n else "") + "\n" for n, t in rows)
    (tmp_path / f"metadata.{kind}").write_text(table, encoding="utf-8")
    with pytest.raises(UserError, match=rf"metadata\.{kind}: é\.png is in line 2 and in line 4; keep one of them"):
        read_captions(tmp_path, [image], "metadata", "text", "")


def test_a_row_of_two_files(folder):
    """Where a file system tells upper from lower case, exact names do too."""
    for name in ("A.png", "a.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    paths = sorted(folder.glob("[Aa].png"))
    if len(paths) < 2:
        pytest.skip("they are one to this file system")
    (folder / "metadata.csv").write_text("file_name,text\nA.png,one\na.png,two\n", encoding="utf-8")
    assert read_captions(folder, paths, "metadata", "text", "") == ["one", "two"]
    (folder / "metadata.csv").write_text("file_name,text\nA.PNG,one\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 2: 'A\.PNG' may be A\.png, a\.png; write the one that is meant"):
        read_captions(folder, paths, "metadata", "text", "")


def test_two_tables(folder):
    write_table(folder, TABLE)
    (folder / "metadata.csv").write_text(HEAD, encoding="utf-8")
    with pytest.raises(
        UserError, match=r"metadata\.jsonl and metadata\.csv are both in .*; keep the one that is meant"
    ):
        read(folder, "metadata")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1", "cp1252"])
@pytest.mark.parametrize("source", ["metadata", "text"])
def test_other_encodings(folder, encoding, source):
    """Without its mark UTF-16 is UTF-8 with zeros, as long as its letters are ASCII."""
    words = "red" if encoding == "utf-16-le" else "Größe"
    name, text = ("metadata.csv", f"{HEAD}red car.png,{words}\n") if source == "metadata" else ("red car.txt", words)
    (folder / name).write_text(text, encoding=encoding)
    with pytest.raises(UserError, match=r"UTF-8.*; save it as UTF-8$"):
        read(folder, source)


def test_a_caption_that_cannot_be_read(folder):
    """Whose mistake is not its encoding."""
    (folder / "red car.txt").mkdir()
    with pytest.raises(
        UserError, match=r"red car\.txt cannot be read: Is a directory; give one that this user may read"
    ):
        read(folder, "text")


@pytest.mark.parametrize("name", ["É 1.txt", "e\u0301 1.txt", "é 1.TXT"])
def test_text_files_from_other_systems(tmp_path, name):
    image = tmp_path / "é 1.JPG"
    Image.new("RGB", (8, 8)).save(image)
    (tmp_path / name).write_text("a car", encoding="utf-8")
    assert read_captions(tmp_path, [image], "text", "", "") == ["a car"]


def test_two_text_files_of_one_image(folder):
    for name in ("red car.txt", "red car.TXT"):
        (folder / name).write_text("a car", encoding="utf-8")
    if len(list(folder.glob("red car.[tT]*"))) < 2:
        pytest.skip("they are one to this file system")
    with pytest.raises(UserError, match=r"red car\.png has red car\.TXT and red car\.txt beside it in .*; keep one"):
        read(folder, "text")


WORDS = [
    ["Porsche 911"], ["R2D2"], ["BMW M3"], ["Porsche 911", "Porsche 944"], ["BMW 3", "BMW 5", "BMW 7"],
    ["dog1", "dog2"],    ["Mustang (1967)"], ["Mazda 2", "Mazda 3"], ["area 51"], ["copy"], ["🐕"], ["犬"],
]  # fmt: skip
COUNTED = {
    "dog": [
        "dog (1)",
        "dog(2)",
        "dog_001",
        "dog-02",
        "dog copy",
        "dog copy 2",
        "dog - Copy (2)",
        "dog_0003",
        "dog  0012",
    ],
    "red dog": ["red_dog_1", "red_dog_2", "red-dog 3"],
    "brown dog": ["brown dog", "brown dog 2", "brown dog-3"],
    "Porsche 911": ["Porsche 911", "Porsche 911 (1)", "Porsche_911_01", "Porsche 911-02"],
    "dog from 2023": ["dog from 2023_0000", "dog from 2023_0010"],
    "Größe": ["Gro\u0308ße_01"],
}
OF_CAMERAS = ["IMG_1234", "DSC00012", "_DSC0012", "PXL_20230101_123456789.MP", "20230101_120000", "IMG-20230101-WA0001",
              "WhatsApp Image 2023-01-01 at 12.00.00 PM", "IMG_E0012 (1)", "0007", "(3)"]  # fmt: skip


@pytest.mark.parametrize("stems", WORDS, ids=str)
def test_numbers_that_are_words(stems):
    assert captions_from_names(stems) == stems


@pytest.mark.parametrize("words", COUNTED)
def test_numbers_that_a_program_appended(words):
    """Each folder is looked at alone: whether a number counts, its neighbours say."""
    assert set(captions_from_names(COUNTED[words])) == {words}


def test_names_of_cameras_say_nothing(folder):
    assert not any(captions_from_names(OF_CAMERAS))
    path = folder / "IMG_1234.jpg"
    with pytest.raises(UserError, match=r"no caption for IMG_1234\.jpg in .*; give it a name that says what it shows"):
        read_captions(folder, [path], "names", "", "")
    assert captions_from_names(["IMG_1234 red dog", "E 300"]) == ["IMG 1234 red dog", "E 300"]


def test_what_was_made_of_names_is_shown(tmp_path, caplog):
    paths = [tmp_path / f"{name}.jpg" for name in ("Porsche 911", "red_dog_01", *"abcdef")]
    with caplog.at_level(logging.INFO, "booth"):
        read_captions(tmp_path, paths, "names", "", "")
    (line,) = caplog.messages
    assert line.startswith(
        "instance.captions='names': 'red_dog_01.jpg' -> 'red dog', 'Porsche 911.jpg' -> 'Porsche 911'"
    )
    assert line.endswith(" and 3 more")


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
