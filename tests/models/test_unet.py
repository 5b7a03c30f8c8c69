"""The U-Net's blocks against their formulas, and encoder and decoder for every combination of options."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from guided_diffusion.models.unet import (
    Block,
    Bottleneck,
    Downsample,
    Head,
    ResBlock,
    SelfAttention,
    UNetShape,
    Upsample,
    build_decoder,
    build_encoder,
)


def perturb(module, scale=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def shape_of(**options):
    return UNetShape(**{"channels": 8, "multipliers": (1, 2), "blocks": 1, **options})


def run_unet(shape, x, embedding=None):
    """Encoder, bottleneck and decoder, built, perturbed and run. Returns the result and the three modules."""
    channels = None if embedding is None else embedding.shape[1]
    modules = torch.nn.ModuleList(
        [build_encoder(x.shape[1], shape, channels), Bottleneck(shape, channels), build_decoder(shape, channels)]
    )
    perturb(modules, 0.05)
    return apply_unet(modules, x, embedding), modules


def apply_unet(modules, x, embedding=None):
    encoder, bottleneck, decoder = modules
    skips = []
    for stage in encoder:
        x, stage_skips = stage(x, embedding)
        skips.append(stage_skips)
    x = bottleneck(x, embedding)
    for stage in decoder:
        x = stage(x, skips.pop(), embedding)
    return x


# ---- shape -----------------------------------------------------------------------------------------------------------


def test_widths_are_whole_numbers_of_channels():
    assert UNetShape(33, (0.5, 1, 1.5), 1).widths == (16, 33, 49)


@pytest.mark.parametrize(("options", "heads"), [({"heads": 4}, 4), ({"heads": 4, "head_channels": 16}, 3), ({}, 1)])
def test_head_channels_win_over_heads(options, heads):
    assert shape_of(**options).attention_heads(48) == heads


# ---- residual blocks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_residual_block_starts_as_its_skip(resample):
    x = torch.randn(2, 6, 8, 8)
    expected = {
        None: lambda: x,
        "up": lambda: x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3),
        "down": lambda: x.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-2, -1)),
    }[resample]()
    out = ResBlock(6, 6, shape_of(), resample=resample)(x)
    torch.testing.assert_close(out, expected)


def group_norm(x, norm):
    return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("out_channels", [6, 9])
def test_residual_block_equals_its_formula(scale_shift, out_channels):
    block = perturb(ResBlock(6, out_channels, shape_of(scale_shift=scale_shift), embedding_channels=5))
    x, embedding = torch.randn(3, 6, 8, 8), torch.randn(3, 5)
    h = block.conv1(F.silu(group_norm(x, block.norm1)))
    e = F.silu(embedding) @ block.embed.weight.T + block.embed.bias
    if scale_shift:
        scale, shift = e[:, :out_channels, None, None], e[:, out_channels:, None, None]
        h = group_norm(h, block.norm2) * (1 + scale) + shift
    else:
        h = group_norm(h + e[:, :, None, None], block.norm2)
    skip = x if out_channels == 6 else block.skip(x)
    torch.testing.assert_close(block(x, embedding), skip + block.conv2(F.silu(h)), atol=1e-5, rtol=1e-5)


def test_residual_block_without_embedding_ignores_one():
    block = perturb(ResBlock(4, 4, shape_of()))
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(x), block(x, torch.randn(2, 5)), atol=0, rtol=0)


@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("channels", [4, 9, 32, 128])
def test_the_embedding_gets_through_the_norm_at_any_width(scale_shift, channels):
    block = perturb(ResBlock(channels, channels, shape_of(scale_shift=scale_shift), embedding_channels=5))
    x = torch.randn(2, channels, 8, 8)
    first, second = block(x, torch.zeros(2, 5)), block(x, torch.full((2, 5), 3.0))
    assert (first - second).norm() > 0.05 * first.norm()


def test_dropout_acts_in_training_alone():
    block = perturb(ResBlock(4, 4, shape_of(dropout=0.5)))
    x = torch.randn(2, 4, 8, 8)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


# ---- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "heads"), [(8, 1), (8, 4), (15, 3)])
def test_self_attention_equals_the_library_s(channels, heads):
    attention = perturb(SelfAttention(channels, heads))
    x = torch.randn(2, channels, 4, 6)
    tokens = attention.norm(x).flatten(2).permute(2, 0, 1)  # [HW, N, C]
    out, _ = F.multi_head_attention_forward(
        *[tokens] * 3,
        embed_dim_to_check=channels,
        num_heads=heads,
        in_proj_weight=attention.qkv.weight.flatten(1),
        in_proj_bias=attention.qkv.bias,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=attention.out.weight.flatten(1),
        out_proj_bias=attention.out.bias,
    )
    expected = x + out.permute(1, 2, 0).reshape(x.shape)
    torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-5)


def test_self_attention_reaches_every_position_but_no_other_row():
    attention = perturb(SelfAttention(4, 2))
    x = torch.randn(2, 4, 6, 6)
    changed = x.clone()
    changed[0, :, 0, 0] += 3
    difference = (attention(changed) - attention(x)).abs().amax(dim=1)
    assert difference[0].min() > 0 and difference[1].max() == 0


def test_self_attention_starts_as_the_identity():
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(SelfAttention(8, 2)(x), x)


# ---- resampling and head ---------------------------------------------------------------------------------------------


def test_resampling_layers_halve_and_double():
    x = torch.randn(1, 4, 8, 12)
    assert Downsample(4)(x).shape == (1, 4, 4, 6)
    up = Upsample(4)
    expected = up.conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    torch.testing.assert_close(up(x), expected)


def test_head_starts_at_zero_and_answers_in_float32():
    head = Head(8, 3)
    assert not head(torch.randn(1, 8, 4, 4)).any()
    with torch.autocast("cpu", torch.bfloat16):
        assert perturb(head)(torch.randn(1, 8, 4, 4)).dtype == torch.float32


def test_far_background_is_as_sure_at_the_edge_as_inside():
    """Equal features give equal logits everywhere; zeros beyond the image raise them at its edge and corners."""
    heads = {padding: Head(8, 1, padding) for padding in ("edges", "zeros")}
    for head in heads.values():
        torch.nn.init.constant_(head.conv.weight, -7 / (9 * 8 * F.silu(torch.ones(())).item()))
        torch.nn.init.zeros_(head.norm.weight)
        torch.nn.init.ones_(head.norm.bias)
    x = torch.randn(1, 8, 6, 6)
    torch.testing.assert_close(heads["edges"](x), torch.full((1, 1, 6, 6), -7.0))
    found = heads["zeros"](x)[0, 0]  # as up to version 0.7.0
    torch.testing.assert_close(found[2, 2], torch.tensor(-7.0))
    assert found[0, 2].sigmoid() > 0.009 and found[0, 0].sigmoid() > 0.04


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_the_head_is_in_float32_under_autocast(order):
    head = perturb(Head(8, 3))
    x = torch.randn(2, 8, 6, 6).bfloat16().contiguous(memory_format=order)  # features as autocast leaves them
    with torch.autocast("cpu", torch.bfloat16):
        found = head(x)
    torch.testing.assert_close(found.double(), head.double()(x.double()), atol=1e-5, rtol=0)


def test_on_a_gpu_the_heads_convolution_alone_does_not_round_to_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            head = Head(8, 3)
        head.conv.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
        head(torch.zeros(2, 8, 6, 6, device="cuda"))
    assert seen == [False] and torch.backends.cudnn.allow_tf32


# ---- encoder and decoder ---------------------------------------------------------------------------------------------

COMBINATIONS = [
    {"scale_shift": scale_shift, "updown_blocks": updown, "head_channels": head_channels, "dropout": dropout}
    for scale_shift, updown, head_channels, dropout in itertools.product(
        (False, True), (False, True), (-1, 4), (0, 0.2)
    )
]


@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
def test_every_combination_keeps_the_size_and_trains_every_parameter(options):
    shape = shape_of(channels=40, multipliers=(1, 2), attention_levels=(1,), **options)
    x, embedding = torch.randn(2, 3, 16, 24), torch.randn(2, 5)
    out, modules = run_unet(shape, x, embedding)
    assert out.shape == (2, 40, 16, 24)
    out.square().sum().backward()
    idle = [name for name, p in modules.named_parameters() if p.grad is None or p.grad.norm() < 1e-3 * p.norm()]
    assert not idle  # rounding alone gives 1e-6


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("updown", [False, True])
def test_encoder_gives_one_skip_a_block_and_one_for_the_entry(blocks, updown):
    shape = shape_of(multipliers=(1, 2, 4), blocks=blocks, updown_blocks=updown)
    x, widths = torch.randn(1, 3, 16, 16), (8, 16, 32)
    for level, stage in enumerate(build_encoder(3, shape)):
        x, skips = stage(x)
        size = 16 // 2**level
        assert len(skips) == blocks + 1 and skips[-1] is x
        assert skips[0].shape == (1, widths[max(level - 1, 0)], size, size)
        assert all(skip.shape == (1, widths[level], size, size) for skip in skips[1:])


@pytest.mark.parametrize("channels", [5, 9, 37])
@pytest.mark.parametrize("multipliers", [(1,), (0.5, 1), (1, 1.5, 3)])
def test_any_width_works_with_any_multipliers(channels, multipliers):
    shape = shape_of(channels=channels, multipliers=multipliers)
    out, _ = run_unet(shape, torch.randn(1, 2, 16, 16), torch.randn(1, 4))
    assert out.shape == (1, int(channels * multipliers[0]), 16, 16)


@pytest.mark.parametrize("levels", [(), (0,), (1,), (0, 2)])
def test_attention_stands_at_the_levels_asked_for_and_in_the_middle(levels):
    shape = shape_of(multipliers=(1, 2, 3), blocks=2, attention_levels=levels)
    found = {level for level, s in enumerate(build_encoder(3, shape)) for b in s.blocks if b.attention is not None}
    decoder = build_decoder(shape)
    mirrored = {2 - i for i, stage in enumerate(decoder) for b in stage.blocks if b.attention is not None}
    assert found == mirrored == set(levels)
    bottleneck = Bottleneck(shape)
    assert bottleneck.first.attention is not None and bottleneck.second.attention is None


def test_every_skip_matters_to_the_decoder():
    shape = shape_of(multipliers=(1, 2), blocks=2)
    decoder = perturb(build_decoder(shape), 0.05)
    skips = [[torch.randn(1, c, s, s, requires_grad=True) for c in cs] for cs, s in (((8, 8, 8), 8), ((8, 16, 16), 4))]
    x = torch.randn(1, 16, 4, 4)
    for stage, stage_skips in zip(decoder, reversed(skips), strict=True):
        x = stage(x, stage_skips)
    x.square().sum().backward()
    assert all(skip.grad.any() for stage_skips in skips for skip in stage_skips)


def test_a_decoder_stage_refuses_skips_that_are_too_few():
    stage = build_decoder(shape_of())[0]
    with pytest.raises(ValueError):
        stage(torch.randn(1, 16, 4, 4), [torch.randn(1, 16, 4, 4)])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(dropout):
    x, embedding = torch.randn(2, 3, 16, 16), torch.randn(2, 5)
    gradients = []
    for use_checkpoint in (False, True):
        shape = shape_of(attention_levels=(1,), dropout=dropout, use_checkpoint=use_checkpoint)
        modules = run_unet(shape, x, embedding)[1]
        for i, parameter in enumerate(modules.parameters()):  # the same weights in both
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(i))
        torch.manual_seed(7)
        apply_unet(modules, x, embedding).square().sum().backward()
        gradients.append([parameter.grad for parameter in modules.parameters()])
    for plain, kept in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, plain, atol=0, rtol=0)


def test_a_block_with_attention_is_a_residual_block_and_then_attention():
    block = perturb(Block(4, 8, shape_of(heads=2), 5, attention=True))
    x, embedding = torch.randn(2, 4, 6, 6), torch.randn(2, 5)
    torch.testing.assert_close(block(x, embedding), block.attention(block.residual(x, embedding)), atol=0, rtol=0)
    assert block.attention.heads == 2
