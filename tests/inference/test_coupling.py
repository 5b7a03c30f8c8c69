"""Ensemble copula coupling: the mean is what it is given, the order is the members'."""

import pytest
import torch
from scipy.ndimage import gaussian_filter

from guided_diffusion.inference.members import coupled, smoothed


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
