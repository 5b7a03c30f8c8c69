"""The variants as a whole: sizes, widths and options that must work, and what may depend on what."""

import itertools

import pytest
import torch
from networks import inputs, model_of, options_of, run_model

from guided_diffusion.config.fields import build
from guided_diffusion.config.options import DiffusionOptions
from guided_diffusion.diffusion.gaussian_diffusion import build_diffusion
from guided_diffusion.models.fourier import NBPFilter
from guided_diffusion.models.medsegdiff import MedSegDiffV1, build_model, check_size, default_multipliers, unet_shape
from guided_diffusion.models.unet import SelfAttention, UNetShape
from guided_diffusion.runtime.errors import UserError

VERSIONS = ["v1", "v2", "unet"]


def parts_of(output):
    """The outputs that there are: the plain U-Net has neither variance nor coarse mask."""
    return [part for part in output if part is not None]


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("image_size", [32, 48, 64])
def test_every_image_size_that_the_levels_divide_works(image_size, version):
    model = model_of(image_size=image_size, channel_mult="1,1,2,2", version=version)
    image, x_t, t = inputs(image_size)
    output = run_model(model, image, x_t, t)
    assert {part.shape for part in parts_of(output)} == {x_t.shape}
    assert output.variance is None and (output.coarse is None) == (version == "unet")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shape", [(32, 32), (16, 24), (40, 8)])
def test_a_model_runs_at_sizes_it_was_not_built_for(shape, version):
    image, x_t, t = inputs(*shape)
    output = run_model(model_of(image_size=16, version=version), image, x_t, t)
    assert {part.shape for part in parts_of(output)} == {x_t.shape}
    assert all(part.isfinite().all() for part in parts_of(output))


@pytest.mark.parametrize(("size", "levels", "below", "above"), [(100, 6, 96, 128), (50, 3, 48, 52), (4, 4, 8, 16)])
def test_a_size_that_does_not_work_is_refused_with_sizes_that_do(size, levels, below, above):
    shape = UNetShape(8, (1,) * levels, 1)
    with pytest.raises(UserError) as caught:
        check_size(size, shape)
    message = str(caught.value)
    assert "\n" not in message
    assert f"image size {size} " in message and f"use {below} or {above}" in message
    for good in (below, above):
        check_size(good, shape)


