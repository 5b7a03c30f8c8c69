"""The logits that need no network: Bayes' rule by enumeration, and ensembles that come out calibrated without one."""

import itertools

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from guided_diffusion.config.options import DiffusionOptions, build
from guided_diffusion.diffusion.gaussian_diffusion import GaussianDiffusion, build_diffusion
from guided_diffusion.diffusion.losses import bce
from guided_diffusion.diffusion.schedule import noise_schedule, solver_timesteps, strided_timesteps
from guided_diffusion.inference.plan import SamplingPlan
from guided_diffusion.models.outputs import ModelOutput
from guided_diffusion.runtime.errors import UserError


def diffusion_of(steps=200, input_scale=0.1, mask_loss="bce", logit_skip="both"):
    schedule = noise_schedule("cosine", steps, input_scale)
    return GaussianDiffusion(schedule, objective="x0", mask_loss=mask_loss, logit_skip=logit_skip)


def posterior_by_enumeration(x_t, prior, abar):
    """p(x_0,i = 1 | x_t) of binary pixels [n] whose joint prior is {tuple of 0 and 1: probability}."""
    density = {}
    for mask, weight in prior.items():
        mean = abar**0.5 * (torch.tensor(mask, dtype=torch.float64) * 2 - 1)
        density[mask] = weight * Normal(mean, (1 - abar) ** 0.5).log_prob(x_t).sum().exp()
    total = sum(density.values())
    return torch.stack([sum(d for mask, d in density.items() if mask[i]) for i in range(len(x_t))]) / total


@pytest.mark.parametrize("t", [0, 40, 120, 199])
def test_without_a_network_the_skip_is_the_posterior_of_independent_pixels(t):
    diffusion = diffusion_of()
    p = torch.tensor([0.02, 0.3, 0.5, 0.9], dtype=torch.float64)
    prior = {
        mask: np.prod([q if on else 1 - q for on, q in zip(mask, p.tolist(), strict=True)])
        for mask in itertools.product((0, 1), repeat=4)
    }
    abar = float(diffusion.schedule.alpha_bar(t))
    x_t = abar**0.5 * torch.tensor([1.0, -1, -1, 1]) + (1 - abar) ** 0.5 * torch.randn(4, dtype=torch.float64)
    output = ModelOutput(torch.zeros(1, 1, 2, 2, dtype=torch.float64), None, torch.logit(p).reshape(1, 1, 2, 2))
    predicted = torch.sigmoid(diffusion.prediction(output, x_t.reshape(1, 1, 2, 2), t)).flatten()
    torch.testing.assert_close(predicted, posterior_by_enumeration(x_t, prior, abar), rtol=1e-9, atol=1e-12)


def test_what_is_left_to_the_network_does_not_depend_on_the_pixel_s_own_noise():
    """The exact logits less the skip, of pixels that agree mostly: the same whatever the pixel's own x_t."""
    diffusion, t = diffusion_of(logit_skip="noise"), 60
    abar = float(diffusion.schedule.alpha_bar(t))
    prior = {(0, 0): 0.5, (0, 1): 0.1, (1, 0): 0.05, (1, 1): 0.35}
    left = []
    for own in (-0.7, 0.1, 1.4):
        x_t = torch.tensor([own, 0.4], dtype=torch.float64)
        skip = diffusion.skipped_logits(ModelOutput(None, None, None), x_t.reshape(1, 1, 1, 2), t)
        left.append((torch.logit(posterior_by_enumeration(x_t, prior, abar)) - skip.flatten())[0].item())
    assert np.ptp(left) < 1e-9
    others = []
    for other in (-0.7, 1.4):  # while the neighbour's counts
        x_t = torch.tensor([0.1, other], dtype=torch.float64)
        skip = diffusion.skipped_logits(ModelOutput(None, None, None), x_t.reshape(1, 1, 1, 2), t)
        others.append((torch.logit(posterior_by_enumeration(x_t, prior, abar)) - skip.flatten())[0].item())
    assert others[1] - others[0] > 0.01


