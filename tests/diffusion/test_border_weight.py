"""The border's weight: which pixels are near, by hand and beside the calibration's band, and what it does to a loss."""

import numpy as np
import pytest
import torch

from guided_diffusion.diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.diffusion.losses import bce, near_borders
from guided_diffusion.diffusion.schedule import noise_schedule
from guided_diffusion.evaluation.calibration import boundary_band


def test_near_borders_by_hand():
    mask = torch.zeros(1, 1, 32, 32)  # a reach of one pixel
    mask[..., 10:20, 5:12] = 1
    expected = torch.zeros(32, 32)
    expected[9:21, 4:13] = 1
    expected[11:19, 6:11] = 0
    assert torch.equal(near_borders(mask)[0, 0], expected)
    assert not near_borders(torch.ones(1, 1, 32, 32)).any() and not near_borders(torch.zeros(1, 1, 32, 32)).any()


def test_it_holds_the_band_in_which_calibration_is_judged_and_little_more():
    generator = torch.Generator().manual_seed(0)
    blobs = torch.nn.functional.interpolate(torch.randn(4, 1, 6, 6, generator=generator), (128, 128), mode="bicubic")
    for mask in (blobs > 0.3).float():
        near = near_borders(mask[None])[0, 0].bool().numpy()
        band = boundary_band(mask[0].bool().numpy())
        assert (near | ~band).all() and near.sum() < 1.6 * band.sum()


def test_borders_of_any_rater_and_any_class_are_near():
    masks = torch.zeros(2, 1, 32, 32)
    masks[0, ..., :8, :8], masks[1, ..., 20:, 20:] = 1, 1
    either = near_borders(masks).amax(dim=0)
    mean = masks.mean(dim=0, keepdim=True)
    assert torch.equal(near_borders(mean)[0], torch.maximum(either, (mean[0] > 0).float()))
    assert torch.equal(near_borders(masks.transpose(0, 1))[0], either)


@pytest.mark.parametrize("exclusive", [False, True])
def test_weights_are_those_of_a_weighted_mean(exclusive):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 16, 16, generator=generator, dtype=torch.float64)
    mask = torch.nn.functional.one_hot(torch.randint(3, (3, 16, 16), generator=generator), 3)[..., 1:]
    mask = mask.movedim(-1, 1).double()
    weights = torch.rand(3, 1, 16, 16, generator=generator, dtype=torch.float64)
    whole = bce(logits, mask, exclusive)
    torch.testing.assert_close(bce(logits, mask, exclusive, torch.full_like(weights, 7.0)), whole)
    pixels = torch.stack([
        bce(logits[..., y : y + 1, x : x + 1], mask[..., y : y + 1, x : x + 1], exclusive)
        for y in range(16) for x in range(16)
    ])  # fmt: skip
    expected = np.average(pixels.numpy().T, weights=weights.flatten(1).numpy(), axis=None)
    torch.testing.assert_close(
        (bce(logits, mask, exclusive, weights) * weights.flatten(1).sum(1)).sum() / weights.sum(),
        torch.tensor(expected),
    )


def test_the_coarse_mask_learns_what_is_right_near_borders():
    """One logit for all pixels: its best value is the share of foreground, near the borders if those count alone."""
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 4:20, 4:20] = 1
    near = near_borders(mask).bool()
    for weight, share in ((1.0, mask.mean()), (1e5, mask[near].mean())):
        diffusion = GaussianDiffusion(
            noise_schedule("cosine", 10, 0.5), objective="x0", mask_loss="bce", border_weight=weight
        )
        logit = torch.logit(share).requires_grad_()
        diffusion.coarse_mask_loss(logit.expand_as(mask), mask, torch.zeros(1, dtype=int)).sum().backward()
        assert abs(logit.grad) < 1e-4
