"""How images are shown: sizes, crops and flips, and the pixels of each view."""

import numpy as np
import pytest
from photo_files import picture
from PIL import Image

from booth.data.images import read_examples
from booth.data.views import View, bucket_sizes, covering, nearest, pixels, views


def one_example(path):
    return read_examples([path], "a photo", "instance", "instance.images")[0]


def test_the_range_is_minus_one_to_one(save):
    black_and_white = Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 8, axis=0).repeat(8, axis=1))
    got = pixels(View(one_example(save("bw.png", black_and_white)), (8, 8), 4, 0, False))
    assert got.dtype == np.float32 and got.shape == (8, 8, 3)
    assert got.min() == -1.0 and got.max() == 1.0
    assert (got[:, :4] == -1).all() and (got[:, 4:] == 1).all()


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (64, 64), (90, 64), (33, 57), (640, 641)])
@pytest.mark.parametrize("crop", ["center", "random", "focal"])
def test_views_show_what_resizing_and_cropping_would(save, size, crop):
    path = save("photo.png", picture(*size))
    whole = (
        np.asarray(picture(*size).resize(covering(size, (64, 64)), Image.Resampling.LANCZOS), np.float32) / 127.5 - 1
    )
    for view in views(one_example(path), (64, 64), crop, 3, True, 0):
        shown = whole[view.top : view.top + 64, view.left : view.left + 64]
        assert shown.shape == (64, 64, 3), "the crop lies inside the picture"
        shown = shown[:, ::-1] if view.flip else shown
        assert np.abs(pixels(view) - shown).max() < 2.01 / 127.5, "but for the rounding of the passes"


def test_the_centre_crop(save):
    (view,) = views(one_example(save("wide.png", picture(200, 100))), (50, 50), "center", 4, False, 0)
    assert (view.left, view.top, view.flip) == (25, 0, False)
    (view,) = views(one_example(save("tall.png", picture(100, 201))), (50, 50), "center", 4, False, 0)
    assert (view.left, view.top) == (0, 25)


def test_covering_keeps_the_aspect_ratio():
    assert covering((200, 100), (64, 64)) == (128, 64)
    assert covering((100, 300), (64, 64)) == (64, 192)
    assert covering((3, 3), (64, 64)) == (64, 64)
    assert covering((101, 67), (64, 64)) == (96, 64)


def test_random_crops_come_from_a_fixed_set_of_the_image_itself(save, tmp_path):
    def crops(path, seed=0):
        return [(view.left, view.top) for view in views(one_example(path), (64, 64), "random", 6, False, seed)]

    one = crops(save("one.png", picture(300, 64)))
    assert len(one) == 6 and len(set(one)) > 3 and all(0 <= left <= 236 and top == 0 for left, top in one)
    other = crops(save("other.png", picture(301, 64)))
    (tmp_path / "one.png").rename(tmp_path / "renamed.png")
    assert crops(tmp_path / "renamed.png") == one, "neither the name nor other files in the folder matter"
    assert other != one and crops(tmp_path / "renamed.png", seed=1) != one


def test_random_crops_of_a_square_are_one_view(save):
    assert len(views(one_example(save("square.png", picture(80, 80))), (64, 64), "random", 6, False, 0)) == 1


def test_a_flip_doubles_the_views(save):
    shown = views(one_example(save("photo.png", picture(90, 64))), (64, 64), "center", 1, True, 0)
    assert [view.flip for view in shown] == [False, True]
    assert np.array_equal(pixels(shown[1]), pixels(shown[0])[:, ::-1])
    assert not np.array_equal(pixels(shown[1]), pixels(shown[0]))


@pytest.mark.parametrize("size", [(4000, 1), (1, 4000), (2, 1999), (1, 1)])
@pytest.mark.parametrize("crop", ["center", "random", "focal"])
def test_extreme_aspect_ratios(save, size, crop):
    """Enlarged as a whole, the first would have 400 million pixels."""
    for view in views(
        one_example(save("strip.png", Image.new("RGB", size, (9, 90, 200)))), (320, 320), crop, 3, True, 5
    ):
        got = pixels(view)
        assert got.shape == (320, 320, 3)
        assert np.abs((got + 1) * 127.5 - [9, 90, 200]).max() < 0.01


