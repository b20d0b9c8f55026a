"""Photos as people have them: turned, transparent, 16 bits deep, broken, huge, oddly named."""

import hashlib
import logging
import struct
import subprocess
import sys
import unicodedata
import zlib

import numpy as np
import pytest
from photo_files import picture
from PIL import Image
from waiting import PATIENCE_S

from booth.common.errors import UserError
from booth.data import image_file
from booth.data.image_file import load_image
from booth.data.image_folder import find_images
from booth.data.images import instance_examples, read_examples


def array(path):
    return np.asarray(load_image(path))


def one_example(path):
    return read_examples([path], "a photo", "instance", "instance.images")[0]


def message(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What a camera held that way has done to the upright picture before it wrote the tag.
TURNS = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_270}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation(save, orientation):
    turn, exif = TURNS[orientation], Image.Exif()
    exif[0x0112] = orientation
    stored = picture() if turn is None else picture().transpose(turn)
    path = save("photo.png", stored, exif=exif)
    assert np.array_equal(array(path), np.asarray(picture()))
    assert one_example(path).size == (60, 40), "the size after turning"
    assert orientation == 1 or not np.array_equal(np.asarray(stored), np.asarray(picture()))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_grey(save, suffix):
    gradient = np.linspace(0, 65535, 256 * 4).reshape(4, 256).astype(np.uint16)
    got = array(save(f"deep.{suffix}", Image.fromarray(gradient)))
    wanted = gradient / 65535 * 255
    assert np.abs(got - wanted[..., None]).max() <= 1
    assert got.min() == 0 and got.max() == 255 and len(np.unique(got)) == 256


def test_sixteen_bit_grey_as_older_files_are_opened(save):
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.int32)
    got = array(save("deep.tiff", Image.fromarray(values)))
    assert np.abs(got - (values / 65535 * 255)[..., None]).max() <= 1


def test_transparency_is_laid_on_white(save):
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[..., 0] = 200  # red, also where nothing is to be seen
    rgba[..., 3] = [0, 0, 128, 128, 255, 255]
    got = array(save("cut-out.png", Image.fromarray(rgba)))
    assert (got[:, :2] == 255).all(), "fully transparent is white, whatever colour is stored there"
    assert (got[:, 4:] == [200, 0, 0]).all()
    assert np.abs(got[:, 2:4].astype(int) - [227, 127, 127]).max() <= 1


def test_transparent_grey_and_palette(save):
    grey = Image.merge("LA", [Image.new("L", (4, 4), 0), Image.new("L", (4, 4), 0)])
    assert (array(save("grey.png", grey)) == 255).all()
    indexed = Image.new("P", (4, 4), 1)
    indexed.putpalette([0, 0, 0, 10, 20, 30])
    assert (array(save("opaque.png", indexed)) == [10, 20, 30]).all()
    assert (array(save("transparent.png", indexed, transparency=1)) == 255).all()
    assert (array(save("key.png", Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))) == 255).all()


def test_grey_and_cmyk_and_two_colours(save):
    grey = picture().convert("L")
    assert np.array_equal(array(save("grey.jpg", grey, quality=100)), np.repeat(np.asarray(
        Image.open(save("same.jpg", grey, quality=100)))[..., None], 3, axis=-1))  # fmt: skip
    cyan = array(save("print.jpg", Image.new("CMYK", (16, 16), (255, 0, 0, 0)), quality=100))
    assert cyan[..., 0].max() < 10 and cyan[..., 1:].min() > 245
    assert (array(save("fax.png", Image.new("1", (4, 4), 1))) == 255).all()


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_the_first_frame_of_an_animation(save, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(f"moving.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
    assert (array(path) == [255, 0, 0]).all()


def test_what_cannot_be_read_is_named_and_the_rest_listed_as_fine(save, tmp_path):
    for name in ("good.png", "also good.jpg"):
        save(name, picture())
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "cut.jpg").write_bytes(save("whole.jpg", picture()).read_bytes()[:-50])
    paths = [path for path in find_images(tmp_path, "instance.images") if path.name != "whole.jpg"]
    said = message(read_examples, paths, "a photo", "instance", "instance.images")
    assert said.startswith("instance.images: 4 of 6 images cannot be read: ")
    refused, _, fine = said.partition("; remove or replace what is named ")
    assert fine == "(the other 2 are fine: also good.jpg, good.png)"
    assert "empty.jpg (an empty file; copy it again)" in refused
    assert "text.png (a text and no image: 'this is no picture')" in refused
    assert "phone.heic (" in refused
    assert "cut.jpg (" in refused and "truncated" in refused


def test_a_link_to_nowhere_is_named(save, tmp_path):
    save("photo.png", picture())
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "unplugged" / "gone.jpg")
    said = message(instance_examples, str(tmp_path), "a photo")
    assert "1 of 2 images cannot be read: gone.jpg (" in said and "No such file" in said


