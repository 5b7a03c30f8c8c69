"""The figures of a report: labels, the table, and which charts are drawn of which data."""

import re
from html import unescape

import pytest

from guided_diffusion.report.figures import (
    charts_of,
    figure_label,
    interval_text,
    sets_table,
    sizes_table,
    table_of,
    with_sure_intervals,
)


def one(mean, n=3):
    return {"mean": mean, "median": mean, "std": 0.1, "low": mean - 0.1, "high": mean + 0.1, "n": n}


EMPTIES = {"cases": 3, "both_empty": 0, "prediction_empty": 1, "truth_empty": 0}
SIZES = {"sizes": [1, 2], "dice": [one(0.4), one(0.6)], "enough": 2}
LEVEL = {"ensemble": {"dice": one(0.5), "hd95": one(7.25)} | EMPTIES, "sample": one(0.4), "coarse": one(0.3, n=0)}


def cells(table):
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
    return {unescape(row[0]): row[1:] for row in rows}


def test_labels_are_the_field_s_terms():
    labels = {"dice": "Dice", "hd95": "HD95", "coarse_ece": "Coarse ECE", "lesion_f1": "Lesion F1"}
    assert {key: figure_label(key) for key in labels} == labels and figure_label("nsd_1.5") == "NSD at 1.5"
    assert figure_label("volume_error") == "Volume error" and figure_label("volume_error", "area") == "Area error"
    assert [figure_label(key, unit="mm") for key in ("hd95", "nsd_1", "dice")] == ["HD95 (mm)", "NSD at 1 (mm)", "Dice"]


def test_intervals_of_few_patients_are_left_out():
    content = {"dice": one(0.5, n=5), "rare": one(0.5, n=4), "sizes": [{"mean": 0.5, "low": 0.4, "high": 0.6}], "n": 3}
    sure = with_sure_intervals(content, 5)
    assert sure["dice"] == content["dice"] and sure["sizes"] == content["sizes"] and sure["n"] == 3
    assert sure["rare"] == content["rare"] | {"low": None, "high": None} and interval_text(sure["rare"]) == ""
    few = with_sure_intervals(content, 4)  # five cases of four patients
    assert interval_text(few["dice"]) == interval_text(few["sizes"][0]) == ""
    assert interval_text(content["dice"], 2) == "0.40 to 0.60"
    assert ", with the 95 % interval" in "".join(charts_of([], [], {"ensemble_size": SIZES}))
    assert ", with the 95 % interval" not in "".join(
        charts_of([], [], with_sure_intervals({"ensemble_size": SIZES}, 4))
    )


def test_the_table_has_what_is_defined_with_units():
    summary = {**LEVEL, "hd95_unit": "mm", "missing": 2, "without_truth": 0, "calibration": {"ece": 0.125, "cases": 3}}
    rows = cells(table_of(summary))
    assert rows["Dice"] == ["0.5000", "0.4000 to 0.6000", "0.5000", "0.1000", "3"]
    assert rows["HD95 (mm)"][0] == "7.2500" and "Coarse Dice" not in rows
    assert rows["ECE, all pixels together"] == ["0.1250", "", "", "", ""]
    note = re.search(r'class="note">(.*?)</p>', table_of(summary))[1]
    assert "3 cases" in note and "1 prediction empty" in note and "2 cases without a prediction" in note
    assert "both empty" not in note and "without truth" not in note


def test_without_intervals_the_table_has_no_column_for_them():
    summary = {**LEVEL, "hd95_unit": "mm", "missing": 0, "without_truth": 0}
    rows = cells(table_of(with_sure_intervals(summary, 3)))
    assert rows["Figure"] == ["Mean", "Median", "SD", "n"] and rows["Dice"] == ["0.5000", "0.5000", "0.1000", "3"]


def test_each_of_several_classes_has_its_rows():
    table = table_of({**LEVEL, "classes": {"liver": LEVEL, "<tumour>": LEVEL}})
    assert table.index("<details>") > table.index(">Dice<") and table.count("<details>") == 2
    assert "&lt;tumour&gt;" in table and "<tumour>" not in table and table.count(">Dice<") == 3


