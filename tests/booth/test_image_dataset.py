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

from booth.common.errors import UserError
from booth.data import images
from booth.data.captions import read_captions
from booth.data.image_dataset import cache_folder, open_photos
from booth.data.image_folder import find_images

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
    for name, content, caption in zip("abc", CONTENT, CAPTIONS, strict=True):
        (folder / "pictures" / f"{name}.jpg").write_bytes(content)  # whatever it is
        rows.append({"file_name": f"pictures/{name}.jpg", "text": caption, "wheels": 4})
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
    (path / "data-00000-of-00001.arrow").rename(path / "cars.arrow")
    (path / "state.json").unlink()
    return path / "cars.arrow"


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
    rows = [f"pictures/{name}.jpg,{caption}" for name, caption in zip("abc", CAPTIONS, strict=True)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,text", *rows]), encoding="utf-8")
    return folder


SOURCES = [as_parquet, as_shards, as_saved, as_saved_parts, as_arrow, as_arrow_with_index, as_plain_parquet, as_table,
           as_csv]  # fmt: skip


def refusal(source, image_column="image", captions="metadata", revision=""):
    with pytest.raises(UserError) as caught:
        open_photos(str(source), image_column, captions, revision)
    said = str(caught.value)
    assert "\n" not in said and said.isprintable() and said.startswith("instance.")
    return said


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("make", SOURCES)
def test_the_bytes_are_unpacked_in_order_with_their_captions(make, tmp_path, cache, capfd):
    source = make(tmp_path / "source")
    before = contents(tmp_path / "source")
    capfd.readouterr()
    photos = open_photos(str(source), "image", "metadata")
    assert contents(tmp_path / "source") == before, "nothing is written there"
    assert "".join(capfd.readouterr()) == "", "nor said by the library"
    assert photos.folder.parent == cache == cache_folder() and photos.origin == {}
    found = find_images(photos.folder, "instance.images")
    assert [path.name for path in found] == [f"{n:05d}{suffix}" for n, suffix in enumerate(SUFFIXES)]
    assert [path.read_bytes() for path in found] == CONTENT
    assert read_captions(photos.folder, found, "metadata", "text", "") == CAPTIONS
    examples = images.instance_examples(str(photos.folder), "photo of {caption}", "metadata")
    assert [example.caption for example in examples] == [f"photo of {caption}" for caption in CAPTIONS]


def test_the_library_keeps_no_copy(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    open_photos(str(as_shards(tmp_path / "shards")), "image")
    assert not (tmp_path / "hf").exists()


def test_what_is_unpacked_is_reused_wherever_the_dataset_lies(tmp_path, cache, monkeypatch):
    first = open_photos(str(as_parquet(tmp_path / "a")), "image").folder
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    (tmp_path / "a" / "cars.parquet").rename(tmp_path / "moved.parquet")
    with monkeypatch.context() as patch:
        patch.setattr("booth.data.image_dataset._rows", None)  # not asked for any more
        assert open_photos(str(tmp_path / "moved.parquet"), "image").folder == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before
    other = write_parquet(tmp_path / "other.parquet", captions=[*CAPTIONS[:2], "a black car"])
    assert open_photos(str(other), "image").folder != first


def test_an_interrupted_unpacking_leaves_nothing(tmp_path, cache, monkeypatch):
    source = as_parquet(tmp_path / "a")

    def broken(*arguments):
        yield {"image": {"bytes": CONTENT[0], "path": None}, "text": "a"}
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("booth.data.image_dataset._rows", broken)
        with pytest.raises(KeyboardInterrupt):
            open_photos(str(source), "image")
    assert [path.name for path in cache.iterdir()] == [".lock"]
    assert len(find_images(open_photos(str(source), "image").folder, "instance.images")) == 3


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
    code = f"from booth.data.image_dataset import open_photos; import sys; open_photos({str(photos)!r}, 'image');" + (
        "sys.exit(bool({'pyarrow', 'datasets', 'huggingface_hub'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_columns_that_are_not_there(tmp_path):
    source = write_parquet(tmp_path / "cars.parquet", image_column="photo", text_column="says")
    where = f"instance.images={str(source)!r}"
    assert refusal(source) == (
        f"{where} has no images in a column 'image'; its columns are photo, says, wheels; with images: photo;"
        " set instance.image_column='photo'"
    )
    assert refusal(source, "says").startswith(f"{where} has no images in a column 'says'; its columns are photo, ")
    folder = open_photos(str(source), "photo", "metadata").folder
    with pytest.raises(UserError, match="says"):
        images.instance_examples(str(folder), "", "metadata", "text")
    assert len(images.instance_examples(str(folder), "", "metadata", "says")) == 3
    nothing = tmp_path / "numbers.parquet"
    pa.parquet.write_table(pa.table({"a": [1], "b": ["x"]}), nothing)
    assert "its columns are a, b; with images: none; give a dataset of images" in refusal(nothing)


def with_images(source, images):
    """What is in a Parquet file, with other things in the place of its images."""
    table = pa.parquet.read_table(source)
    place = table.schema.get_field_index("image")
    field = table.schema.field(place)
    return table.set_column(place, field, pa.array(images, type=field.type))


def test_rows_without_an_image_are_named(tmp_path, cache):
    images = [CONTENT[0], None, {"bytes": None, "path": "/photos/car.jpg"}, b"no image", CONTENT[1]]
    source = write_parquet(tmp_path / "cars.parquet", images=[CONTENT[0]] * 5, captions=["x"] * 5)
    stored = [image if isinstance(image, dict | None) else {"bytes": image, "path": None} for image in images]
    pa.parquet.write_table(with_images(source, stored), source)
    said = refusal(source)
    assert (
        "3 of 5 rows have no image in 'image' that can be read: row 1 (none), row 2 (only the path /photos/car.jpg,"
        in said
    )
    assert "row 3 (a text and no image: 'no image'); remove them" in said
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_postscript_is_no_image(tmp_path):
    source = write_parquet(tmp_path / "cars.parquet", images=[encoded("red", "EPS")], captions=["x"])
    assert "row 0 (a text and no image: '%!PS-Adobe-3.0" in refusal(source)


def test_suffixes_in_capitals(tmp_path, cache):
    source = write_parquet(tmp_path / "CARS.PARQUET")
    assert "`datasets` takes suffixes in lower case only; rename it to *.parquet" in refusal(source)
    assert "`datasets` cannot read it (" in refusal(tmp_path)


def test_rows_without_a_caption_are_named(tmp_path):
    source = write_parquet(tmp_path / "cars.parquet", captions=["a car", None, "  "])
    folder = open_photos(str(source), "image", "metadata").folder
    with pytest.raises(UserError, match=r"no caption for 00001\.jpg, 00002\.webp"):
        images.instance_examples(str(folder), "", "metadata")


def test_no_rows(tmp_path):
    dataset([], []).to_parquet(tmp_path / "a.parquet")
    assert "has no rows; give a dataset with 3 to 12 photos" in refusal(tmp_path / "a.parquet")


def test_captions_elsewhere_than_in_a_column(tmp_path):
    source = as_parquet(tmp_path / "a")
    assert "instance.captions='names' is for photos in a folder" in refusal(source, captions="names")
    assert "instance.captions='text' is for photos in a folder" in refusal(source, captions="text")


def test_the_split_for_training(tmp_path):
    write_parquet(tmp_path / "a" / "train.parquet")
    write_parquet(tmp_path / "a" / "test.parquet", images=[encoded("black")], captions=["x"])
    assert len(find_images(open_photos(str(tmp_path / "a"), "image").folder, "")) == 3
    (tmp_path / "a" / "train.parquet").unlink()
    assert len(find_images(open_photos(str(tmp_path / "a"), "image").folder, "")) == 1, "the only one"
    write_parquet(tmp_path / "a" / "validation.parquet")
    assert "has the splits validation, test and none is train; give the folder of one" in refusal(tmp_path / "a")


def cut(path, size=None):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if size is None else size])


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(("old", "line"), [("red sks car", 2), ("green sks car", 3), (" sks car", 2)])
def test_a_comma_in_a_table_is_named_by_its_line(tmp_path, old, line):
    """Where all rows have one more, pandas takes the first cell for an index."""
    source = as_csv(tmp_path / "table")
    edit(source / "metadata.csv", old, f"{old}, parked")
    with pytest.raises(
        UserError, match=rf"metadata\.csv, line {line}: 3 cells and 2 columns; put a value with a comma"
    ):
        open_photos(str(source), "image", "metadata")


@pytest.mark.parametrize(
    ("make", "harm"),
    [(as_parquet, lambda path: cut(path)), (as_parquet, lambda path: cut(path, 0)),
     (as_arrow, lambda path: cut(path, 200)), (as_saved, lambda path: (path / "state.json").write_text("[]")),
     (as_saved, lambda path: (path / "data-00001-of-00002.arrow").unlink()),
     (as_shards, lambda path: write_parquet(path / "data" / "train-00001-of-00003.parquet", image_column="other")),
     (as_table, lambda path: (path / "pictures" / "b.jpg").unlink()),
     (as_table, lambda path: (path / "metadata.jsonl").write_text('{"image": "pictures/a.jpg"}')),
     (as_csv, lambda path: (path / "metadata.jsonl").write_text('{"file_name": "pictures/a.jpg"}'))],
    ids=["half", "empty", "arrow", "state", "missing", "columns", "image", "table", "two tables"],
)  # fmt: skip
def test_what_the_library_cannot_read(make, harm, tmp_path, cache):
    source = make(tmp_path / "source")
    harm(source)
    assert refusal(source).startswith(f"instance.images={str(source)!r}")
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    source = as_parquet(tmp_path / "a")
    monkeypatch.setattr("hashlib.file_digest", refuse)
    assert "cars.parquet cannot be read (Permission denied); give files that this user may read" in refusal(source)


def test_paths_that_the_library_takes_for_patterns(tmp_path):
    assert "takes *, ? and [ in a path for patterns; rename the folder" in refusal(as_shards(tmp_path / "cars [1]"))


@pytest.mark.parametrize("name", ["../secret.png", "ABSOLUTE", "pictures/../../secret.png"])
def test_names_that_lead_elsewhere(name, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(CONTENT[0])
    name = str(secret) if name == "ABSOLUTE" else name
    folder = write_table(tmp_path / "table")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "x"}), encoding="utf-8")
    refusal(folder)
    source = write_parquet(tmp_path / "cars.parquet", images=CONTENT[:1], captions=["x"])
    pa.parquet.write_table(with_images(source, [{"bytes": None, "path": name}]), source)
    assert "row 0 (only the path" in refusal(source)


def test_other_files(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([1]))
    assert "is neither a folder nor a dataset; give a folder, a Parquet or Arrow file" in refusal(tmp_path / "a.pkl")
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
    assert len(find_images(folder, "instance.images")) == 3 and not (tmp_path / "canary").exists()
