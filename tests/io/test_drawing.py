"""Pictures for people: outlines, scaling, orientation and mosaics."""

import numpy as np
import pytest

from guided_diffusion.io import drawing as pictures


def test_photographs_are_shown_as_they_are_and_others_stretched():
    photo = np.random.default_rng(0).integers(0, 256, (3, 5, 6)).astype(np.float32)
    assert np.array_equal(pictures.displayed(photo), photo.transpose(1, 2, 0))
    scan = np.stack([np.zeros((10, 10)), np.linspace(-5, 5, 100).reshape(10, 10)]).astype(np.float32)
    shown = pictures.displayed(scan)
    assert shown.shape == (10, 10, 3) and shown[0, 0, 0] == 0 and shown[-1, -1, 0] == 255
    assert abs(int(shown[5, 0, 0]) - 128) < 4
    assert pictures.displayed(np.zeros((1, 4, 4), np.float32)).max() == 0


def test_outline_is_the_inner_border():
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    drawn = pictures.outline(np.zeros((9, 9, 3), np.uint8), mask, (1, 2, 3))
    border = mask.copy()
    border[3:6, 3:6] = False
    assert np.array_equal(drawn.any(axis=2), border) and tuple(drawn[2, 2]) == (1, 2, 3)
    full = pictures.outline(np.zeros((9, 9, 3), np.uint8), np.ones((9, 9), bool), (1, 2, 3))
    assert full[0].any(axis=1).all() and not full[4, 4].any()  # also along the picture's edge


def test_truth_lies_under_the_mask():
    mask, truth = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    mask[2:5, 2:5] = truth[2:5, 2:8] = True
    drawn = pictures.overlay(np.zeros((9, 9, 3), np.uint8), mask[None], truth[None])
    assert tuple(drawn[2, 2]) == pictures.MASK_COLOUR and tuple(drawn[2, 7]) == pictures.TRUTH_COLOUR


def test_small_pictures_are_enlarged_by_a_whole_factor():
    small = np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3)
    large = pictures.enlarged(small)
    assert large.shape == (280, 210, 3) and all(
        np.array_equal(large[i::7, j::7], small) for i in (0, 6) for j in (0, 6)
    )
    for shape in ((256, 100), (300, 400)):
        assert pictures.enlarged(np.zeros(shape, bool)).shape == shape


def test_heat_runs_from_black_to_white():
    colours = pictures.heat(np.array([[0, 1 / 3, 2 / 3, 1]]))[0]
    assert colours.tolist() == [[0, 0, 0], [255, 0, 0], [255, 255, 0], [255, 255, 255]]


def test_resized_keeps_the_shape_of_what_is_shown():
    wide = np.full((4, 8, 3), 200, np.uint8)
    small = pictures.resized(wide, 16)
    assert small.shape == (16, 16, 3) and (small[4:12] == 200).all() and not small[:4].any() and not small[12:].any()


def test_mosaic_of_uneven_rows():
    tile = np.zeros((3, 4, 3), np.uint8)
    whole = pictures.mosaic([[tile, tile], [tile]])
    assert whole.shape == (8, 10, 3) and (whole[5:, 6:] == 255).all() and not whole[5:, :4].any()


@pytest.mark.parametrize(("x", "y"), [(1, 1), (-1, 1), (1, -1), (-1, -1)])
def test_volumes_are_shown_front_up_and_left_on_the_right(x, y):
    picture = np.zeros((4, 6), np.uint8)  # [X, Y]
    picture[3 if x < 0 else 0, 5 if y > 0 else 0] = 9  # x grows to the patient's right for x > 0, y to the front
    shown = pictures.radiological(picture, np.diag([x, y, 1, 1]))
    assert shown.shape == (6, 4) and shown[0, 3] == 9


def test_montage_shows_the_slices_that_the_mask_touches():
    masks = np.zeros((1, 8, 8, 30), bool)
    masks[0, 2:6, 2:6, 10:14] = True
    shown = []
    pictures.volume_montage(lambda k: shown.append(k) or np.zeros((1, 8, 8)), masks, np.eye(4))
    assert shown == [10, 11, 12, 13]
    shown.clear()
    picture = pictures.volume_montage(
        lambda k: shown.append(k) or np.zeros((1, 8, 8)), ~masks & masks, np.eye(4), count=4, size=8
    )
    assert shown == [0, 10, 19, 29] and picture.shape == (18, 18, 3)


def test_a_long_caption_keeps_both_ends():
    width = 126  # of twenty characters, one gap and no more
    a, b, c = (
        pictures.captions([name], width) for name in ("site_1_scan_" + "x" * 40 + end for end in ("1", "2", "1"))
    )
    assert a.shape == b.shape == (pictures.CAPTION, width, 3) and (a == c).all() and (a != b).any()
    assert (pictures.captions(["x" * 60 + "1"], width) != pictures.captions(["y" * 60 + "1"], width)).any()
