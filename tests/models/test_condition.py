"""The condition branches: fusion and anchors against formulas written out, the coarse decoder, the SS-Former."""

import math

import pytest
import torch

from guided_diffusion.models.condition import (
    CoarseDecoder,
    ConditionUNet,
    Fusion,
    SSFormer,
    SSFormerBlock,
    UncertainSpatialAttention,
)
from guided_diffusion.models.unet import UNetShape


def perturb(module, scale=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def layer_norm(x, norm):
    """Layer norm of each feature map [C, H, W] with one scale and shift a channel, written out."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(1, 2, 3), keepdim=True)
    normalised = (x - mean) / torch.sqrt(variance + norm.eps)
    return normalised * norm.weight[None, :, None, None] + norm.bias[None, :, None, None]


def test_fusion_equals_its_formula():
    fusion = perturb(Fusion(5, 8)).double()
    image, mask = torch.randn(3, 5, 8, 8).double() + 2, 4 * torch.randn(3, 5, 8, 8).double()
    parsed = fusion.parser(mask)
    expected = layer_norm(image, fusion.norm_image) * layer_norm(parsed, fusion.norm_mask) * image
    torch.testing.assert_close(fusion(image, mask), expected, atol=1e-9, rtol=1e-7)
    assert not torch.allclose(parsed, mask, atol=0.1)


def test_fusion_starts_with_the_image_features_still_in_it_and_free_of_the_mask_features_scale():
    fusion = Fusion(4, 32)
    image, mask = torch.randn(8, 4, 32, 32), torch.randn(8, 4, 32, 32)
    out = fusion(image, mask)
    torch.testing.assert_close(out, fusion(image, 100 * mask), atol=1e-3, rtol=1e-3)
    # (1 + m_I)(1 + m_x) m_I of independent normals correlates with m_I by 1 / sqrt(7); zero-mean factors by 0.
    correlation = torch.corrcoef(torch.stack([out.flatten(), image.flatten()]))[0, 1].item()
    assert correlation == pytest.approx(7**-0.5, abs=0.05)


@pytest.mark.parametrize("size", [8, 12, 16])
def test_fusion_works_at_other_sizes_and_feels_both_inputs(size):
    fusion = perturb(Fusion(4, 8))
    image, mask = torch.randn(2, 4, size, size), torch.randn(2, 4, size, size)
    out = fusion(image, mask)
    assert out.shape == image.shape
    assert not torch.allclose(out, fusion(image, mask.flip(2)), atol=1e-3)
    assert not torch.allclose(out, fusion(image.flip(2), mask), atol=1e-3)


@pytest.mark.parametrize(
    ("multipliers", "height", "width"), [((1,), 8, 8), ((1, 2), 8, 12), ((0.5, 1, 3), 16, 8), ((1, 1, 2, 4), 32, 32)]
)
@pytest.mark.parametrize("out_channels", [1, 3])
def test_coarse_decoder_gives_logits_at_full_size_from_every_level(multipliers, height, width, out_channels):
    shape = UNetShape(8, multipliers, 1)
    decoder = perturb(CoarseDecoder(shape, out_channels))
    features = [
        torch.randn(2, channels, height // 2**level, width // 2**level, requires_grad=True)
        for level, channels in enumerate(shape.widths)
    ]
    logits = decoder(features)
    assert logits.shape == (2, out_channels, height, width)
    logits.square().sum().backward()
    assert all(feature.grad.abs().sum() > 0 for feature in features)
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_coarse_decoder_starts_undecided():
    shape = UNetShape(8, (1, 2), 1)
    logits = CoarseDecoder(shape, 1)([torch.randn(1, 8, 8, 8), torch.randn(1, 16, 4, 4)])
    assert not logits.any()


# ---- V2 --------------------------------------------------------------------------------------------------------------


def written_out_anchor(anchor, features):
    """sigmoid(Conv1x1(max(f * k, f))) by loops over pixels, with k from its mean and deviation. features: [C, H, W]."""
    channels, height, width = features.shape
    radius, out = anchor.radius, torch.zeros(1, height, width, dtype=features.dtype)
    weight, bias = anchor.out.weight[0, :, 0, 0], anchor.out.bias[0]
    for y in range(height):
        for x in range(width):
            logit = bias.clone()
            for c in range(channels):
                (mean_y, mean_x), deviation = anchor.mean[c], anchor.log_deviation[c].exp()
                total = weighted = 0
                for dy in range(-radius, radius + 1):
                    for dx in range(-radius, radius + 1):
                        density = torch.exp(-((dy - mean_y) ** 2 + (dx - mean_x) ** 2) / (2 * deviation**2))
                        nearest = features[c, min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
                        total, weighted = total + density, weighted + density * nearest
                logit = logit + weight[c] * max(weighted / total, features[c, y, x])
            out[0, y, x] = 1 / (1 + torch.exp(-logit))
    return out


def test_the_anchor_equals_a_written_out_convolution():
    anchor = perturb(UncertainSpatialAttention(2), scale=0.5).double()
    features = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        for row in range(2):
            torch.testing.assert_close(anchor(features)[row], written_out_anchor(anchor, features[row]))


def test_the_anchors_kernel_is_a_gaussian_of_the_learned_mean_and_variance():
    anchor = UncertainSpatialAttention(1).double()
    with torch.no_grad():
        anchor.mean.copy_(torch.tensor([[0.4, -0.3]]))
        anchor.log_deviation.fill_(-0.5)
    down, across = anchor.kernels()[:, 0]
    kernel = down[:, None] * across
    steps = torch.arange(-3.0, 4, dtype=torch.float64)
    mean = torch.stack([(kernel.sum(dim=1) * steps).sum(), (kernel.sum(dim=0) * steps).sum()])
    torch.testing.assert_close(kernel.sum().item(), 1.0)
    torch.testing.assert_close(mean, torch.tensor([0.4, -0.3], dtype=torch.float64), atol=5e-3, rtol=0)
    variance = (kernel.sum(dim=1) * (steps - 0.4) ** 2).sum().item()
    assert variance == pytest.approx(math.exp(-1), rel=0.02)


@pytest.mark.parametrize("size", [(8, 8), (12, 8)])
@pytest.mark.parametrize(
    "options",
    [{}, {"nbp_filter": False}, {"kind": "cross"}, {"blocks": 1}],
    ids=str,
)
def test_the_ss_former_starts_as_the_sum_and_then_every_parameter_learns(options, size):
    torch.manual_seed(0)
    former = SSFormer(UNetShape(8, (1, 2), 1, heads=2), 12, **options)
    condition, features, embedding = torch.randn(2, 16, *size), torch.randn(2, 16, *size), torch.randn(2, 12)
    torch.testing.assert_close(former(condition, features, embedding), condition + features)
    perturb(former)
    inputs = [x.requires_grad_() for x in (condition, features, embedding)]
    out = former(*inputs)
    assert out.shape == features.shape and (out - condition - features).abs().max() > 0.05
    out.square().sum().backward()
    for x in (*inputs, *former.parameters()):
        assert x.grad.norm() > 1e-5


def test_addition_has_no_parameters():
    former = SSFormer(UNetShape(8, (1, 2), 1), 12, kind="add")
    condition, features = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
    assert not list(former.parameters())
    assert torch.equal(former(condition, features, None), features + condition)


def test_both_cross_attentions_ask_and_answer_as_the_figure_draws():
    torch.manual_seed(0)
    block = perturb(SSFormerBlock(8, 1, 12, True, 2.0))
    seen = {}
    for name in ("read", "write"):
        module = getattr(block, name)
        module.register_forward_hook(lambda module, inputs, out, name=name: seen.update({name: (*inputs, out)}))
    c, e, t = torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4), torch.randn(1, 12)
    out = block(c, e, t)
    query, context, _, _, between = seen["read"]
    assert query is e and context is c
    query, context, residual, _, last = seen["write"]
    assert query is between and residual is between and context is e and last is out


def test_a_condition_unet_gives_the_features_of_every_level_and_its_own_mask():
    shape = UNetShape(8, (1, 2, 3), 1)
    model = perturb(ConditionUNet(3, 2, shape), scale=0.1)
    bottleneck, features, logits = model(torch.randn(2, 3, 16, 24))
    assert bottleneck.shape == (2, 24, 4, 6) and logits.shape == (2, 2, 16, 24)
    assert [tuple(f.shape) for f in features] == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 24, 4, 6)]
    torch.testing.assert_close(model.head(features[0]), logits)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.norm() > 0 for parameter in model.parameters())