def cases(*dices):
    return [{"name": f"c{n}", "scores": {"dice": dice, "expected_dice": 0.5}} for n, dice in enumerate(dices)]


DICE = {"key": "dice", "label": "Dice", "worst": "low"}


@pytest.mark.parametrize(("count", "charts"), [(3, 2), (2, 1), (1, 0)])
def test_charts_need_several_cases(count, charts):
    drawn = charts_of(cases(*[0.2, 0.4, 0.8][:count]), [DICE], {})
    assert len(drawn) == charts and ("Dice per case" in "".join(drawn)) == (charts > 0)


def test_a_histogram_of_cases_that_are_all_perfect_has_a_bar():
    drawn = charts_of(cases(1.0, 1.0), [DICE], {})[0]
    sides = re.findall(r'<rect class="bar".*? width="(.*?)" height="(.*?)"', drawn)
    assert [float(width) > 1 for width, height in sides if float(height)] == [True]


def test_curves_that_there_are_are_drawn():
    curve = {"probability": [0.1, 0.9], "truth": [0.2, 0.8]}
    level = {"reliability": {"probability": curve}, "retention": {"agreement": {"kept": [0.5, 1], "error": [0.1, 0.2]}}}
    sizes = {"sizes": [1, 2], "dice": [one(0.4), one(0.6)], "enough": 2}
    titles = [re.search("<figcaption>(.*?)</figcaption>", chart)[1] for chart in charts_of([], [], {"all": level})]
    assert [title.split()[0] for title in titles] == ["Reliability", "Error"]
    (grown,) = charts_of([], [], {"ensemble_size": sizes})
    assert "Ensemble size" in grown and "still grows" in grown
    flat = {"all": {"retention": {"agreement": {"kept": [0.5, 1], "error": [0.0, 0.0]}}}}
    assert charts_of([], [], flat) == []  # no error, no axis


def test_controls_and_references_stand_beside_the_members():
    diversity = {name: one(0.25) for name in ("ged2_unbiased", "matched_iou", "rater_dice", "reader_dice")}
    diversity |= {f"control_levels_{name}": one(0.5) for name in ("ged2_unbiased", "matched_iou")}
    diversity |= {"control_copula_ged2_unbiased": one(0.3, n=0), "ged2": one(0.4)}
    summary = {**LEVEL, "diversity": diversity}
    rows = cells(sets_table(summary))
    assert rows["This run"] == ["0.2500 (0.1500 to 0.3500)"] * 3
    assert rows["Level sets"] == ["0.5000 (0.4000 to 0.6000)"] * 2 + [""]
    assert list(rows) == ["Masks of", "This run", "Level sets"]  # no set, no row
    note = re.search('<p class="note">(.*?)</p>', sets_table(summary))[1]
    assert "Level sets are as many masks" in note and "copula" not in note and "held-out" not in note
    below = cells(table_of(summary))
    assert "GED² V-statistic" in below and "GED² unbiased" not in below
    assert sets_table(LEVEL) == ""


def test_sets_by_size_have_a_table_and_charts():
    figures = {name: [one(0.5), one(0.25)] for name in ("ged2_unbiased", "matched_iou", "log_loss_per_area")}
    sizes = {"sizes": [1, 2], "dice": [one(0.4), one(0.6)], "enough": 2, "sets": {"sizes": [4, 8], **figures}}
    rows = cells(sizes_table({"ensemble_size": sizes}))
    assert rows["8"] == ["0.2500 (0.1500 to 0.3500)"] * 3 and sizes_table({}) == ""
    charts = "".join(charts_of([], [], {"ensemble_size": sizes}))
    titles = [unescape(title) for title in re.findall("<figcaption>(.*?)</figcaption>", charts)]
    assert [title.split(",")[0] for title in titles] == [
        "Ensemble size",
        "Sets of members by size",
        "Log loss of the members' mean",
    ]
