"""The summary: means over cases, classes and members, counts, groups, and what is left undefined."""

import math

import numpy as np
import pytest
from helpers import evaluation_of

from guided_diffusion.data.classes import MEAN
from guided_diffusion.evaluation.calibration import ReliabilityTable
from guided_diffusion.evaluation.summary import (
    add_tables,
    by_case,
    calibration_figures,
    curves_of,
    groups_of,
    mean_row,
    raters_in,
    summary_of,
)
from guided_diffusion.evaluation.summary_table import format_summary

NAN = math.nan


def test_means_are_over_the_cases_where_a_figure_is_defined():
    found = summary_of(evaluation_of(a={"dice": 0.5, "hd95": NAN}, b={"dice": 1.0, "hd95": 4.0}, c={"dice": NAN}))
    ensemble = found["ensemble"]
    assert (ensemble["dice"]["mean"], ensemble["dice"]["n"]) == (0.75, 2)
    assert (ensemble["hd95"]["mean"], ensemble["hd95"]["n"]) == (4.0, 1)
    assert math.isnan(ensemble["precision"]["mean"]) and ensemble["precision"]["n"] == 0
    assert ensemble["cases"] == 3 and found["class_names"] == ["organ"] and "classes" not in found


def test_empty_masks_are_counted_by_kind():
    rows = {
        name: {"dice": NAN, "empty": empty} for name, empty in zip("abcd", ("both", "truth", "truth", ""), strict=True)
    }
    ensemble = summary_of(evaluation_of(**rows))["ensemble"]
    assert [ensemble[f"{which}_empty"] for which in ("both", "prediction", "truth")] == [1, 0, 2]


def test_several_classes_are_means_of_each_case_first():
    evaluation = evaluation_of(classes=("x", "y"), a={"dice": (0.0, 0.5)}, b={"dice": (1.0, NAN)})
    found = summary_of(evaluation)
    assert found["ensemble"]["dice"]["mean"] == pytest.approx((0.25 + 1.0) / 2)
    assert [found["classes"][name]["ensemble"]["dice"]["mean"] for name in "xy"] == [0.5, 0.5]
    assert found["ensemble"]["cases"] == 2
    assert set(curves_of(evaluation)["classes"]) == {"x", "y"}


def test_empty_masks_of_all_classes_are_added_up():
    rows = {name: {"dice": (NAN, NAN), "empty": ("both", "truth")} for name in "ab"}
    ensemble = summary_of(evaluation_of(classes=("x", "y"), **rows))["ensemble"]
    assert (ensemble["both_empty"], ensemble["truth_empty"]) == (2, 2)


def test_members_are_means_over_the_cases_that_have_them():
    evaluation = evaluation_of(a={"dice": 1.0}, b={"dice": 1.0})
    evaluation.members["organ"] = [np.array([[0.5, 1.0, 0.25], [1.0, 1.0, 1.0]]), np.array([[1.0, 0.0, 0.75]])]
    first, second = summary_of(evaluation)["members"]
    assert first == {"staple_sensitivity": 0.75, "staple_specificity": 0.5, "dice": 0.5}
    assert second == {"staple_sensitivity": 1.0, "staple_specificity": 1.0, "dice": 1.0}


def test_groups_are_counted_and_a_case_without_one_is_its_own():
    rows = {"a": {"dice": 1.0, "group": "p"}, "b": {"dice": 0.0, "group": "p"}, "c": {"dice": 0.5}}
    evaluation = evaluation_of(**rows)
    assert groups_of(evaluation.rows) == ["p", "p", "c"]
    assert summary_of(evaluation_of(a={"dice": 1.0}))["groups"] is None
    assert summary_of(evaluation_of(**{name: row for name, row in rows.items() if name != "c"}))["groups"] == 1


def test_the_share_of_true_volumes_within_the_members_interval():
    rows = {"a": (1, 3, 2), "b": (1, 3, 4), "c": (2, 2, 2), "d": (NAN, NAN, 5)}
    values = {
        name: {"dice": 1.0, "volume_low": low, "volume_high": high, "truth_volume": truth}
        for name, (low, high, truth) in rows.items()
    }
    found = summary_of(evaluation_of(**values))
    assert found["uncertainty"]["volume_coverage"] == pytest.approx(2 / 3)
    line = "true volume inside the 5-95 % range of the members' volumes in 2 of 3 cases"
    assert line in format_summary(found).splitlines()
    assert math.isnan(summary_of(evaluation_of(a={"dice": 1.0}))["uncertainty"]["volume_coverage"])


def test_calibration_is_that_of_the_tables_and_nan_without_one():
    probability, truth = np.array([0.1, 0.9, 0.9]), np.array([False, True, False])
    table = ReliabilityTable.of(probability, truth)
    figures = calibration_figures({"": table})
    assert figures["ece"] == pytest.approx((0.1 + 0.8) / 3) and math.isnan(figures["coarse_ece"])
    pooled = {}
    for _ in range(2):
        add_tables(pooled, {"": table})
    assert calibration_figures(pooled) == pytest.approx(figures, nan_ok=True) and pooled[""].pixels == 6


def test_figures_per_lesion_pixel_are_ratios_of_sums():
    """A case of a tiny lesion does not decide, one without a lesion counts, one without a probability does not."""
    rows = {
        "a": {"dice": 1.0, "log_loss_sum": 10.0, "rater_pixels": 100.0},
        "b": {"dice": 1.0, "log_loss_sum": 2.0, "rater_pixels": 1.0},
        "c": {"dice": NAN, "log_loss_sum": 3.0, "rater_pixels": 0.0},
        "d": {"dice": 1.0, "rater_pixels": 50.0},
    }
    found = summary_of(evaluation_of(**rows))["probability"]["log_loss_per_area"]
    assert found["mean"] == pytest.approx(15 / 101) and found["n"] == 3 and found["median"] == pytest.approx(1.05)
    assert found["low"] < found["mean"] < found["high"]
    assert summary_of(evaluation_of(c=rows["c"]))["probability"]["log_loss_per_area"]["n"] == 0


def test_rows_of_a_case_and_their_mean():
    rows = evaluation_of(classes=("x", "y"), a={"dice": (0.5, NAN)}, b={"dice": (0.0, 1.0)}).rows
    assert [[row["class"] for row in case] for case in by_case(rows)] == [["x", "y"], ["x", "y"]]
    mean = mean_row(by_case(rows)[0])
    assert (mean["name"], mean["class"], mean["dice"]) == ("a", MEAN, 0.5)


def test_raters_are_those_of_the_columns():
    rows = evaluation_of(a={"dice": 1.0, "rater_one_dice": 0.5}, b={"dice": 1.0, "rater_b 2_dice": 0.25}).rows
    assert raters_in(rows) == ["one", "b 2"]
