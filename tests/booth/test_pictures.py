"""Grids of images with captions."""

import numpy as np
import pytest

from booth.data.pictures import grid, labelled_rows

RED, GREEN, BLUE = (np.array(colour, np.uint8) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250)))


def flat(colour, width=256, height=256):
    return np.broadcast_to(colour, (height, width, 3)).copy()


def where(picture, colour):
    """(left, top, right, bottom) of the pixels of a colour."""
    rows, columns = np.nonzero((np.asarray(picture) == colour).all(axis=-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_images_go_row_by_row():
    picture = grid([flat(RED), flat(GREEN), flat(BLUE)], ["a", "b", "c"], columns=2)
    red, green, blue = (where(picture, colour) for colour in (RED, GREEN, BLUE))
    assert red[2] - red[0] == green[3] - green[1] == blue[2] - blue[0] == 256
    assert red[1] == green[1] and green[0] > red[2] and blue[0] == red[0] and blue[1] > red[3]
    assert picture.size[0] >= green[2] and picture.size[1] > blue[3]


def test_captions_are_written_below_their_image():
    def ink(captions):
        picture = np.asarray(grid([flat(RED), flat(GREEN)], captions, columns=2))
        below = picture[where(picture, RED)[3] :]
        half = below.shape[1] // 2
        return [(255 - part.astype(int)).sum() for part in (below[:, :half], below[:, half:])]

    assert ink(["", ""]) == [0, 0]
    left, right = ink(["a photo of sks robot", ""])
    assert left > 1000 and right == 0
    assert ink(["", "a photo of sks robot"])[1] > 1000


def test_a_long_caption_is_wrapped_into_its_column():
    caption = "a photo of sks robot on the beach under the sun beside a red tower " * 3
    picture = np.asarray(grid([flat(RED), flat(GREEN)], [caption, ""], columns=2))
    below = picture[where(picture, RED)[3] :]
    assert below.shape[0] > 100, "several lines"
    assert (below[:, where(picture, GREEN)[0] :] == 255).all(), "nothing under the neighbour"


@pytest.mark.parametrize(("width", "height"), [(64, 64), (8, 16), (96, 64), (512, 256)])
def test_small_images_are_enlarged_by_whole_numbers(width, height):
    image = np.random.default_rng(0).integers(0, 200, (height, width, 3), np.uint8)
    picture = np.asarray(grid([image], ["a"], columns=1))
    scale = max(1, -(-192 // width))
    top, left = 8, 8
    shown = picture[top : top + height * scale, left : left + width * scale]
    assert np.array_equal(shown, image.repeat(scale, axis=0).repeat(scale, axis=1))


@pytest.mark.parametrize("caption", ["", "犬 🐕 Größe", "one\ntwo\tthree", "x" * 300])
def test_any_caption(caption):
    assert grid([flat(RED, 64, 64)], [caption], columns=1).size[0] == 208


def test_labelled_rows_go_one_below_the_other():
    picture = labelled_rows([("one", [flat(RED)]), ("two", [flat(GREEN), flat(BLUE)])])
    red, green, blue = (where(picture, colour) for colour in (RED, GREEN, BLUE))
    assert red[0] == green[0] and green[1] == blue[1] and blue[0] > green[2] and green[1] > red[3]
    assert all(right - left == bottom - top == 256 for left, top, right, bottom in (red, green, blue))
    assert picture.size[0] > blue[2] and picture.size[1] > blue[3]


def test_a_row_has_its_label_above_it():
    def ink(*labels):
        picture = np.asarray(labelled_rows([(label, [flat(RED), flat(RED)]) for label in labels])).astype(int)
        rows = np.flatnonzero((picture == RED).all(axis=-1).any(axis=1))
        between = np.flatnonzero(np.diff(rows) > 1)[0]
        return [(255 - part).sum() for part in (picture[: rows[0]], picture[rows[between] + 1 : rows[between + 1]])]

    assert ink("", "") == [0, 0]
    upper, lower = ink("base: a photo", "")
    assert upper > 1000 and lower == 0
    upper, lower = ink("", "tuned: a photo")
    assert upper == 0 and lower > 1000
    assert ink("", "tuned: a photo on the beach " * 6)[1] > 4 * lower, "wrapped, not cut"


@pytest.mark.parametrize(("width", "scale"), [(64, 2), (40, 4), (128, 1), (512, 1)])
def test_small_images_in_rows_are_enlarged_by_whole_numbers(width, scale):
    image = np.random.default_rng(0).integers(0, 200, (32, width, 3), np.uint8)
    picture = np.asarray(labelled_rows([("", [image])]))
    shown = picture[-8 - 32 * scale : -8, 8 : 8 + width * scale]
    assert np.array_equal(shown, image.repeat(scale, axis=0).repeat(scale, axis=1))
