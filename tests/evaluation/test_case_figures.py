"""The groups of figures of one class of a case: coarse masks, probability, raters and sets of masks."""

import math

import numpy as np
import pytest

from guided_diffusion.evaluation.case_figures import (
    ClassPrediction,
    ClassTruth,
    coarse_masks,
    mask_figures,
    probability_figures,
    rater_figures,
    set_figures,
)
from guided_diffusion.evaluation.controls import CONTROLS
from guided_diffusion.evaluation.diversity import SET_FIGURES
from guided_diffusion.evaluation.evaluate import EvaluationSettings


def bar(width, shape=(3, 8)):
    mask = np.zeros(shape, bool)
    mask[:, :width] = True
    return mask


def prediction(width=4, members=(), probability=None, coarse=None, single=False):
    return ClassPrediction(bar(width), list(members), probability, coarse, single)


def truth(*widths):
    return ClassTruth(np.stack([bar(width) for width in widths]), None)


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 2)])
def test_coarse_masks_of_exclusive_classes_are_the_highest_class(shape):
    """0.45 of a class beside 0.35 of another and 0.2 background is that class, though no class reaches 0.5."""
    first, second = (np.full(shape, value, np.float32) for value in (0.45, 0.35))
    answers = [ClassPrediction(np.zeros(shape, bool), [], None, one, False) for one in (first, second)]
    assert [mask.mean() for mask in coarse_masks(answers, exclusive=True)] == [1, 0]
    assert [mask.mean() for mask in coarse_masks(answers, exclusive=False)] == [0, 0]
    assert [mask.mean() for mask in coarse_masks(answers[:1], exclusive=True)] == [0]  # one class is cut at 0.5
    answers[1].coarse = None
    assert coarse_masks(answers, exclusive=True) == [None, None]


def test_the_coarse_mask_is_scored_as_it_is_given():
    row = mask_figures(prediction(4), truth(4), bar(2), EvaluationSettings())
    assert (row["dice"], row["coarse_dice"], row["coarse_iou"]) == (1, pytest.approx(2 / 3), 0.5)
    assert "coarse_dice" not in mask_figures(prediction(4), truth(4), None, EvaluationSettings())


def test_volumes_are_relative_to_the_raters_mean():
    answer = prediction(6, [bar(2), bar(4)], bar(4) * 0.5, bar(4) * 0.25)
    row = probability_figures(answer, truth(2, 6))  # 12 pixels
    ratios = {"mask_volume_ratio": 1.5, "sample_volume_ratio": 0.75, "expected_volume_ratio": 0.5}
    assert {name: row[name] for name in ratios} == ratios and row["coarse_volume_ratio"] == 0.25
    assert row["brier_sum"] == pytest.approx(3 * (2 * 0.25 + 2 * 0 + 2 * 0.25))  # raters' fraction 1, 0.5 and 0
    assert row["brier_per_area"] == pytest.approx(0.25) and row["log_loss"] > 0
    alone = probability_figures(prediction(6), truth(0))
    assert math.isnan(alone["mask_volume_ratio"]) and "log_loss" not in alone and "sample_volume_ratio" not in alone


def test_raters_and_their_references():
    row = rater_figures(bar(4), [bar(4), bar(2)], ("ann", "bob"), ("ann", "bob", "eve"))
    assert row["rater_ann_dice"] == 1 and row["rater_bob_dice"] == pytest.approx(2 / 3)
    assert math.isnan(row["rater_eve_dice"]) and row["reader_matched_iou"] == 0.5
    assert "reader_dice" not in rater_figures(bar(4), [bar(4)], ("ann",), ("ann", "eve"))


def test_sets_of_several_raters_and_of_one():
    answer, levels = prediction(4, [bar(2), bar(6)], bar(4) * 0.5), {name for name in CONTROLS if "levels" in name}
    found = set_figures(answer, truth(2, 6), "a", 0)
    assert set(found) == {*SET_FIGURES, "dice_soft", *levels} and found["matched_iou"] == found["matched_dice"] == 1
    assert set(set_figures(answer, truth(2, 6), "a", 3.0)) == {*found, *CONTROLS}
    one = set_figures(answer, truth(4), "a", 0)
    assert set(one) == {"ged2_unbiased", "matched_iou", *levels}
    # The energy score: 2 * (1/2 + 1/3) / 2 - 2/3.
    assert one["ged2_unbiased"] == pytest.approx(2 * (0.5 + 1 / 3) / 2 - 2 / 3)


def test_the_set_of_an_answer_in_one_pass_is_its_level_sets_and_the_copula_is_its_control():
    answer = prediction(4, (), bar(4) * 0.5, single=True)
    found = set_figures(answer, truth(2, 6), "a", 3.0)
    assert {name for name in CONTROLS if "copula" in name} == set(CONTROLS) & set(found)
    assert set_figures(prediction(4, (), None), truth(2, 6), "a", 0) == {}
    assert set_figures(prediction(4, (), bar(4) * 0.5), truth(4), "a", 0) == {}  # members that were not saved
