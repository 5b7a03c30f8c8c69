"""Samplers: a contract that all of them pass, diffusers' DDPM and DDIM, the plan of steps, drawing an ensemble."""

import math

import numpy as np
import pytest
import torch

from guided_diffusion.config import SampleOptions, build
from guided_diffusion.dpm_solver import solver_timesteps
from guided_diffusion.errors import UserError
from guided_diffusion.gaussian_diffusion import Denoised, GaussianDiffusion, noise_schedule
from guided_diffusion.medsegdiff import MedSegDiffV1, ModelOutput, UNetShape
from guided_diffusion.sampling import (
    SAMPLERS,
    MemberNoise,
    draw_members,
    member_generator,
    plan_sampling,
    sample_ddim,
    sample_ddpm,
    strided_timesteps,
)

THEIR_NAMES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
every_objective = pytest.mark.parametrize("objective", ["eps", "x0", "v"])


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(x, t):
    """Some smooth, nonlinear network that mixes pixels, not rows, and depends on the time."""
    return torch.tanh(0.8 * x + 0.3 * x.roll(1, -1) - 0.2 * x.roll(1, -2) ** 2 + 1e-3 * t.reshape(-1, 1, 1, 1) - 0.3)


def smooth_denoiser(diffusion, learned=False, clip=True):
    """`network` as a denoiser that takes one time for the whole batch, as samplers call it."""

    def model(x, t, condition):
        return ModelOutput(network(x, t), network(-x, t) if learned else None, None)

    denoise = diffusion.denoiser(model, None, clip=clip)
    return lambda x, t: denoise(x, torch.full((len(x),), int(t)))


def times_for(name, num_timesteps, steps):
    return (solver_timesteps if name == "dpm_solver" else strided_timesteps)(num_timesteps, steps)


def noise_source(shape, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=dtype)


# ---- the contract of every sampler -----------------------------------------------------------------------------------


@every_sampler
@every_objective
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 10])
def test_contract_shape_type_determinism_and_watch(name, objective, learned, dtype, steps):
    diffusion, shape = GaussianDiffusion(noise_schedule("cosine", 50, 0.3), objective=objective), (3, 2, 8, 6)

    def draw(seed, watch=None):
        denoise, noise = smooth_denoiser(diffusion, learned), noise_source(shape, dtype, seed)
        return SAMPLERS[name](denoise, noise(), times_for(name, 50, steps), diffusion.schedule, noise, watch)

    seen = []
    first = draw(0, lambda x, x0: seen.append((x, x0)))
    assert first.shape == shape and first.dtype == dtype
    assert first.isfinite().all() and first.abs().max() <= 1
    assert torch.equal(first, draw(0)) and not torch.equal(first, draw(1))
    assert len(seen) == steps and torch.equal(seen[0][0], noise_source(shape, dtype, 0)())
    torch.testing.assert_close(first, seen[-1][1])


@every_sampler
@pytest.mark.parametrize("learned", [False, True])
def test_contract_a_row_does_not_depend_on_the_others(name, learned):
    diffusion = GaussianDiffusion(noise_schedule("cosine", 50, 0.3), objective="v")
    x, noises = randn(4, 1, 8, 8), randn(50, 4, 1, 8, 8, seed=2)

    def draw(rows):
        source = iter(noises[:, rows])
        times = times_for(name, 50, 10)
        return SAMPLERS[name](
            smooth_denoiser(diffusion, learned), x[rows], times, diffusion.schedule, lambda: next(source)
        )

    together = draw([0, 1, 2, 3])
    for rows in ([2], [3, 1]):
        torch.testing.assert_close(draw(rows), together[rows], atol=1e-12, rtol=0)


MEAN, STD = 0.3, 0.1


def exact_x0(alphas_bar, x, t):
    """E[x_0 | x_t] of masks whose every pixel is N(MEAN, STD^2)."""
    abar = float(alphas_bar[t])
    return (MEAN * (1 - abar) + abar**0.5 * STD**2 * x) / (abar * STD**2 + 1 - abar)


