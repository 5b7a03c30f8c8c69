"""Resizing: smooth images, binary masks, and images at their own size."""

import numpy as np
import pytest
import torch
from conftest import LOADER

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.resizing import View, at_least, resize_image, resize_mask, round_trip

# ---- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape, size, expected", [((5, 9), 8, (8, 9)), ((3, 2), 8, (8, 8)), ((9, 9), 8, (9, 9))])
def test_a_short_side_is_filled_up_by_its_reflection(shape, size, expected):
    values = torch.arange(shape[0] * shape[1]).reshape(1, *shape)
    filled = at_least(values, size)
    pads = [(0, max(0, size - n)) for n in shape]
    assert filled.shape[-2:] == expected
    np.testing.assert_array_equal(filled[0], np.pad(values[0].numpy(), pads, mode="symmetric"))


# ---- which slices ------------------------------------------------------------------------------------------------


def test_training_on_nonempty_slices_alone(train, brats, capsys, sample):
    path = train("BRATS", brats, "--slices nonempty")
    assert "--slices nonempty: " in capsys.readouterr().out
    assert load_checkpoint(path).config["train"]["slices"] == "nonempty"


def test_a_loader_of_ones_own_knows_nothing_of_it(tmp_path, save_picture):
    (tmp_path / "mine.py").write_text(LOADER)
    for name in ("photo", "truth"):
        save_picture(tmp_path / "data" / "p1" / f"{name}.png", np.full((24, 40, 3), 255, np.uint8))
    dataset = build_dataset(f"{tmp_path}/mine.py:Polyps", tmp_path / "data", 16, view=View(keep_size=True))
    assert dataset[0]["image"].shape == (3, 24, 40)


def test_image_resize_is_smooth_and_averages():
    hairs = (torch.arange(64) % 8 == 0).float().expand(1, 64, 64)  # lines that picking single pixels would miss
    small = resize_image(hairs, 8)
    assert small.shape == (1, 8, 8)
    torch.testing.assert_close(small, torch.full_like(small, 1 / 8), atol=0.06, rtol=0)


@pytest.mark.parametrize("size", [8, 37, 100])
@pytest.mark.parametrize("soft", [False, True])
def test_a_resized_mask_stays_in_place(size, soft):
    rows, columns = np.mgrid[0:48, 0:64]
    mask = torch.from_numpy(np.hypot((rows + 0.5) / 48 - 0.5, (columns + 0.5) / 64 - 0.5) < 0.3).float()[None, None]
    resized = resize_mask(mask, size, soft)
    assert (set(resized.unique().tolist()) == {0.0, 1.0}) == (not soft or size == 100)
    grid = (torch.arange(size) + 0.5) / size - 0.5
    expected = (grid[:, None] ** 2 + grid**2).sqrt() < 0.3
    assert ((resized[0, 0] > 0.5) != expected).float().mean() < 0.06
    # Symmetric input stays symmetric: nearest neighbour without the half-pixel shift of plain "nearest".
    assert (resized - resized.flip(-1)).abs().max() < 1e-6 or (size == 37 and not soft)


def test_masks_shrink_into_the_share_of_each_pixel_by_hand():
    mask = torch.zeros(2, 1, 3, 6)
    mask[0, 0, 1, :5] = 1  # a line that nearest neighbour would miss, or double
    mask[1] = 1 - mask[0]
    third, full = 1 / 3, 2 / 3
    expected = torch.tensor([[third, third], [third, third]])  # 3 rows onto 2: each holds half of the line
    expected[:, 1] *= full
    torch.testing.assert_close(resize_mask(mask, 2)[0, 0], expected)
    torch.testing.assert_close(resize_mask(mask, 2).sum(dim=0), torch.ones(1, 2, 2))  # classes that exclude each other
    wide = resize_mask(mask, 4)[0, 0]  # grows along the rows, shrinks along the columns
    torch.testing.assert_close(wide[1], torch.tensor([1.0, 1.0, 1.0, third]))
    assert set(wide[0].tolist()) == {0.0} and wide.shape == (4, 4)


def test_the_marked_area_stays_the_same():
    masks = (torch.rand(2, 3, 97, 131, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    for size in (13, 64, 96):
        small = resize_mask(masks, size)
        torch.testing.assert_close(small.mean(dim=(-2, -1)), masks.mean(dim=(-2, -1)))
        assert 0 <= small.min() and small.max() <= 1


def test_a_pixel_is_known_only_if_all_of_it_is():
    known = torch.ones(1, 1, 30, 30)
    known[..., :4, :] = 0
    shown = View().known(known, 10)[0, 0]
    assert shown[:2].sum() == 0 and shown[2:].all()  # the second row is known by two thirds
    assert torch.equal(View().known(torch.ones(1, 1, 97, 61), 13), torch.ones(1, 1, 13, 13))


def test_the_round_trip_of_thin_lines_is_worse_than_that_of_a_disk():
    rows, columns = np.mgrid[0:96, 0:120]
    disk, lines = np.hypot(rows - 48, columns - 60) < 30, columns % 12 < 2
    empty = np.zeros_like(disk)
    both, total = round_trip(np.stack([disk, lines, empty])[None], 24)
    assert both.shape == total.shape == (1, 3) and (both[0, 2], total[0, 2]) == (0, 0)
    assert both[0, 0] > 0.97 * total[0, 0] and both[0, 1] < 0.2 * total[0, 1]
    both, total = round_trip(np.stack([disk, lines, empty]), 120)
    assert both[1] == total[1] == 2 * lines.sum()
    assert (np.diff(round_trip(np.stack([disk, lines])[:, :, :96], 96), axis=0) == 0).all()  # no resizing