def test_a_model_refuses_sizes_when_built_and_when_run():
    with pytest.raises(UserError, match="use 32 or 36"):
        model_of(image_size=34, channel_mult="1,2,2")
    model = model_of(image_size=32, channel_mult="1,2,2")
    for size in ((32, 30), (30, 32)):
        with pytest.raises(UserError, match="image size 30"):
            model.encode(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("image_size", [32, 48, 64, 96, 128, 192, 256, 384, 512, 1024])
def test_default_multipliers_suit_common_sizes(image_size):
    multipliers = default_multipliers(image_size)
    check_size(image_size, UNetShape(8, multipliers, 1))
    assert 4 <= image_size / 2 ** (len(multipliers) - 1) <= 16
    assert unet_shape(options_of(image_size=image_size, channel_mult="")).multipliers == multipliers


# ---- widths, channels, options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("num_channels", [5, 12, 33])
@pytest.mark.parametrize("channel_mult", ["1,2", "0.5,1.5"])
def test_any_width_works(num_channels, channel_mult, version):
    image, x_t, t = inputs()
    output = run_model(model_of(num_channels=num_channels, channel_mult=channel_mult, version=version), image, x_t, t)
    assert output.prediction.shape == x_t.shape


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize(("image_channels", "mask_channels"), [(1, 1), (4, 1), (3, 2)])
def test_channels_follow_the_data_and_variance_comes_only_when_learned(
    image_channels, mask_channels, learn_sigma, version
):
    model = model_of(image_channels, mask_channels, learn_sigma=learn_sigma, version=version)
    image, x_t, t = inputs(image_channels=image_channels, mask_channels=mask_channels)
    output = run_model(model, image, x_t, t)
    assert output.prediction.shape == output.coarse.shape == x_t.shape
    if learn_sigma:
        assert output.variance.shape == x_t.shape
        assert not torch.allclose(output.variance, output.prediction)
    else:
        assert output.variance is None
        assert model.head.conv.out_channels == mask_channels


COMBINATIONS = [
    dict(zip(("use_scale_shift_norm", "resblock_updown", "num_head_channels", "dropout"), values, strict=True))
    for values in itertools.product((False, True), (False, True), (-1, 4), (0.0, 0.1))
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", COMBINATIONS, ids=str)
def test_every_parameter_learns_under_every_combination(values, version):
    conditional = {"num_labels": 3, "class_cond": True, "learn_sigma": version != "unet", "version": version}
    model = model_of(num_channels=40, attention_resolutions="8", **conditional, **values).train()
    image, x_t, t = inputs()
    before = model.state_dict().keys()
    output = run_model(model, image, x_t, t, torch.tensor([2, 0]))
    sum(weight * part for weight, part in enumerate(parts_of(output), start=1)).square().sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or p.grad.norm() < 1e-4 * p.norm()]
    assert not idle  # rounding alone gives 1e-6
    assert model.state_dict().keys() == before


@pytest.mark.parametrize("version", VERSIONS)
def test_checkpointed_gradients_equal_plain_ones(version):
    image, x_t, t = inputs()
    gradients = []
    for use_checkpoint in (False, True):
        options = {"dropout": 0.2, "attention_resolutions": "8", "version": version}
        model = model_of(use_checkpoint=use_checkpoint, **options).train()
        torch.manual_seed(3)
        output = run_model(model, image, x_t, t)
        sum(part.square().mean() for part in parts_of(output)).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    plain, kept = gradients
    assert plain.keys() == kept.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(kept[name], gradient, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_two_forwards_are_identical(version):
    model, (image, x_t, t) = model_of(version=version), inputs()
    first, second = run_model(model, image, x_t, t), run_model(model, image, x_t, t)
    assert all(torch.equal(a, b) for a, b in zip(parts_of(first), parts_of(second), strict=True))


@pytest.mark.parametrize("version", VERSIONS)
def test_autocast_answers_in_float32_and_close_to_full_precision(version):
    model, (image, x_t, t) = model_of(scale=0.03, learn_sigma=version != "unet", version=version), inputs()
    plain = run_model(model, image, x_t, t)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run_model(model, image, x_t, t)
    for full, half in zip(parts_of(plain), parts_of(mixed), strict=True):
        assert half.dtype == torch.float32
        assert (half - full).norm() < 0.1 * full.norm()


# ---- attention -------------------------------------------------------------------------------------------------------


def attentions(**values):
    model = model_of(version="v1", **values)
    return sum(isinstance(module, SelfAttention) for module in model.modules())


def test_a_resolution_that_no_level_has_adds_no_attention():
    assert attentions(attention_resolutions="24") == attentions(attention_resolutions="") == 1  # the bottleneck's


@pytest.mark.parametrize(("sizes", "levels"), [("16", (0,)), ("8", (1,)), ("16,8", (0, 1)), ("24,8", (1,))])
def test_attention_resolutions_are_feature_map_sizes(sizes, levels):
    assert unet_shape(options_of(attention_resolutions=sizes)).attention_levels == levels


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"num_heads": 3}, "--num_heads 3"),
        ({"num_head_channels": 5}, "--num_head_channels 5"),
        ({"num_head_channels": 32}, "--num_head_channels 32"),
        ({"num_heads": 16, "attention_resolutions": "16"}, "--num_heads 16"),
    ],
)
def test_heads_that_do_not_divide_the_channels_are_refused(values, word):
    with pytest.raises(UserError, match=f"{word} does not divide"):
        unet_shape(options_of(**values))


# ---- what depends on what --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_outputs_depend_on_and_rows_do_not_mix(version):
    model, (image, x_t, t) = model_of(version=version), inputs()
    base = run_model(model, image, x_t, t)
    for changed in ((image.flip(3), x_t, t), (image, x_t.flip(3), t), (image, x_t, t + 200)):
        other = run_model(model, *changed)
        if version != "unet" or changed[0] is not image:
            assert (other.prediction - base.prediction).abs().max() > 1e-3
        if version == "v1":  # its coarse mask sees x_t and t; v2's does not
            assert (other.coarse - base.coarse).abs().max() > 1e-4
        elif changed[0] is image:
            unseen = other.prediction if version == "unet" else other.coarse
            assert torch.equal(unseen, base.prediction if version == "unet" else base.coarse)
    image[1] += 1
    torch.testing.assert_close(run_model(model, image, x_t, t).prediction[0], base.prediction[0], atol=1e-5, rtol=1e-5)