@pytest.mark.parametrize("sampler", ["ddpm", "dpm_solver"])
@pytest.mark.parametrize("p", [0.1, 0.4, 0.75])
def test_members_of_independent_pixels_are_drawn_with_their_probability(sampler, p):
    diffusion = diffusion_of(steps=1000)
    times = strided_timesteps(1000, 200) if sampler == "ddpm" else solver_timesteps(diffusion.schedule, 50)
    how = {} if sampler == "ddpm" else {"solver_order": 2}
    plan = SamplingPlan(sampler, tuple(int(t) for t in times), **how)
    coarse = torch.full((1, 1, 64, 64), float(np.log(p / (1 - p))))

    def model(x_t, t, condition):
        return ModelOutput(torch.zeros_like(x_t), None, coarse)

    generator = torch.Generator().manual_seed(0)

    def noise():
        return torch.randn(1, 1, 64, 64, generator=generator)

    x0 = plan.run(diffusion.denoiser(model, None), noise(), diffusion.schedule, noise)
    share = (x0 > 0).float().mean().item()
    assert abs(share - p) < 4 * (p * (1 - p) / 64**2) ** 0.5 + 0.01
    assert (x0.abs() > 0.9).float().mean() > 0.9  # masks, not probabilities


def test_each_kind_adds_its_part():
    x_t, prediction, coarse = (torch.randn(2, 1, 4, 4) for _ in range(3))
    output, t = ModelOutput(prediction, None, coarse), torch.tensor([10, 150])
    value = {kind: diffusion_of(logit_skip=kind).prediction(output, x_t, t) for kind in ("none", "noise", "coarse")}
    both = diffusion_of().prediction(output, x_t, t)
    assert torch.equal(value["none"], prediction)
    torch.testing.assert_close(value["coarse"], prediction + coarse)
    torch.testing.assert_close(both - prediction, (value["noise"] - prediction) + coarse)


def test_tanh_sees_the_same_skip_as_the_sigmoid():
    x_t, coarse = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    output, t = ModelOutput(torch.zeros(2, 1, 4, 4), None, coarse), torch.tensor([10, 150])
    x0 = [d.activate(d.prediction(output, x_t, t)) for d in (diffusion_of(), diffusion_of(mask_loss="mse"))]
    torch.testing.assert_close(*x0)


def test_the_mask_s_loss_does_not_teach_the_coarse_mask():
    coarse = torch.zeros(2, 1, 4, 4, requires_grad=True)
    prediction = torch.zeros(2, 1, 4, 4, requires_grad=True)
    mask = (torch.rand(2, 1, 4, 4) > 0.5).float()

    def model(x_t, t, condition):
        return ModelOutput(prediction, None, coarse)

    losses = diffusion_of().training_losses(model, mask, None, torch.tensor([20, 90]), torch.randn(2, 1, 4, 4))
    losses["mask"].sum().backward()
    assert coarse.grad is None and prediction.grad.abs().sum() > 0


def test_bce_is_torch_s_and_is_trained_on():
    logits, mask = torch.randn(3, 2, 4, 4), (torch.rand(3, 2, 4, 4) > 0.5).float()
    expected = [torch.nn.BCEWithLogitsLoss()(a, b) for a, b in zip(logits, mask, strict=True)]
    torch.testing.assert_close(bce(logits, mask), torch.stack(expected))

    def model(x_t, t, condition):
        return ModelOutput(logits, None, logits)

    diffusion = build_diffusion(build(DiffusionOptions, {"mask_loss": "bce", "logit_skip": "none"}))
    losses = diffusion.training_losses(model, mask, None, torch.tensor([1, 2, 3]), torch.randn(3, 2, 4, 4))
    torch.testing.assert_close(losses["mask"], bce(logits, mask))
    torch.testing.assert_close(losses["coarse"], bce(logits, mask))  # --coarse_loss auto: of the same kind


@pytest.mark.parametrize("values", [{"mask_loss": "bce"}, {"logit_skip": "noise"}])
def test_both_belong_to_the_objective_x0(values):
    with pytest.raises(UserError, match="goes with --objective x0, not eps"):
        build(DiffusionOptions, {"objective": "eps", **values})
