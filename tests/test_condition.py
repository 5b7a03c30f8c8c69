"""The condition branch: the fusion against its formula written out, and the coarse decoder."""

import pytest
import torch

from guided_diffusion.condition import CoarseDecoder, Fusion
from guided_diffusion.unet import UNetShape


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
