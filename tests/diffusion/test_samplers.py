"""Samplers: a contract that all of them pass, and DDPM and DDIM against diffusers."""

import math

import pytest
import torch
from oracles import exact_x0, network, noise_source, randn, record, smooth_denoiser, with_our_schedule

from guided_diffusion.diffusion.gaussian_diffusion import Denoised, GaussianDiffusion
from guided_diffusion.diffusion.losses import class_probabilities
from guided_diffusion.diffusion.samplers import SAMPLERS, sample_ddim, sample_ddpm
from guided_diffusion.diffusion.schedule import (
    bernoulli_timesteps,
    noise_schedule,
    solver_timesteps,
    strided_timesteps,
)
from guided_diffusion.models.outputs import ModelOutput

VARIANTS = {
    "bernoulli": {},
    "ddpm": {},
    "ddim": {},
    "dpm_solver": {},
    "dpm_solver 1": {"order": 1},
    "dpm_solver 3": {"order": 3},
}
INDEPENDENT = GaussianDiffusion(noise_schedule("cosine", 50, 0.3))  # whose classes do not exclude one another
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_objective = pytest.mark.parametrize("objective", ["eps", "x0", "v"])


def timesteps_of(variant, schedule, steps):
    own = {"bernoulli": bernoulli_timesteps, "dpm_solver": solver_timesteps}.get(variant.split()[0])
    return (own(schedule, steps) if own else strided_timesteps(len(schedule), steps)).tolist()


def run(variant, denoise, x, steps, schedule, noise, watch=None, diffusion=INDEPENDENT):
    times, options = timesteps_of(variant, schedule, steps), dict(VARIANTS[variant])
    if variant == "bernoulli":
        options["draw"] = lambda x0: diffusion.draw(x0, noise.uniform())
    return SAMPLERS[variant.split()[0]](denoise, x, times, schedule, noise, watch, **options)


# ---- the contract of every sampler -----------------------------------------------------------------------------------


def test_every_sampler_is_under_contract():
    assert {variant.split()[0] for variant in VARIANTS} == set(SAMPLERS)


@every_variant
@every_objective
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 10])
def test_contract_shape_type_determinism_and_watch(variant, objective, learned, dtype, steps):
    diffusion, shape = GaussianDiffusion(noise_schedule("cosine", 50, 0.3), objective=objective), (3, 2, 8, 6)

    def draw(seed, watch=None):
        denoise, noise = smooth_denoiser(diffusion, learned), noise_source(shape, dtype, seed)
        return run(variant, denoise, noise(), steps, diffusion.schedule, noise, watch)

    seen = []
    first = draw(0, lambda x, x0: seen.append((x, x0)))
    assert first.shape == shape and first.dtype == dtype
    assert first.isfinite().all() and first.abs().max() <= 1
    assert torch.equal(first, draw(0)) and not torch.equal(first, draw(1))
    assert len(seen) == steps and torch.equal(seen[0][0], noise_source(shape, dtype, 0)())
    torch.testing.assert_close(first, seen[-1][1])


@every_variant
def test_contract_the_network_is_called_once_a_step_with_int_times(variant):
    diffusion = GaussianDiffusion(noise_schedule("cosine", 50, 0.3))
    times = []

    def denoise(x, t):
        times.append(t)
        return smooth_denoiser(diffusion)(x, t)

    noise = noise_source((1, 1, 8, 8))
    run(variant, denoise, noise(), 10, diffusion.schedule, noise)
    assert times == timesteps_of(variant, diffusion.schedule, 10) and all(type(t) is int for t in times)


@every_variant
@pytest.mark.parametrize("learned", [False, True])
def test_contract_a_row_does_not_depend_on_the_others(variant, learned):
    diffusion = GaussianDiffusion(noise_schedule("cosine", 50, 0.3), objective="v")
    x, noises = randn(4, 1, 8, 8), randn(50, 4, 1, 8, 8, seed=2)

    def draw(rows):
        source = iter(noises[:, rows])

        def noise():
            return next(source)

        noise.uniform = lambda: torch.special.ndtr(next(source))
        return run(variant, smooth_denoiser(diffusion, learned), x[rows], 10, diffusion.schedule, noise)

    together = draw([0, 1, 2, 3])
    for rows in ([2], [3, 1]):
        torch.testing.assert_close(draw(rows), together[rows], atol=1e-12, rtol=0)


@every_variant
@pytest.mark.parametrize("how", [{"objective": "eps"}, {"objective": "v"}, {"class_activation": "softmax"}], ids=str)
def test_contract_autocast_changes_nothing(variant, how):
    """All but the network is in float32: under autocast to bf16 as in float64 without it, up to float32's rounding."""
    if "class_activation" in how:
        how = {"objective": "x0", "mask_loss": "bce", "logit_skip": "both", **how}
    diffusion = GaussianDiffusion(noise_schedule("cosine", 50, 0.3), **how)
    shape = (2, 2, 6, 6)

    def draw(dtype):
        source = noise_source(shape, torch.float32)

        def noise():
            return source().to(dtype)

        noise.uniform = lambda: source.uniform().to(dtype)
        coarse = randn(*shape, seed=3).to(dtype)

        def model(x, t, condition):
            return ModelOutput(network(x, t).to(dtype), network(-x, t).to(dtype), coarse)

        denoise = diffusion.denoiser(model, None)
        x0 = run(variant, denoise, noise(), 5, diffusion.schedule, noise, diffusion=diffusion)
        return x0, diffusion.draw(x0, noise.uniform())

    expected = draw(torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        found = draw(torch.float32)
    for got, exact in zip(found, expected, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), exact, atol=2e-4, rtol=0)


