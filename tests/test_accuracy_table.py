"""The tables of accuracy runs: means and spreads by hand, paired differences over patients, and nothing made up."""

import numpy as np

from guided_diffusion.accuracy_table import difference_cell, mean_and_spread, write_tables
from guided_diffusion.statistics import bootstrap_interval


def run_of(contender, seed, dice, ged2, groups=("a", "a", "b"), **more):
    figures = {
        "dice": float(np.mean([d for d in dice if d is not None])),
        "ged2": float(np.mean(ged2)),
        "coarse_dice": None,
    }
    line = {"kind": "run", "set": "lidc4", "split": "test", "minutes": 12.0, "contender": contender, "seed": seed}
    line |= {"steps": 7, "flags": contender, "machine": "box", "seconds_per_case": 0.5, "figures": figures}
    return line | {"groups": list(groups), "cases": {"dice": dice, "ged2": ged2}} | more


def test_mean_and_spread():
    assert mean_and_spread([None, None]) == "–"
    assert mean_and_spread([0.5, None]) == "0.500"
    assert mean_and_spread([0.5, 0.7]) == "0.600 (0.500 to 0.700)"


def test_a_difference_is_paired_by_case_and_weighs_patients_equally():
    pair = (run_of("v2", 0, [0.9, 0.8, 0.6], [0.1, 0.1, 0.3]), run_of("unet", 0, [0.7, 0.8, 0.9], [0.2, 0.3, 0.2]))
    low, high = bootstrap_interval([0.1, -0.3])  # patient a: (0.2 + 0) / 2, patient b: -0.3
    assert difference_cell([pair], "dice") == f"-0.1000 [{low:+.4f}, {high:+.4f}]"


def test_undefined_cases_and_figures_that_lack_are_left_out():
    pair = (run_of("v2", 0, [0.9, None, 0.6], [0.1] * 3), run_of("unet", 0, [0.7, 0.8, 0.5], [0.2] * 3))
    assert difference_cell([pair], "dice").startswith("+0.1500 ")
    assert difference_cell([pair], "matched_iou") == "–"
    assert difference_cell([], "dice") == "–"


def test_the_table_has_a_row_per_contender_and_pairs_seeds(tmp_path):
    lines = [run_of("unet", 0, [0.5, 0.5, 0.5], [0.2] * 3), run_of("unet", 1, [0.7, 0.7, 0.7], [0.4] * 3)]
    lines += [run_of("v2", 1, [0.8, 0.8, 0.8], [0.1] * 3), {"kind": "speed"}]
    text = write_tables(lines, tmp_path / "table.md")
    assert (tmp_path / "table.md").read_text() == text + "\n"
    assert "### lidc4, test split, 12 minutes of training (box)" in text
    assert "| unet | 7 | 2 | 0.600 (0.500 to 0.700) | 0.300 (0.200 to 0.400) | 0.50 (0.50 to 0.50) |" in text
    assert "| v2 | 7 | 1 | 0.800 | 0.100 | 0.50 |" in text
    assert "coarse" not in text  # nobody has one
    assert "| v2 | +0.1000 [+0.1000, +0.1000] | -0.3000 [-0.3000, -0.3000] |" in text  # to seed 1's unet alone
    assert write_tables([], tmp_path / "none.md") == "No runs yet."


def test_differences_to_the_unet_by_the_same_looks_and_to_the_recipe_have_tables_of_their_own(tmp_path):
    figures = (("unet", 0.5, 0.4), ("unet_looks", 0.6, 0.3), ("v2", 0.8, 0.1))
    text = write_tables([run_of(name, 0, [dice] * 3, [ged2] * 3) for name, dice, ged2 in figures], tmp_path / "t.md")
    _, first, second, third = text.split("| contender | Dice - ")
    assert [part.split("'s")[0] for part in (first, second, third)] == ["unet", "unet_looks", "v2"]
    assert "| v2 | +0.3000 [+0.3000, +0.3000] | -0.3000 [-0.3000, -0.3000] |" in first
    assert "| unet_looks | +0.1000" in first and "| unet_looks" not in second
    assert "| v2 | +0.2000 [+0.2000, +0.2000] | -0.2000 [-0.2000, -0.2000] |" in second
    assert "| unet | -0.3000 [-0.3000, -0.3000] | +0.3000 [+0.3000, +0.3000] |" in third
    assert "matched IoU" not in text  # nobody has one


def test_what_ran_on_another_machine_is_in_a_table_of_its_own_and_never_paired(tmp_path):
    lines = [run_of("unet", 0, [0.5] * 3, [0.2] * 3), run_of("v2", 0, [0.8] * 3, [0.1] * 3, machine="other box")]
    text = write_tables(lines, tmp_path / "table.md")
    assert "minutes of training (box)" in text and "minutes of training (other box)" in text
    assert "unet's" not in text
