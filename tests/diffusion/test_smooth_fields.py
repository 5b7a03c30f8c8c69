"""Smooth random fields: their correlation, their margins, and masks drawn by them."""

import math

import pytest
import torch

from guided_diffusion.diffusion.smooth_fields import field_factor, smooth_uniform


@pytest.mark.parametrize("length", [0.5, 1, 8, 33.3])
def test_the_factor_has_the_correlation_that_it_promises(length):
    factor, places = field_factor(60, length).double(), torch.arange(60.0, dtype=torch.float64)
    expected = torch.exp(-(((places[:, None] - places) / length) ** 2) / 2)
    assert torch.allclose(factor @ factor.T, expected, atol=1e-6)


def test_without_a_length_numbers_are_independent():
    assert torch.equal(field_factor(5, 0), torch.eye(5))


def test_numbers_are_uniform_at_every_pixel_and_alike_at_neighbours():
    size, length, count = (12, 20), 6.0, 4000
    factors = [field_factor(side, length) for side in size]
    shape = [factor.shape[1] for factor in factors]
    generator = torch.Generator().manual_seed(0)
    numbers = smooth_uniform(torch.randn((count, *shape), generator=generator), *factors)
    assert numbers.shape == (count, *size) and numbers.min() >= 0 and numbers.max() < 1
    tolerance = 5 * math.sqrt(1 / 12 / count)
    assert (numbers.mean(dim=0) - 0.5).abs().max() < tolerance
    assert ((numbers < 0.1).float().mean(dim=0) - 0.1).abs().max() < 5 * math.sqrt(0.09 / count)
    step = (numbers[:, :, 1:] - numbers[:, :, :-1]).abs().mean()
    assert step < 0.2 * (numbers[1:] - numbers[:-1]).abs().mean()  # of two fields


def test_half_precision_changes_nothing():
    """In bf16 one number in 500 was 1, and made a hole in the surest lesion."""
    factor = field_factor(8, 8.0)
    columns = factor.shape[1]
    numbers = torch.randn((50, columns, columns), generator=torch.Generator().manual_seed(1)) + 1
    with torch.autocast("cpu", torch.bfloat16):
        found = smooth_uniform(numbers, factor, factor)
    assert torch.equal(found, smooth_uniform(numbers, factor, factor)) and found.max() < 1