MEAN, STD = 0.3, 0.1


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "bernoulli"])  # it draws masks of two values
@every_objective
@pytest.mark.parametrize("learned", [False, True])
def test_contract_many_steps_approach_an_analytic_gaussian(variant, objective, learned):
    alphas_bar = noise_schedule("linear", 400)
    diffusion = GaussianDiffusion(alphas_bar, objective=objective)

    def model(x_t, t, condition):  # the exact network, in the terms of its objective
        x0 = exact_x0(alphas_bar, x_t, t[0], MEAN, STD)
        eps = diffusion.to_eps(x0, x_t, t)
        prediction = {"eps": eps, "x0": x0.clamp(-0.999, 0.999).atanh(), "v": diffusion.target(x0, t, eps)}[objective]
        return ModelOutput(prediction, torch.zeros_like(x_t) if learned else None, None)

    denoise = diffusion.denoiser(model, None, clip=False)
    errors = []
    for steps in (4, 399):
        noise = noise_source((64, 1, 8, 8))
        samples = run(variant, denoise, noise(), steps, diffusion.schedule, noise)
        errors.append(abs(samples.std().item() / STD - 1))
        assert samples.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert errors[-1] < 0.08 and errors[-1] < errors[0] / 2


# ---- margins of drawn masks ------------------------------------------------------------------------------------------


def independent_pixels(coarse, rows, b=0.3, **how):
    """A diffusion and its denoiser with a head of zeros: with the skip "both" it is exact for independent pixels."""
    options = {"objective": "x0", "mask_loss": "bce", "logit_skip": "both", **how}
    diffusion = GaussianDiffusion(noise_schedule("cosine", 1000, b), **options)
    coarse = coarse.expand(rows, *coarse.shape)

    def model(x_t, t, condition):
        return ModelOutput(torch.zeros_like(x_t), None, coarse)

    return diffusion, diffusion.denoiser(model, None)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_with_a_head_of_zeros_drawn_members_have_the_coarse_probability(activation, steps):
    coarse = torch.tensor([[-3.0, -1.0, 0.0, 2.0], [0.5, -1.0, 1.0, -4.0]]).reshape(2, 1, 4)
    diffusion, denoise = independent_pixels(coarse, 8000, class_activation=activation)
    noise = noise_source((8000, *coarse.shape), torch.float32)
    soft = run("bernoulli", denoise, noise(), steps, diffusion.schedule, noise, diffusion=diffusion)
    masks = diffusion.to_mask(diffusion.draw(soft, noise.uniform()))
    assert set(masks.unique().tolist()) == {0, 1}
    expected = class_probabilities(coarse, diffusion.exclusive)
    for members in (masks, diffusion.to_mask(soft)):
        error = (members.mean(dim=0) - expected) / (expected * (1 - expected) / 8000).sqrt()
        assert error.abs().max() < 4
    if diffusion.exclusive:
        assert masks.sum(dim=1).max() == 1


def test_regions_inside_one_another_are_drawn_inside_one_another():
    inner, outer = torch.rand(2, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).sort(dim=0).values
    x0 = INDEPENDENT.from_mask(torch.cat([inner, outer], dim=1)).expand(500, 2, 8, 8)
    drawn = INDEPENDENT.draw(x0, noise_source((500, 2, 8, 8), torch.float32).uniform())
    assert (drawn[:, 0] <= drawn[:, 1]).all() and (drawn[:, 0] < drawn[:, 1]).any()


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_level_sets_of_soft_masks_have_the_soft_mask_as_their_mean(activation):
    settings = {"objective": "x0", "mask_loss": "bce", "class_activation": activation}
    diffusion = GaussianDiffusion(noise_schedule("cosine", 50), **settings)
    soft = torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(0)) / 2  # their sums are at most 1
    levels = (torch.arange(1000) + 0.5).reshape(-1, 1, 1, 1) / 1000
    drawn = diffusion.draw_mask(soft.expand(1000, -1, -1, -1), levels)
    torch.testing.assert_close(drawn.mean(dim=0, keepdim=True), soft, atol=2e-3, rtol=0)
    assert activation == "sigmoid" or drawn.sum(dim=1).max() == 1
    clean = (soft > 0.3).float() * torch.tensor([1.0, 0.0])[None, :, None, None]
    assert all(
        torch.equal(diffusion.draw_mask(clean, level), clean) for level in (torch.zeros(()), torch.tensor(0.999))
    )


