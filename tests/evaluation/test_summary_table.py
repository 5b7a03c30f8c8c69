"""The console's tables: figures with their units, classes, members, and lines for what is left out."""

import math

import numpy as np
from helpers import evaluation_of

from guided_diffusion.evaluation.summary import summary_of
from guided_diffusion.evaluation.summary_table import figure_name, format_summary, member_lines, metric_label
from guided_diffusion.evaluation.topology import TOPOLOGY_FIGURES


def test_figures_that_are_defined_have_a_row():
    text = format_summary(summary_of(evaluation_of(a={"dice": 0.5, "hd95": 3.0}, b={"dice": 1.0, "hd95": 5.0})))
    (dice,) = (line for line in text.splitlines() if line.startswith("dice "))
    assert "0.7500" in dice and dice.split()[-1] == "2"
    assert any(line.startswith("hd95 (pixels)") and "4.0000" in line for line in text.splitlines())
    assert "coarse dice" not in text and "left out" not in text
    assert text.endswith("2 cases (0 both masks empty, 0 prediction empty, 0 truth empty)")


def test_what_is_left_out_is_named():
    evaluation = evaluation_of(a={"dice": 0.5, "group": "p"})
    evaluation.missing, evaluation.without_truth, evaluation.unmatched = 1, 2, 3
    lines = format_summary(summary_of(evaluation)).splitlines()
    assert lines[-4].startswith("1 case of 1 group (")
    assert lines[-3:] == [
        "left out: 1 case without a prediction",
        "left out: 2 cases without truth",
        "left out: 3 mask files not named like any case",
    ]


def test_classes_come_first():
    text = format_summary(summary_of(evaluation_of(classes=("liver", "tumour"), a={"dice": (0.5, math.nan)})))
    head, liver, tumour, mean = text.splitlines()[:4]
    assert head.split() == ["class", "dice", "cases"] and liver.split() == ["liver", "0.5000", "1"]
    assert tumour.split() == ["tumour", "nan", "0"] and mean.split() == ["mean", "0.5000", "1"]
    assert "over all classes" in text.splitlines()[-1]


def test_a_class_has_the_figures_that_decide():
    """Those of its members and of its probability too, as a single class has in its own table."""
    cases = {
        "a": {"dice": (0.5, 0.7), "sample_dice": (0.25, 0.5), "rater_pixels": (10, 20), "log_loss_sum": (5.0, 40.0)},
        "b": {"dice": (0.9, math.nan), "sample_dice": (0.75, math.nan)},
    }
    lines = format_summary(summary_of(evaluation_of(classes=("ventricle", "wall"), **cases))).splitlines()
    head, *rows = ([cell for cell in line.split("  ") if cell] for line in lines[:4])
    assert [cell.strip() for cell in head] == ["class", "dice", "one member's", "log loss", "cases"]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["ventricle", "0.7000", "0.5000", "0.5000", "2"],
        ["wall", "0.7000", "0.5000", "2.0000", "1"],
        ["mean", "0.7500", "0.5625", "1.5000", "2"],
    ]


def test_the_set_of_masks_of_a_single_answer_is_named():
    evaluation = evaluation_of(a={"dice": 1.0, "ged2_unbiased": 0.25})
    line = "one answer, no members: as a set of masks count 16 level sets of its probability"
    assert line in format_summary(summary_of(evaluation)).splitlines()
    evaluation.members["organ"] = [np.array([[0.5, 1.0, 0.25], [1.0, 1.0, 0.75]])]
    assert line not in format_summary(summary_of(evaluation))
    evaluation.members["organ"], evaluation.rows[0]["ged2_unbiased"] = [], math.nan
    assert line not in format_summary(summary_of(evaluation))


def test_a_label_says_whose_masks_are_meant():
    labels = {
        "control_copula_ged2_unbiased": "Gaussian copula: GED² unbiased",
        "majority_rater_dice": "raters' majority: dice to raters",
        "coarse_log_loss_per_area": "coarse log loss per lesion pixel",
        "ged2": "GED² V-statistic",
        "collective_insight": "collective insight score",
    }
    assert {name: figure_name(name) for name in labels} == labels


def test_topology_is_shown_where_it_was_computed():
    rows = {"dice": 1.0, **{name: 0.25 for name in TOPOLOGY_FIGURES}}
    summary = summary_of(evaluation_of(a=rows))
    assert set(summary["topology"]) == set(TOPOLOGY_FIGURES)
    assert any(line.startswith("sample clDice") and "0.2500" in line for line in format_summary(summary).splitlines())
    assert "topology" not in summary_of(evaluation_of(a={"dice": 1.0}))


def test_units():
    summary = {"hd95_unit": "mm"}
    labels = {"hd95": "hd95 (mm)", "nsd_1.5": "nsd at 1.5 mm", "lesion_f1": "lesion f1", "dice": "dice"}
    assert {name: metric_label(name, summary) for name in labels} == labels


def test_the_fused_mask_one_member_and_the_raters_stand_together():
    figures = {"dice": 0.8, "sample_dice": 0.7, "raters_agreement": 0.75, "iou": 0.6}
    lines = format_summary(summary_of(evaluation_of(a=figures))).splitlines()[1:5]
    labels = ["dice", "dice of one member", "dice of one rater to another", "iou"]
    assert [line.split("  ")[0] for line in lines] == labels


def test_members_far_worse_than_their_fused_mask_get_a_warning():
    def lines_of(**figures):
        evaluation = evaluation_of(a={"dice": 0.6, "sample_dice": 0.435, **figures})
        evaluation.members["organ"] = [np.full((2, 3), 0.435)]
        summary = summary_of(evaluation)
        assert all(line in format_summary(summary) for line in member_lines(summary))
        return "".join(member_lines(summary))

    rough = {"control_levels_dice": 0.57, "beyond_levels_dice": -0.135}
    unsure = {"control_levels_dice": 0.42, "beyond_levels_dice": 0.015}
    assert "Dice 0.435 and 0.600" in lines_of(**rough) and "0.570, have more: the diffusion is" in lines_of(**rough)
    assert "0.420, have no more: the network is unsure" in lines_of(**unsure)
    assert lines_of(**rough, raters_agreement=0.9) and not lines_of(**rough, raters_agreement=0.8)
    assert not lines_of(**rough | {"sample_dice": 0.51}) and not lines_of()  # near; no probability
    assert member_lines({"ensemble": {}, "sample": {"n": 0}}) == []  # of an earlier version
