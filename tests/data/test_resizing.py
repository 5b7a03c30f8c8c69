"""Resizing: smooth images, binary masks, and images at their own size."""

import numpy as np
import pytest
import torch
from conftest import LOADER

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.resizing import View, at_least, resize_image, resize_mask

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
def test_mask_resize_stays_binary_and_in_place(size):
    rows, columns = np.mgrid[0:48, 0:64]
    mask = torch.from_numpy(np.hypot((rows + 0.5) / 48 - 0.5, (columns + 0.5) / 64 - 0.5) < 0.3).float()[None, None]
    resized = resize_mask(mask, size)
    assert set(resized.unique().tolist()) == {0.0, 1.0}
    grid = (torch.arange(size) + 0.5) / size - 0.5
    expected = (grid[:, None] ** 2 + grid**2).sqrt() < 0.3
    assert (resized[0, 0].bool() != expected).float().mean() < 0.06
    # Symmetric input stays symmetric: nearest neighbour without the half-pixel shift of plain "nearest".
    assert torch.equal(resized, resized.flip(-1)) or size == 37
