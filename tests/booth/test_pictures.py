"""Grids of images with captions."""

import numpy as np
import pytest

from booth.pictures import grid

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