def test_float_pixels_are_refused_by_name(save):
    path = save("float.tiff", Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)))
    said = message(instance_examples, str(path.parent), "a photo")
    assert "float.tiff (float images are not supported; convert to 8 or 16 bit)" in said


def test_what_is_passed_over_is_named_once(save, tmp_path, caplog):
    save("photo.jfif", picture(), format="JPEG")
    for name in ("1.txt", "metadata.JSON", "Thumbs.db", ".hidden.raw", "captions.csv"):
        (tmp_path / name).touch()
    with caplog.at_level(logging.INFO, logger="booth"):
        assert [found.path.name for found in instance_examples(str(tmp_path), "a photo")] == ["photo.jfif"]
        assert not caplog.records
        (tmp_path / "raw.cr2").touch()
        (tmp_path / "more").mkdir()
        instance_examples(str(tmp_path), "a photo")
    assert caplog.messages == ["instance.images: ignored, since they are not images: more, raw.cr2"]


def test_an_unreadable_folder_of_one(tmp_path):
    (tmp_path / "photo.jpg").touch()
    assert message(instance_examples, str(tmp_path), "a photo").endswith("(no file is readable)")


def test_a_decompression_bomb_is_refused(tmp_path):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    said = message(instance_examples, str(tmp_path), "a photo")
    assert "bomb.png" in said and "900,000,000 pixels, and at most" in said and "attack" not in said


