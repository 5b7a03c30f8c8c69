"""The denoiser that samplers see: one int time for all rows, and dynamic thresholding."""

import pytest
import torch
from oracles import randn, smooth_denoiser

from guided_diffusion.diffusion.gaussian_diffusion import GaussianDiffusion, threshold_dynamically
from guided_diffusion.diffusion.schedule import noise_schedule


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_int_time_stands_for_all_rows(objective, rescale, dtype):
    diffusion = GaussianDiffusion(noise_schedule("cosine", 50, 0.3), objective=objective, rescale_timesteps=rescale)
    denoise, x = smooth_denoiser(diffusion, learned=True), randn(3, 1, 8, 8, dtype=dtype)
    for t in (0, 20, 49):
        for one, rows in zip(denoise(x, t)[:3], denoise(x, torch.full((3,), t))[:3], strict=True):
            torch.testing.assert_close(one, rows)
            assert one.dtype == dtype


@pytest.mark.parametrize("share", [0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("shape", [(3, 2, 16, 16), (2, 1, 3, 5)])
def test_dynamic_thresholding_is_diffusers(share, shape):
    from diffusers import DDPMScheduler

    x0 = randn(*shape) * torch.tensor([0.2, 1.0, 5.0])[: shape[0]].reshape(-1, 1, 1, 1)
    scheduler = DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=share, sample_max_value=1e9)
    ours = threshold_dynamically(x0, share)
    torch.testing.assert_close(ours, scheduler._threshold_sample(x0))
    assert ours.abs().max() <= 1
    torch.testing.assert_close(ours[:1], x0[:1].clamp(-1, 1))  # an item within [-1, 1] stays


def test_items_of_a_batch_are_cut_apart():
    x0 = 3 * randn(3, 1, 8, 8)
    assert torch.equal(threshold_dynamically(x0, 0.9)[1:2], threshold_dynamically(x0[1:2], 0.9))


def test_large_batches_are_cut():
    assert threshold_dynamically(torch.full((1, 1, 4097, 4097), 2.0), 0.99).eq(1).all()  # above torch.quantile's 2^24


@pytest.mark.parametrize("clip", [True, False])
def test_thresholding_replaces_clipping_and_eps_follows(clip):
    diffusion = GaussianDiffusion(noise_schedule("cosine", 50), objective="v")
    x = 3 * randn(2, 1, 8, 8)

    def model(x_t, t, condition):
        return type("Output", (), {"prediction": -2 * x_t, "variance": None, "coarse": None})

    free = diffusion.denoiser(model, None, clip=False)(x, 30).x0
    cut = diffusion.denoiser(model, None, clip=clip, dynamic_threshold=0.9)(x, 30)
    assert free.abs().max() > 1.5
    torch.testing.assert_close(cut.x0, threshold_dynamically(free, 0.9))
    abar = float(diffusion.schedule.alphas_bar[30])
    torch.testing.assert_close(abar**0.5 * cut.x0 + (1 - abar) ** 0.5 * cut.eps, x)
