"""Diversity: GED by a double loop, matched IoU by all permutations, and what empty masks mean."""

import itertools
import math

import numpy as np
import pytest

from guided_diffusion.evaluation.diversity import (
    best_matching,
    compare_sets,
    compare_with_raters,
    dice_to_raters,
    level_dice,
    level_sets,
    mean_over_pairs,
    pair_dice,
    pair_iou,
    reference_figures,
    shared_pixels,
    soft_dice,
)
from guided_diffusion.evaluation.metrics import overlap

FULL, NONE = np.ones((3, 3), bool), np.zeros((3, 3), bool)


def masks(count, seed, shape=(5, 6)):
    rng = np.random.default_rng(seed)
    return [rng.random(shape) < rng.uniform(0, 1) for _ in range(count)]


def iou(a, b):
    """By sets of pixels."""
    a, b = ({tuple(place) for place in np.argwhere(mask)} for mask in (a, b))
    return len(a & b) / len(a | b) if a | b else 1.0


def mean_distance(first, second):
    total = 0
    for a in first:
        for b in second:
            total += 1 - iou(a, b)
    return total / (len(first) * len(second))


@pytest.mark.parametrize("members, raters, shape", [(1, 2, (5, 6)), (4, 3, (5, 6)), (5, 4, (3, 4, 2))])
def test_ged_is_that_of_a_double_loop(members, raters, shape):
    samples, truths = masks(members, 1, shape), [*masks(raters - 1, 2, shape), np.zeros(shape, bool)]
    expected = 2 * mean_distance(samples, truths) - mean_distance(samples, samples) - mean_distance(truths, truths)
    assert compare_sets(samples, truths)["ged2"] == pytest.approx(expected)


def test_ged_by_hand():
    # One sample as one rater, the other rater empty: 2 * (0 + 1) / 2 - 0 - (0 + 1 + 1 + 0) / 4.
    assert compare_sets([FULL], [FULL, NONE])["ged2"] == pytest.approx(0.5)
    # The same two masks, in whatever order and number, are no distance apart.
    assert compare_sets([NONE, FULL, NONE, FULL], [FULL, NONE])["ged2"] == pytest.approx(0)
    assert compare_sets([FULL], [NONE, NONE])["ged2"] == pytest.approx(2)


@pytest.mark.parametrize("members, raters", [(3, 3), (2, 4), (3, 2), (1, 4), (4, 6)])
def test_matched_iou_is_the_best_permutation(members, raters):
    samples, truths = masks(members, 3), masks(raters, 4)
    table = np.array([[iou(a, b) for b in truths] for a in samples])
    np.testing.assert_allclose(pair_iou(shared_pixels([*samples, *truths]))[:members, members:], table)
    if (members, raters) == (4, 6):  # 12 factorial is too many: the transport problem's matrix form is the oracle
        assert best_matching(table) == pytest.approx(transport(table))
        return
    count = math.lcm(members, raters)
    orders = itertools.permutations(range(count))
    best = max(sum(table[row % members, column % raters] for row, column in enumerate(order)) for order in orders)
    assert best_matching(table) == pytest.approx(best / count)


def transport(table):
    """The most IoU that moves a mass of 1/E from each sample to 1/R at each rater, by linear programming."""
    from scipy.optimize import linprog

    samples, raters = table.shape
    from_sample = np.kron(np.eye(samples), np.ones(raters))
    to_rater = np.kron(np.ones(samples), np.eye(raters))
    masses = [*[1 / samples] * samples, *[1 / raters] * raters]
    return -linprog(-table.ravel(), A_eq=np.vstack([from_sample, to_rater]), b_eq=masses).fun


def test_empty_masks_agree():
    shared = shared_pixels([NONE, FULL, NONE])
    assert pair_iou(shared).tolist() == pair_dice(shared).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert pair_iou(shared_pixels([NONE, NONE])).tolist() == [[1, 1], [1, 1]]
    assert mean_over_pairs(pair_dice(shared)) == pytest.approx(1 / 3) and math.isnan(mean_over_pairs(np.ones((1, 1))))
    nothing = compare_sets([NONE], [NONE, NONE])
    distances = ("ged2", "ged2_unbiased", "ged2_floor")
    assert all(nothing[name] == (0 if name in distances else 1) for name in nothing)


def test_unbiased_ged_does_not_depend_on_the_numbers_of_masks_and_the_floor_is_that_of_a_perfect_sampler():
    """Samples and raters from one distribution: intervals of a random length."""
    rng = np.random.default_rng(0)

    def intervals(count):
        return [np.arange(12)[None] < length for length in rng.integers(2, 12, count)]

    repeats = [compare_sets(intervals(members), intervals(3)) for members in (2, 4) for _ in range(800)]
    for found in (repeats[:800], repeats[800:]):
        error = 3 * np.std([one["ged2_unbiased"] for one in found]) / math.sqrt(800)
        assert abs(np.mean([one["ged2_unbiased"] for one in found])) < error < 0.04
        v_statistic, floor = (np.mean([one[name] for one in found]) for name in ("ged2", "ged2_floor"))
        assert v_statistic == pytest.approx(floor, abs=0.02) and floor > 0.15


def test_unbiased_ged_by_hand():
    # Distances 0 and 1 between, 1 within each side: 2 * 1/2 - 1 - 1.
    assert compare_sets([FULL, NONE], [FULL, NONE])["ged2_unbiased"] == pytest.approx(-1)
    assert compare_sets([FULL, NONE], [FULL, NONE])["ged2_floor"] == pytest.approx(1)
    # A single answer has no spread; a single rater has none that is known.
    assert compare_with_raters([FULL], [FULL, NONE])["ged2_unbiased"] == pytest.approx(2 * 0.5 - 0 - 1)
    assert compare_with_raters([FULL, NONE], [FULL])["ged2_unbiased"] == pytest.approx(2 * 0.5 - 1 - 0)


