"""Decisions from members: each by hand, and the table by the script."""

import importlib

import numpy as np
import pytest


@pytest.fixture
def decisions(beside_each_other):
    return importlib.import_module("decisions")


def test_expected_dice_takes_the_threshold_that_serves_the_members(decisions):
    # Two members of three see a lesion of 4 pixels, one of 8: the larger mask has the smaller mean Dice.
    members = np.zeros((3, 20), bool)
    members[:, :4] = True
    members[0, 4:8] = True
    probability = members.mean(axis=0)
    found = decisions.decide(members, probability)
    assert found["half"].sum() == 4 and found["expected_dice"].sum() == 4
    assert np.array_equal(found["medoid"], members[1])
    # Three members that share no pixel: the cut at 0.5 is empty, and all of them together are the best answer.
    unsure = np.zeros((3, 20), bool)
    unsure[0, :2] = unsure[1, 2:4] = unsure[2, 4:6] = True
    found = decisions.decide(unsure, unsure.mean(axis=0))
    assert found["half"].sum() == 0 and found["expected_dice"].sum() == 6  # Dice 2 * 2 / 8 with each


def test_the_expected_dice_of_a_probability_alone_is_its_formula(decisions):
    probability = np.array([0.9, 0.6, 0.45, 0.3, 0.05])
    found = decisions.decide(np.stack([probability > 0.5] * 2), probability)["expected_dice_alone"]
    ratio = [2 * probability[:n].sum() / (n + probability.sum()) for n in range(1, 6)]
    assert found.sum() == 1 + int(np.argmax(ratio)) == 3


def test_differences_are_paired_and_undefined_cases_are_left_out(decisions):
    scores = [{("dice", name): value for name in decisions.DECISIONS} for value in (0.5, 0.7, np.nan)]
    scores[0]["dice", "medoid"], scores[1]["dice", "medoid"] = 0.4, 0.4
    row = decisions.tabulate(["a", "b", "c"], scores)["dice"]["medoid"]
    assert row == pytest.approx({"mean": 0.4, "difference": -0.2, "low": -0.3, "high": -0.1})
