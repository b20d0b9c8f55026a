"""Datasets as `datasets` itself writes them: unpacked into the very bytes, with their captions; what is refused."""

import io
import json
import os
import pickle
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from booth import data
from booth.captions import read_captions
from booth.errors import UserError
from booth.image_dataset import cache_folder, open_photos

COLOURS = ("red", "green", "blue")
FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".webp")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "booth" / "datasets"


def encoded(colour, kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(buffer, format=kind)
    return buffer.getvalue()


CONTENT = [encoded(colour, kind) for colour, kind in zip(COLOURS, FORMATS, strict=True)]
CAPTIONS = [f"a {colour} sks car" for colour in COLOURS]


def dataset(images=CONTENT, captions=CAPTIONS, image_column="image", text_column="text"):
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features({image_column: ImageFeature(), text_column: Value("string"), "wheels": Value("int32")})
    values = [image if isinstance(image, dict | None) else {"bytes": image, "path": None} for image in images]
    return Dataset.from_dict({image_column: values, text_column: list(captions), "wheels": [4] * len(values)}, features)


def write_parquet(path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset(**options).to_parquet(path)
    return path


def write_table(folder):
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for name, content, caption in zip("cab", CONTENT, CAPTIONS, strict=True):
        (folder / "pictures" / f"{name}.img").write_bytes(content)
        rows.append({"file_name": f"pictures/{name}.img", "text": caption, "wheels": 4})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def as_parquet(path):
    return write_parquet(path / "cars.parquet")


def as_shards(path):
    for number in range(3):
        name = path / "data" / f"train-{number:05d}-of-00003.parquet"
        write_parquet(name, images=CONTENT[number : number + 1], captions=CAPTIONS[number : number + 1])
    write_parquet(path / "data" / "test-00000-of-00001.parquet", images=[encoded("black")], captions=["a test"])
    (path / "README.md").write_text("# Cars", encoding="utf-8")
    return path


def as_saved(path):
    dataset().save_to_disk(path, num_shards=2)
    (path / "data-00000-of-00001.arrow").write_bytes(b"what an earlier saving left")
    return path


def as_saved_parts(path):
    from datasets import DatasetDict

    DatasetDict({"test": dataset([encoded("black")], ["a test"]), "train": dataset()}).save_to_disk(path)
    return path


def as_arrow(path):
    dataset().save_to_disk(path)
    return path / "data-00000-of-00001.arrow"


def as_arrow_with_index(path):
    table = dataset().data.table
    path.mkdir()
    with pa.ipc.new_file(path / "cars.arrow", table.schema) as writer:
        writer.write_table(table)
    return path / "cars.arrow"


def as_plain_parquet(path):
    """As other libraries write images: a column of bytes, and nothing said of it."""
    path.mkdir()
    pa.parquet.write_table(pa.table({"image": CONTENT, "text": CAPTIONS}), path / "cars.parquet")
    return path


def as_table(path):
    return write_table(path)


def as_csv(path):
    folder = write_table(path)
    (folder / "metadata.jsonl").unlink()
    rows = [f"pictures/{name}.img,{caption}" for name, caption in zip("cab", CAPTIONS, strict=True)]
    (folder / "cars.csv").write_text("\n".join(["file_name,text", *rows]), encoding="utf-8")
    return folder / "cars.csv"


SOURCES = [as_parquet, as_shards, as_saved, as_saved_parts, as_arrow, as_arrow_with_index, as_plain_parquet, as_table,
           as_csv]  # fmt: skip


def refusal(source, image_column="image", captions="metadata", caption_column="text", revision=""):
    with pytest.raises(UserError) as caught:
        open_photos(str(source), image_column, captions, caption_column, revision)
    said = str(caught.value)
    assert "\n" not in said and said.isprintable()
    return said


@pytest.mark.parametrize("make", SOURCES)
def test_the_bytes_are_unpacked_in_order_with_their_captions(make, tmp_path, cache):
    source = make(tmp_path / "source")
    photos = open_photos(str(source), "image", "metadata", "text")
    assert photos.folder.parent == cache == cache_folder() and photos.origin == {}
    found = data.find_images(photos.folder, "instance.images")
    assert [path.name for path in found] == [f"{n:05d}{suffix}" for n, suffix in enumerate(SUFFIXES)]
    assert [path.read_bytes() for path in found] == CONTENT
    assert read_captions(photos.folder, found, "metadata", "text", "") == CAPTIONS
    examples = data.instance_examples(str(photos.folder), "photo of {caption}", "metadata")
    assert [example.caption for example in examples] == [f"photo of {caption}" for caption in CAPTIONS]


def test_what_is_unpacked_is_reused_wherever_the_dataset_lies(tmp_path, cache, monkeypatch):
    first = open_photos(str(as_parquet(tmp_path / "a")), "image").folder
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    (tmp_path / "a" / "cars.parquet").rename(tmp_path / "moved.parquet")
    with monkeypatch.context() as patch:
        patch.setattr("booth.arrow_rows.rows", None)  # not asked for any more
        assert open_photos(str(tmp_path / "moved.parquet"), "image").folder == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before
    other = write_parquet(tmp_path / "other.parquet", captions=[*CAPTIONS[:2], "a black car"])
    assert open_photos(str(other), "image").folder != first


@pytest.mark.parametrize("harm", ["gone", "cut", "more", "record"])
def test_what_was_unpacked_and_harmed_is_unpacked_again(harm, tmp_path):
    source = str(as_parquet(tmp_path / "a"))
    folder = open_photos(source, "image").folder
    photo, record = folder / "00001.jpg", folder / "dataset.json"
    {"gone": photo.unlink, "cut": lambda: os.truncate(photo, 100), "record": lambda: record.write_text("{"),
     "more": lambda: (folder / "stray.png").write_bytes(CONTENT[0])}[harm]()  # fmt: skip
    assert open_photos(source, "image").folder == folder
    assert photo.read_bytes() == CONTENT[1] and not (folder / "stray.png").exists()


def test_an_interrupted_unpacking_leaves_nothing(tmp_path, cache, monkeypatch):
    source = as_parquet(tmp_path / "a")
    rows = iter([{"image": CONTENT[0], "text": "a"}])

    def broken(*arguments):
        yield next(rows)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("booth.arrow_rows.rows", broken)
        with pytest.raises(KeyboardInterrupt):
            open_photos(str(source), "image")
    assert [path.name for path in cache.iterdir()] == [".lock"]
    assert len(data.find_images(open_photos(str(source), "image").folder, "instance.images")) == 3


def test_a_plain_folder_stays_what_it_is(photos, tmp_path, cache):
    """Subfolders and files beside the images are not looked into."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "1.png").write_bytes(CONTENT[0])
    write_parquet(folder / "data" / "train.parquet")
    write_parquet(folder / "cars.parquet")
    assert open_photos(str(folder), "image").folder == folder
    assert open_photos(str(photos), "image", "text").folder == photos
    assert open_photos(str(tmp_path / "nowhere"), "image").folder == tmp_path / "nowhere"  # refused as a folder is
    assert not cache.exists()


def test_a_plain_folder_needs_no_arrow(photos):
    code = f"from booth.image_dataset import open_photos; import sys; open_photos({str(photos)!r}, 'image');" + (
        "sys.exit(bool({'pyarrow', 'datasets', 'huggingface_hub'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_columns_that_are_not_there(tmp_path):
    source = write_parquet(tmp_path / "cars.parquet", image_column="photo", text_column="says")
    where = f"instance.images={str(source)!r}"
    assert refusal(source) == (
        f"{where} has no column 'image'; its columns are photo, says, wheels; with images: photo;"
        " set instance.image_column='photo'"
    )
    assert refusal(source, "says").startswith(f"{where}: the column 'says' holds no images; its columns are photo, ")
    assert refusal(source, "photo") == (
        f"{where} has no column 'text' of text; its columns are photo, says, wheels; of text: says;"
        " set instance.caption_column, or instance.captions='none'"
    )
    assert open_photos(str(source), "photo").folder.is_dir(), "without captions none are missed"
    assert open_photos(str(source), "photo", "metadata", "says").folder.is_dir()
    nothing = tmp_path / "numbers.parquet"
    pa.parquet.write_table(pa.table({"a": [1], "b": ["x"]}), nothing)
    assert "no column 'image'; its columns are a, b; with images: none; give a dataset of images" in refusal(nothing)


def test_sounds_are_no_images(tmp_path):
    """They are stored as images are; the file says which they are."""
    features = {"image": {"_type": "Audio"}, "photo": {"_type": "Image"}}
    stored = pa.array([{"bytes": CONTENT[0], "path": None}])
    table = pa.table({"image": stored, "photo": stored})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    said = refusal(tmp_path / "a.parquet", captions="none")
    assert "the column 'image' holds no images; its columns are image, photo; with images: photo;" in said


def test_rows_without_an_image_are_named(tmp_path, cache):
    images = [CONTENT[0], None, {"bytes": None, "path": "/photos/car.jpg"}, b"no image", CONTENT[1]]
    source = write_parquet(tmp_path / "cars.parquet", images=[CONTENT[0]] * 5, captions=["x"] * 5)
    stored = [image if isinstance(image, dict | None) else {"bytes": image, "path": None} for image in images]
    schema = pa.parquet.read_schema(source)
    table = pa.parquet.read_table(source)
    column = pa.array(stored, type=schema.field("image").type)
    pa.parquet.write_table(table.set_column(0, schema.field("image"), column), source)
    said = refusal(source)
    assert (
        "3 of 5 rows have no image in 'image' that can be read: row 1 (none), row 2 (only the path /photos/car.jpg,"
        in said
    )
    assert "row 3 (no image in a format that can be read here); take them out" in said
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_postscript_is_no_image(tmp_path):
    source = write_parquet(tmp_path / "cars.parquet", images=[encoded("red", "EPS")], captions=["x"])
    assert "row 0 (no image in a format that can be read here)" in refusal(source)


def test_rows_without_a_caption_are_named(tmp_path):
    source = write_parquet(tmp_path / "cars.parquet", captions=["a car", None, "  "])
    for _ in range(2):  # also when it is unpacked already
        assert "no caption in the column 'text' of row 1, row 2; write them" in refusal(source)
    assert open_photos(str(source), "image").folder.is_dir()


@pytest.mark.parametrize("make", ["parquet", "saved"])
def test_no_rows(tmp_path, make):
    empty = dataset([], [])
    empty.to_parquet(tmp_path / "a.parquet") if make == "parquet" else empty.save_to_disk(tmp_path / "saved")
    assert "has no rows; give a dataset with 3 to 12 photos" in refusal(
        tmp_path / ("a.parquet" if make == "parquet" else "saved")
    )


def test_captions_elsewhere_than_in_a_column(tmp_path):
    source = as_parquet(tmp_path / "a")
    assert "instance.captions='names' is for photos in a folder" in refusal(source, captions="names")
    assert "instance.captions='text' is for photos in a folder" in refusal(source, captions="text")


def test_missing_shards(tmp_path):
    source = as_shards(tmp_path / "a")
    (source / "data" / "train-00001-of-00003.parquet").unlink()
    assert "1 of 3 shards are missing, data/train-00001-of-00003.parquet the first" in refusal(source)
    saved = as_saved(tmp_path / "saved")
    (saved / "data-00001-of-00002.arrow").unlink()
    assert "data-00001-of-00002.arrow of the saved dataset is missing" in refusal(saved)


def test_several_datasets_in_one_place(tmp_path):
    source = as_shards(tmp_path / "a")
    write_parquet(source / "data" / "train-00000-of-00001.parquet")
    assert "holds shards of several datasets (data/train-*-of-00001, data/train-*-of-00003)" in refusal(source)
    write_parquet(tmp_path / "b" / "one" / "train.parquet")
    write_parquet(tmp_path / "b" / "two" / "train.parquet")
    assert "holds several datasets, in one, two; give the folder of one" in refusal(tmp_path / "b")
    write_parquet(tmp_path / "c" / "test.parquet")
    write_parquet(tmp_path / "c" / "validation.parquet")
    assert "has the parts test, validation, none of them for training; give one" in refusal(tmp_path / "c")
    write_parquet(tmp_path / "e" / "train.parquet")
    write_parquet(tmp_path / "e" / "more.parquet", text_column="says")
    assert open_photos(str(tmp_path / "e"), "image", "metadata").folder.is_dir(), "the part for training is taken"
    write_parquet(tmp_path / "d" / "a.parquet")
    write_parquet(tmp_path / "d" / "b.parquet", text_column="says")
    assert "a.parquet and b.parquet have other columns" in refusal(tmp_path / "d")


def test_damaged_files(tmp_path):
    source = as_parquet(tmp_path / "a")
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    assert "cannot be read as Parquet (" in refusal(source)
    source.write_bytes(b"")
    assert "cannot be read as Parquet (" in refusal(source)
    arrow = as_arrow(tmp_path / "b")
    arrow.write_bytes(arrow.read_bytes()[:200])
    assert "cannot be read as Arrow (" in refusal(arrow)
    saved = as_saved(tmp_path / "c")
    (saved / "state.json").write_text("[]", encoding="utf-8")
    assert "state.json is damaged; save the dataset again" in refusal(saved)


def test_names_that_lead_elsewhere(tmp_path):
    (tmp_path / "secret.png").write_bytes(CONTENT[0])
    saved = as_saved(tmp_path / "saved")
    state = json.loads((saved / "state.json").read_text(encoding="utf-8"))
    state["_data_files"] = [{"filename": "../secret.png"}]
    (saved / "state.json").write_text(json.dumps(state), encoding="utf-8")
    assert "was altered; save it again" in refusal(saved)
    for name in ("../secret.png", str(tmp_path / "secret.png"), "a\\..\\..\\secret.png"):
        folder = write_table(tmp_path / f"table{len(name)}")
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "x"}), encoding="utf-8")
        assert "leads out of the folder; correct it" in refusal(folder)


def test_tables_that_lack_something(tmp_path):
    folder = write_table(tmp_path / "a")
    (folder / "pictures" / "a.img").unlink()
    assert "row 1 (there is no pictures/a.img)" in refusal(folder)
    (folder / "metadata.jsonl").write_text('{"image": "pictures/c.img", "text": "x"}', encoding="utf-8")
    assert "row 0: no file_name among its columns image, text" in refusal(folder)


def test_other_files(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([1]))
    assert "is not a folder and no dataset; give a folder of images, a Parquet or Arrow file" in refusal(
        tmp_path / "a.pkl"
    )
    assert "instance.revision='main' is for hub ids" in refusal(tmp_path, revision="main")


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_pickle_in_a_schema_is_not_run(tmp_path, kind):
    """As pyarrow before 14.0.1 did with types that a file brings along."""
    payload = pickle.dumps(Canary(tmp_path / "canary"))
    pickle.loads(payload)
    (tmp_path / "canary").rmdir()  # it works
    evil = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": payload}
    schema = pa.schema([pa.field("image", pa.binary()), pa.field("text", pa.string(), metadata=evil)])
    table = pa.table([CONTENT, CAPTIONS], schema=schema)
    source = tmp_path / f"cars.{kind}"
    if kind == "parquet":
        pa.parquet.write_table(table, source)
    else:
        with pa.ipc.new_stream(source, schema) as writer:
            writer.write_table(table)
    folder = open_photos(str(source), "image").folder
    assert len(data.find_images(folder, "instance.images")) == 3 and not (tmp_path / "canary").exists()
