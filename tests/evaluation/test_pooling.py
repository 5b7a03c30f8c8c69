"""Several results folders as one evaluation: what may differ between them, and the means of the folds."""

import math

import numpy as np
import pytest

from guided_diffusion.evaluation.evaluate import Evaluation, EvaluationSettings
from guided_diffusion.evaluation.pooling import check_same_settings, fold_figures, format_folds, pooled_evaluation
from guided_diffusion.evaluation.summary import summary_of
from guided_diffusion.runtime.errors import UserError


def evaluation_of(dice, classes=("foreground",), unit="pixels"):
    """An `Evaluation` with these Dice values, {case: one for each class}."""
    found = Evaluation(classes, EvaluationSettings(), distance_unit=unit, volume_unit="pixels")
    for name, values in dice.items():
        for class_name, value in zip(classes, values, strict=True):
            row = {"name": name, "class": class_name, "group": name[0], "empty": "", "dice": value}
            found.add(row, {}, np.zeros((0, 3)))
    return found


def test_cases_are_pooled_and_each_fold_has_its_mean():
    parts = [evaluation_of({"a1": (0.5,), "a2": (0.7,), "b1": (math.nan,)}), evaluation_of({"c1": (0.9,)})]
    parts[1].missing = parts[1].unmatched = 1
    whole = pooled_evaluation(parts, ["x", "y"])
    summary = summary_of(whole)
    assert summary["ensemble"]["dice"]["mean"] == pytest.approx(0.7)  # of three cases, not of two folds
    counts = [summary[key] for key in ("groups", "missing", "unmatched_files")]
    assert (summary["ensemble"]["cases"], counts) == (4, [3, 1, 1])
    assert [row["name"] for row in parts[0].rows] == ["a1", "a2", "b1"]  # which pooling leaves alone
    folds = fold_figures(parts, ["1/2", "2/2"])
    assert [(one["fold"], one["cases"]) for one in folds] == [("1/2", 3), ("2/2", 1)]
    assert [one["dice"] for one in folds] == pytest.approx([0.6, 0.9])
    table = format_folds(folds, summary)
    assert [line.split()[:3] for line in table.splitlines()[1:]] == [["1/2", "3", "0.6000"], ["2/2", "1", "0.9000"]]


def test_a_fold_of_several_classes_has_the_mean_of_its_cases_means():
    part = evaluation_of({"a": (0.2, 0.4), "b": (math.nan, 0.9)}, ("liver", "tumour"))
    assert fold_figures([part], ["1"])[0]["dice"] == pytest.approx((0.3 + 0.9) / 2)


def test_what_cannot_be_pooled_is_named():
    one = evaluation_of({"a": (0.5,)})
    with pytest.raises(UserError, match="--pred_dir: the case a is in x and in y; pool folders without common cases"):
        pooled_evaluation([one, evaluation_of({"a": (0.6,)})], ["x", "y"])
    failed = evaluation_of({"b": (0.5,)})
    failed.failed["a"] = "is damaged"
    with pytest.raises(UserError, match="the case a is in x and in y"):
        pooled_evaluation([one, failed], ["x", "y"])
    with pytest.raises(UserError, match="the distance_unit of x and y differ, pixels and mm"):
        pooled_evaluation([one, evaluation_of({"b": (0.5,)}, unit="mm")], ["x", "y"])
    with pytest.raises(UserError, match="the class_names of x and y differ"):
        pooled_evaluation([one, evaluation_of({"b": (0.5,)}, ("liver",))], ["x", "y"])


def test_results_of_different_settings_are_not_pooled():
    first = {"settings": {"num_ensemble": 5, "temperature": 1.2}, "class_names": ["polyp"]}
    same = {"settings": {"num_ensemble": 5, "temperature": 0.9, "debug": True}, "class_names": ["polyp"]}
    check_same_settings([first, same, first], ["x", "y", "z"])
    check_same_settings([{}, {}], ["x", "y"])  # folders of another program
    other = {"settings": {"num_ensemble": 8, "temperature": 1.2}, "class_names": ["polyp"]}
    with pytest.raises(UserError, match="x has num_ensemble 5, z has 8; pool results of the same settings"):
        check_same_settings([first, same, other], ["x", "y", "z"])
    with pytest.raises(UserError, match="class_names"):
        check_same_settings([first, {**same, "class_names": ["liver"]}], ["x", "y"])