def test_v1_encodes_what_knows_nothing_of_x_t_and_uses_it():
    model, (image, x_t, t) = model_of(version="v1"), inputs()
    condition = model.encode(image)
    before = [None if part is None else part.clone() for part in condition]
    model(x_t, t, condition)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(before, condition, strict=True))
    other = model(x_t, t, condition._replace(features=condition.features.flip(2)))
    assert not torch.allclose(other.prediction, model(x_t, t, condition).prediction, atol=1e-4)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_cached_condition_of_many_members_equals_one_encoded_for_each(version):
    model = model_of(num_labels=2, class_cond=True, version=version)
    image, x_t, t = inputs(n=2)
    label = torch.tensor([0, 1])
    condition = model.encode(image, label).rows(torch.tensor([0, 1, 0, 1, 0, 1]))
    together = model(x_t.repeat(3, 1, 1, 1), t.repeat(3), condition)
    apart = run_model(model, image, x_t, t, label)
    for expanded, single in zip(parts_of(together), parts_of(apart), strict=True):
        for row in range(6):
            torch.testing.assert_close(expanded[row], single[row % 2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_an_unconditional_condition_has_no_label(version):
    assert model_of(version=version).encode(torch.randn(1, 3, 16, 16)).rows(torch.tensor([0, 0])).label is None


@pytest.mark.parametrize("use_scale_shift_norm", [False, True])
@pytest.mark.parametrize("num_channels", [8, 32, 48])
def test_time_and_label_change_the_output_at_any_width(num_channels, use_scale_shift_norm):
    options = {"num_channels": num_channels, "use_scale_shift_norm": use_scale_shift_norm}
    model, (image, x_t, t) = model_of(num_labels=3, class_cond=True, **options), inputs()
    base, other_label = (run_model(model, image, x_t, t, torch.tensor([label] * 2)).prediction for label in (0, 2))
    other_time = run_model(model, image, x_t, (t + 300) % 1000, torch.tensor([0, 0])).prediction
    for other in (other_label, other_time):
        assert (other - base).norm() > 0.01 * base.norm()


@pytest.mark.parametrize("version", VERSIONS)
def test_missing_or_unasked_labels_are_refused(version):
    model, (image, _, _) = model_of(num_labels=3, class_cond=True, version=version), inputs()
    with pytest.raises(ValueError, match="label"):
        model.encode(image)
    with pytest.raises(ValueError, match="label"):
        model_of(version=version).encode(image, torch.tensor([0, 1]))


def test_data_with_labels_make_no_conditional_model_unless_asked():
    assert model_of(num_labels=3, class_cond=False).label_embedding is None


def test_the_embeddings_of_both_encoders_meet_at_the_bottleneck():
    model, (image, x_t, t) = model_of(version="v1", channel_mult="1,2,2,2", image_size=16), inputs()
    seen = {}
    model.mask_encoder[-1].register_forward_hook(lambda module, args, out: seen.update(mask=out[0]))
    model.image_encoder[-1].register_forward_hook(lambda module, args, out: seen.update(image=out[0]))
    model.bottleneck.register_forward_pre_hook(lambda module, args: seen.update(sum=args[0]))
    run_model(model, image, x_t, t)
    torch.testing.assert_close(seen["sum"], seen["mask"] + seen["image"], atol=0, rtol=0)
    assert len(model.fusions) == 2


# ---- V2 --------------------------------------------------------------------------------------------------------------


def test_v2_runs_its_condition_model_in_encode_alone():
    model, (image, x_t, t) = model_of(version="v2"), inputs()
    calls = []
    for module in (model.condition_model, *model.anchors):
        module.register_forward_hook(lambda module, inputs, output: calls.append(type(module).__name__))
    condition = model.encode(image)
    assert calls == ["ConditionUNet", "UncertainSpatialAttention"]
    for step in range(3):
        model(x_t, t - step, condition)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({}, "anchors"),
        ({}, "bottleneck"),
        ({}, "visible"),
        ({"ss_former": "cross"}, "bottleneck"),
        ({"diffusion_level": 1, "concat_features": True}, "visible"),
        ({"ss_former": "add"}, "bottleneck"),
        ({"nbp_filter": False}, "bottleneck"),
    ],
    ids=str,
)
def test_each_part_of_v2s_condition_reaches_the_prediction(values, part):
    model, (image, x_t, t) = model_of(version="v2", **values), inputs()
    condition = model.encode(image)
    base = model(x_t, t, condition).prediction
    value = getattr(condition, part)
    changed = tuple(1 - x for x in value) if part == "anchors" else value.flip(2)
    other = model(x_t, t, condition._replace(**{part: changed})).prediction
    assert (other - base).norm() > 1e-3 * base.norm()


ABLATIONS = [
    {"anchor_levels": 0},
    {"anchor_levels": 2},
    {"ss_former": "cross"},
    {"ss_former": "add"},
    {"ss_blocks": 1},
    {"nbp_filter": False},
    {"concat_features": True},
    {"diffusion_channels": 24},
    {"diffusion_level": 1},
    {"diffusion_level": 1, "diffusion_channels": 24, "concat_features": True, "learn_sigma": True},
]


