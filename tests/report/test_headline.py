"""The line of main figures of a report, with and without truth, and the table of the classes."""

import re
from html import unescape

import pytest

from guided_diffusion.report.headline import class_table, headline


def one(mean, n=20):
    return {"mean": mean, "median": mean, "std": 0.1, "low": mean - 0.1, "high": mean + 0.1, "n": n}


def level(cases=20, **figures):
    """One level of a summary. figures: of "ensemble"; all others are undefined."""
    empties = {"cases": cases, "prediction_empty": 2, "both_empty": 1, "truth_empty": 3}
    return {"ensemble": figures | empties, "probability": {}, "diversity": {}}


SUMMARY = level(dice=one(0.9), hd95=one(7.25), iou=one(0.8)) | {
    "hd95_unit": "mm",
    "groups": 12,
    "probability": {"expected_volume_ratio": one(1.125), "log_loss_per_area": one(0.25)},
    "diversity": {"ged2_unbiased": one(0.2), "rater_dice": one(0, n=0)},
}


def test_five_figures_with_their_intervals():
    assert headline(SUMMARY, [], "volume") == [
        ("Cases", "20", "of 12 patients"),
        ("Dice", "0.900", "95 %: 0.800 to 1.000"),
        ("Expected / true volume", "1.125", "95 %: 1.025 to 1.225"),
        ("Log loss per lesion pixel", "0.250", "95 %: 0.150 to 0.350"),
        ("Empty masks", "3 of 20", "2 missed, 1 rightly empty; 3 false alarms"),
    ]


def test_a_summary_without_counts_of_empty_masks_has_none():
    summary = {"ensemble": {"cases": 7, "dice": one(0.9), "prediction_empty": one(0.5)}}
    assert headline(summary, [], "area")[-1] == ("Empty masks", "0 of 7", "0 missed, 0 rightly empty; 0 false alarms")


def test_with_several_raters_the_sets_are_compared():
    summary = SUMMARY | {"diversity": {"ged2_unbiased": one(0.2), "rater_dice": one(0.7)}}
    assert headline(summary, [], "area")[3][:2] == ("GED² unbiased", "0.200")


def test_masks_without_probability_have_other_figures():
    line = headline(SUMMARY | {"probability": {}}, [], "volume")
    assert [label for label, _, _ in line] == ["Cases", "Dice", "HD95 (mm)", "IoU", "Empty masks"]


@pytest.mark.parametrize(
    ("cases", "groups", "note"),
    [
        (5, None, ""),
        (4, None, "no intervals below 5 patients"),
        (20, 4, "of 4 patients; no intervals below 5 patients"),
    ],
)
def test_few_patients_are_said_once(cases, groups, note):
    summary = level(cases, dice={**one(0.9, n=cases), "low": None, "high": None}) | {"groups": groups}
    line = headline(summary, [], "area")
    assert line[0] == ("Cases", str(cases), note) and line[1] == ("Dice", "0.900", "")


def test_without_truth_the_figures_are_of_the_cases():
    cases = [
        {"scores": {"expected_dice": value, "agreement": 0.5}, "share": share} for value, share in ((0.5, 0), (1, 0.1))
    ]
    line = headline({}, [*cases, {"scores": {}, "share": 0.3}], "area")
    assert [(label, value) for label, value, _ in line] == [
        ("Cases", "3"),
        ("Expected Dice", "0.750"),
        ("Agreement of members", "0.500"),
        ("Mask's area", "10 %"),
        ("Empty masks", "1 of 3"),
    ]
    one_pass = [{"scores": {"expected_dice": value}, "share": 0.3} for value in (0.5, 1)]
    assert headline({}, one_pass, "volume")[2][:2] == ("Lowest expected Dice", "0.500")
    foreign = headline({}, [{"scores": {}, "share": 0.3}], "volume")
    assert [label for label, _, _ in foreign] == ["Cases", "Mask's volume", "Empty masks"]


def test_a_row_for_each_class_and_one_for_their_mean():
    classes = {
        "<liver>": level(dice=one(0.9)) | {"sample": one(0.7)},
        "tumour": level(7, dice=one(0.5, n=3), hd95=one(4.0)),
    }
    table = class_table(SUMMARY | {"classes": classes}, [["<liver>", "#ff0000"], ["tumour", "#0000ff"]], "volume")
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
    rows = [[unescape(re.sub("<[^>]*>", "", cell)) for cell in row] for row in rows]
    assert rows == [
        [
            "Class",
            "Cases",
            "Dice",
            "Expected / true volume",
            "Dice of one member",
            "HD95 (mm)",
            "Missed",
            "False alarms",
        ],
        ["<liver>", "20", "0.900 (0.800 to 1.000)", "–", "0.700 (0.600 to 0.800)", "–", "2", "3"],
        ["tumour", "7", "0.500 (0.400 to 0.600)", "–", "–", "4.000 (3.900 to 4.100)", "2", "3"],
        ["mean", "20", "0.900 (0.800 to 1.000)", "1.125 (1.025 to 1.225)", "–", "7.250 (7.150 to 7.350)", "2", "3"],
    ]
    assert 'fill="#ff0000"' in table and "<liver>" not in table
    assert (
        class_table(SUMMARY, [], "volume") == class_table(SUMMARY | {"classes": {"liver": level()}}, [], "area") == ""
    )