def test_a_smaller_bomb_is_no_mere_warning(save, monkeypatch):
    path = save("big.png", picture())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 40 - 1)
    with pytest.raises(
        ValueError, match="2,400 pixels, and at most 2,399 are read if it is not a JPEG; make it smaller"
    ):
        load_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_a_large_jpeg_is_read_at_a_part_of_its_size(save, monkeypatch, caplog, kind, orientation):
    """As little less as possible: a half here, a quarter of twice as many pixels in each direction, and so on."""
    turn, exif = TURNS[orientation], Image.Exif()
    exif[0x0112] = orientation
    upright = picture(600, 400)
    stored = upright if turn is None else upright.transpose(turn)
    options = {"save_all": True, "append_images": [stored]} if kind == "MPO" else {}
    path = save("photo.jpg", stored, format=kind, quality=95, exif=exif, **options)
    whole = np.asarray(load_image(path))
    assert whole.shape == (400, 600, 3)
    for factor, most in ((2, 600 * 400 - 1), (2, 600 * 400 // 4), (4, 600 * 400 // 4 - 1), (8, 600 * 400 // 64)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with caplog.at_level(logging.INFO, "booth"):
            example = one_example(path)
        assert example.size == (600 // factor, 400 // factor)
        wanted = np.asarray(upright.resize(example.size, Image.Resampling.BOX), np.float32)
        assert np.abs(array(path) - wanted).mean() < 3
        shown = f"photo.jpg (1/{factor}: {example.size[0]}x{example.size[1]})"
        assert caplog.messages[-1] == f"instance.images: large JPEGs are read at a reduced size: {shown}"
    assert example.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600 * 400 // 64 - 1)
    assert "pixels would take too much memory; make it smaller" in message(one_example, path)


def test_what_a_large_jpeg_may_take_is_bounded(save, monkeypatch):
    """Also of one that is decoded in several passes, for which all of it is held at once."""
    path = save("photo.jpg", picture(600, 400), progressive=True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600 * 400 // 4)
    whole = 2 * 3 * 600 * 400
    for most, size in ((whole + 8 * 300 * 200, (300, 200)), (whole + 8 * 300 * 200 - 1, (150, 100))):
        monkeypatch.setattr(image_file, "MOST_MEMORY", most)
        assert load_image(path).size == size
    monkeypatch.setattr(image_file, "MOST_MEMORY", whole)
    with pytest.raises(ValueError, match=r"^600x400 pixels would take too much memory; make it smaller$"):
        load_image(path)


def test_heic_needs_an_extra(tmp_path):
    """In a process of its own, as what PIL has learned it keeps."""
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(80))
    code = (
        "import sys; from pathlib import Path; sys.modules['pillow_heif'] = None\n"
        "from booth.data.images import read_examples\n"
        "read_examples([Path(sys.argv[1])], '', 'instance', 'instance.images')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "phone.jpg")], capture_output=True, text=True, timeout=PATIENCE_S
    )
    line = done.stderr.splitlines()[-1]
    assert "phone.jpg (HEIC, which pillow-heif reads: pip install pillow-heif, the [heic] extra; or convert" in line


def test_two_names_that_are_one(save):
    for form in ("NFC", "NFD"):
        path = save(unicodedata.normalize(form, "é.png"), picture(8, 8))
    if len(find_images(path.parent, "instance.images")) == 1:
        pytest.skip("they are one to this file system too")
    said = message(instance_examples, str(path.parent), "a photo")
    assert said.startswith("instance.images: two files are named é.png, in two forms of Unicode; rename or remove one")


def test_a_folder_copied_from_a_mac_is_the_same(save, tmp_path):
    """In order and names: what a run remembers of its photos."""
    names = ["ä 2.png", "b.png", "ä 10.png", "a.png"]
    seen = {}
    for form in ("NFC", "NFD"):
        folder = tmp_path / form
        folder.mkdir()
        for name in names:
            picture(8, 8).save(folder / unicodedata.normalize(form, name))
        seen[form] = [example.name for example in instance_examples(str(folder), "a photo")]
    assert seen["NFC"] == seen["NFD"] == ["a.png", "b.png", "ä 2.png", "ä 10.png"]


def test_images_in_folders_are_not_lost_without_a_word(save, tmp_path, caplog):
    (tmp_path / "extra").mkdir()
    (tmp_path / "notes").mkdir()
    save("extra/1.png", picture(8, 8))
    said = message(instance_examples, str(tmp_path), "a photo")
    assert "holds no images; folders in it do: extra (1); give one of them, or put all photos into one" in said
    save("1.png", picture(8, 8))
    with caplog.at_level(logging.WARNING, "booth"):
        instance_examples(str(tmp_path), "a photo")
    assert caplog.messages == ["instance.images: the images in these folders are ignored: extra (1)"]


def test_natural_order_and_unicode_names(save, tmp_path):
    names = [
        "2.png",
        "10.png",
        "Größe 3.png",
        "größe 20.png",
        "²1.png",
        "犬 \u0663.png",
        "犬 \u0661\u0660.png",
        "🐕.png",
    ]
    for name in reversed(names):
        save(name, picture(8, 8))
    found = [path.name for path in find_images(tmp_path, "instance.images")]
    assert sorted(found) == sorted(names)
    for earlier, later in (
        ("2.png", "10.png"),
        ("Größe 3.png", "größe 20.png"),
        ("犬 \u0663.png", "犬 \u0661\u0660.png"),
    ):
        assert found.index(earlier) < found.index(later)
    assert [e.path.name for e in instance_examples(str(tmp_path), "a photo")] == found


def test_example_says_what_training_needs(save):
    got = instance_examples(str(save("photo.jpg", picture()).parent), "a photo of sks dog")[0]
    assert (got.caption, got.kind, got.size) == ("a photo of sks dog", "instance", (60, 40))
    assert len(got.sha256) == 64


def test_no_images(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / ".hidden.png").touch()
    said = message(instance_examples, str(tmp_path), "a photo")
    assert said.startswith(f"instance.images={str(tmp_path)!r} holds no images; put 3 to 12 photos there")


def test_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "absent", tmp_path / "file"):
        assert message(instance_examples, str(path), "a photo").startswith(
            f"instance.images={str(path)!r} is not a fold"
        )
