"""The controls: margins and correlation of the copula, its limits, the fit of its length, and the figures."""

import math

import numpy as np
import pytest
from scipy.special import ndtri

from guided_diffusion.evaluation.controls import (
    CONTROL_KINDS,
    CONTROLS,
    control_figures,
    copula_members,
    dice_beyond_levels,
    fit_copula_length,
)
from guided_diffusion.evaluation.diversity import compare_with_raters, level_sets
from guided_diffusion.evaluation.metrics import overlap


def disc(radius, size=24):
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.hypot(y, x) < radius


def soft_disc(size=24):
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.clip((10 - np.hypot(y, x)) / 8, 0, 1)


@pytest.mark.parametrize("length", [0.5, 3.0, 40.0])
def test_each_pixel_is_marked_as_often_as_its_probability_says(length):
    p = np.tile(np.array([0.0, 0.02, 0.3, 0.5, 0.9, 1.0]), (4, 1))
    share = np.mean(copula_members(p, 4000, length, "a"), axis=0)
    assert (share[:, 0] == 0).all() and (share[:, 5] == 1).all()
    assert np.abs(share - p).max() < 4 * math.sqrt(0.25 / 4000)  # at the border as well


def test_neighbours_agree_as_the_correlation_length_says():
    """Two pixels of p = 0.5 agree with the probability 1/2 + asin(r) / pi, r the correlation of their fields."""
    members = np.array(copula_members(np.full((1, 9), 0.5), 6000, 2.0, "a"))[:, 0]
    for apart in (1, 2, 4):
        agree = (members[:, 2] == members[:, 2 + apart]).mean()
        correlation = math.exp(-(apart**2) / (2 * 2.0**2))
        assert agree == pytest.approx(0.5 + math.asin(correlation) / math.pi, abs=0.03)
    independent = np.array(copula_members(np.full((1, 9), 0.5), 6000, 0.0, "a"))[:, 0]
    assert (independent[:, 2] == independent[:, 3]).mean() == pytest.approx(0.5, abs=0.03)


def test_a_long_length_cuts_at_one_threshold():
    p = soft_disc()
    for member in copula_members(p, 5, 1e4, "a"):
        assert (p[member].min(initial=1) >= p[~member].max()) or not member.any()


def test_fields_are_seeded_by_the_case_and_follow_the_spacing():
    p = np.full((30, 30), 0.5)
    first, again, other = (copula_members(p, 2, 3.0, name) for name in "aab")
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    tall = np.array(copula_members(p, 300, 3.0, "a", spacing=(1.0, 3.0)))
    agree = [(tall[:, 3:] == tall[:, :-3]).mean(), (tall[:, :, 1:] == tall[:, :, :-1]).mean()]
    assert agree[0] == pytest.approx(agree[1], abs=0.02)  # three pixels of 1 are as far as one of 3
    assert copula_members(p * 0, 2, 3.0, "a")[1].shape == (30, 30) and not np.any(copula_members(p * 0, 2, 3.0, "a"))
    assert np.array(copula_members(np.full((4, 5, 6), 0.5), 2, 2.0, "a")).shape == (2, 4, 5, 6)


def test_the_fitted_length_is_that_of_the_raters():
    p = soft_disc()
    lengths, found = (0, 2, 30), []
    for true in lengths:
        raters = [copula_members(p, 4, true, f"rater {case}") for case in range(12)]
        found.append(fit_copula_length([p] * 12, raters, count=8, lengths=lengths))
    assert found == [0, 2, 30]
    with pytest.raises(ValueError, match="no cases"):
        fit_copula_length([], [])


def test_figures_are_those_of_the_sets():
    p, raters = soft_disc(), [disc(5), disc(8)]
    own = {"ged2_unbiased": 0.25, "matched_iou": 0.75}
    found = control_figures(p, raters, 6, CONTROL_KINDS, own, length=4.0, name="a")
    assert set(found) == set(CONTROLS)
    levels = compare_with_raters(level_sets(p, 6), raters, drawn=False)
    copula = compare_with_raters(copula_members(p, 6, 4.0, "a"), raters)
    for kind, figures in (("levels", levels), ("copula", copula)):
        assert {name: found[f"control_{kind}_{name}"] for name in figures} == figures
        assert {name: own[name] - found[f"beyond_{kind}_{name}"] for name in figures} == pytest.approx(figures)
    assert set(control_figures(p, raters, 6, ["levels"], own)) == {name for name in CONTROLS if "levels" in name}


def test_limits_are_as_the_text_says():
    """ndtri(0) and ndtri(1) are infinite, so pixels of probability 0 and 1 never vary."""
    assert ndtri(np.float64(0)) == -math.inf and ndtri(np.float64(1)) == math.inf


def test_members_lag_behind_level_sets_only_by_what_their_own_probability_does_not_explain():
    y, x = np.mgrid[:64, :64] - 31.5
    p, truth = np.clip((12 - np.hypot(y, x)) / 12, 0, 1), np.hypot(y, x) < 6
    as_unsure = copula_members(p, 64, 40.0, "a")
    lags = []
    for members in (as_unsure, np.roll(as_unsure, 4, axis=2)):
        dice = np.mean([overlap(member, truth)["dice"] for member in members])
        found = dice_beyond_levels(dice, p, truth)
        assert found["beyond_levels_dice"] == dice - found["control_levels_dice"]
        lags.append(found["beyond_levels_dice"])
    assert abs(lags[0]) < 0.05 and lags[1] < -0.1
