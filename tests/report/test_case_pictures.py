"""What a report shows of a case: the layers, sizes and colours of its pictures, and which slices of a volume."""

import io

import numpy as np
import pytest
from PIL import Image

from guided_diffusion.io.drawing import MASK_COLOUR, TRUTH_COLOUR, border
from guided_diffusion.report import case_pictures
from guided_diffusion.report.case_pictures import CARD_TILE, MAP_SIDE, SIDE, CaseView


def square(size, low, high):
    mask = np.zeros((1, size, size), bool)
    mask[:, low:high, low:high] = True
    return mask


def view(size=400, truth=True, members=2, soft=True):
    mask = square(size, size // 4, size // 2)
    values = np.linspace(0, 1, size * size).reshape(size, size)
    image = np.stack([values * 255] * 3, axis=-1).astype(np.uint8)
    return CaseView(
        image,
        mask,
        square(size, size // 4, 3 * size // 4) if truth else None,
        [mask] * members,
        values if soft else None,
        values[None] if soft else None,
    )


def opened(data):
    return Image.open(io.BytesIO(data))


def test_layers_are_what_there_is():
    assert view().layers() == ["truth", "mask", "member 0", "member 1"]
    assert view(truth=False, members=0).layers() == ["mask"]


def test_outlines_are_the_borders_of_each_layer_in_its_colour():
    data, (height, width) = view(size=48).outlines()
    tiles = np.asarray(opened(data).convert("RGBA")).reshape(height, 4, width, 4)
    factor = height // 48
    for n, (mask, colour) in enumerate(((square(48, 12, 36), TRUTH_COLOUR), (square(48, 12, 24), MASK_COLOUR))):
        drawn = tiles[:, n, :, 3] > 0
        assert np.array_equal(drawn, border(np.kron(mask[0], np.ones((factor, factor), bool))))
        assert (tiles[:, n][drawn][:, :3] == colour).all()


def test_large_pictures_are_made_smaller_and_small_ones_kept():
    assert opened(view(size=2 * SIDE).picture()).size == (SIDE, SIDE)
    assert opened(view(size=40).picture()).size == (40, 40)
    assert opened(view(size=2 * MAP_SIDE).maps()).size == (2 * MAP_SIDE, MAP_SIDE)


def test_a_case_without_soft_maps_has_none():
    assert view(soft=False).maps() is None


@pytest.mark.parametrize(("members", "soft", "tiles"), [(2, True, 4), (0, True, 3), (0, False, 2)])
def test_a_card_has_a_tile_for_each_part(members, soft, tiles):
    data, (height, width) = view(members=members, soft=soft).card()
    assert opened(data).size == (width, height) and width == tiles * CARD_TILE + 2 * (tiles - 1)


def test_a_wide_picture_has_a_low_card():
    wide = view()
    wide.image = wide.image[:200]
    assert wide.card()[1][0] == CARD_TILE / 2


def volume(*touched, depth=12):
    masks = np.zeros((1, 4, 4, depth), bool)
    masks[..., list(touched)] = True
    return masks


def test_slices_with_marks_and_those_beside_are_shown():
    shown = case_pictures._shown_slices
    assert shown(volume(3, 4), None, None) == [2, 3, 4, 5]
    assert shown(volume(0), volume(11), None) == [0, 1, 10, 11]
    doubt = np.zeros((4, 4, 12))
    doubt[1, 1, 6], doubt[1, 1, 8] = 0.9, 0.1
    assert shown(volume(), None, doubt) == [5, 6, 7]
    assert shown(volume(), None, None) == list(range(12))


def test_many_slices_are_spread_out():
    shown = case_pictures._shown_slices(volume(*range(300), depth=300), None, None)
    assert len(shown) == case_pictures.MOST_SLICES and (shown[0], shown[-1]) == (0, 299)
    assert set(np.diff(shown)) <= {4, 5}
