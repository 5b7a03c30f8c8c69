"""Members: their noise, drawing an ensemble, and coupling to a probability."""

from dataclasses import replace

import pytest
import torch
from oracles import randn
from scipy.ndimage import gaussian_filter

from guided_diffusion.config.fields import build
from guided_diffusion.config.sample_options import SampleOptions
from guided_diffusion.diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.diffusion.samplers import SAMPLERS
from guided_diffusion.diffusion.schedule import noise_schedule
from guided_diffusion.inference.members import MemberNoise, coupled, draw_members, member_generator, smoothed
from guided_diffusion.inference.plan import plan_sampling
from guided_diffusion.models.medsegdiff import MedSegDiffV1
from guided_diffusion.models.unet import UNetShape

VARIANTS = {
    "ddpm": {},
    "ddim": {},
    "dpm_solver": {},
    "dpm_solver 1": {"solver_order": 1},
    "dpm_solver 3": {"solver_order": 3},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def plan_of(variant, diffusion, steps, **more):
    """The plan that a user's flags make of a variant."""
    flags = {"sampler": variant.split()[0], "diffusion_steps": steps, **VARIANTS[variant], **more}
    return plan_sampling(build(SampleOptions, flags), set(flags), diffusion)


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


# ---- coupling -------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(5, 2, 3, 8, 8, generator=generator), torch.rand(2, 3, 8, 8, generator=generator)


def test_the_members_mean_is_the_probability_at_every_pixel(drawn):
    members = coupled(*drawn)
    assert members.shape == drawn[0].shape and members.min() >= 0 and members.max() <= 1
    torch.testing.assert_close(members.mean(dim=0), drawn[1], atol=1e-6, rtol=0)


def test_a_member_that_is_surer_stays_surer(drawn):
    soft, members = drawn[0], coupled(*drawn)
    for first in range(5):
        for second in range(5):
            assert (members[first] >= members[second])[soft[first] > soft[second]].all()


def test_it_moves_with_the_members_order(drawn):
    soft, probability = drawn
    order = [3, 0, 4, 1, 2]
    assert torch.equal(coupled(soft[order], probability), coupled(soft, probability)[order])


def test_by_hand():
    soft = torch.tensor([[0.9, 0.2], [0.6, 0.4], [0.1, 0.3], [0.7, 0.1]]).reshape(4, 1, 1, 1, 2)
    members = coupled(soft, torch.tensor([0.6, 0.25]).reshape(1, 1, 1, 2)).reshape(4, 2)
    # 0.6 * 4 = 2.4: the two surest have the first pixel, the third in part; of the second the surest alone.
    expected = torch.tensor([[1, 0], [0.4, 1], [0, 0], [1, 0]])
    torch.testing.assert_close(members, expected, atol=1e-6, rtol=0)


def test_where_members_are_equally_sure_the_larger_ones_come_first():
    soft = torch.zeros(3, 1, 1, 1, 4)
    soft[1, ..., :3] = 1  # the largest
    soft[2, ..., :2] = 1
    members = coupled(soft, torch.full((1, 1, 1, 4), 1 / 3))
    torch.testing.assert_close(members[:, 0, 0, 0], torch.tensor([[0.0] * 4, [1.0] * 4, [0.0] * 4]), atol=1e-6, rtol=0)


def test_one_member_is_the_probability(drawn):
    soft, probability = drawn
    torch.testing.assert_close(coupled(soft[:1], probability)[0], probability, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_the_neighbourhood_is_a_gaussian_as_scipy_has_it(drawn, sigma):
    x = drawn[0].double()
    expected = gaussian_filter(x.numpy(), (0, 0, 0, sigma, sigma), truncate=3, mode="nearest")
    torch.testing.assert_close(smoothed(x, sigma), torch.from_numpy(expected))


def test_members_are_ranked_by_their_neighbourhood_and_keep_the_mean(drawn):
    soft, probability = drawn
    members = coupled(soft, probability, sigma=1.0)
    torch.testing.assert_close(members.mean(dim=0), probability, atol=1e-6, rtol=0)
    sure = smoothed(torch.logit(soft, eps=1e-7).clamp(-16, 16), 1.0)
    torch.testing.assert_close(members, coupled(torch.sigmoid(sure), probability), atol=1e-6, rtol=0)


def test_a_doubt_about_single_pixels_leaves_no_ragged_outline():
    """Members differ in where a straight border is, by smooth fields, and each pixel in its own doubt."""
    generator = torch.Generator().manual_seed(0)
    across = torch.linspace(-4, 4, 64).expand(64, 64)
    where = torch.linspace(-2, 2, 8)[:, None, None, None, None]
    soft = torch.sigmoid(across + where + torch.randn(8, 1, 1, 64, 64, generator=generator))
    probability = torch.sigmoid(across)[None, None]

    def changes(members):  # along the border, where a smooth outline has few
        return (members > 0.5).int().diff(dim=-2).abs().sum(dim=(-2, -1)).float().mean()

    assert changes(coupled(soft, probability, 1.0)) < changes(coupled(soft, probability)) / 3
