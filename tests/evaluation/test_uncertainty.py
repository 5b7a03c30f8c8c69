"""Uncertainty: maps and scores by hand, and the ranking of cases against SciPy and by hand."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from guided_diffusion.evaluation.uncertainty import case_scores, rank_cases
from guided_diffusion.inference.ensemble import entropy, pixel_uncertainty


def test_pixels_by_hand():
    soft = np.array([[1.0, 0.5, 0.9, 0.0], [0.0, 0.5, 0.7, 0.0]])  # two members, four pixels
    found = pixel_uncertainty(soft)
    assert np.allclose(found.mean, [0.5, 0.5, 0.8, 0]) and np.allclose(found.variance, [0.25, 0, 0.01, 0])
    # First pixel: certain members that disagree, so all entropy is mutual information. Second: equal members, so none.
    assert np.allclose(found.entropy[[0, 1, 3]], [1, 1, 0]) and np.allclose(found.mutual_information[:2], [1, 0])
    third = entropy(0.8) - (entropy(0.9) + entropy(0.7)) / 2
    assert found.mutual_information[2] == pytest.approx(third) and 0 < third < found.entropy[2]
    assert entropy(0.25) == pytest.approx(0.25 * 2 + 0.75 * math.log2(4 / 3))


def test_identical_members_disagree_nowhere_and_order_does_not_matter():
    soft = np.random.default_rng(0).random((4, 6, 6))
    same = pixel_uncertainty(np.stack([soft[0]] * 3))
    assert np.allclose(same.mean, soft[0]) and np.allclose(same.variance, 0) and same.mutual_information.max() < 1e-12
    for one, other in zip(pixel_uncertainty(soft), pixel_uncertainty(soft[[2, 0, 3, 1]]), strict=True):
        assert np.allclose(one, other)


def bar(width):
    mask = np.zeros((2, 10), bool)
    mask[:, :width] = True
    return mask


def test_scores_of_a_case_by_hand():
    members, probability = [bar(2), bar(4), bar(6)], bar(4) * 0.8 + bar(1) * 0.2
    scores = case_scores(bar(4), members, probability, unit=0.5)
    pairs = [2 * 4 / (4 + 8), 2 * 4 / (4 + 12), 2 * 8 / (8 + 12)]
    assert scores["agreement"] == pytest.approx(np.mean(pairs))
    assert scores["expected_dice"] == pytest.approx(2 * 6.8 / (8 + 6.8))
    assert scores["volume_spread"] == pytest.approx(np.std([4, 8, 12]) / 8)
    assert (scores["volume_low"], scores["volume_high"]) == pytest.approx((2.2, 5.8))  # of 2, 4 and 6
    alone = case_scores(bar(4), [bar(4)], None)
    assert all(math.isnan(value) for value in alone.values())
    empty = case_scores(bar(0), [bar(0)] * 2, np.zeros((2, 10)))
    assert empty["agreement"] == 1 and math.isnan(empty["expected_dice"]) and math.isnan(empty["volume_spread"])


def test_cases_are_ranked_by_correlation_and_by_retention():
    error = np.array([0.1, 0.3, 0.2, math.nan, 0.9])
    perfect = rank_cases([1, 3, 2, 7, 4], error)
    curve = [0.1, 0.15, 0.2, 0.375]
    assert perfect["curve"] == {"kept": [0.25, 0.5, 0.75, 1], "error": pytest.approx(curve)}
    assert (perfect["spearman"], perfect["n"]) == (pytest.approx(1), 4)
    assert perfect["area"] == perfect["oracle"] == pytest.approx(np.mean(curve)) and perfect["random"] == 0.375
    worst = rank_cases([4, 2, 3, 7, 1], error)
    assert worst["spearman"] == pytest.approx(-1) and worst["area"] > worst["random"]
    # A constant uncertainty does not rank cases.
    flat = rank_cases([1] * 5, error)
    assert math.isnan(flat["spearman"]) and flat["area"] == pytest.approx(flat["random"])
    none = rank_cases([math.nan], [0.5])
    assert none["n"] == 0 and math.isnan(none["area"]) and none["curve"]["kept"] == []


def test_the_rank_correlation_is_scipys_and_ties_count_by_their_mean():
    rng = np.random.default_rng(1)
    uncertainty, error = rng.integers(0, 5, 300).astype(float), rng.random(300)
    found = rank_cases(uncertainty, error)
    assert found["spearman"] == pytest.approx(spearmanr(uncertainty, error).statistic)
    orders = [np.lexsort((rng.random(300), uncertainty)) for _ in range(400)]  # ties in any order, on average
    areas = [np.mean(np.cumsum(error[order]) / np.arange(1, 301)) for order in orders]
    assert found["area"] == pytest.approx(np.mean(areas), abs=3 * np.std(areas) / 20)
    assert len(found["curve"]["kept"]) == 100 and found["curve"]["error"][-1] == pytest.approx(error.mean())
