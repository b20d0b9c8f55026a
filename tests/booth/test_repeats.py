"""Folders named as kohya's scripts want them: `10_sks dog`."""

import pytest

from booth.common.errors import UserError
from booth.data.kohya_folders import Subfolder, may_be_an_order, repeated_folders


@pytest.fixture
def make(tmp_path):
    """Makes a folder with files of these names."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        return tmp_path

    return make


def refusal(folder):
    with pytest.raises(UserError) as caught:
        repeated_folders(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_repeats_and_words(make):
    folder = make(
        "10_sks dog/1.png", "2_a sks dog, in  snow/1.jpg", "2_a sks dog, in  snow/1.txt", "notes/1.png", "log.txt"
    )
    assert repeated_folders(folder) == [
        Subfolder(folder / "2_a sks dog, in  snow", 2, "a sks dog, in snow"),
        Subfolder(folder / "10_sks dog", 10, "sks dog"),
    ]
    assert repeated_folders(str(folder)) == repeated_folders(folder)


def test_words_with_underscores(make):
    (sub,) = repeated_folders(make("3_sks_dog/1.png"))
    assert (sub.repeats, sub.words) == (3, "sks_dog")


@pytest.mark.parametrize(
    "names", [["1.png"], ["photos/1.png", "sks_dog/1.png", "10dog/1.png", ".10_dog/1.png"], [], ["10_dog.png"],
              ["1.png", "10_ideas/notes.txt"], ["1.png", "01_front/1.png"], ["01_front/notes.txt"]]
)  # fmt: skip
def test_other_folders(make, names):
    assert repeated_folders(make(*names)) == []


def test_no_folder(tmp_path):
    assert repeated_folders(tmp_path / "nowhere") == []
    (tmp_path / "file").write_bytes(b"")
    assert repeated_folders(tmp_path / "file") == []


@pytest.mark.parametrize(
    ("names", "said"),
    [(["0_sks dog/1.png"], "the folder '0_sks dog' asks for 0 repeats; from 1 to 1000 are possible"),
     (["2024_holiday/1.png"], "asks for 2024 repeats"),
     (["10_/1.png"], "the folder '10_' has no words after its repeats; name it like '10_sks dog'"),
     (["10_sks dog/notes.txt"], "the folder '10_sks dog' holds no images; put the photos there, or take it away"),
     (["10_sks dog/1.png", "5_sks dog/.DS_Store"], "the folder '5_sks dog' holds no images"),
     (["01_front/1.png", "02_side/1.png"], "the numbers of 01_front, 02_side are no repeats, as they begin with 0"),
     (["5_sks dog/1.png", "00_more/1.png"], "the numbers of 00_more are no repeats, as they begin with 0; put all"),
     (["10_sks dog/1.png", "10_sks dog/5_sks dog/1.png"], "has folders with repeats in it (5_sks dog); move them one"),
     (["2_all/10_sks dog/1.png"], "has folders with repeats in it (10_sks dog); move them one level up"),
     (["0.png", "10_sks dog/1.png"], "holds images (0.png) and folders with repeats (10_sks dog); move the images")],
)  # fmt: skip
def test_refusals(make, names, said):
    folder = make(*names)
    assert said in refusal(folder) and refusal(folder).startswith("instance.images")


def test_a_folder_that_cannot_be_read(make, monkeypatch):
    folder = make("10_sks dog/1.png")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    assert "cannot be read: Permission denied; give a folder that this user may read" in refusal(folder)


def test_strange_names_are_one_line(make):
    folder = make("10_\x1b[31m\n/notes.txt")
    assert "\x1b" not in refusal(folder) and "\\x1b[31m\\n" in refusal(folder)


def test_images_that_do_not_count(make):
    """As class images that we made beside kohya's folders."""
    folder = make("class-00000.png", "1_dog/1.png")
    (sub,) = repeated_folders(folder, but=[folder / "class-00000.png"])
    assert sub.path == folder / "1_dog"
    assert "holds images (class-00000.png)" in refusal(folder)


@pytest.mark.parametrize(
    ("names", "expected"),
    [("1_front 2_side 3_back", True), ("1_front 2_side", True), ("2_dog 3_cat", False), ("1_dog", False),
     ("1_dog 1_cat", False), ("1_dog 10_cat", False)],
)  # fmt: skip
def test_numbers_that_may_be_an_order(make, names, expected):
    assert may_be_an_order(repeated_folders(make(*(f"{name}/1.png" for name in names.split())))) is expected
