"""A folder of everything a photo folder should not hold: read, refused by name or passed over, never a traceback."""

import logging
import os
import re
import subprocess
import sys
import warnings
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
from make_image_corpus import AVIF, HEIC, SIZE, THEMES, TURNS, make_image_corpus, picture
from waiting import PATIENCE_S

from booth.common.errors import UserError
from booth.data import images
from booth.data.image_file import load_image
from booth.data.image_folder import find_images, log_passed_over
from booth.data.images import Example, instance_examples, read_examples
from booth.data.inputs import Inputs
from booth.data.views import pixels, views
from booth.train.preparation import warn_if_small

FIELD = "instance.images"
NOT_AN_IMAGE = "no image in a format that can be read here; convert it to JPEG"
NO_HEIC = "begins as HEIF does, but is cut short" if HEIC else "HEIC, which pillow-heif reads: pip install pillow-heif"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("corpus") / "photos"


@pytest.fixture(scope="module")
def expected(folder):
    """File name -> Expectation. Tests must not write into the folder."""
    return make_image_corpus(folder)


@pytest.fixture(scope="module")
def to_be_read(folder, expected):
    """The images of the folder. What is expected to be passed over is not among them: a pipe would be waited at."""
    taken = [
        path for path in find_images(folder, FIELD) if expected[path.name].outcome not in ("passed over", "silent")
    ]
    assert len(taken) > 200
    return taken


@pytest.fixture(scope="module")
def alone(to_be_read):
    """File name -> what comes of reading that file and no other: an Example or an exception."""

    def read(path):
        try:
            return read_examples([path], "a photo", "instance", FIELD)[0]
        except Exception as error:
            return error

    return {path.name: read(path) for path in to_be_read}


@pytest.fixture(scope="module")
def examples(alone):
    return [result for result in alone.values() if isinstance(result, Example)]


