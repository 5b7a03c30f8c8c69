"""Training time steps: their probabilities, and weights that leave the mean loss what it is."""

import math

import numpy as np
import pytest
import torch

from guided_diffusion.training.randomness import LossSecondMomentTimesteps, UniformTimesteps


def test_uniform_time_steps():
    t, weights = UniformTimesteps(4).draw([0.0, 0.24, 0.25, 0.99, 1 - 1e-16])
    assert t.tolist() == [0, 0, 1, 3, 3] and weights.tolist() == [1] * 5


def warm_sampler(losses, history=3):
    """A loss-second-moment sampler that has seen, `history` times each, these losses by time step."""
    sampler = LossSecondMomentTimesteps(len(losses), history)
    for _ in range(history):
        sampler.update(torch.arange(len(losses)), torch.tensor(losses))
    return sampler


def test_second_moment_is_uniform_until_every_step_is_known():
    sampler = LossSecondMomentTimesteps(2, history=2)
    for t, loss in [(0, 5.0), (0, 5.0), (1, 1.0)]:
        assert sampler.probabilities().tolist() == [0.5, 0.5]
        sampler.update(torch.tensor([t]), torch.tensor([loss]))
    assert sampler.probabilities().tolist() == [0.5, 0.5]
    sampler.update(torch.tensor([1]), torch.tensor([1.0]))
    assert sampler.probabilities()[0] > 0.8


def test_second_moment_probabilities_by_hand():
    sampler = LossSecondMomentTimesteps(2, history=2, uniform_share=0.1)
    for t, loss in [(0, 9.0), (0, 3.0), (0, 4.0), (1, 1.0), (1, 1.0)]:  # the 9 has left the history
        sampler.update(torch.tensor([t]), torch.tensor([loss]))
    root = math.sqrt((3**2 + 4**2) / 2)
    assert sampler.probabilities() == pytest.approx([0.9 * root / (root + 1) + 0.05, 0.9 / (root + 1) + 0.05])


def test_weighted_loss_is_unbiased():
    losses = np.array([0.1, 5.0, 1.0, 0.5, 2.0])
    sampler = warm_sampler(losses.tolist())
    uniforms = (np.arange(200_000) + 0.5) / 200_000  # every quantile once: no chance involved
    t, weights = sampler.draw(uniforms)
    assert np.bincount(t, minlength=5) / len(t) == pytest.approx(sampler.probabilities(), abs=1e-5)
    assert (weights.double() * torch.from_numpy(losses)[t]).mean() == pytest.approx(losses.mean(), rel=1e-4)


def test_a_loss_of_zero_leaves_every_step_possible():
    assert (warm_sampler([0.0, 0.0, 0.0]).probabilities() > 0).all()
    assert warm_sampler([0.0, 1.0, 1.0]).probabilities()[0] == pytest.approx(0.001 / 3)
