"""The diffusion's mathematics against closed forms, Bayes' rule by numbers, torch, MONAI and diffusers."""

import itertools
import math

import numpy as np
import pytest
import torch
from oracles import randn, smooth_denoiser
from torch.distributions import Normal, kl_divergence

from guided_diffusion.config.fields import build
from guided_diffusion.config.options import DiffusionOptions
from guided_diffusion.diffusion.gaussian_diffusion import (
    GaussianDiffusion,
    build_diffusion,
    drawn_classes,
    threshold_dynamically,
)
from guided_diffusion.diffusion.losses import bce, bce_dice, mean_flat
from guided_diffusion.diffusion.schedule import cosine_betas, noise_schedule, solver_timesteps, strided_timesteps
from guided_diffusion.inference.plan import SamplingPlan
from guided_diffusion.models.outputs import ModelOutput
from guided_diffusion.runtime.errors import UserError

ZERO = torch.zeros(4, 1, 8, 8, dtype=torch.float64)
TARGETS = [("eps", "mse"), ("x0", "mse"), ("x0", "bce_dice"), ("v", "mse")]


def diffusion_of(steps=100, schedule="cosine", input_scale=1.0, **options):
    return GaussianDiffusion(noise_schedule(schedule, steps, input_scale), **options)


def random_masks(n=4, channels=1, size=8, seed=0, dtype=torch.float64):
    """mask in {0, 1}, its x_0 in {-1, 1}, noise and times [N], t = 0 first and T - 1 = 99 last."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(n, channels, size, size, generator=generator) > 0.6).to(dtype)
    noise = torch.randn(mask.shape, generator=generator, dtype=dtype)
    return mask, 2 * mask - 1, noise, torch.linspace(0, 99, n).long()


def fixed_model(prediction, variance=None, coarse=None):
    """A network that answers always the same."""
    return lambda x_t, t, condition: ModelOutput(prediction, variance, coarse)


def rows(values):
    return torch.as_tensor(np.asarray(values)).reshape(-1, 1, 1, 1)


# ---- the forward process ---------------------------------------------------------------------------------------------


def test_q_sample_has_the_moments_of_single_noising_steps():
    diffusion = diffusion_of()
    mean, variance = 1.0, 0.0
    for t, beta in enumerate(cosine_betas(100)):  # x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) noise
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        x0, noise = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (0.7, -1.3))
        x_t = diffusion.q_sample(x0, torch.tensor([t]), noise)
        assert x_t.item() == pytest.approx(mean * 0.7 - 1.3 * math.sqrt(variance), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_row_has_the_float64_schedule_of_its_time_rounded_once(dtype):
    diffusion, t = diffusion_of(), torch.tensor([99, 0, 7])
    diffusion.q_sample(randn(1, 1, 2, 2), t[:1], randn(1, 1, 2, 2))  # rows of another type have a table of their own
    abar = diffusion.schedule.alphas_bar[t]
    nothing, one = torch.zeros(3, 1, 2, 2, dtype=dtype), torch.ones(3, 1, 2, 2, dtype=dtype)
    for x_t, expected in (
        (diffusion.q_sample(one, t, nothing), np.sqrt(abar)),
        (diffusion.q_sample(nothing, t, one), np.sqrt(1 - abar)),
    ):
        assert torch.equal(x_t, rows(expected).to(dtype).expand_as(x_t))


# ---- the range of masks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
def test_masks_of_0_and_1_enter_and_leave_the_published_diffusion(objective):
    diffusion = diffusion_of(objective=objective, mask_range="unit")
    mask, _, noise, t = random_masks()
    assert torch.equal(diffusion.from_mask(mask), mask) and torch.equal(diffusion.to_mask(mask), mask)
    seen = []

    def model(x_t, t, condition):
        seen.append(x_t)
        return ModelOutput(torch.randn_like(x_t), None, None)

    diffusion.training_losses(model, mask, None, t, noise)
    torch.testing.assert_close(seen[0], diffusion.q_sample(mask, t, noise))
    x0 = diffusion.denoiser(model, None)(10 * noise, 50).x0
    assert (0 if objective == "x0" else -1) <= x0.min() < x0.max() <= 1  # cut to [-1, 1] as in the published code
    assert diffusion.to_mask(x0).min() == 0 or objective == "x0"


def test_masks_of_0_and_1_have_no_evidence_of_their_own():
    for skip in ("noise", "both"):
        with pytest.raises(ValueError, match="does not go with the skip"):
            diffusion_of(objective="x0", mask_range="unit", logit_skip=skip)
        with pytest.raises(UserError, match=f"--logit_skip {skip} goes with --mask_range signed"):
            build(DiffusionOptions, {"mask_range": "unit", "logit_skip": skip})


# ---- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("b", [0.1, 1.0])
@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
def test_a_perfect_target_gives_back_x0_and_noise(objective, b):
    diffusion = diffusion_of(objective=objective, input_scale=b)
    _, x0, noise, t = random_masks()
    x_t = diffusion.q_sample(x0, t, noise)
    predicted = diffusion.to_x0(diffusion.target(x0, t, noise), x_t, t)
    torch.testing.assert_close(predicted, x0, atol=1e-6, rtol=0)
    torch.testing.assert_close(diffusion.to_eps(x0, x_t, t), noise, atol=1e-9, rtol=0)


def test_v_is_diffusers_velocity():
    from diffusers import DDPMScheduler

    diffusion = diffusion_of(objective="v")
    scheduler = DDPMScheduler(100, trained_betas=cosine_betas(100))
    scheduler.alphas_cumprod = torch.from_numpy(diffusion.schedule.alphas_bar)
    _, x0, noise, t = random_masks()
    torch.testing.assert_close(diffusion.target(x0, t, noise), scheduler.get_velocity(x0, noise, t))
    torch.testing.assert_close(diffusion.q_sample(x0, t, noise), scheduler.add_noise(x0, noise, t))


@pytest.mark.parametrize(("objective", "mask_loss"), TARGETS)
@pytest.mark.parametrize("clip", [True, False])
def test_a_denoiser_s_x0_and_eps_always_explain_x_t(objective, mask_loss, clip):
    diffusion = diffusion_of(objective=objective, mask_loss=mask_loss)
    _, x0, noise, t = random_masks()
    x_t = diffusion.q_sample(x0, t, noise)
    raw = torch.linspace(-4, 4, x_t.numel(), dtype=x_t.dtype).reshape(x_t.shape)
    denoised = diffusion.denoiser(fixed_model(raw, raw.sign(), raw + 1), None, clip=clip)(x_t, t)
    abar = rows(diffusion.schedule.alphas_bar[t.numpy()])
    torch.testing.assert_close(abar.sqrt() * denoised.x0 + (1 - abar).sqrt() * denoised.eps, x_t)
    bounded = denoised.x0.abs().max() <= 1
    assert bounded if clip or objective == "x0" else not bounded
    assert denoised.variance_fraction.unique().tolist() == [0, 1]
    assert torch.equal(denoised.coarse, raw + 1)
    if objective == "x0":
        expected = raw.tanh() if mask_loss == "mse" else (raw / 2).tanh()  # 2 sigmoid(x) - 1 = tanh(x / 2)
        torch.testing.assert_close(denoised.x0, expected)


@pytest.mark.parametrize(("rescale", "expected"), [(False, [0, 49, 99]), (True, [0, 490, 990])])
def test_the_network_sees_times_of_the_schedule_or_scaled_to_1000(rescale, expected):
    diffusion, seen = diffusion_of(rescale_timesteps=rescale), []
    mask, x0, noise, _ = random_masks(3)

    def model(x_t, t, condition):
        seen.append(t.tolist())
        return ModelOutput(x_t, None, None)

    t = torch.tensor([0, 49, 99])
    diffusion.training_losses(model, mask, None, t, noise)
    diffusion.denoiser(model, None)(x0, t)
    np.testing.assert_allclose(seen, [expected, expected], rtol=1e-6)


# ---- the denoiser ----------------------------------------------------------------------------------------------------


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


# ---- terms of the loss -----------------------------------------------------------------------------------------------


def hand_posterior(t, x0, x_t):
    """Mean and variance of q(x_{t-1} | x_t, x_0), DDPM eq. 7 in its own letters, for t > 0."""
    betas = cosine_betas(100)
    abar = np.cumprod(1 - betas)
    beta, now, before = rows(betas[t]), rows(abar[t]), rows(abar[t - 1])
    mean = before.sqrt() * beta / (1 - now) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - now) * x_t
    return mean, beta * (1 - before) / (1 - now), beta


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
def test_the_variational_term_is_the_kl_in_bits_and_the_likelihood_at_0(objective, learned):
    diffusion = diffusion_of(objective=objective)
    _, x0, noise, _ = random_masks()
    t = torch.tensor([0, 1, 40, 99])
    x_t = diffusion.q_sample(x0, t, noise)
    value = diffusion.target(x0, t, noise) + 0.02
    variance = torch.rand(x0.shape, dtype=x0.dtype) * 2 - 1 if learned else None
    term = diffusion.variational_term(x0, x_t, t, value, variance)
    predicted = diffusion.to_x0(value, x_t, t)

    after = slice(1, None)
    true_mean, smallest, largest = hand_posterior(t[after].numpy(), x0[after], x_t[after])
    mean, _, _ = hand_posterior(t[after].numpy(), predicted[after], x_t[after])
    share = (variance[after] + 1) / 2 if learned else torch.zeros_like(mean)
    deviation = (smallest.log() * (1 - share) + largest.log() * share).mul(0.5).exp()
    kl = kl_divergence(Normal(true_mean, smallest.sqrt()), Normal(mean, deviation)) / math.log(2)
    torch.testing.assert_close(term[after], kl.mean(dim=(1, 2, 3)), atol=1e-9, rtol=1e-6)

    smallest, largest = (torch.as_tensor(v) for v in diffusion.schedule.log_variances(0, -1))
    share = (variance[0] + 1) / 2 if learned else torch.zeros_like(x0[0])
    normal = Normal(predicted[0], (smallest * (1 - share) + largest * share).mul(0.5).exp())
    mass = torch.where(x0[0] > 0, 1 - normal.cdf(x0[0] - 1 / 255), normal.cdf(x0[0] + 1 / 255))
    torch.testing.assert_close(term[0], -mass.log2().mean(), atol=1e-9, rtol=1e-6)


def test_a_perfect_prediction_with_fixed_variance_costs_no_bits_after_0():
    diffusion = diffusion_of(objective="v")
    _, x0, noise, t = random_masks()
    x_t = diffusion.q_sample(x0, t, noise)
    term = diffusion.variational_term(x0, x_t, t, diffusion.target(x0, t, noise))
    assert term[1:].abs().max() < 1e-9
    assert term[0] > 0.1  # at t = 0 the bin keeps some uncertainty


# ---- training losses -------------------------------------------------------------------------------------------------


def losses_of(prediction=None, variance=None, coarse=None, **options):
    """The training losses of a fixed prediction (the noise, halved, unless given), and what went in."""
    diffusion = diffusion_of(**options)
    mask, x0, noise, t = random_masks()
    prediction = noise / 2 if prediction is None else prediction
    return diffusion.training_losses(fixed_model(prediction, variance, coarse), mask, None, t, noise), diffusion


@pytest.mark.parametrize(
    ("options", "outputs", "keys"),
    [
        ({}, {}, {"mask"}),
        ({"coarse_weight": 3}, {"coarse": ZERO}, {"mask", "coarse"}),
        ({"coarse_weight": 0}, {"coarse": ZERO}, {"mask"}),
        ({}, {"variance": ZERO}, {"mask", "vb"}),
        ({}, {"variance": ZERO, "coarse": ZERO}, {"mask", "vb", "coarse"}),
        ({"use_kl": True}, {"variance": ZERO}, {"mask"}),
        ({"use_kl": True}, {"coarse": ZERO}, {"mask", "coarse"}),
        ({"objective": "x0", "mask_loss": "bce_dice"}, {"variance": ZERO, "coarse": ZERO}, {"mask", "vb", "coarse"}),
    ],
)
def test_losses_are_per_item_and_add_up(options, outputs, keys):
    losses, diffusion = losses_of(**outputs, **options)
    assert losses.keys() == keys | {"loss"}
    assert all(value.shape == (4,) for value in losses.values())
    weights = {"coarse": diffusion.coarse_weight}
    torch.testing.assert_close(losses["loss"], sum(weights.get(name, 1) * losses[name] for name in keys))


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
def test_the_mask_loss_is_the_mean_square_to_the_target(objective):
    mask, x0, noise, t = random_masks()
    prediction = noise.flip(3) - 0.2
    losses, diffusion = losses_of(prediction, objective=objective)
    value = prediction.tanh() if objective == "x0" else prediction
    error = (value - diffusion.target(x0, t, noise)) ** 2
    torch.testing.assert_close(losses["mask"], error.mean(dim=(1, 2, 3)))


def test_the_coarse_loss_is_of_the_mask_loss_s_kind_and_bce_dice_sees_logits():
    mask, _, noise, _ = random_masks()
    probability = 1 / (1 + (-noise).exp())
    torch.testing.assert_close(losses_of(coarse=noise)[0]["coarse"], mean_flat((probability - mask) ** 2))
    losses, _ = losses_of(noise, None, 2 * noise, objective="x0", mask_loss="bce_dice")
    torch.testing.assert_close(losses["mask"], bce_dice(noise, mask))
    torch.testing.assert_close(losses["coarse"], bce_dice(2 * noise, mask))


def test_the_anchor_loss_is_dice_and_beta_times_cross_entropy_where_alpha_divides_t():
    mask, _, noise, _ = random_masks()
    t = torch.tensor([0, 4, 5, 10])
    diffusion = diffusion_of(coarse_loss="bce_dice", coarse_ce=10, coarse_every=5)  # V2's, beside an eps loss by MSE
    cross_entropy = bce_dice(noise, mask, 1) - bce_dice(noise, mask, 0)
    dice = bce_dice(noise, mask, 0)
    expected = (dice + 10 * cross_entropy) * torch.tensor([1, 0, 1, 1])
    torch.testing.assert_close(diffusion.coarse_mask_loss(noise, mask, t), expected)
    losses = diffusion.training_losses(fixed_model(noise, None, noise), mask, None, t, noise)
    torch.testing.assert_close(losses["coarse"], expected)
    torch.testing.assert_close(losses["loss"], losses["mask"] + expected)


def test_rescaled_sigmas_scale_the_bound_by_t_over_1000():
    plain, rescaled = (losses_of(variance=ZERO, rescale_learned_sigmas=flag)[0] for flag in (False, True))
    torch.testing.assert_close(rescaled["vb"], plain["vb"] * 100 / 1000)
    torch.testing.assert_close(rescaled["mask"], plain["mask"])


def test_kl_is_the_bound_summed_over_all_steps_and_trains_the_mean():
    mask, x0, noise, t = random_masks()
    prediction = (noise / 2).requires_grad_()
    losses, diffusion = losses_of(prediction, ZERO, use_kl=True)
    x_t = diffusion.q_sample(x0, t, noise)
    torch.testing.assert_close(losses["mask"], 100 * diffusion.variational_term(x0, x_t, t, noise / 2, ZERO))
    losses["loss"].sum().backward()
    assert prediction.grad[1:].any()


def test_the_bound_trains_the_variance_but_not_the_mean():
    _, _, noise, _ = random_masks()
    prediction, variance = (noise / 2).requires_grad_(), ZERO.clone().requires_grad_()
    losses, _ = losses_of(prediction, variance)
    grads = torch.autograd.grad(losses["vb"].sum(), (prediction, variance), retain_graph=True, allow_unused=True)
    assert grads[0] is None and grads[1].any()
    assert torch.autograd.grad(losses["loss"].sum(), prediction)[0].any()


@pytest.mark.parametrize("which", ["prediction", "variance", "coarse"])
def test_outputs_with_more_channels_than_the_mask_are_refused_not_broadcast(which):
    with pytest.raises(ValueError, match="other shapes"):
        losses_of(**{which: ZERO.repeat(1, 2, 1, 1)})


@pytest.mark.parametrize(
    "options", [{"objective": "eps", "mask_loss": "bce_dice"}, {"objective": "noise"}, {"mask_loss": "l1"}]
)
def test_unknown_or_contradicting_objectives_are_refused(options):
    with pytest.raises(ValueError):
        diffusion_of(**options)


def test_the_options_build_the_diffusion_they_describe_and_refuse_pairs_that_contradict():
    values = {"diffusion_steps": 50, "noise_schedule": "linear", "objective": "v", "rescale_timesteps": True}
    diffusion = build_diffusion(build(DiffusionOptions, {**values, "coarse_weight": 3.0}))
    np.testing.assert_array_equal(diffusion.schedule.alphas_bar, noise_schedule("linear", 50, 0.1))
    assert (diffusion.num_timesteps, diffusion.objective, diffusion.mask_loss) == (50, "v", "mse")
    assert diffusion.coarse_weight == 3 and diffusion.rescale_timesteps
    assert build_diffusion(build(DiffusionOptions, {})).mask_loss == "bce_dice"
    for pair in ({"objective": "v", "mask_loss": "bce_dice"}, {"use_kl": True, "mask_loss": "bce_dice"}):
        with pytest.raises(UserError):
            build(DiffusionOptions, pair)


# ---- logits that need no network ------------------------------------------------------------------------------------


def skipping(steps=200, input_scale=0.1, mask_loss="bce", logit_skip="both"):
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
    diffusion = skipping()
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
    diffusion, t = skipping(logit_skip="noise"), 60
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
    diffusion = skipping(steps=1000)
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
    value = {kind: skipping(logit_skip=kind).prediction(output, x_t, t) for kind in ("none", "noise", "coarse")}
    both = skipping().prediction(output, x_t, t)
    assert torch.equal(value["none"], prediction)
    torch.testing.assert_close(value["coarse"], prediction + coarse)
    torch.testing.assert_close(both - prediction, (value["noise"] - prediction) + coarse)


def test_tanh_sees_the_same_skip_as_the_sigmoid():
    x_t, coarse = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    output, t = ModelOutput(torch.zeros(2, 1, 4, 4), None, coarse), torch.tensor([10, 150])
    x0 = [d.activate(d.prediction(output, x_t, t)) for d in (skipping(), skipping(mask_loss="mse"))]
    torch.testing.assert_close(*x0)


def test_the_mask_s_loss_does_not_teach_the_coarse_mask():
    coarse = torch.zeros(2, 1, 4, 4, requires_grad=True)
    prediction = torch.zeros(2, 1, 4, 4, requires_grad=True)
    mask = (torch.rand(2, 1, 4, 4) > 0.5).float()

    def model(x_t, t, condition):
        return ModelOutput(prediction, None, coarse)

    losses = skipping().training_losses(model, mask, None, torch.tensor([20, 90]), torch.randn(2, 1, 4, 4))
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


# ---- drawing exclusive classes ---------------------------------------------------------------------------------------


def smooth_uniforms(n, channels, size=12, seed=0):
    """Uniform numbers [n, channels, size, size] that neighbouring pixels almost share: Gaussian noise, blurred."""
    blur = torch.exp(-((torch.arange(size)[:, None] - torch.arange(size)) ** 2) / (2 * 3.0**2)).double()
    blur = blur / blur.square().sum(dim=1, keepdim=True).sqrt()  # each pixel's variance stays 1
    return torch.special.ndtr(blur @ randn(n, channels, size, size, seed=seed) @ blur.T).float()


def class_ramps(classes=3, size=12):
    """Probabilities [1, K, size, size] of neighbouring classes, in which each is likely somewhere and 0 elsewhere."""
    logits = randn(1, classes + 1, size, size, seed=5) * 3
    probability = logits.softmax(dim=1).float()
    probability[:, 1, :3] = 0  # the background takes what this class loses
    return probability[:, 1:]


def test_each_class_is_drawn_with_its_exact_probability_from_smooth_numbers():
    soft, count = class_ramps(), 4000
    uniform = smooth_uniforms(count, 4)
    assert (uniform[:, :, 0, 0] - uniform[:, :, 0, 1]).abs().mean() < 0.2 * uniform.std()
    drawn = drawn_classes(soft.expand(count, -1, -1, -1), uniform)
    assert set(drawn.unique().tolist()) == {0, 1} and drawn.sum(dim=1).max() == 1
    error = (drawn.mean(dim=0) - soft[0]) / (soft[0] * (1 - soft[0]) / count).sqrt().clamp(min=1e-9)
    assert error.abs().max() < 4.5  # of 432 pixels
    assert drawn[:, :, :3][:, 0].max() == 0


def test_the_order_of_exclusive_classes_decides_nothing_and_none_lies_between_two_others():
    soft, uniform = class_ramps(), smooth_uniforms(1, 4)
    drawn = drawn_classes(soft, uniform)
    order = [2, 0, 1]
    turned = drawn_classes(soft[:, order], uniform[:, [0, *(1 + k for k in order)]])
    assert torch.equal(turned, drawn[:, order])
    later = uniform.clone()
    later[:, 2] += (1 - later[:, 2]) / 2
    apart = drawn_classes(soft, later) != drawn
    assert apart.any() and (drawn[:, 1:2].bool() | ~apart).all()  # class 2 loses pixels; all others stay as they were


def test_draws_of_exclusive_classes_go_by_the_channels_of_the_numbers():
    settings = {"objective": "x0", "mask_loss": "bce"}
    exclusive, regions = diffusion_of(class_activation="softmax", **settings), diffusion_of(**settings)
    soft, uniform = class_ramps(), smooth_uniforms(1, 4)
    assert exclusive.uniform_channels(3) == 4 and regions.uniform_channels(3) == 1
    drawn = exclusive.draw(exclusive.from_mask(soft), uniform)
    assert torch.equal(exclusive.to_mask(drawn), drawn_classes(soft, uniform))
    mask = drawn_classes(soft, uniform)
    assert torch.equal(exclusive.draw_mask(mask, uniform), mask)  # what is certain is drawn as it is
    assert torch.equal(exclusive.draw_mask(mask, torch.zeros_like(uniform)), mask)  # however the race goes
    for diffusion, wrong in ((regions, uniform), (exclusive, uniform[:, :3])):
        with pytest.raises(ValueError, match="uniform number"):
            diffusion.draw_mask(soft, wrong)