@pytest.mark.parametrize("values", ABLATIONS, ids=str)
def test_every_ablation_of_v2_is_another_network_whose_parameters_all_learn(values):
    model, (image, x_t, t) = model_of(version="v2", num_channels=40, **values).train(), inputs()
    output = run_model(model, image, x_t, t)
    (output.prediction + 2 * output.coarse).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or p.grad.norm() < 1e-4 * p.norm()]
    assert count(model) != count(model_of(version="v2", num_channels=40))


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_anchor_multiplies_the_first_levels_features_and_the_decoder_sees_them():
    model, (image, x_t, t) = model_of(version="v2", anchor_levels=2, channel_mult="1,2,2"), inputs()
    condition = model.encode(image)
    plain, seen = {}, {}
    for level in (0, 1):
        model.encoder[level].register_forward_hook(lambda m, i, out, level=level: plain.update({level: out[0]}))
        model.encoder[level + 1].register_forward_pre_hook(lambda m, i, level=level: seen.update({level: i[0]}))
    skips = {}
    model.decoder[-1].register_forward_pre_hook(lambda m, inputs: skips.update(last=inputs[1][-1]))
    model(x_t, t, condition)
    for level in (0, 1):
        torch.testing.assert_close(seen[level], plain[level] * (1 + condition.anchors[level]))
    assert skips["last"] is seen[0]


def test_more_anchors_than_levels_are_refused():
    with pytest.raises(UserError, match="--anchor_levels 3: the model has 2 levels"):
        model_of(version="v2", anchor_levels=3)


def test_the_plain_unet_is_v2s_condition_model():
    plain, v2 = model_of(version="unet"), model_of(version="v2")
    assert plain.unet.state_dict().keys() == v2.condition_model.state_dict().keys()


def test_no_layer_depends_on_the_image_size_but_the_frequency_maps():
    shape = UNetShape(8, (1, 2), 1)
    small, large = (MedSegDiffV1(3, 1, size, shape) for size in (16, 32))
    large_state = large.state_dict()
    differing = {name for name, value in small.state_dict().items() if value.shape != large_state[name].shape}
    assert differing == {"fusions.0.parser.weight", "fusions.1.parser.weight"}


# ---- trained parts ---------------------------------------------------------------------------------------------------


def two_disks(count, generator, size=16):
    """Images of two disks and masks of one of them, which a bright or dark band at the top names."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    row = torch.randint(5, 12, (count, 2, 1, 1), generator=generator)
    disks = torch.stack([(y - row[:, k]) ** 2 + (x - column) ** 2 < 9 for k, column in enumerate((4, 11))], 1).float()
    side = torch.randint(2, (count,), generator=generator)
    image = disks.amax(1, keepdim=True) + 0.3 * torch.randn(count, 1, size, size, generator=generator)
    image[:, :, :2] += 2 * side[:, None, None, None] - 1
    return image, disks[torch.arange(count), side][:, None]


def test_every_part_of_v2_learns_and_acts_on_the_prediction():
    """After 100 steps each part changes the prediction, in units of its deviation, by more than rounding could."""
    torch.manual_seed(4)
    diffusion = build_diffusion(build(DiffusionOptions, {"diffusion_steps": 20}))
    model = build_model(options_of(version="v2", ss_blocks=1), 1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    generator, filters = torch.Generator().manual_seed(4), [m for m in model.modules() if isinstance(m, NBPFilter)]

    def draw(count):
        image, mask = two_disks(count, generator)
        times = torch.randint(20, (count,), generator=generator)
        return image, mask, times, torch.randn(mask.shape, generator=generator)

    image, mask, t, noise = draw(32)
    x_t = diffusion.q_sample(diffusion.from_mask(mask), t, noise)

    @torch.no_grad()
    def answers():
        factors = torch.stack([nbp(8, 8, model._embed_time(t, None)) for nbp in filters])
        return model(x_t, t, model.encode(image)).prediction, factors

    _, start = answers()
    for _ in range(200):
        seen, masks, times, noises = draw(4)
        losses = diffusion.training_losses(model, masks, model.encode(seen), times, noises)["loss"]
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    prediction, factors = answers()
    assert (factors - start).abs().amax(dim=(1, 2, 3, 4)).mean() > 0.2

    def change():
        return ((answers()[0] - prediction).std() / prediction.std()).item()

    changes = {}
    for name, owner, attribute in (("anchor", model, "anchors"), ("SS-Former", model.semantic, "blocks")):
        part = getattr(owner, attribute)
        setattr(owner, attribute, torch.nn.ModuleList())
        changes[name] = change()
        setattr(owner, attribute, part)
    hooks = [nbp.register_forward_hook(lambda _module, _inputs, out: torch.ones_like(out)) for nbp in filters]
    changes["NBP-filter"] = change()
    for hook in hooks:
        hook.remove()
    assert changes["anchor"] > 0.02 and changes["SS-Former"] > 0.003 and changes["NBP-filter"] > 5e-4