@every_sampler
@every_objective
@pytest.mark.parametrize("learned", [False, True])
def test_contract_many_steps_approach_an_analytic_gaussian(name, objective, learned):
    alphas_bar = noise_schedule("linear", 400)
    diffusion = GaussianDiffusion(alphas_bar, objective=objective)

    def model(x_t, t, condition):  # the exact network, in the terms of its objective
        x0 = exact_x0(alphas_bar, x_t, t[0])
        eps = diffusion.to_eps(x0, x_t, t)
        prediction = {"eps": eps, "x0": x0.clamp(-0.999, 0.999).atanh(), "v": diffusion.target(x0, t, eps)}[objective]
        return ModelOutput(prediction, torch.zeros_like(x_t) if learned else None, None)

    denoise = diffusion.denoiser(model, None, clip=False)
    errors = []
    for steps in (4, 399):
        noise = noise_source((64, 1, 8, 8))
        times = times_for(name, 400, steps)
        samples = SAMPLERS[name](
            lambda x, t: denoise(x, torch.full((len(x),), int(t))), noise(), times, diffusion.schedule, noise
        )
        errors.append(abs(samples.std().item() / STD - 1))
        assert samples.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert errors[-1] < 0.08 and errors[-1] < errors[0] / 2


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
        return Denoised(exact_x0(alphas_bar, x, t), None, torch.full_like(x, fraction or 0), None)

    noise = noise_source((256, 1, 16, 16))
    samples = sample_ddpm(denoise, noise(), times, schedule, noise)
    shrink = alphas_bar[0] * STD**2 / (alphas_bar[0] * STD**2 + 1 - alphas_bar[0])  # of E[x_0 | x at t = 0]
    assert samples.std().item() == pytest.approx(STD * shrink**0.5, rel=0.01)
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.002)


# ---- against diffusers -----------------------------------------------------------------------------------------------


def with_our_schedule(scheduler_class, alphas_bar, objective, **options):
    betas = 1 - alphas_bar / np.r_[1, alphas_bar[:-1]]
    scheduler = scheduler_class(len(betas), trained_betas=betas, prediction_type=THEIR_NAMES[objective], **options)
    scheduler.alphas_cumprod = torch.from_numpy(alphas_bar)
    return scheduler


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
    seen, x = [], randn(2, 1, 8, 8)
    denoise, noise = smooth_denoiser(diffusion, learned, clip), noise_source(x.shape, seed=5)
    result = sample_ddpm(denoise, x, times, diffusion.schedule, noise, lambda x, x0: seen.append(x))
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
    seen, x = [], randn(2, 1, 8, 8)
    result = sample_ddim(
        smooth_denoiser(diffusion, clip=clip), x, times, diffusion.schedule, watch=lambda x, x0: seen.append(x)
    )
    for t, ours in zip(times, seen, strict=True):
        assert (ours - x).abs().max() < 1e-7 * x.abs().max()
        value = diffusion.activate(network(x, torch.tensor([t])))
        x = scheduler.step(value, int(t), x, use_clipped_model_output=True).prev_sample
    assert (result - x).abs().max() < 1e-7 * x.abs().max()


# ---- plans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_timesteps", "steps"), [(1000, 50), (1000, 1000), (1000, 7), (20, 19), (5, 2)])
def test_strided_times_are_training_steps_evenly_spread_with_both_ends(num_timesteps, steps):
    times = strided_timesteps(num_timesteps, steps)
    assert len(set(times.tolist())) == steps
    assert (times[0], times[-1]) == (num_timesteps - 1, 0)
    gaps = -np.diff(times)
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1
    assert strided_timesteps(num_timesteps, 1).tolist() == [num_timesteps - 1]


PLANS = [
    ({}, "dpm_solver", 20),
    ({"diffusion_steps": 0}, "dpm_solver", 20),
    ({"diffusion_steps": 1000}, "ddpm", 1000),
    ({"diffusion_steps": 50}, "ddpm", 50),
    ({"use_ddim": True}, "ddim", 50),
    ({"use_ddim": True, "diffusion_steps": 25}, "ddim", 25),
    ({"dpm_solver": True}, "dpm_solver", 20),
    ({"dpm_solver": True, "diffusion_steps": 50}, "dpm_solver", 50),
    ({"dpm_solver": True, "diffusion_steps": 1000}, "dpm_solver", 999),
    ({"dpm_solver": False}, "ddpm", 1000),
    ({"use_ddim": False}, "dpm_solver", 20),
    ({"timestep_respacing": "50"}, "ddpm", 50),
    ({"timestep_respacing": "ddim50"}, "ddim", 50),
    ({"timestep_respacing": "50", "use_ddim": True}, "ddim", 50),
    ({"timestep_respacing": "10,20,30"}, "ddpm", 60),
    ({"timestep_respacing": "ddim10,5"}, "ddim", 15),
]


