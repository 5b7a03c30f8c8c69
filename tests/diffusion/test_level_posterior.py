"""The posterior of local level sets, against its own definition and against noise."""

import math

import pytest
import torch

from guided_diffusion.diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.diffusion.level_posterior import (
    BAND_EDGES,
    SURE,
    WINDOW,
    WINDOW_LENGTH,
    exclusive_level_logits,
    level_set_logits,
)
from guided_diffusion.diffusion.schedule import noise_schedule
from guided_diffusion.models.outputs import ModelOutput


def maps(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_without_evidence_the_logits_come_back():
    logits = maps(2, 3, 9, 7, scale=2)
    found = level_set_logits(logits, torch.zeros_like(logits))
    assert torch.allclose(found, logits, atol=1e-3)


def by_definition(p, evidence, row, column):
    """p(x_0,i = 1 | ...) of one pixel of [H, W] maps: the integral over u, with one level in each band."""
    held, weights = 0.0, 0.0
    for low, high in zip(BAND_EDGES[:-1], BAND_EDGES[1:], strict=True):
        u, exponent = (low + high) / 2, math.log(high - low)
        for i in range(len(p)):
            for j in range(len(p[0])):
                if p[i][j] > u and max(abs(i - row), abs(j - column)) <= WINDOW:
                    distance = (i - row) ** 2 + (j - column) ** 2
                    exponent += math.exp(-distance / (2 * WINDOW_LENGTH**2)) * evidence[i][j]
        weights += math.exp(exponent)
        held += math.exp(exponent) * (p[row][column] > u)
    return held / weights


@pytest.mark.parametrize("scale", [0.02, 0.3])
def test_it_is_the_integral_over_the_levels(scale):
    """Of probabilities that are borders of the bands, for which the sum over bands is exact."""
    steps = torch.randint(1, len(BAND_EDGES) - 1, (9, 15), generator=torch.Generator().manual_seed(1))
    p, evidence = torch.tensor(BAND_EDGES)[steps], maps(9, 15, seed=2, scale=scale)
    found = level_set_logits(torch.logit(p)[None, None], evidence[None, None]).sigmoid()[0, 0]
    for row, column in ((0, 0), (4, 7), (8, 3), (2, 14)):
        expected = by_definition(p.tolist(), evidence.tolist(), row, column)
        assert found[row, column].item() == pytest.approx(min(max(expected, SURE), 1 - SURE), abs=2e-5)


def test_it_is_bounded_but_for_pixels_that_were_surer_before():
    logits = torch.tensor([-12.0, -3.0, 0.0, 3.0, 12.0]).repeat(12, 12)[:, :12].reshape(1, 1, 12, 12)
    sure = math.log((1 - SURE) / SURE)
    against, in_favour = (level_set_logits(logits, torch.full_like(logits, e)) for e in (-30.0, 30.0))
    assert (against >= logits.clamp(max=-sure) - 1e-2).all() and (against[logits < 5] < -3).all()
    assert (in_favour <= logits.clamp(min=sure) + 1e-2).all() and (in_favour[logits > -5] > 3).all()


def test_each_class_and_each_item_is_by_itself():
    logits, evidence = maps(2, 3, 8, 8, scale=2), maps(2, 3, 8, 8, seed=3, scale=0.3)
    whole = level_set_logits(logits, evidence)
    for n in range(2):
        for k in range(3):
            part = level_set_logits(logits[n : n + 1, k : k + 1], evidence[n : n + 1, k : k + 1])
            assert torch.allclose(whole[n, k], part[0, 0], atol=1e-5)


def test_one_noisy_pixel_makes_no_speck():
    """A pixel's own evidence would turn it into a lesion; that of all its neighbours is against it."""
    logits, evidence = torch.full((1, 1, 15, 15), -1.0), torch.full((1, 1, 15, 15), -1.0)
    evidence[0, 0, 7, 7] = 4.0
    assert (logits + evidence)[0, 0, 7, 7] > 0
    assert (level_set_logits(logits, evidence) < -3).all()


def test_the_skip_replaces_the_evidence_of_single_pixels_where_there_is_a_coarse_mask():
    diffusion = GaussianDiffusion(
        noise_schedule("cosine", 50, 0.5), objective="x0", mask_loss="bce", logit_skip="levels"
    )
    zeros, x_t, coarse = torch.zeros(1, 1, 8, 8), maps(1, 1, 8, 8), maps(1, 1, 8, 8, seed=4).requires_grad_()
    own = diffusion.schedule.evidence(20) * x_t
    skip = diffusion.skipped_logits(ModelOutput(zeros, None, coarse), x_t, 20)
    assert torch.allclose(skip, level_set_logits(coarse, own)) and not skip.requires_grad
    assert torch.allclose(diffusion.skipped_logits(ModelOutput(zeros, None, None), x_t, 20), own.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_changes_nothing(dtype):
    """At the last steps the evidence of a pixel is 5000, whose sum over the window is infinite in fp16."""
    logits, evidence = maps(1, 2, 12, 10, scale=3), maps(1, 2, 12, 10, seed=5, scale=5000)
    for function in (level_set_logits, exclusive_level_logits):
        with torch.autocast("cpu", dtype):
            found = function(logits, evidence)
        assert torch.equal(found, function(logits, evidence)) and found.isfinite().all()


def test_exclusive_classes_without_evidence_keep_their_logits_and_one_class_is_as_by_itself():
    logits, evidence = maps(2, 3, 9, 7, scale=2), maps(2, 3, 9, 7, seed=6, scale=0.3)
    assert torch.allclose(exclusive_level_logits(logits, torch.zeros_like(logits)), logits, atol=2e-3)
    one = exclusive_level_logits(logits[:, :1], evidence[:, :1])
    assert torch.allclose(one, level_set_logits(logits[:, :1], evidence[:, :1]), atol=1e-3)


def test_evidence_moves_the_border_of_two_exclusive_classes_far_from_the_background():
    """Both are certain against the background, so only their difference says where the border is."""
    across = torch.linspace(-3, 3, 16).expand(1, 1, 16, 16)
    logits = torch.cat([12 + across, 12 - across], dim=1)
    evidence = torch.cat([torch.full_like(across, 2.0), torch.full_like(across, -2.0)], dim=1)
    found = exclusive_level_logits(logits, evidence)
    middle = slice(4, 12)  # where the border may be: p of one class from 0.04 to 0.96
    assert ((found - logits)[:, 0] > (found - logits)[:, 1] + 1.5)[..., middle].all()
    assert (found[:, 0] > found[:, 1])[..., middle].all()


def test_an_exported_graph_s_convolutions_are_the_same_sums(monkeypatch):
    logits, evidence = maps(2, 2, 15, 9, scale=2), maps(2, 2, 15, 9, seed=7)
    expected = level_set_logits(logits, evidence)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.allclose(level_set_logits(logits, evidence), expected, atol=1e-4)
