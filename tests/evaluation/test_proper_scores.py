"""Proper scores: against scikit-learn and by hand, and that the truth has the best expected value."""

import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as reference_log_loss

from guided_diffusion.evaluation.proper_scores import CLIPPED, area_figures, proper_scores

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(20, 30), (5, 6, 20)])
def test_they_are_those_of_scikit_learn(shape):
    p, y = RNG.uniform(0.01, 0.99, shape).astype(np.float32), RNG.random(shape) < 0.3
    found = proper_scores(p, y)
    assert found["log_loss"] == pytest.approx(reference_log_loss(y.ravel(), p.ravel()))
    assert found["brier"] == pytest.approx(brier_score_loss(y.ravel(), p.ravel()))
    assert found["log_loss_sum"] == pytest.approx(found["log_loss"] * 600)
    assert found["expected_pixels"] == pytest.approx(p.sum(), rel=1e-6)


def test_a_certain_error_costs_half_a_step_of_a_16_bit_picture():
    found = proper_scores(np.array([[0.0, 1.0]]), np.array([[1.0, 1.0]]))
    assert found["log_loss_sum"] == pytest.approx(-math.log(0.5 / 65535) + CLIPPED)


def test_the_raters_fraction_scores_best():
    fraction = np.array([[0.25, 0.75, 0.5, 0.0]])
    best = proper_scores(fraction, fraction)
    for p in (fraction * 0.9, fraction * 0.9 + 0.05, np.rint(fraction)):
        for name in ("log_loss", "brier"):
            assert proper_scores(p, fraction)[name] > best[name]


def test_sums_are_divided_by_the_raters_area():
    row = {"rater_pixels": 4.0, "log_loss_sum": 2.0, "mask_pixels": 6}
    assert area_figures(row) == {"log_loss_per_area": 0.5, "mask_volume_ratio": 1.5}
    assert all(map(math.isnan, area_figures(row | {"rater_pixels": 0.0}).values()))