@pytest.mark.parametrize(("flags", "sampler", "steps"), PLANS, ids=str)
def test_the_flags_make_the_plan(flags, sampler, steps):
    plan = plan_sampling(build(SampleOptions, flags), set(flags), 1000)
    assert (plan.sampler, len(plan.timesteps)) == (sampler, steps)
    assert str(plan) == f"{sampler}, {steps} steps"
    assert plan.timesteps[0] == 999 and all(type(t) is int for t in plan.timesteps)
    assert all(t > s >= 0 for t, s in zip(plan.timesteps[:-1], plan.timesteps[1:], strict=True))


@pytest.mark.parametrize("flags", [{}, {"use_ddim": True}, {"dpm_solver": False}])
@pytest.mark.parametrize("num_timesteps", [2, 10])
def test_default_step_numbers_shrink_to_a_short_schedule(flags, num_timesteps):
    times = plan_sampling(build(SampleOptions, flags), set(flags), num_timesteps).timesteps
    assert times[0] == num_timesteps - 1 and len(set(times)) == len(times) <= num_timesteps


def test_respacing_counts_the_steps_of_each_section():
    flags = {"timestep_respacing": "4,2,1"}
    times = np.array(plan_sampling(build(SampleOptions, flags), set(flags), 90).timesteps)
    assert [((times >= low) & (times < low + 30)).sum() for low in (0, 30, 60)] == [4, 2, 1]
    assert times[0] == 89 and times[-1] == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"use_ddim": True, "dpm_solver": True}, "contradicts"),
        ({"diffusion_steps": 1001}, "1000"),
        ({"diffusion_steps": 1001, "dpm_solver": True}, "1000"),
        ({"timestep_respacing": "50", "diffusion_steps": 50}, "leave out"),
        ({"timestep_respacing": "50", "dpm_solver": True}, "leave out"),
        ({"timestep_respacing": "fifty"}, "must be like"),
        ({"timestep_respacing": "ddim"}, "must be like"),
        ({"timestep_respacing": "1001"}, "cannot give 1001"),
        ({"timestep_respacing": "400,10,10"}, "cannot give 400"),
    ],
    ids=str,
)
def test_flags_that_make_no_sense_are_refused_in_one_line(flags, words):
    with pytest.raises(UserError, match=words) as caught:
        plan_sampling(build(SampleOptions, flags), set(flags), 1000)
    assert "\n" not in str(caught.value)


# ---- noise -----------------------------------------------------------------------------------------------------------


def test_a_member_s_noise_follows_from_seed_name_and_member():
    keys = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a/0", 1), (10, "a", 0), (1, "0a", 0)]
    draws = [torch.randn(4, generator=member_generator(*key)) for key in keys]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(keys)
    noise = MemberNoise(0, ["a", "b"], 3, (1, 64, 64), "cpu")
    first, second = noise(), noise()
    assert torch.equal(first[2 * 2 + 1], torch.randn((1, 64, 64), generator=member_generator(0, "b", 2)))  # row e*N + n
    assert first.shape == (6, 1, 64, 64) and not torch.equal(first, second)
    torch.testing.assert_close(first.flatten(1).std(dim=1), torch.ones(6), atol=0.05, rtol=0)


# ---- ensembles -------------------------------------------------------------------------------------------------------