def shown(name):
    """A file name as a message has it."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in name)


def reason(name, error):
    """Why a file was refused; fails unless the error is one line for a person, about that file."""
    assert type(error) is UserError, f"{name!r}: {error!r}"
    line = str(error)
    assert line.isprintable(), f"{line!r} holds what does more to a terminal than show"
    head, tail = (
        f"{FIELD}: 1 of 1 images cannot be read: {shown(name)} (",
        "); remove or replace what is named (no file is",
    )
    assert line.startswith(head) and tail in line, line
    said = line.removeprefix(head).partition(tail)[0]
    assert re.search("[a-z]{4}", said), f"{name!r}: no reason in {line!r}"
    return said


def centre(example, resolution, flip=False):
    """The pixels of the middle of an image, turned round or not."""
    return pixels(views(example, (resolution, resolution), "center", 1, flip, 0)[-1])


def test_the_corpus_has_at_least_200_files_and_every_theme(folder, expected):
    assert len(expected) >= 200
    assert {path.name for path in folder.iterdir()} == set(expected)
    count = Counter(expectation.theme for expectation in expected.values())
    assert set(count) == set(THEMES)
    for theme in ("truncated", "bit-flipped", "orientation", "name"):
        assert count[theme] >= 24, theme
    outcomes = Counter(expectation.outcome for expectation in expected.values())
    assert min(outcomes["read"], outcomes["refused"]) > 100 and min(outcomes["passed over"], outcomes["silent"]) > 5
    assert {theme for theme in THEMES if theme != "bit-flipped"} == {
        expectation.theme for expectation in expected.values() if expectation.outcome != "either"
    }


def test_the_corpus_is_the_same_each_time(folder, expected, tmp_path):
    again = make_image_corpus(tmp_path / "again")
    assert list(again) == list(expected)
    for name, expectation in expected.items():
        one, other = folder / name, tmp_path / "again" / name
        timed = name == "animated.avif"  # holds the time of its making
        if expectation.outcome in ("read", "either") and not timed and expectation.theme not in ("bomb", "unreadable"):
            assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.parametrize("theme", THEMES)
def test_every_file_alone_is_read_or_refused_with_a_reason(folder, expected, alone, theme):
    found = {path.name for path in find_images(folder, FIELD)}
    for name, expectation in expected.items():
        if expectation.theme != theme:
            continue
        if expectation.outcome in ("passed over", "silent"):
            assert name not in found
            continue
        result = alone[name]
        if isinstance(result, Example):
            assert expectation.outcome != "refused", f"{name!r} was read"
            assert result.path.name == name and min(result.size) > 0 and len(result.sha256) == 64
            assert expectation.size in (None, result.size) or expectation.outcome == "either", name
        else:
            said = reason(name, result)
            assert expectation.outcome != "read", f"{name!r} was refused: {said}"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty.jpg", "an empty file; copy it again"),
        ("a megabyte of nothing.jpg", "zeros in place of an image, which an interrupted copy leaves; copy it again"),
        ("heic phone.heic", NO_HEIC),
        ("heic phone.jpg", NO_HEIC),
        ("web page.jpg", "a text and no image: '<!DOCTYPE html>"),
        ("git-lfs.jpg", "a pointer of Git LFS in place of the image; fetch it with git lfs pull"),
        ("postscript.jpg", "a text and no image: '%!PS-Adobe-3.0"),  # not what Ghostscript, or its absence, has to say
        ("icon.png", NOT_AN_IMAGE),
        ("0 pixels.png", "begins as PNG does, but is cut short or damaged; copy it again"),
        ("float.tif", "float images are not supported"),
        ("32 bits.tif", "values beyond 16 bits are not supported"),
        ("below 0.tif", "values beyond 16 bits are not supported"),
        ("60 percent plain.bmp", "image file is truncated"),
        ("bomb that lies.png", "3,600,000,000 pixels, and at most 89,478,485 are read if it is not a JPEG; make it"),
        ("bomb of two colours.png", "144,000,000 pixels, and at most"),
        ("bomb.gif", "4,294,836,225 pixels, and at most"),
        ("bomb.jpg", "65500x65500 pixels would take too much memory; make it smaller"),
        ("photo and 4096 MiB of nothing.jpg", f"4294967296 bytes, and at most {2**29} are read"),
        ("link to nowhere.jpg", "No such file or directory"),
        ("link to itself.jpg", "Too many levels of symbolic links"),
        ("link to a name too long.jpg", "File name too long"),
    ],
)
def test_reasons(alone, name, said):
    assert reason(name, alone[name]).startswith(said) or said in str(alone[name])


def test_the_whole_folder_is_refused_once_and_for_all(folder, expected, to_be_read, alone, caplog):
    assert set(find_images(folder, FIELD)) == set(to_be_read)
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.INFO, logger="booth"):
        warnings.simplefilter("always")
        with pytest.raises(UserError) as caught:
            instance_examples(str(folder), "a photo")
    line = str(caught.value)
    assert line.isprintable()
    bad = [f"{shown(name)} ({reason(name, error)})" for name, error in alone.items() if isinstance(error, Exception)]
    fine = [shown(name) for name, result in alone.items() if isinstance(result, Example)]
    assert line == (
        f"{FIELD}: {len(bad)} of {len(to_be_read)} images cannot be read: {', '.join(bad)}; remove or replace what is"
        f" named (the other {len(fine)} are fine: {', '.join(fine)})"
    )
    passed_over = sorted(shown(name) for name, file in expected.items() if file.outcome == "passed over")
    assert caplog.messages == [f"{FIELD}: ignored, since they are not images: {', '.join(passed_over)}"]
    assert caplog.messages[0].isprintable()
    assert not warned, "none of them would say which file it is about"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AssertionError(), "cannot be decoded: AssertionError"),
        (KeyError(41), "cannot be decoded: KeyError 41"),
        (MemoryError(), "there is too little memory to read it; make it smaller"),
        (SyntaxError("broken\x1b[2J\nfile"), r"broken\x1b[2J file"),
        (OSError(5, "Input/output error", "photo.jpg"), "Input/output error"),
    ],
    ids=ascii,
)
def test_no_error_of_a_decoder_is_without_words(tmp_path, monkeypatch, error, said):
    def fail(path):
        raise error

    monkeypatch.setattr(images, "load_image", fail)
    with pytest.raises(UserError) as caught:
        read_examples([tmp_path / "photo.jpg"], "a photo", "instance", FIELD)
    assert reason("photo.jpg", caught.value) == said


@pytest.mark.parametrize(
    ("name", "said"),
    [(name, name) for name in ("Größe 3", "犬", "🐕", 'the "dog"', "back\\slash", "%s %d %(name)s", "two  spaces")]
    + [
        ("new\nline", r"new\nline"),
        ("tab\t", r"tab\t"),
        ("\x7f", r"\x7f"),
        ("C1 \x9b31m", r"C1 \x9b31m"),
        ("esc\x1b[31mred\x1b]0;title\x07", r"esc\x1b[31mred\x1b]0;title\x07"),
        ("bidi \u202egpj", r"bidi \u202egpj"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
    ],
    ids=ascii,
)
def test_names_are_readable_and_harmless(alone, name, said):
    assert f" cannot be read: bad {said}.png (" in str(alone[f"bad {name}.png"])


def test_the_warning_about_small_images_is_printable(examples, caplog):
    inputs = Inputs(None, None, examples, (), ((4096, 4096),))
    with caplog.at_level(logging.WARNING, logger="booth"):
        warn_if_small(examples, inputs)
    assert len(caplog.messages) == 1 and caplog.messages[0].isprintable()
    assert "esc\\x1b[31mred" in caplog.messages[0] and "Größe 3.png (48x32)" in caplog.messages[0]


def test_what_is_readable_becomes_tensors(examples):
    """The largest of them in one view only."""
    for example in examples:
        largest = max(example.size) > 1000
        crop, variants = ("center", 1) if largest else ("random", 2)
        for view in views(example, (24, 24), crop, variants, not largest, 7):
            got = pixels(view)
            assert got.dtype == np.float32 and got.shape == (24, 24, 3), example.path
            assert -1 <= got.min() <= got.max() <= 1, example.path


@pytest.mark.parametrize("theme", THEMES)
def test_what_is_known_of_an_image_is_what_is_read(folder, expected, theme):
    for name, known in expected.items():
        if known.theme == theme and known.truth is not None:
            got = np.asarray(load_image(folder / name), np.float64)
            assert got.shape == known.truth.shape, name
            assert np.abs(got - known.truth).max() <= known.tolerance, name


def test_sixteen_bits_are_right_within_one_in_255(expected, examples):
    checked = 0
    for example in examples:
        known, (left, side) = expected[example.path.name], ((SIZE[0] - SIZE[1]) // 2, SIZE[1])
        if known.theme == "16 bits":
            got = (centre(example, side) + 1) / 2
            assert np.abs(got - known.truth[:, left : left + side] / 255).max() <= 1 / 255, example.path
            assert len(np.unique(got)) > 128, example.path
            checked += 1
    assert checked >= 10


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize(("resolution", "flip"), [(32, False), (32, True), (20, False)])
def test_eight_orientations_are_one_tensor(alone, suffix, resolution, flip):
    upright = centre(alone["RGB.png"], resolution, flip)
    for orientation in TURNS:
        got = centre(alone[f"orientation {orientation}.{suffix}"], resolution, flip)
        assert np.array_equal(got, upright), orientation


@pytest.mark.parametrize(
    "suffix",
    ["jpg", pytest.param("avif", marks=pytest.mark.skipif(not AVIF, reason="no AVIF")),
     pytest.param("heic", marks=pytest.mark.skipif(not HEIC, reason="no pillow-heif"))],
)  # fmt: skip
def test_eight_orientations_of_a_lossy_file_are_nearly_one_tensor(alone, suffix):
    upright = centre(alone["RGB.png"], 32)
    turned = [centre(alone[f"orientation {orientation}.{suffix}"], 32) for orientation in TURNS]
    assert max(np.abs(got - upright).max() for got in turned) <= 4 / 127.5, "what the encoder loses"
    assert np.abs(upright - upright[::-1]).max() > 1, "and a wrong turn would be far off"
    assert np.abs(np.asarray(picture(), np.float32)[:, 8:40] / 127.5 - 1 - upright).max() < 1e-6


def test_transparency_of_one_deep_value_is_of_that_value_only(alone):
    """256 deep values are one grey of 8 bits, and 255 of them are opaque."""
    white = (np.asarray(load_image(alone["16 bits one value transparent.png"].path)) == 255).all(axis=-1)
    opaque = (np.asarray(load_image(alone["16 bits grey.png"].path)) == 255).all(axis=-1)
    assert (white & ~opaque).sum() == 1


@contextmanager
def as_nobody():
    """Without the superuser's right to read everything."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65534)
    except OSError:
        pytest.skip("the superuser, and cannot step down")
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read_is_refused_by_name(tmp_path, monkeypatch):
    for name in ("fine.png", "unreadable.png"):
        picture().save(tmp_path / name)
    (tmp_path / "unreadable.png").chmod(0)
    (tmp_path / "locked").mkdir()
    (tmp_path / "far.jpg").symlink_to("locked/photo.jpg")
    load_image(tmp_path / "fine.png")  # what PIL imports on first use may lie where nobody may look
    tmp_path.chmod(0o755)
    (tmp_path / "locked").chmod(0)
    monkeypatch.chdir(tmp_path)  # the folders above are closed to others
    try:
        with as_nobody():
            with pytest.raises(UserError) as refused:
                instance_examples(".", "a photo")
            with pytest.raises(UserError) as locked:
                find_images("locked", FIELD)
            with pytest.raises(UserError):
                log_passed_over("locked", FIELD)
    finally:
        (tmp_path / "locked").chmod(0o755)
    assert str(refused.value) == (
        f"{FIELD}: 2 of 3 images cannot be read: far.jpg (Permission denied), unreadable.png (Permission denied);"
        " remove or replace what is named (the other 1 are fine: fine.png)"
    )
    assert str(locked.value) == (
        f"{FIELD}='locked' cannot be read: Permission denied; give a folder that this user may read"
    )


