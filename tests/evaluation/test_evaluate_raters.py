"""Evaluation against several raters: calibration against their fraction, diversity, missing members and raters."""

import csv
import dataclasses
import math
import re

import numpy as np
import pytest
from conftest import one_class, strict_json

from guided_diffusion.data.cases import Case
from guided_diffusion.data.dataset import SegmentationDataset
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.truth import rater_names
from guided_diffusion.evaluation.calibration import ReliabilityTable, boundary_band
from guided_diffusion.evaluation.diversity import compare_sets, level_sets
from guided_diffusion.evaluation.evaluate import evaluate
from guided_diffusion.evaluation.summary_table import format_summary
from guided_diffusion.inference.results import ResultsFolder
from guided_diffusion.runtime.errors import UserError


def rectangle(top, left, height, width):
    mask = np.zeros((8, 10), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def table(path):
    with open(path, newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


EMPTY = np.zeros((8, 10), bool)
RATERS = {  # of 8 x 10 pixels
    "agreed": np.stack([rectangle(2, 2, 4, 4)] * 4),
    "disputed": np.stack([rectangle(1, 1, 2, 2), rectangle(1, 1, 2, 4), rectangle(1, 1, 4, 4), EMPTY]),
    "minority": np.stack([rectangle(5, 5, 3, 3), EMPTY, EMPTY, EMPTY]),  # the majority marks nothing
}


class FourRaters(SegmentationDataset):
    """The cases of RATERS, without images."""

    def find_cases(self):
        return [Case(name, (self.data_dir / "x",), (self.data_dir / "x",) * 4) for name in RATERS]

    def read_mask(self, case):
        return RATERS[case.name][:, None]


def save_results(folder, members, soft, num_ensemble=2, save_samples=True):
    """A results folder of RATERS' cases: {name: members [E, H, W]}, {name: probability}; half of it is the coarse."""
    manifest = {"checkpoint_sha256": "", "settings": {"num_ensemble": num_ensemble}, "data": {"data_dir": ""}}
    results = ResultsFolder(folder, manifest, save_samples=save_samples)
    for name in RATERS:
        maps = one_class(soft[name] > 0.5, soft[name], soft[name] / 2, members[name], soft[name] / 2)
        results.write_image(name, maps, np.zeros((3, 8, 10)))


@pytest.fixture
def answers():
    """Two members and a probability, in steps that an 8-bit half has too, for each case of RATERS."""
    rng = np.random.default_rng(0)
    members = {name: rng.random((2, 8, 10)) > 0.6 for name in RATERS}
    return members, {name: rng.integers(0, 128, (8, 10)).astype(np.float32) * 2 / 255 for name in RATERS}


def test_calibration_is_of_all_cases_pixels_together(tmp_path, answers):
    members, soft = answers
    save_results(tmp_path / "results", members, soft)
    summary = evaluate(tmp_path / "results", FourRaters(tmp_path, 8))
    rows = table(tmp_path / "results" / "metrics.csv")
    fraction = {name: marks.mean(axis=0) for name, marks in RATERS.items()}
    bands = {name: boundary_band(marks.sum(axis=0) > 2) for name, marks in RATERS.items()}
    assert not bands["minority"].any() and bands["disputed"].any()
    for part, where in (("", {name: np.ones((8, 10), bool) for name in RATERS}), ("_band", bands)):
        p, y = (np.concatenate([maps[name][where[name]] for name in RATERS]) for maps in (soft, fraction))
        for prefix, values in (("", p), ("coarse_", p / 2)):
            expected = ReliabilityTable.of(values, y)
            got = [summary["calibration"][f"{prefix}{figure}{part}"] for figure in ("ece", "brier")]
            assert got == pytest.approx([expected.ece, expected.brier], abs=1e-5)
        case = ReliabilityTable.of(soft["disputed"][where["disputed"]], fraction["disputed"][where["disputed"]])
        got = [float(rows["disputed"][f"{figure}{part}"]) for figure in ("ece", "brier")]
        assert got == pytest.approx([case.ece, case.brier], abs=1e-5)
    assert rows["minority"]["ece_band"] == rows["minority"]["coarse_brier_band"] == "" != rows["minority"]["ece"]
    assert (summary["calibration"]["cases"], summary["calibration"]["cases_band"]) == (3, 2)
    assert re.search(rf"\nece +{summary['calibration']['ece']:.4f}\n  in band ", format_summary(summary))


def test_diversity_of_members_and_raters(tmp_path, answers):
    members, soft = answers
    save_results(tmp_path / "results", members, soft)
    summary = evaluate(tmp_path / "results", FourRaters(tmp_path, 8))
    rows = table(tmp_path / "results" / "metrics.csv")
    expected = {name: compare_sets(list(members[name]), list(RATERS[name])) for name in RATERS}
    for figure in ("ged2", "matched_iou"):
        for name in RATERS:
            assert float(rows[name][figure]) == pytest.approx(expected[name][figure], rel=1e-5)
        mean = np.mean([values[figure] for values in expected.values()])
        assert summary["diversity"][figure]["mean"] == pytest.approx(mean) and summary["diversity"][figure]["n"] == 3
    # The fused mask agrees with each rater of "agreed" as with their consensus, elsewhere it does not.
    assert rows["agreed"]["rater_dice"] == rows["agreed"]["dice"]
    assert rows["disputed"]["rater_dice"] != rows["disputed"]["dice"]
    text = format_summary(summary)
    assert "\nged2   " in text and "\nmatched iou   " in text and "\nrater dice   " in text


@pytest.mark.parametrize("save_samples", [True, False])
def test_a_single_member_stands_for_the_levels_of_its_probability(tmp_path, answers, save_samples):
    members, soft = answers
    save_results(tmp_path / "results", {name: m[:1] for name, m in members.items()}, soft, 1, save_samples=save_samples)
    evaluate(tmp_path / "results", FourRaters(tmp_path, 8))
    rows = table(tmp_path / "results" / "metrics.csv")
    for name in RATERS:
        expected = compare_sets(level_sets(soft[name]), list(RATERS[name]))
        assert float(rows[name]["ged2"]) == pytest.approx(expected["ged2"], rel=1e-5)
        assert float(rows[name]["matched_iou"]) == pytest.approx(expected["matched_iou"], rel=1e-5)


def test_members_that_were_not_saved_leave_diversity_out(tmp_path, answers):
    members, soft = answers
    save_results(tmp_path / "results", members, soft, save_samples=False)
    summary = evaluate(tmp_path / "results", FourRaters(tmp_path, 8))
    assert [summary["diversity"][name]["n"] for name in ("ged2", "matched_iou", "rater_dice")] == [0, 0, 3]
    assert math.isnan(summary["calibration"]["coarse_ece"]) and not math.isnan(summary["calibration"]["ece"])
    text = format_summary(summary)
    assert "ged2" not in text and "coarse" not in text and "rater dice" in text


# ---- who they are ------------------------------------------------------------------------------------------------


@pytest.fixture
def readers(tmp_path, save_picture):
    """A FOLDER data set and predictions: anna and carl agree with them, ben does not, and anna has marked a alone."""
    right, wrong = (np.uint8(255) * rectangle(2, left, 4, 4) for left in (1, 5))
    for name in "ab":
        save_picture(tmp_path / "data" / "images" / f"{name}.png", np.zeros((8, 10), np.uint8))
        save_picture(tmp_path / "results" / f"{name}.png", right)
        for rater, mask in (("anna", right), ("ben", wrong), ("carl", right)):
            if (rater, name) != ("anna", "b"):
                save_picture(tmp_path / "data" / "masks" / rater / f"{name}.png", mask)
    return tmp_path


def test_a_rater_who_lacks_a_case_is_not_mistaken_for_another(script, readers, capsys):
    script("segmentation_eval", ["--data_name FOLDER --data_dir", readers / "data", "--pred_dir", readers / "results"])
    text, rows = capsys.readouterr().out, table(readers / "results" / "metrics.csv")
    columns = [f"rater_{name}_dice" for name in ("anna", "ben", "carl")]
    assert [name for name in rows["a"] if name.startswith("rater_")] == ["rater_dice", *columns]
    assert [[rows[name][column] for column in columns] for name in "ab"] == [["1", "0", "1"], ["", "0", "1"]]
    assert [rows[name]["rater_dice"] for name in "ab"] == ["0.666667", "0.5"]
    summary = strict_json(readers / "results" / "summary.json")
    assert summary["rater_names"] == ["anna", "ben", "carl"]
    assert [(one["mean"], one["n"]) for one in summary["raters"]] == [(1, 1), (0, 2), (1, 2)]
    assert re.findall(r"(?m)^  to rater (\w+) .* (\d)$", text) == [("anna", "1"), ("ben", "2"), ("carl", "2")]


def test_a_case_of_one_rater_among_several_counts_for_him(readers):
    (readers / "data" / "masks" / "carl" / "b.png").unlink()
    summary = evaluate(readers / "results", build_dataset("FOLDER", readers / "data", 8))
    assert [(one["mean"], one["n"]) for one in summary["raters"]] == [(1, 1), (0, 2), (1, 1)]
    assert summary["diversity"]["rater_dice"]["n"] == 2 and summary["diversity"]["raters_agreement"]["n"] == 1


def test_raters_without_names_have_numbers(tmp_path, answers):
    members, soft = answers
    save_results(tmp_path / "results", members, soft)
    dataset = FourRaters(tmp_path, 8)
    summary = evaluate(tmp_path / "results", dataset)
    assert summary["rater_names"] == ["1", "2", "3", "4"] == [*"1234"][: len(summary["raters"])]
    dataset.cases = [dataclasses.replace(case, raters=("a", "b", "c")) for case in dataset.cases]
    with pytest.raises(UserError, match="x: the loader gave 4 masks; the case names the raters a, b, c"):
        dataset.load_mask(dataset.cases[0])


def test_the_order_of_raters_is_that_of_their_names():
    cases = [Case("a", (), ("x", "y"), raters=("seg2", "seg10")), Case("b", (), ("x",), raters=("seg1",))]
    cases.append(Case("without a mask", ()))
    assert rater_names(cases) == ("seg1", "seg2", "seg10")
    assert rater_names([*cases, Case("nameless", (), ("x",))]) == ()
