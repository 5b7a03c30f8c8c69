"""Members: their noise, drawing an ensemble, members of volumes, and the answer in one pass."""

from dataclasses import replace

import pytest
import torch
from oracles import randn
from scipy import ndimage

from guided_diffusion.config.fields import build
from guided_diffusion.config.options import ModelOptions
from guided_diffusion.config.sample_options import SampleOptions
from guided_diffusion.diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.diffusion.samplers import SAMPLERS
from guided_diffusion.diffusion.schedule import noise_schedule
from guided_diffusion.evaluation.diversity import compare_with_raters
from guided_diffusion.inference.members import MemberNoise, answer_in_one_pass, draw_members
from guided_diffusion.inference.plan import NO_STEPS, plan_sampling
from guided_diffusion.inference.published import fused_by_published
from guided_diffusion.models.medsegdiff import MedSegDiffV1, build_model
from guided_diffusion.models.outputs import ModelOutput, PlainCondition
from guided_diffusion.models.unet import UNetShape
from guided_diffusion.runtime.live_memory import without_values
from guided_diffusion.runtime.seeds import seeded_generator

VARIANTS = {
    "bernoulli": {},
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
    draws = [torch.randn(4, generator=seeded_generator(*key)) for key in keys]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(keys)
    noise = MemberNoise(0, [(name, member) for member in range(3) for name in "ab"], (1, 64, 64), "cpu")
    first, second = noise(), noise()
    assert torch.equal(first[2 * 2 + 1], torch.randn((1, 64, 64), generator=seeded_generator(0, "b", 2)))
    assert first.shape == (6, 1, 64, 64) and not torch.equal(first, second)
    torch.testing.assert_close(first.flatten(1).std(dim=1), torch.ones(6), atol=0.05, rtol=0)
    places = noise.uniform()
    assert places.min() >= 0 and places.max() < 1 and abs(places.mean() - 0.5) < 0.02


def test_an_estimate_of_memory_leaves_smooth_numbers_their_values():
    noise = MemberNoise(0, [("a", 0)], (1, 24, 20), "cpu")
    with without_values(torch.device("cpu")):
        noise_of_estimate = MemberNoise(0, [("a", 0)], (1, 24, 20), "cpu")
        assert noise_of_estimate.uniform(1, 3.0).shape == (1, 1, 24, 20)
    assert 0 < float(noise.uniform(1, 3.0).mean()) < 1


def test_rows_of_one_name_and_member_share_their_noise():
    noise = MemberNoise(0, [("volume", 0), ("volume", 0), ("volume", 1)], (1, 8, 8), "cpu")
    for draw in (noise, noise.uniform, noise):
        rows = draw()
        assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


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


def parts_of(first, second):
    """The pairs of masks of two `Members`."""
    return [pair for pair in zip(first, second, strict=True) if pair[0] is not None]


@every_variant
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_members_are_one_soft_mask_each_with_a_coarse_one(variant, learn_sigma):
    members = draw(small_model(learn_sigma=learn_sigma), variant)
    for masks in (members.soft, members.coarse):
        assert masks.shape == (2, 3, 1, 16, 16) and masks.dtype == torch.float32
        assert masks.min() >= 0 and masks.max() <= 1 and masks.isfinite().all()
    assert (members.soft[0] - members.soft[1]).abs().max() > 1e-4
    assert (members.soft - members.coarse).abs().max() > 1e-3
    if variant != "bernoulli":
        assert members.drawn is None
        return
    assert members.drawn.shape == members.soft.shape and set(members.drawn.unique().tolist()) <= {0, 1}
    agreement = torch.where(members.drawn == 1, members.soft, 1 - members.soft).mean().item()
    expected = (members.soft**2 + (1 - members.soft) ** 2).mean().item()  # of draws with these probabilities
    assert agreement == pytest.approx(expected, abs=0.05)


@every_variant
def test_members_depend_on_the_seed_but_neither_on_the_batch_nor_on_their_number(variant):
    model = small_model(learn_sigma=True)
    together = draw(model, variant, members=2)
    torch.manual_seed(99)  # the global generator has no say
    assert torch.equal(together.soft, draw(model, variant, members=2).soft)
    assert not torch.allclose(together.soft, draw(model, variant, members=2, seed=4).soft, atol=1e-4)
    for rows in ((0,), (2, 1)):
        apart = draw(model, variant, rows, members=2)
        for few, many in parts_of(apart, together):
            torch.testing.assert_close(few, many[:, list(rows)], atol=1e-4, rtol=0)
    for few, many in parts_of(together, draw(model, variant, members=5)):
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
    for parts, together in parts_of(split, whole):
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


@pytest.mark.gpu
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


class OnlyCoarse(torch.nn.Module):
    """A denoiser that has learned nothing beside the coarse mask, whose logits are the image."""

    mask_channels = 1

    def encode(self, image, label=None):
        return PlainCondition(image)

    def forward(self, x_t, t, condition):
        return ModelOutput(torch.zeros_like(x_t), None, condition.logits)


def test_a_diffusion_that_has_learned_nothing_draws_masks_without_specks():
    """By local level sets members follow the coarse mask's probability in one piece; by single pixels' evidence not."""
    along = torch.arange(48) - 23.5
    coarse = (8 - (along[:, None] ** 2 + along**2).sqrt())[None, None] / 3
    pieces = {}
    for skip in ("both", "levels"):
        schedule = noise_schedule("cosine", 1000, 0.5)
        diffusion = GaussianDiffusion(schedule, objective="x0", mask_loss="bce", logit_skip=skip)
        plan = plan_of("bernoulli", diffusion, 10)
        members = draw_members(OnlyCoarse(), diffusion, plan, coarse, ["case"], members=24).drawn[:, 0, 0]
        assert (members.mean(dim=0) - coarse[0, 0].sigmoid()).abs().mean() < 0.06
        pieces[skip] = sum(ndimage.label(member)[1] for member in members.numpy()) / len(members)
    assert pieces["levels"] < 2 and pieces["both"] > 2 * pieces["levels"]


# ---- volumes ---------------------------------------------------------------------------------------------------------


class Sure(torch.nn.Module):
    """Its mask is what x_t has where the image is 1, a pixel by itself; elsewhere background."""

    mask_channels = 1

    def encode(self, image, label=None):
        return PlainCondition(8 * image - 8)

    def forward(self, x_t, t, condition):
        return ModelOutput(condition.logits, None, None)


@pytest.mark.parametrize("variant", ["bernoulli", "ddpm", "dpm_solver"])
def test_the_members_of_a_volume_are_volumes(variant):
    """Of a volume of equal slices each member is constant along z, so that members' volumes spread with the depth."""
    diffusion = GaussianDiffusion(
        noise_schedule("cosine", 50, 0.3), objective="x0", mask_loss="bce", logit_skip="noise"
    )
    image = torch.zeros(1, 1, 8, 8)
    image[..., 2:6, 2:6] = 1
    spread = {}
    for depth in (1, 6):
        slices = image.expand(depth, 1, 8, 8).contiguous()
        plan = plan_of(variant, diffusion, 5)
        drawn = draw_members(Sure(), diffusion, plan, slices, ["volume"] * depth, members=16, rows=7)
        masks = (drawn.soft > 0.5).float() if drawn.drawn is None else drawn.drawn
        assert torch.equal(masks, masks[:, :1].expand_as(masks))
        spread[depth] = masks.sum(dim=(1, 2, 3, 4)).std().item()
    assert spread[1] > 0.5 and spread[6] == pytest.approx(6 * spread[1])


# ---- more members ----------------------------------------------------------------------------------------------------


def disks(size=16):
    """Masks of disks of different radii, bool [S, H, W], and their probabilities [S]."""
    along = torch.arange(size) - (size - 1) / 2
    distance = (along[:, None] ** 2 + along**2).sqrt()
    return torch.stack([distance < radius for radius in (2, 3, 4.5, 6, 7)]), torch.tensor([0.15, 0.25, 0.3, 0.2, 0.1])


class KnowsDisks(torch.nn.Module):
    """The exact network for `disks`: the logits of E[x_0 | x_t] by Bayes' rule over all of them."""

    mask_channels = 1

    def __init__(self, diffusion):
        super().__init__()
        self.diffusion = diffusion
        masks, self.prior = disks()
        self.masks = masks.float()

    def encode(self, image, label=None):
        return PlainCondition(image)

    def forward(self, x_t, t, condition):
        abar = torch.from_numpy(self.diffusion.schedule.alpha_bar(t.numpy())).float()[:, None]
        ways = self.masks * 2 - 1
        error = (x_t.flatten(1)[:, None] - abar.sqrt()[..., None] * ways.flatten(1)).square().sum(dim=-1)
        weights = (self.prior.log() - error / (2 * (1 - abar))).softmax(dim=1)
        p = (weights @ self.masks.flatten(1)).reshape(x_t.shape)
        return ModelOutput(torch.logit(p, eps=1e-6), None, None)


def test_more_members_never_hurt():
    """With an exact network no figure gets worse from 4 to 128 members by more than its sampling error."""
    diffusion = GaussianDiffusion(noise_schedule("cosine", 1000, 0.3), objective="x0", mask_loss="bce")
    masks, prior = disks()
    plan, cases = plan_of("bernoulli", diffusion, 20), 8
    names, image = [f"case{n}" for n in range(cases)], torch.zeros(cases, 1, 16, 16)
    drawn = draw_members(KnowsDisks(diffusion), diffusion, plan, image, names, members=128).drawn[:, :, 0]
    truth = (prior[:, None, None] * masks).sum(dim=0)
    raters = [mask.numpy() for mask, p in zip(masks, prior, strict=True) for _ in range(round(20 * p.item()))]
    figures = {}
    for count in (4, 16, 64, 128):
        members = drawn[:count].bool()
        p = (members.float().sum(dim=0) + 0.5) / (count + 1)
        loss = -(truth * p.log() + (1 - truth) * (1 - p).log()).mean(dim=(1, 2))
        volume = members.sum(dim=(0, 2, 3)) / count / truth.sum() - 1
        ged = [compare_with_raters([*members[:, n].numpy()], raters)["ged2_unbiased"] for n in range(cases)]
        figures[count] = {"loss": loss, "volume": volume.abs(), "ged": torch.tensor(ged)}
    for few, many in ((4, 16), (16, 64), (64, 128), (4, 128)):
        for name in ("loss", "volume", "ged"):
            change = figures[many][name] - figures[few][name]
            assert change.mean() < 3 * change.std() / cases**0.5, (name, few, many)
    most = figures[128]
    assert most["volume"].mean() < 0.08 and abs(most["ged"].mean()) < 0.03  # 0 against infinitely many raters
    assert most["loss"].mean() < figures[4]["loss"].mean() - 0.05


# ---- the published script's members ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("sampler", ["ddpm", "dpm_solver"])
def test_members_become_what_the_published_script_fuses(version, sampler):
    model, plan = small_model(), plan_of(sampler, DIFFUSION, 4)
    own = draw_members(model, DIFFUSION, plan, IMAGES, NAMES, members=2)
    mixed = draw_members(model, DIFFUSION, replace(plan, published=version), IMAGES, NAMES, members=2)
    seen = []
    draw_members(model, DIFFUSION, plan, IMAGES, NAMES, members=2, watch=lambda x, x0: seen.append(x0))
    sample = ((seen[-1] + 1) / 2).reshape(own.soft.shape)
    expected = fused_by_published(sample, own.coarse, version, is_solver=sampler == "dpm_solver")
    torch.testing.assert_close(mixed.soft, expected)
    assert torch.equal(mixed.coarse, own.coarse)
    assert (sampler, version) == ("ddpm", "v2") or (mixed.soft - own.soft).abs().max() > 0.01


# ---- one pass --------------------------------------------------------------------------------------------------------


def test_the_answer_in_one_pass_is_the_coarse_probability_and_runs_no_step():
    options = build(ModelOptions, {"image_size": 16, "num_channels": 8, "channel_mult": "1,2", "num_res_blocks": 1})
    torch.manual_seed(0)
    model, steps = build_model(options, 2, 1), []
    torch.nn.init.normal_(model.condition_model.head.conv.weight)
    diffusion = GaussianDiffusion(noise_schedule("cosine", 50, 0.3), objective="x0", mask_loss="bce", logit_skip="both")
    model.register_forward_hook(lambda *_: steps.append(1))
    for plan in (NO_STEPS, replace(NO_STEPS, symmetric=True, scales=(0.9, 1.1))):
        answer = answer_in_one_pass(model, diffusion, plan, IMAGES)
        assert not steps and answer.drawn is None and torch.equal(answer.soft, answer.coarse)
        drawing = replace(plan_of("bernoulli", diffusion, 2), symmetric=plan.symmetric, scales=plan.scales)
        drawn = draw_members(model, diffusion, drawing, IMAGES, NAMES, members=1)
        torch.testing.assert_close(answer.soft, drawn.coarse, atol=1e-6, rtol=0)
        assert steps and answer.soft.std() > 0.01
        steps.clear()