def test_level_sets_of_any_number_estimate_the_same_distance():
    """Their thresholds are a quadrature: without pairs of equal thresholds few of them would look more diverse."""
    p = np.linspace(0, 1, 401)[None]
    rater = [p > 0.5]
    few, many = (compare_with_raters(level_sets(p, n), rater, drawn=False)["ged2_unbiased"] for n in (16, 128))
    as_if_drawn = compare_with_raters(level_sets(p, 16), rater)["ged2_unbiased"]
    assert abs(few - many) < 0.01 < 0.02 < many - as_if_drawn


def test_dice_soft_and_matched_dice_by_hand():
    p = np.array([[0.95, 0.6, 0.2, 0.0]])
    raters = np.array([[1.0, 1.0, 0.0, 0.0]])
    # Above 0.1 three pixels for two, above 0.3 and 0.5 both, above 0.7 and 0.9 one of two.
    assert soft_dice(p, raters) == pytest.approx((4 / 5 + 1 + 1 + 2 / 3 + 2 / 3) / 5)
    assert math.isnan(soft_dice(p * 0, raters * 0))
    # The second sample is best for both raters; one to one it may serve only one.
    third = np.zeros((3, 3), bool)
    third[0] = True
    found = compare_sets([NONE, FULL], [FULL, third])
    assert found["dice_max"] == pytest.approx((1 + 0.5) / 2) and found["matched_dice"] == pytest.approx((1 + 0) / 2)


def test_references_by_hand():
    half = np.zeros((3, 3), bool)
    half[0] = True
    found = reference_figures([FULL, FULL, half])
    # Readers: FULL against FULL and half (a tie, so their majority is half), twice; half against FULL twice.
    assert found["reader_dice"] == pytest.approx(0.5)
    assert found["reader_matched_iou"] == pytest.approx((2 * (1 + 1 / 3) / 2 + 1 / 3) / 3)
    distances = [2 * (0 + 2 / 3) / 2 - 2 / 3, 2 * (0 + 2 / 3) / 2 - 2 / 3, 2 * 2 / 3 - 0]
    assert found["reader_ged2_unbiased"] == pytest.approx(np.mean(distances))
    assert found["majority_rater_dice"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert found["majority_matched_iou"] == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert found["majority_ged2_unbiased"] == pytest.approx(2 * (2 / 3) / 3 - (0 + 2 / 3 + 2 / 3) / 3)
    assert math.isnan(reference_figures([NONE, NONE])["reader_dice"])


def test_collective_insight_by_hand():
    def bar(*columns):
        mask = np.zeros((3, 6), bool)
        mask[:, list(columns)] = True
        return mask

    samples, raters = [bar(0, 1), bar(1, 2)], [bar(0, 1), bar(2), bar(3)]
    found = compare_sets(samples, raters)
    # Of the raters' four columns the members have three; best Dice 1, 2/3 and 0.
    sensitivity, match = 3 / 4, (1 + 2 / 3 + 0) / 3
    # The members' one pair is 1 - 1/3 apart, the raters' pairs are all 1 apart.
    agreement = 1 - ((1 - 2 / 3) + (1 - 2 / 3)) / 2
    assert found["combined_sensitivity"] == pytest.approx(sensitivity)
    assert found["dice_max"] == pytest.approx(match) and found["diversity_agreement"] == pytest.approx(agreement)
    expected = 3 * sensitivity * match * agreement / (sensitivity + match + agreement)
    assert found["collective_insight"] == pytest.approx(expected)
    assert compare_sets(samples, samples)["collective_insight"] == pytest.approx(1)
    assert compare_sets([NONE], [FULL])["collective_insight"] == 0
    assert compare_sets([FULL], [NONE])["combined_sensitivity"] == 0
    assert compare_sets(samples[::-1], raters[::-1]) == pytest.approx(found)


def test_levels_are_sixteenths_and_nested():
    p = np.linspace(0, 1, 501)[None]
    levels = level_sets(p)
    assert len(levels) == 16 and all((inner <= outer).all() for outer, inner in itertools.pairwise(levels))
    assert np.abs(np.mean(levels, axis=0) - p).max() <= 1 / 32 + 1e-9
    assert len(level_sets(p, 5)) == 5 and np.abs(np.mean(level_sets(p, 5), axis=0) - p).max() <= 0.1 + 1e-9
    assert [mask.sum() for mask in level_sets(np.array([0.0, 1.0, 0.5]))] == [2] * 8 + [1] * 8


def test_dice_to_each_rater():
    half = np.zeros((3, 3), bool)
    half[0] = True
    assert dice_to_raters(FULL, [FULL, half]) == [1, overlap(FULL, half)["dice"]] == [1, 0.5]
    assert dice_to_raters(NONE, [FULL]) == [0] and math.isnan(dice_to_raters(NONE, [NONE])[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dice_of_level_sets_is_that_of_each_as_a_mask(dtype):
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.random(500), np.arange(33) / 32]).astype(dtype).reshape(13, 41)  # some on the thresholds
    truth = rng.random(p.shape) < p
    for mask in (truth, np.zeros_like(truth)):
        dice = [overlap(level, mask)["dice"] for level in level_sets(p)]
        assert level_dice(p, mask) == pytest.approx(np.mean(dice), abs=1e-12)
    nothing = np.zeros_like(truth)
    assert level_dice(0.3 * truth, truth) == pytest.approx(np.mean([1.0] * 5 + [0.0] * 11))
    assert math.isnan(level_dice(np.zeros(p.shape), nothing))
