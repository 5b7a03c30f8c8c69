"""The tables of accuracy runs: means and spreads by hand, differences paired by case, intervals over both."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

RECORD = Path(__file__).with_name("record.jsonl")


@pytest.fixture
def table(beside_each_other):
    return importlib.import_module("accuracy_table")


def run_of(contender, seed, dice, ged2, groups=("a", "a", "b"), **more):
    defined = [value for value in dice if value is not None]
    figures = {"dice": float(np.mean(defined)), "ged2_unbiased": float(np.mean(ged2)), "volume": None}
    line = {"kind": "run", "set": "lidc4", "split": "test", "minutes": 12.0, "contender": contender, "seed": seed}
    line |= {"steps": 7, "flags": contender, "machine": "box", "seconds_per_case": 0.5, "figures": figures}
    return line | {"groups": list(groups), "cases": {"dice": dice, "ged2_unbiased": ged2}} | more


def test_the_table_of_a_fixed_record(table, tmp_path):
    lines = [json.loads(line) for line in RECORD.read_text(encoding="utf-8").splitlines()]
    text = table.write_tables(lines, tmp_path / "table.md")
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == text + "\n"
    heading, rows, *paired = text.split("\n\n")
    assert heading == "### ph2, test split, 12 minutes of training (AMD EPYC (family 25, 17), 1 threads, bf16)"
    assert "| unet_mean | 1000 | 2 | 0.850 (0.800 to 0.900) | – | 0.20 (0.20 to 0.20) |" in rows
    assert "| v2 | 400 | 2 | 0.900 (0.850 to 0.950) | 0.875 (0.850 to 0.900) | 0.50 (0.40 to 0.60) |" in rows
    assert [part.split("'s [95 %]")[0] for part in paired] == [
        "| contender | seeds | Dice - unet_mean",
        "| contender | seeds | Dice - v2",
    ]
    assert "| v2 | 2 | +0.0500 [+0.0000, +0.1000] |" in paired[0]


def test_mean_and_spread(table):
    assert table.mean_and_spread([None, None]) == "–"
    assert table.mean_and_spread([0.5, None]) == "0.500"
    assert table.mean_and_spread([0.5, 0.7]) == "0.600 (0.500 to 0.700)"


def test_a_difference_is_paired_by_case_and_weighs_patients_equally(table):
    pair = (run_of("v2", 0, [0.9, 0.8, 0.6], [0.1, 0.1, 0.3]), run_of("unet", 0, [0.7, 0.8, 0.9], [0.2, 0.3, 0.2]))
    # Patient a: (0.2 + 0) / 2, patient b: -0.3. Two patients: the interval reaches from one to the other.
    assert table.difference_cell([pair], "dice", "dice") == "-0.1000 [-0.3000, +0.1000]"


def test_undefined_cases_and_missing_figures_are_left_out(table):
    pair = (run_of("v2", 0, [0.9, None, 0.6], [0.1] * 3), run_of("unet", 0, [0.7, 0.8, 0.5], [0.2] * 3))
    assert table.difference_cell([pair], "dice", "dice").startswith("+0.1500 ")
    assert table.difference_cell([pair], "matched_iou", "matched_iou") == "–"
    assert table.difference_cell([], "dice", "dice") == "–"


def test_the_interval_covers_patients_and_seeds(table):
    rng = np.random.default_rng(1)
    alike = 0.02 + 0.03 * rng.standard_normal((1, 40)).repeat(3, axis=0)  # seeds agree
    low, high = table.interval_over_both(alike)
    spread = 1.96 * alike[0].std() / np.sqrt(40)
    assert (low, high) == pytest.approx((alike.mean() - spread, alike.mean() + spread), abs=0.002)
    apart = alike + np.array([[-0.05], [0.0], [0.05]])  # the same mean, and seeds that differ
    wide_low, wide_high = table.interval_over_both(apart)
    assert wide_high - wide_low > 3 * (high - low)
    assert wide_low < 0 < low
    apart[0, :20] = np.nan  # half the patients of a seed: the rest counts
    assert np.isfinite(table.interval_over_both(apart)).all()


def test_seeds_are_paired_and_each_baseline_has_a_table(table, tmp_path):
    lines = [run_of("unet_mean", 0, [0.5] * 3, [0.2] * 3), run_of("unet_mean", 1, [0.7] * 3, [0.4] * 3)]
    lines += [run_of("unet", 1, [0.6] * 3, [0.3] * 3), run_of("v2", 1, [0.8] * 3, [0.1] * 3), {"kind": "speed"}]
    text = table.write_tables(lines, tmp_path / "table.md")
    _, first, second = text.split("| contender | seeds | Dice - ")
    assert [part.split("'s")[0] for part in (first, second)] == ["unet_mean", "v2"]
    assert "| v2 | 1 | +0.1000 [+0.1000, +0.1000] | -0.3000 [-0.3000, -0.3000] |" in first  # to seed 1 alone
    assert "| unet | 1 | -0.1000" in first and "| unet_mean | 1 | -0.1000" in second
    assert "| unet | 1 | -0.2000 [-0.2000, -0.2000] | +0.2000 [+0.2000, +0.2000] |" in second
    assert "matched IoU" not in text and "volume" not in text  # no run has them
    assert table.write_tables([], tmp_path / "none.md") == "No runs yet."


def test_members_are_compared_with_the_controls_of_the_baseline_s_probability(table, tmp_path):
    cases = {"ged2_unbiased": [0.30] * 3, "copula_ged2": [0.25] * 3}
    lines = [run_of("v2", 0, [0.8] * 3, [0.3] * 3, cases=cases), run_of("v2_members", 0, [0.7] * 3, [0.2] * 3)]
    *_, heading, _, row = table.write_tables(lines, tmp_path / "table.md").splitlines()
    assert heading == "| contender | seeds | GED² - v2's [95 %] | GED² to the copula - v2's [95 %] |"
    assert row == "| v2_members | 1 | -0.1000 [-0.1000, -0.1000] | -0.0500 [-0.0500, -0.0500] |"


def test_other_machines_and_budgets_have_tables_of_their_own(table, tmp_path):
    lines = [run_of("unet_mean", 0, [0.5] * 3, [0.2] * 3)]
    lines += [run_of("v2", 0, [0.8] * 3, [0.1] * 3, machine="other box")]
    lines += [run_of("v2", 0, [0.8] * 3, [0.1] * 3, minutes=None)]
    text = table.write_tables(lines, tmp_path / "table.md")
    for heading in ("12 minutes of training (box)", "12 minutes of training (other box)", "7 steps of training (box)"):
        assert heading in text
    assert "unet_mean's" not in text


def user_run(contender, seed, dice, version="0.7.0", **more):
    line = {"kind": "user", "set": "ph2", "split": "test", "minutes": 2.0, "contender": contender, "seed": seed}
    line |= {"version": version, "flags": "", "sampling": "", "machine": "box", "steps": 40, "views": ""}
    line |= {"train_seconds": 130.0, "train_cpu_seconds": 150.0, "sample_cpu_seconds": 9.0}
    figures, cases = {"dice": float(np.mean(dice))}, {"dice": dice}
    return line | {"figures": figures, "groups": list("abb"), "cases": cases} | more


def test_contenders_as_a_user_meets_them_have_a_row_for_each_set(table, tmp_path):
    lines = [user_run("nnunet", s, [0.5, 0.6, 0.6], "nnU-Net 2.8", prepare_cpu_seconds=31.0) for s in (0, 1)]
    lines += [user_run("auto", 0, [0.7, 0.8, 0.6], views="tiles"), user_run("auto", 1, [0.7] * 3, views="tiles")]
    lines += [user_run("auto_unet", 0, [0.6, 0.7, 0.7])]
    text = table.write_tables(lines, tmp_path / "table.md")
    heading, dice, costs = text.split("\n\n")
    assert heading == "### As a user, test split, 2 minutes of training (box; 0.7.0, nnU-Net 2.8)"
    names, _, row = dice.splitlines()
    assert names == (
        "| set | cases | seeds | auto | auto_unet | nnunet | auto - auto_unet [95 %] | auto - nnunet [95 %] |"
    )
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:6] == ["ph2", "3", "1 or 2", "0.700 (0.700 to 0.700)", "0.667", "0.567 (0.567 to 0.567)"]
    # Patient a: +0.1; patient b: (0.1 - 0.1) / 2. One seed alone.
    assert cells[6] == "+0.0500 [+0.0000, +0.1000]"
    # Over both seeds patient a has +0.2, patient b +0.1.
    assert cells[7] == "+0.1500 [+0.1000, +0.2000]"
    assert "| ph2 | auto | 40 (40 to 40) | 150 (150 to 150) | 130 (130 to 130) | – | 9 (9 to 9) | tiles |" in costs
    assert "| 130 (130 to 130) | 31 (31 to 31) | 9 (9 to 9) | none |" in costs


def test_each_version_of_ours_meets_the_same_rival(table, tmp_path):
    lines = [user_run("nnunet", 0, [0.5] * 3, "nnU-Net 2.8"), user_run("auto", 0, [0.7] * 3)]
    lines += [user_run("auto", 0, [0.8] * 3, "0.8.0"), user_run("auto", 0, [0.4] * 3, minutes=4.0)]
    text = table.write_tables(lines, tmp_path / "table.md")
    assert [line for line in text.splitlines() if line.startswith("###")] == [
        "### As a user, test split, 2 minutes of training (box; 0.7.0, nnU-Net 2.8)",
        "### As a user, test split, 2 minutes of training (box; 0.8.0, nnU-Net 2.8)",
        "### As a user, test split, 4 minutes of training (box; 0.7.0)",
    ]
    assert "+0.2000 [+0.2000" in text and "+0.3000 [+0.3000" in text
    alone = table.write_tables(lines[:1], tmp_path / "alone.md")
    assert "(box; nnU-Net 2.8)" in alone and "| ph2 | 3 | 1 | 0.500 |\n" in alone


def test_other_flags_of_a_contender_are_a_contender_of_their_own(table, tmp_path):
    lines = [user_run("nnunet", 0, [0.5] * 3, "nnU-Net 2.8", flags=memory) for memory in ("0.1 GB", "0.5 GB")]
    assert "| nnunet (0.1 GB) | nnunet (0.5 GB) |" in table.write_tables(lines, tmp_path / "table.md")
