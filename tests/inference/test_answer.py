"""Answers: members fused at each image's own size, and slices stacked to volumes."""

import numpy as np
import pytest
import torch
from helpers import maps_of

from guided_diffusion.data.classes import parse_classes
from guided_diffusion.inference.answer import fuse_cases, stack_slices
from guided_diffusion.inference.ensemble import staple
from guided_diffusion.inference.members import Members


def disc(size, radius):
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2
    return torch.from_numpy((np.hypot(x, y) < radius).astype(np.float32))


def test_fused_maps_at_each_images_own_size():
    soft = torch.stack([disc(32, 8), disc(32, 10), disc(32, 12)])[:, None, None].repeat(
        1, 2, 1, 1, 1
    )  # [E, N, K, H, W]
    soft[:, 1] = 0
    first, second = fuse_cases(Members(soft, soft / 2), [(64, 96), (16, 32)], "vote")
    assert first.mask[0].shape == (64, 96) and second.mask[0].shape == (16, 32)
    assert first.members[:, 0].shape == (3, 64, 96) and first.coarse[0].shape == (64, 96)
    area = np.pi * 10**2 * 2 * 3  # of the middle disc, stretched twice and three times
    assert first.mask[0].sum() == pytest.approx(area, rel=0.05)
    assert [m.sum() for m in first.members[:, 0]] == pytest.approx([area * 0.64, area, area * 1.44], rel=0.06)
    assert first.probability[0, 32, 48] == pytest.approx(1) and first.uncertainty[0, 32, 48] == pytest.approx(0)
    ring = first.probability[0, 32, 48 + 11 * 3]  # only the largest of the three is there
    assert ring == pytest.approx(1 / 3, abs=0.05)
    assert first.coarse[0, 32, 48] == pytest.approx(0.5)
    assert not second.mask[0].any() and second.probability[0].max() == 0 and second.uncertainty[0].max() == 0


def test_fusing_at_the_networks_size_is_exact():
    generator = torch.Generator().manual_seed(0)
    soft = torch.rand(4, 1, 1, 6, 8, generator=generator)
    (maps,) = fuse_cases(Members(soft, None), [(6, 8)], "mean")
    assert np.array_equal(maps.members[:, 0], soft[:, 0, 0].numpy() > 0.5)
    assert np.allclose(maps.probability[0], soft[:, 0, 0].mean(0)) and maps.coarse is None
    assert np.allclose(maps.uncertainty[0], soft[:, 0, 0].numpy().std(0), atol=1e-6)
    assert np.array_equal(maps.mask[0], maps.probability[0] > 0.5)


def test_the_fused_mask_is_the_staple_of_the_members_as_they_are_written():
    generator = torch.Generator().manual_seed(1)
    smooth = torch.nn.functional.interpolate(torch.rand(5, 1, 4, 4, generator=generator), (16, 16), mode="bicubic")
    (maps,) = fuse_cases(Members(smooth[:, None].clamp(0, 1), None), [(40, 56)], "staple")
    votes = torch.from_numpy(maps.members[:, 0])[:, None, None]
    assert np.array_equal(maps.mask[0], (staple(votes).consensus[0, 0] > 0.5).numpy())
    assert maps.mask[0].any() and not maps.mask[0].all()


def test_a_temperature_leaves_exclusive_classes_a_distribution():
    soft = torch.rand(3, 1, 3, 6, 8, generator=torch.Generator().manual_seed(0)) / 3
    members, exclusive, regions = Members(soft, None), parse_classes("a=1,b=2,c=3"), parse_classes("a=1+2+3,b=2+3,c=3")
    (plain,) = fuse_cases(members, [(6, 8)], "mean", exclusive)
    (warm,) = fuse_cases(members, [(6, 8)], "mean", exclusive, temperature=4.0)
    assert np.array_equal(warm.mask, plain.mask) and warm.probability.sum(axis=0).max() < 1
    powers = np.concatenate([1 - plain.probability.sum(axis=0, keepdims=True), plain.probability]) ** 0.25
    assert np.allclose(warm.probability, (powers / powers.sum(axis=0))[1:], atol=1e-5)
    (each,) = fuse_cases(members, [(6, 8)], "mean", regions, temperature=4.0)
    assert each.probability.sum(axis=0).min() > 1  # each region by itself


def test_stacked_slices_lie_along_the_last_axis():
    slices = [maps_of((4, 5), seed=k) for k in range(3)]
    volume = stack_slices(slices)
    assert volume.mask[0].shape == (4, 5, 3) and volume.members[:, 0].shape == (2, 4, 5, 3)
    for k, maps in enumerate(slices):
        assert np.array_equal(volume.mask[0, ..., k], maps.mask[0])
        assert np.array_equal(volume.members[:, 0, ..., k], maps.members[:, 0])
        assert np.array_equal(volume.coarse[0, ..., k], maps.coarse[0])
    assert stack_slices([maps_of((4, 5), coarse=False)]).coarse is None
