"""Samplers: a contract that all of them pass, diffusers' DDPM and DDIM, drawing an ensemble."""

import math
from dataclasses import replace

import pytest
import torch
from oracles import exact_x0, network, noise_source, randn, record, smooth_denoiser, with_our_schedule

from guided_diffusion.config.options import build
from guided_diffusion.config.sample_options import SampleOptions
from guided_diffusion.diffusion.gaussian_diffusion import Denoised, GaussianDiffusion
from guided_diffusion.diffusion.samplers import SAMPLERS, sample_ddim, sample_ddpm
from guided_diffusion.diffusion.schedule import noise_schedule, strided_timesteps
from guided_diffusion.inference.members import MemberNoise, draw_members, member_generator
from guided_diffusion.inference.plan import plan_sampling
from guided_diffusion.models.medsegdiff import MedSegDiffV1
from guided_diffusion.models.outputs import ModelOutput
from guided_diffusion.models.unet import UNetShape

VARIANTS = {
    "ddpm": {},
    "ddim": {},
    "dpm_solver": {},
    "dpm_solver 1": {"solver_order": 1},
    "dpm_solver 3": {"solver_order": 3},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_objective = pytest.mark.parametrize("objective", ["eps", "x0", "v"])


def plan_of(variant, diffusion, steps, **more):
    """The plan that a user's flags make of a variant."""
    flags = {"sampler": variant.split()[0], "diffusion_steps": steps, **VARIANTS[variant], **more}
    return plan_sampling(build(SampleOptions, flags), set(flags), diffusion)


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
    plan = plan_of(variant, diffusion, steps)

    def draw(seed, watch=None):
        denoise, noise = smooth_denoiser(diffusion, learned), noise_source(shape, dtype, seed)
        return plan.run(denoise, noise(), diffusion.schedule, noise, watch)

    seen = []
    first = draw(0, lambda x, x0: seen.append((x, x0)))
    assert first.shape == shape and first.dtype == dtype
    assert first.isfinite().all() and first.abs().max() <= 1
    assert torch.equal(first, draw(0)) and not torch.equal(first, draw(1))
    assert len(seen) == steps and torch.equal(seen[0][0], noise_source(shape, dtype, 0)())
    torch.testing.assert_close(first, seen[-1][1])


@every_variant
def test_contract_the_network_is_called_once_a_step_with_int_times_of_the_plan(variant):
    diffusion = GaussianDiffusion(noise_schedule("cosine", 50, 0.3))
    plan, times = plan_of(variant, diffusion, 10), []

    def denoise(x, t):
        times.append(t)
        return smooth_denoiser(diffusion)(x, t)

    noise = noise_source((1, 1, 8, 8))
    plan.run(denoise, noise(), diffusion.schedule, noise)
    assert tuple(times) == plan.timesteps and all(type(t) is int for t in times)


@every_variant
@pytest.mark.parametrize("learned", [False, True])
def test_contract_a_row_does_not_depend_on_the_others(variant, learned):
    diffusion = GaussianDiffusion(noise_schedule("cosine", 50, 0.3), objective="v")
    plan, x, noises = plan_of(variant, diffusion, 10), randn(4, 1, 8, 8), randn(50, 4, 1, 8, 8, seed=2)

    def draw(rows):
        source = iter(noises[:, rows])
        return plan.run(smooth_denoiser(diffusion, learned), x[rows], diffusion.schedule, lambda: next(source))

    together = draw([0, 1, 2, 3])
    for rows in ([2], [3, 1]):
        torch.testing.assert_close(draw(rows), together[rows], atol=1e-12, rtol=0)


MEAN, STD = 0.3, 0.1


@every_variant
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
        samples = plan_of(variant, diffusion, steps).run(denoise, noise(), diffusion.schedule, noise)
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


# ---- noise -----------------------------------------------------------------------------------------------------------


def test_a_member_s_noise_follows_from_seed_name_and_member():
    keys = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a/0", 1), (10, "a", 0), (1, "0a", 0)]
    draws = [torch.randn(4, generator=member_generator(*key)) for key in keys]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(keys)
    noise = MemberNoise(0, [(name, member) for member in range(3) for name in "ab"], (1, 64, 64), "cpu")
    first, second = noise(), noise()
    assert torch.equal(first[2 * 2 + 1], torch.randn((1, 64, 64), generator=member_generator(0, "b", 2)))
    assert first.shape == (6, 1, 64, 64) and not torch.equal(first, second)
    torch.testing.assert_close(first.flatten(1).std(dim=1), torch.ones(6), atol=0.05, rtol=0)


# ---- ensembles -------------------------------------------------------------------------------------------------------


def small_model(seed=0, dropout=0.0, **options):
    torch.manual_seed(seed)
    model = MedSegDiffV1(2, 1, 16, UNetShape(8, (1, 2), 1, dropout=dropout), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


DIFFUSION = GaussianDiffusion(noise_schedule("cosine", 50, 0.3), objective="x0", mask_loss="bce_dice")
IMAGES, NAMES = randn(3, 2, 16, 16, dtype=torch.float32), ["x", "y", "z"]


def draw(model, variant="ddpm", rows=(0, 1, 2), members=2, batch_rows=None, **options):
    names, plan = [NAMES[row] for row in rows], plan_of(variant, DIFFUSION, 4)
    options |= {"members": members, "rows": batch_rows}
    return draw_members(model, DIFFUSION, plan, IMAGES[list(rows)], names, **options)


@every_variant
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_members_are_one_soft_mask_each_with_a_coarse_one(variant, learn_sigma):
    members = draw(small_model(learn_sigma=learn_sigma), variant)
    for masks in members:
        assert masks.shape == (2, 3, 1, 16, 16) and masks.dtype == torch.float32
        assert masks.min() >= 0 and masks.max() <= 1 and masks.isfinite().all()
    assert (members.soft[0] - members.soft[1]).abs().max() > 1e-4
    assert (members.soft - members.coarse).abs().max() > 1e-3


@every_variant
def test_members_depend_on_the_seed_but_neither_on_the_batch_nor_on_their_number(variant):
    model = small_model(learn_sigma=True)
    together = draw(model, variant, members=2)
    torch.manual_seed(99)  # the global generator has no say
    assert torch.equal(together.soft, draw(model, variant, members=2).soft)
    assert not torch.allclose(together.soft, draw(model, variant, members=2, seed=4).soft, atol=1e-4)
    for rows in ((0,), (2, 1)):
        apart = draw(model, variant, rows, members=2)
        for few, many in zip(apart, together, strict=True):
            torch.testing.assert_close(few, many[:, list(rows)], atol=1e-4, rtol=0)
    for few, many in zip(together, draw(model, variant, members=5), strict=True):
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


def test_watch_sees_the_rows_of_each_step_and_the_coarse_mask_is_the_last_step_s():
    model, seen, outputs = small_model(), [], []
    model.register_forward_hook(lambda module, args, output: outputs.append(output))
    members = draw(model, watch=lambda x, x0: seen.append((x, x0)))
    assert len(seen) == 4
    assert all(part.shape == (6, 1, 16, 16) for step in seen for part in step)
    torch.testing.assert_close(members.soft, ((seen[-1][1] + 1) / 2).reshape(2, 3, 1, 16, 16))
    torch.testing.assert_close(members.coarse, torch.sigmoid(outputs[-1].coarse).reshape(2, 3, 1, 16, 16))
    noise = MemberNoise(0, [(name, member) for member in range(2) for name in NAMES], (1, 16, 16), "cpu")
    assert torch.equal(seen[0][0], noise())  # row e * N + n is member e of image n


@every_variant
@pytest.mark.parametrize("rows", [1, 4, 6, 100])
def test_members_do_not_depend_on_how_the_work_is_split_and_each_image_is_encoded_once(variant, rows):
    model, encoded, passes = small_model(learn_sigma=True), [], []
    whole = draw(model, variant)
    encode = model.encode
    model.encode = lambda *args: encoded.append(len(args[0])) or encode(*args)
    model.register_forward_hook(lambda module, args, output: passes.append(len(args[0])))
    split = draw(model, variant, batch_rows=rows)
    assert encoded == [3] and max(passes) == min(rows, 6) and sum(passes) == 6 * 4
    for parts, together in zip(split, whole, strict=True):
        torch.testing.assert_close(parts, together, atol=1e-5, rtol=0)


def test_labels_and_clipping_count_and_other_sizes_work():
    model, diffusion = small_model(num_labels=2), GaussianDiffusion(noise_schedule("cosine", 50))
    image = randn(1, 2, 24, 32, dtype=torch.float32)

    def run(label, clip):
        seen = []
        options = {"label": torch.tensor([label]), "watch": lambda x, x0: seen.append(x0)}
        plan = plan_of("ddim", diffusion, 4, clip_denoised=clip)
        members = draw_members(model, diffusion, plan, image, ["a"], members=2, **options)
        assert members.soft.shape == members.coarse.shape == (2, 1, 1, 24, 32)
        assert 0 <= members.soft.min() and members.soft.max() <= 1
        return torch.stack(seen)

    assert (run(0, True) - run(1, True)).abs().max() > 1e-3
    assert run(0, True).abs().max() <= 1 < run(0, False).abs().max()


def test_dynamic_thresholding_bounds_what_clipping_would_cut():
    model, diffusion = small_model(), GaussianDiffusion(noise_schedule("linear", 50), objective="eps")

    def run(threshold=0.0, **flags):
        seen = []
        plan = replace(plan_of("dpm_solver", diffusion, 4, **flags), dynamic_threshold=threshold)
        draw_members(model, diffusion, plan, IMAGES, NAMES, members=1, watch=lambda x, x0: seen.append(x0))
        return torch.stack(seen)

    assert run().abs().max() == run(0.9).abs().max() == 1
    clipped, scaled, free = run()[0], run(0.9)[0], run(clip_denoised=False)[0]
    size = free.abs().flatten(1).quantile(0.9, dim=1).clamp(min=1).reshape(3, 1, 1, 1)
    torch.testing.assert_close(scaled, (free / size).clamp(-1, 1))
    assert (scaled - clipped).abs().max() > 0.01


@pytest.mark.parametrize("training", [True, False])
def test_a_network_in_training_mode_draws_as_in_evaluation_and_is_left_as_it_was(training):
    model = small_model(dropout=0.5)  # whose layers draw from the global generator in training mode
    expected = draw(model).soft
    model.train(training)
    model.image_encoder.eval()  # a part that its owner keeps in evaluation mode
    before = [module.training for module in model.modules()]
    assert torch.equal(draw(model).soft, expected)
    assert [module.training for module in model.modules()] == before
    with pytest.raises(RuntimeError, match="stop"):
        draw(model, watch=lambda x, x0: (_ for _ in ()).throw(RuntimeError("stop")))
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize(
    ("variant", "objective"),
    [
        *((variant, "x0") for variant in VARIANTS),
        *((name, objective) for name in SAMPLERS for objective in ("eps", "v")),
    ],
)
def test_no_value_is_read_back_from_the_device_while_sampling(variant, objective):
    """Tensors on the meta device have none: reading one, which makes a GPU's queue run empty, raises there."""
    diffusion = GaussianDiffusion(noise_schedule("cosine", 50), objective=objective, rescale_timesteps=True)
    plan = replace(plan_of(variant, diffusion, 4), dynamic_threshold=0.0 if objective == "x0" else 0.9)
    model = small_model(learn_sigma=True).to("meta")
    members = draw_members(model, diffusion, plan, IMAGES.to("meta"), NAMES, members=2)
    assert members.soft.shape == (2, 3, 1, 16, 16) and members.soft.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_variant
def test_sampling_on_a_gpu_never_waits_for_it(variant):
    plan, model, image = plan_of(variant, DIFFUSION, 6), small_model(learn_sigma=True).cuda(), IMAGES.cuda()
    expected = draw_members(model, DIFFUSION, plan, image, NAMES, members=2)  # the first call may set things up
    torch.cuda.set_sync_debug_mode("error")
    try:
        members = draw_members(model, DIFFUSION, plan, image, NAMES, members=2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(members.soft, expected.soft, atol=1e-4, rtol=0)