def small_model(seed=0, **options):
    torch.manual_seed(seed)
    model = MedSegDiffV1(2, 1, 16, UNetShape(8, (1, 2), 1), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


DIFFUSION = GaussianDiffusion(noise_schedule("cosine", 50, 0.3), objective="x0", mask_loss="bce_dice")
IMAGES, NAMES = randn(3, 2, 16, 16, dtype=torch.float32), ["x", "y", "z"]


def plan_of(name, steps=4):
    flags = {"use_ddim": name == "ddim", "dpm_solver": name == "dpm_solver", "diffusion_steps": steps}
    return plan_sampling(build(SampleOptions, flags), set(flags), 50)


def draw(model, name="ddpm", rows=(0, 1, 2), members=2, **options):
    names, plan = [NAMES[row] for row in rows], plan_of(name)
    return draw_members(model, DIFFUSION, plan, IMAGES[list(rows)], names, members=members, **options)


@every_sampler
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_members_are_one_soft_mask_each_with_a_coarse_one(name, learn_sigma):
    members = draw(small_model(learn_sigma=learn_sigma), name)
    for masks in members:
        assert masks.shape == (2, 3, 1, 16, 16) and masks.dtype == torch.float32
        assert masks.min() >= 0 and masks.max() <= 1 and masks.isfinite().all()
    assert (members.soft[0] - members.soft[1]).abs().max() > 1e-4
    assert (members.soft - members.coarse).abs().max() > 1e-3


@every_sampler
def test_members_depend_on_the_seed_but_neither_on_the_batch_nor_on_their_number(name):
    model = small_model(learn_sigma=True)
    together = draw(model, name, members=2)
    torch.manual_seed(99)  # the global generator has no say
    assert torch.equal(together.soft, draw(model, name, members=2).soft)
    assert not torch.allclose(together.soft, draw(model, name, members=2, seed=4).soft, atol=1e-4)
    for rows in ((0,), (2, 1)):
        apart = draw(model, name, rows, members=2)
        for few, many in zip(apart, together, strict=True):
            torch.testing.assert_close(few, many[:, list(rows)], atol=1e-4, rtol=0)
    for few, many in zip(together, draw(model, name, members=5), strict=True):
        torch.testing.assert_close(few, many[:2], atol=1e-4, rtol=0)


def test_the_image_is_encoded_once_and_all_members_go_in_one_batch_without_gradients():
    model, encoded, batches = small_model(), [], []
    encode = model.encode
    model.encode = lambda *args: encoded.append(args) or encode(*args)
    model.register_forward_hook(
        lambda module, args, output: batches.append((len(args[0]), torch.is_grad_enabled(), output.prediction.grad_fn))
    )
    members = draw(model, members=5)
    assert len(encoded) == 1
    assert batches == [(15, False, None)] * 4
    assert not members.soft.requires_grad and members.soft.is_inference() and members.coarse.grad_fn is None
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_watch_sees_members_and_images_apart_and_the_coarse_mask_is_the_last_step_s():
    model, seen, outputs = small_model(), [], []
    model.register_forward_hook(lambda module, args, output: outputs.append(output))
    members = draw(model, watch=lambda x, x0: seen.append((x, x0)))
    assert len(seen) == 4
    assert all(part.shape == (2, 3, 1, 16, 16) for step in seen for part in step)
    torch.testing.assert_close(members.soft, (seen[-1][1] + 1) / 2)
    torch.testing.assert_close(members.coarse, torch.sigmoid(outputs[-1].coarse).reshape(2, 3, 1, 16, 16))
    noise = MemberNoise(0, NAMES, 2, (1, 16, 16), "cpu")()
    assert torch.equal(seen[0][0], noise.reshape(2, 3, 1, 16, 16))


def test_labels_and_clipping_count_and_other_sizes_work():
    model, diffusion = small_model(num_labels=2), GaussianDiffusion(noise_schedule("cosine", 50))
    image = randn(1, 2, 24, 32, dtype=torch.float32)

    def run(label, clip):
        seen = []
        options = {"label": torch.tensor([label]), "clip": clip, "watch": lambda x, x0: seen.append(x0)}
        members = draw_members(model, diffusion, plan_of("ddim"), image, ["a"], members=2, **options)
        assert members.soft.shape == members.coarse.shape == (2, 1, 1, 24, 32)
        assert 0 <= members.soft.min() and members.soft.max() <= 1
        return torch.stack(seen)

    assert (run(0, True) - run(1, True)).abs().max() > 1e-3
    assert run(0, True).abs().max() <= 1 < run(0, False).abs().max()