def test_in_five_steps_drawing_keeps_a_probability_that_the_solver_loses():
    """A pixel of probability 0.3 and b = 0.1: the solver steps along the mean, which is not a mask."""
    coarse = torch.logit(torch.tensor(0.3)).expand(1, 1, 1)
    diffusion, denoise = independent_pixels(coarse, 20_000, b=0.1)
    noise = noise_source((20_000, 1, 1, 1), torch.float32)
    x0 = {
        variant: run(variant, denoise, noise(), 5, diffusion.schedule, noise, diffusion=diffusion)
        for variant in ("bernoulli", "dpm_solver")
    }
    drawn = diffusion.draw(x0["bernoulli"], noise.uniform())
    assert (drawn > 0).double().mean() == pytest.approx(0.3, abs=4 * (0.21 / 20_000) ** 0.5)
    assert (x0["dpm_solver"] > 0).double().mean() == pytest.approx(0.066, abs=0.01)


@pytest.mark.parametrize("steps", [2, 5, 30])
def test_strided_ddpm_with_the_exact_variance_is_exact_in_any_number_of_steps(steps):
    """For Gaussian data p(x_s | x_t) is Gaussian, with a mean by E[x_0 | x_t] and a variance by Var[x_0 | x_t]; steps
    of another schedule than the training one would miss it."""
    diffusion = GaussianDiffusion(noise_schedule("cosine", 200))
    schedule, alphas_bar = diffusion.schedule, diffusion.schedule.alphas_bar
    times = strided_timesteps(200, steps)
    previous = dict(zip(times, [*times[1:], -1], strict=True))

    def denoise(x, t):
        s, abar = previous[t], float(alphas_bar[t])
        left = STD**2 * (1 - abar) / (abar * STD**2 + 1 - abar)  # Var[x_0 | x_t]
        fraction = None
        if s >= 0:
            of_x0, _, variance, beta = schedule.posterior(t, s)
            fraction = math.log((variance + of_x0**2 * left) / variance) / math.log(beta / variance)
        return Denoised(exact_x0(alphas_bar, x, t, MEAN, STD), None, torch.full_like(x, fraction or 0), None)

    noise = noise_source((256, 1, 16, 16))
    samples = sample_ddpm(denoise, noise(), times, schedule, noise)
    shrink = alphas_bar[0] * STD**2 / (alphas_bar[0] * STD**2 + 1 - alphas_bar[0])  # of E[x_0 | x at t = 0]
    assert samples.std().item() == pytest.approx(STD * shrink**0.5, rel=0.01)
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.002)


# ---- against diffusers -----------------------------------------------------------------------------------------------


@every_objective
@pytest.mark.parametrize("steps", [50, 13])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_ddpm_agrees_with_diffusers_step_by_step(objective, steps, learned, clip):
    from diffusers import DDPMScheduler

    diffusion = GaussianDiffusion(noise_schedule("cosine", 50, 0.3), objective=objective)
    variance_type = "learned_range" if learned else "fixed_small"
    scheduler = with_our_schedule(
        DDPMScheduler, diffusion.schedule.alphas_bar, objective, variance_type=variance_type, clip_sample=clip
    )
    times = strided_timesteps(50, steps)
    scheduler.set_timesteps(timesteps=times.tolist())
    x = randn(2, 1, 8, 8)
    denoise, noise = smooth_denoiser(diffusion, learned, clip), noise_source(x.shape, seed=5)
    result, seen, _ = record(sample_ddpm, denoise, x, times, diffusion.schedule, noise)
    generator = torch.Generator().manual_seed(5)
    for t, ours in zip(scheduler.timesteps, seen, strict=True):
        assert (ours - x).abs().max() < 1e-7 * x.abs().max()
        value = diffusion.activate(network(x, t.reshape(1)))
        output = torch.cat([value, network(-x, t.reshape(1))], dim=1) if learned else value
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    assert (result - x).abs().max() < 1e-7 * x.abs().max()


@every_objective
@pytest.mark.parametrize("clip", [False, True])
def test_ddim_agrees_with_diffusers_step_by_step(objective, clip):
    from diffusers import DDIMScheduler

    diffusion = GaussianDiffusion(noise_schedule("cosine", 1000, 0.3), objective=objective)
    scheduler = with_our_schedule(DDIMScheduler, diffusion.schedule.alphas_bar, objective, clip_sample=clip)
    times = strided_timesteps(1000, 28)  # 999 / 27 = 37: an even grid, as theirs must be
    scheduler.num_inference_steps = 27  # their previous step is t - 1000 // 27 = t - 37
    x = randn(2, 1, 8, 8)
    result, seen, _ = record(sample_ddim, smooth_denoiser(diffusion, clip=clip), x, times, diffusion.schedule)
    for t, ours in zip(times, seen, strict=True):
        assert (ours - x).abs().max() < 1e-7 * x.abs().max()
        value = diffusion.activate(network(x, torch.tensor([t])))
        x = scheduler.step(value, int(t), x, use_clipped_model_output=True).prev_sample
    assert (result - x).abs().max() < 1e-7 * x.abs().max()