# What the published lists of buckets have for 512 and 1024 pixels, steps of 64: arXiv 2307.01952, appendix I.
def test_buckets_of_the_resolutions_area():
    sizes = bucket_sizes(["auto"], 512, 64)
    assert sizes[0] == (256, 1024) and (512, 512) in sizes and (448, 576) in sizes and (576, 448) in sizes
    assert all(width * height <= 512**2 and width % 64 == height % 64 == 0 for width, height in sizes)
    assert all(width * (height + 64) > 512**2 or height == 1024 for width, height in sizes), "none could be longer"
    large = bucket_sizes(["auto"], 1024, 64)
    assert {(1024, 1024), (896, 1152), (1152, 896), (832, 1216), (1216, 832), (768, 1344)} <= set(large)


def test_listed_buckets_and_none():
    assert bucket_sizes([], 96, 16) == ((96, 96),)
    assert bucket_sizes(["64x96", "96x64", "64x96"], 64, 16) == ((64, 96), (96, 64))
    assert bucket_sizes(["auto"], 16, 64) == (), "smaller than any size the model takes"


def test_the_nearest_bucket_is_that_of_the_nearest_ratio():
    sizes = [(512, 512), (448, 576), (576, 448), (384, 640)]
    assert nearest((3000, 4000), sizes) == (448, 576)
    assert nearest((4000, 3000), sizes) == (576, 448)
    assert nearest((1000, 1050), sizes) == (512, 512)
    assert nearest((10, 4000), sizes) == (384, 640)
    assert nearest((100, 100), [(64, 64), (128, 128)]) == (128, 128), "of two squares the larger"


@pytest.mark.parametrize(("photo", "size"), [((300, 400), (48, 64)), ((301, 397), (64, 48)), ((64, 64), (48, 80))])
def test_no_view_is_distorted(save, photo, size):
    """A circle stays one in every bucket."""
    x, y = np.meshgrid(*(np.arange(side) - (side - 1) / 2 for side in photo))
    disc = Image.fromarray(np.where(x**2 + y**2 <= (0.3 * min(photo)) ** 2, 255, 0).astype(np.uint8))
    (view,) = views(one_example(save("disc.png", disc)), size, "center", 1, False, 0)
    shown = pixels(view)
    assert shown.shape == (size[1], size[0], 3)
    inside = shown[..., 0] > 0
    assert inside.any(axis=0).sum() == pytest.approx(inside.any(axis=1).sum(), abs=1)


@pytest.mark.parametrize("place", [60, 150, 240])
@pytest.mark.parametrize("long", ["wide", "tall"])
def test_a_focal_crop_sees_what_stands_out(save, place, long):
    """A coloured figure beside the middle of a long grey picture, which a centre crop would cut."""
    photo = np.random.default_rng(place).normal(110, 12, (100, 300, 1)).clip(0, 255) + np.zeros(3)
    photo[20:90, place - 25 : place + 25] = (200, 60, 40)
    photo = photo.astype(np.uint8)
    path = save("photo.png", Image.fromarray(photo if long == "wide" else photo.transpose(1, 0, 2)))
    (view,) = views(one_example(path), (64, 64), "focal", 1, False, 0)
    along, across = (view.left, view.top) if long == "wide" else (view.top, view.left)
    assert along <= (place - 25) * 0.64 + 1 and (place + 25) * 0.64 - 1 <= along + 64 and across == 0


def test_where_nothing_stands_out_a_focal_crop_is_in_the_middle(save):
    (view,) = views(one_example(save("flat.png", Image.new("RGB", (300, 100), "grey"))), (64, 64), "focal", 1, False, 0)
    assert abs(view.left - 64) <= 1