@pytest.mark.parametrize("name", ["x" * 300, "esc\x1b[31mred\nline", os.fsdecode(b"caf\xe9"), "NUL\0"])
def test_a_folder_of_an_impossible_name(tmp_path, name):
    with pytest.raises(UserError) as caught:
        find_images(tmp_path / name, FIELD)
    assert str(caught.value).isprintable() and str(caught.value).startswith(f"{FIELD}={str(tmp_path / name)!r} ")


READ_ALL = """
import sys
from booth.data import images
from booth.common.errors import UserError
from booth.data.image_folder import find_images
from booth.data.views import pixels, views

def peak():  # MiB. Of ru_maxrss a process inherits its parent's, which may be anything in the middle of tests
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) // 1024

def read(paths):
    for path in paths:
        try:
            (example,) = images.read_examples([path], "a photo", "instance", "instance.images")
        except UserError:
            continue
        if max(example.size) < 1000:
            pixels(views(example, (24, 24), "center", 1, False, 0)[0])

paths = find_images(sys.argv[1], "instance.images")
huge = [path for path in paths if path.name.startswith("huge")]
read(path for path in paths if path.name == "RGB.png")  # the modules that come with the first image
start = peak()
read(path for path in paths if path not in huge)
print(peak() - start)
read(huge)
print(peak() - start)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak is asked of Linux")  # noqa: PTH110
def test_memory_is_bounded(folder, expected):
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(folder)], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    small, huge = map(int, done.stdout.split())
    assert small < 40, f"{small} MiB: measured are 20, for bombs, and a file of 64 MiB was not read at once"
    assert huge < 550, f"{huge} MiB: measured are 275, which is 8 bytes for each of 36 million pixels"
