"""Weights of the loss by the signal-to-noise ratio: against diffusers' compute_snr, closed forms and gradients."""

import numpy as np
import pytest
import torch
from conftest import TINY
from oracles import randn, with_our_schedule
from test_train_util import log_rows

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.loss_weights import loss_weight
from guided_diffusion.model_output import ModelOutput
from guided_diffusion.schedule import noise_schedule

ABAR = noise_schedule("cosine", 100, 0.5)
PAIRS = [(weighting, target) for weighting in ("min_snr", "snr_plus_one") for target in ("eps", "x0", "v")]


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_is_diffusers(objective, gamma):
    """As its training scripts weigh: min(SNR, gamma), for eps over SNR, for v over SNR + 1."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    t = torch.arange(100)
    snr = compute_snr(with_our_schedule(DDPMScheduler, ABAR, objective), t).double()
    weights = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    theirs = {"x0": weights, "eps": weights / snr, "v": weights / (snr + 1)}[objective]
    diffusion = GaussianDiffusion(ABAR, objective=objective, loss_weighting="min_snr", min_snr_gamma=gamma)
    np.testing.assert_allclose(diffusion.loss_weights(t), theirs.numpy(), rtol=2e-6)


@pytest.mark.parametrize(("weighting", "objective"), PAIRS)
def test_one_weight_of_x0_whatever_is_predicted(weighting, objective):
    """The same wrong x_0, told as eps, x0 or v, costs the same: w(t) |x_0 - its estimate|^2."""
    diffusion, t = GaussianDiffusion(ABAR, objective=objective), torch.tensor([3, 40, 90])
    x0, noise, wrong = randn(3, 1, 4, 4).clamp(-1, 1), randn(3, 1, 4, 4, seed=1), randn(3, 1, 4, 4, seed=2)
    x_t = diffusion.q_sample(x0, t, noise)
    told = diffusion.target(wrong, t, diffusion.to_eps(wrong, x_t, t))  # what says `wrong` at x_t
    error = (told - diffusion.target(x0, t, noise)).square().flatten(1).mean(dim=1).numpy()
    abar = ABAR[t.numpy()]
    snr = abar / (1 - abar)
    wanted = {"min_snr": np.minimum(snr, 5), "snr_plus_one": 1 / (1 - abar)}[weighting]
    wanted = wanted * (wrong - x0).square().flatten(1).mean(dim=1).numpy()
    np.testing.assert_allclose(loss_weight(weighting, objective, snr) * error, wanted, rtol=1e-6)


def test_where_there_is_noise_alone():
    zero = np.zeros(1)
    assert [loss_weight("min_snr", name, zero).item() for name in ("eps", "x0", "v")] == [1, 0, 0]
    assert [loss_weight("snr_plus_one", name, zero).item() for name in ("x0", "v")] == [1, 1]


@pytest.mark.parametrize("mask_loss", ["mse", "bce", "bce_dice"])
def test_the_weight_multiplies_each_item_s_mask_loss_and_no_other(mask_loss):
    mask, t, noise = (randn(3, 1, 8, 8) > 0).double(), torch.tensor([0, 30, 99]), randn(3, 1, 8, 8, seed=1)

    def model(x, t, condition):
        return ModelOutput(0.3 * x, 0.1 * x, 0.2 * x)

    def losses(**weighting):
        diffusion = GaussianDiffusion(ABAR, objective="x0", mask_loss=mask_loss, **weighting)
        return diffusion.training_losses(model, mask, None, t, noise)

    plain, weighted = losses(), losses(loss_weighting="min_snr", min_snr_gamma=2.0)
    snr = torch.from_numpy(ABAR[t] / (1 - ABAR[t]))
    torch.testing.assert_close(weighted["mask"], plain["mask"] * snr.clamp(max=2))
    assert torch.equal(weighted["coarse"], plain["coarse"]) and torch.equal(weighted["vb"], plain["vb"])
    torch.testing.assert_close(weighted["loss"], sum(weighted[name] for name in ("mask", "coarse", "vb")))


def test_training_with_weights(script, pictures, tmp_path):
    losses = []
    for name, flags in {"plain": "", "weighted": "--loss_weighting min_snr --min_snr_gamma 0.001"}.items():
        out = tmp_path / name
        line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", out, TINY, "--max_steps 1 --input_scale 1"]
        script("segmentation_train", [*line, flags])
        losses.append(float(log_rows(out)[0]["mask"]))
    assert 0 < losses[1] <= 0.001 * losses[0] * (1 + 1e-5)
    assert load_checkpoint(out / "model000001.pt").config["diffusion"]["min_snr_gamma"] == 0.001


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("--loss_weighting min_snr --use_kl True", "--use_kl True has weights of its own"),
        ("--loss_weighting snr_plus_one --objective eps", "goes with --objective x0 or v"),
        ("--min_snr_gamma 4", "--min_snr_gamma belongs to --loss_weighting min_snr; leave it out"),
        ("--loss_weighting min_snr --version unet", "leave out --loss_weighting min_snr"),
        ("--loss_weighting min_snr --min_snr_gamma 0", "--min_snr_gamma 0.0: must be above 0"),
    ],
)
def test_weights_that_make_no_sense(refusal, flags, wanted):
    assert wanted in refusal("segmentation_train", flags)
