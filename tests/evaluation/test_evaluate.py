"""Evaluation: numbers by hand on tiny masks, several raters and members, what is left out, and the files."""

import csv
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import one_class

from guided_diffusion.data.cases import Case, group_cases
from guided_diffusion.data.dataset import SegmentationDataset
from guided_diffusion.data.loaders.folder import FolderDataset
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.evaluation.calibration import ReliabilityTable
from guided_diffusion.evaluation.diversity import compare_sets, level_sets
from guided_diffusion.evaluation.evaluate import EvaluationSettings, columns, evaluate, shared_workers
from guided_diffusion.evaluation.summary_table import format_summary
from guided_diffusion.inference.results import ResultsFolder
from guided_diffusion.report.results_page import write_report
from guided_diffusion.runtime.errors import UserError


def rectangle(top, left, height, width, size=(8, 10)):
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


EMPTY = rectangle(0, 0, 0, 0)
TRUTH = {
    "half": rectangle(2, 2, 4, 4),  # 16 pixels
    "perfect": rectangle(0, 0, 3, 3),
    "missed": rectangle(1, 1, 2, 2),
    "imagined": EMPTY,
    "nothing": EMPTY,
}
PREDICTED = {
    "half": rectangle(2, 4, 4, 4),  # 16 pixels, 8 of them right: moved by two columns
    "perfect": TRUTH["perfect"],
    "missed": EMPTY,
    "imagined": rectangle(5, 5, 1, 1),
    "nothing": EMPTY,
}
DIAGONAL = math.hypot(8, 10)


@pytest.fixture
def folder(tmp_path, save_picture):
    """A FOLDER data set of the five cases of TRUTH and a plain folder of PREDICTED masks: (data, predictions)."""
    for name, mask in TRUTH.items():
        save_picture(tmp_path / "data" / "images" / f"{name}.png", np.full((8, 10, 3), 90, np.uint8))
        save_picture(tmp_path / "data" / "masks" / f"{name}.png", np.uint8(255) * mask)
        save_picture(tmp_path / "predicted" / f"{name}.png", np.uint8(255) * PREDICTED[name])
    return tmp_path / "data", tmp_path / "predicted"


def dataset_of(data, name="FOLDER"):
    return build_dataset(name, data, 16)


def table(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(columns())
    return {row["name"]: row for row in rows}


# ---- numbers -----------------------------------------------------------------------------------------------------


def test_numbers_by_hand(folder):
    data, predicted = folder
    summary = evaluate(predicted, dataset_of(data))
    rows = table(predicted / "metrics.csv")
    assert sorted(rows) == sorted(TRUTH)
    # half: TP 8, FP 8, FN 8; each border is two columns from the other's at most.
    got = {key: float(rows["half"][key]) for key in ("dice", "iou", "sensitivity", "precision", "hd95")}
    assert got == pytest.approx({"dice": 0.5, "iou": 1 / 3, "sensitivity": 0.5, "precision": 0.5, "hd95": 2}, abs=1e-5)
    assert [rows["perfect"][key] for key in ("dice", "iou", "hd95", "empty")] == ["1", "1", "0", ""]
    assert [rows["missed"][key] for key in ("dice", "sensitivity", "precision", "empty")] == [
        "0",
        "0",
        "",
        "prediction",
    ]
    assert [rows["imagined"][key] for key in ("dice", "sensitivity", "precision", "empty")] == ["0", "", "0", "truth"]
    assert [rows["nothing"][key] for key in ("dice", "iou", "hd95", "empty")] == ["", "", "", "both"]
    for name in ("missed", "imagined"):
        assert float(rows[name]["hd95"]) == pytest.approx(DIAGONAL, rel=1e-5)
    ensemble = summary["ensemble"]
    assert ensemble["dice"]["n"] == 4 and ensemble["dice"]["mean"] == pytest.approx((0.5 + 1 + 0 + 0) / 4)
    assert ensemble["iou"]["mean"] == pytest.approx((1 / 3 + 1) / 4) and ensemble["dice"]["median"] == 0.25
    sensitivity = {"mean": 0.5, "median": 0.5, "std": math.sqrt(1 / 6), "n": 3}
    assert {key: ensemble["sensitivity"][key] for key in sensitivity} == pytest.approx(sensitivity)
    assert 0 <= ensemble["dice"]["low"] < ensemble["dice"]["mean"] < ensemble["dice"]["high"] <= 1
    assert ensemble["hd95"]["mean"] == pytest.approx((2 + 0 + 2 * DIAGONAL) / 4)
    counts = [ensemble[key] for key in ("cases", "both_empty", "prediction_empty", "truth_empty")]
    assert counts == [5, 1, 1, 1] and summary["hd95_unit"] == "pixels"
    assert summary["missing"] == summary["without_truth"] == 0


def strict_json(path):
    return json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_summary_is_strict_json(folder, tmp_path):
    data, predicted = folder
    for name in TRUTH:
        if name != "nothing":
            (predicted / f"{name}.png").unlink()
    evaluate(predicted, dataset_of(data), tmp_path / "out")
    summary = strict_json(tmp_path / "out" / "summary.json")
    assert summary["ensemble"]["dice"] == {
        **dict.fromkeys(("mean", "median", "std", "low", "high")),
        "n": 0,
    }
    assert summary["missing"] == 4
    assert not (predicted / "summary.json").exists()


def test_missing_predictions_and_truths_are_counted_and_printed(folder):
    data, predicted = folder
    (predicted / "half.png").unlink()
    (data / "masks" / "perfect.png").unlink()
    summary = evaluate(predicted, dataset_of(data))
    assert (summary["missing"], summary["without_truth"], summary["ensemble"]["cases"]) == (1, 1, 3)
    text = format_summary(summary)
    assert "left out: 1 case without a prediction" in text and "left out: 1 case without truth" in text
    assert sorted(table(predicted / "metrics.csv")) == ["imagined", "missed", "nothing"]


def test_nothing_to_evaluate(folder, tmp_path):
    data, predicted = folder
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing to evaluate: of 5 cases in .*, 5 have no prediction and 0 no truth"):
        evaluate(tmp_path / "empty", dataset_of(data))
    (tmp_path / "empty" / "perfect.mgz").write_bytes(b"volume")
    with pytest.raises(UserError, match=r"no truth; it holds 1 .mgz file: export NIfTI \(.nii.gz\)"):
        evaluate(tmp_path / "empty", dataset_of(data))


def test_predictions_of_another_size(folder, save_picture):
    data, predicted = folder
    for name in TRUTH:
        save_picture(predicted / f"{name}.png", np.kron(PREDICTED[name], np.ones((2, 3), bool)).astype(np.uint8) * 255)
    summary = evaluate(predicted, dataset_of(data))
    assert summary["ensemble"]["dice"]["mean"] == pytest.approx(1.5 / 4)
    assert summary["ensemble"]["hd95"]["mean"] == pytest.approx((2 + 2 * DIAGONAL) / 4)


# ---- single samples and the coarse mask --------------------------------------------------------------------------


def test_single_samples_and_coarse_masks(folder, tmp_path):
    data, _ = folder
    results = ResultsFolder(
        tmp_path / "results", {"checkpoint_sha256": "", "settings": {}, "data": {"data_dir": ""}}, save_samples=True
    )
    soft = np.zeros((8, 10), np.float32)
    for name in ("half", "missed", "nothing"):
        members = np.stack([TRUTH[name], PREDICTED[name]])
        maps = one_class(TRUTH[name], soft, soft, members, np.float32(0.9) * PREDICTED[name])
        results.write_image(name, maps, np.zeros((3, 8, 10)))
    summary = evaluate(tmp_path / "results", dataset_of(data))
    rows = table(tmp_path / "results" / "metrics.csv")
    assert float(rows["half"]["sample_dice"]) == 0.75 and float(rows["half"]["coarse_dice"]) == 0.5
    assert float(rows["missed"]["sample_dice"]) == 0.5 and float(rows["missed"]["coarse_dice"]) == 0
    assert float(rows["half"]["sample_iou"]) == pytest.approx(2 / 3)  # of 1 and 1/3
    assert float(rows["half"]["coarse_iou"]) == pytest.approx(1 / 3) and float(rows["missed"]["sample_iou"]) == 0.5
    assert {rows["nothing"][f"{whose}_{what}"] for whose in ("sample", "coarse") for what in ("dice", "iou")} == {""}
    assert summary["sample"]["mean"] == pytest.approx(0.625) and summary["sample"]["n"] == 2
    assert summary["sample_iou"]["mean"] == pytest.approx(7 / 12)
    assert summary["coarse_iou"]["mean"] == pytest.approx(1 / 6)
    assert summary["coarse"]["mean"] == pytest.approx(0.25) and summary["ensemble"]["dice"]["mean"] == 1
    text = format_summary(summary)
    assert re.search(r"\ndice +1.0000 .*\ndice of one member +0.6250 ", text) and re.search(
        r"\ncoarse dice +0.2500 ", text
    )


def test_without_samples_the_table_has_no_such_line(folder):
    data, predicted = folder
    text = format_summary(evaluate(predicted, dataset_of(data)))
    assert "of one member" not in text and "coarse" not in text
    assert "5 cases (1 both masks empty, 1 prediction empty, 1 truth empty)" in text


# ---- volumes -----------------------------------------------------------------------------------------------------


@pytest.fixture
def volumes(tmp_path, save_nifti):
    """Two volumes of 6 x 6 x 4 voxels of 1 x 2 x 3 mm and their predictions: (data, predictions)."""
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    for name in ("v1", "v2"):
        truth, predicted = np.zeros((2, 6, 6, 4), np.uint8)
        truth[1:5, 1:5, 1:3] = 1  # 32 voxels, two slices empty
        predicted[1:5, 1:5, 1:3] = 1
        if name == "v1":
            predicted[..., 2] = 0  # 16 voxels: one of the two slices is missed
        save_nifti(tmp_path / "data" / "images" / f"{name}.nii.gz", np.ones((6, 6, 4), np.float32), affine)
        save_nifti(tmp_path / "data" / "masks" / f"{name}.nii.gz", truth, affine)
        save_nifti(tmp_path / "predicted" / f"{name}_seg.nii.gz", predicted, affine)
    return tmp_path / "data", tmp_path / "predicted"


def test_a_volume_is_one_case_in_millimetres(volumes):
    data, predicted = volumes
    summary = evaluate(predicted, dataset_of(data))
    rows = table(predicted / "metrics.csv")
    assert sorted(rows) == ["v1", "v2"] and summary["hd95_unit"] == "mm"
    assert float(rows["v1"]["dice"]) == pytest.approx(2 * 16 / (16 + 32), rel=1e-5)  # not the mean over slices
    assert float(rows["v1"]["hd95"]) == pytest.approx(3) and rows["v2"]["hd95"] == "0"  # one slice of 3 mm
    assert summary["ensemble"]["cases"] == 2


def test_a_missing_volume_is_counted(volumes):
    data, predicted = volumes
    (predicted / "v1_seg.nii.gz").unlink()
    assert evaluate(predicted, dataset_of(data))["missing"] == 1


def test_volumes_of_members_are_those_of_whole_volumes(volumes, save_nifti):
    """The true volume, 32 voxels of 6 mm3, lies inside the 5-95 % range of v2's members and outside that of v1's."""
    data, predicted = volumes
    for name, sizes in (("v1", (8, 12, 16)), ("v2", (24, 32, 40))):
        for e, size in enumerate(sizes):
            member = np.zeros((6, 6, 4), np.uint8)
            member.reshape(-1)[:size] = 1
            save_nifti(predicted / f"{name}_sample_{e:02d}.nii.gz", member, np.diag([1.0, 2.0, 3.0, 1.0]))
    summary = evaluate(predicted, dataset_of(data))
    row = table(predicted / "metrics.csv")["v1"]
    expected = [12 * 6 / 1000 * factor for factor in (1 - 0.9 / 3, 1 + 0.9 / 3)]  # percentiles between the members
    assert [float(row[name]) for name in ("volume_low", "volume_high")] == pytest.approx(expected, rel=1e-5)
    assert float(row["volume_spread"]) == pytest.approx(np.std([8, 12, 16]) / 12, rel=1e-5)
    found = summary["uncertainty"]
    assert (found["volume_inside"], found["volume_cases"], found["volume_coverage"]) == (1, 2, 0.5)
    assert "members' volumes in 1 of 2 cases" in format_summary(summary)


class Filtered(FolderDataset):
    """Only the slices in which something is marked, as some train on."""

    def find_cases(self):
        return [case for case in super().find_cases() if case.slice_index in (1, 2)]


class Nowhere(FolderDataset):
    """Slices of volumes that do not say where they lie."""

    def geometry(self, case):
        return None


def test_slices_that_are_left_out_are_not_taken_for_the_volume(volumes):
    data, predicted = volumes
    with pytest.raises(UserError, match=r"v1.nii.gz: the volume v1 has 4 slices, the cases are 2 \(slice_index 1, 2\)"):
        evaluate(predicted, Filtered(data, 8))


def test_volumes_without_a_geometry_are_compared_in_pixels_and_shown(volumes):
    data, predicted = volumes
    dataset = Nowhere(data, 8)
    assert evaluate(predicted, dataset)["hd95_unit"] == "pixels"
    assert write_report(predicted, dataset, group_cases(dataset.cases)).exists()


class Mixed(SegmentationDataset):
    """A volume beside a picture."""

    def find_cases(self):
        path = (self.data_dir / "x",)
        return [Case("p", path, path), Case("v_0", path, path, volume="v", slice_index=0)]


def test_volumes_and_pictures_are_not_averaged_together(tmp_path):
    with pytest.raises(UserError, match="holds volumes and single slices"):
        evaluate(tmp_path, Mixed(tmp_path, 8))


# ---- calibration -------------------------------------------------------------------------------------------------


def test_one_rater_has_calibration_but_no_diversity(folder, tmp_path):
    data, _ = folder
    results = ResultsFolder(
        tmp_path / "results", {"checkpoint_sha256": "", "settings": {}, "data": {"data_dir": ""}}, save_samples=True
    )
    for name, mask in TRUTH.items():
        soft = mask.astype(np.float32)
        results.write_image(name, one_class(mask, soft, soft / 2, np.stack([mask] * 2), None), np.zeros((3, 8, 10)))
    summary = evaluate(tmp_path / "results", dataset_of(data))
    assert (summary["calibration"]["ece"], summary["probability"]["brier"]["mean"]) == (0, 0)
    # Of the figures of sets one rater leaves the energy score, the matched IoU and the level sets beside them.
    defined = {name for name, values in summary["diversity"].items() if values["n"]}
    sets = {
        f"{whose}{figure}"
        for whose in ("", "control_levels_", "beyond_levels_")
        for figure in ("ged2_unbiased", "matched_iou")
    }
    sets |= {"control_levels_dice", "beyond_levels_dice"}  # of the members against the mask, not of sets
    assert defined == sets and summary["diversity"]["ged2_unbiased"]["mean"] == 0 and summary["raters"] == []
    curves = strict_json(tmp_path / "results" / "curves.json")
    assert curves["all"] == curves["classes"]["foreground"] and set(curves["all"]["reliability"]) == {"probability"}
    assert curves["all"]["reliability"]["probability"]["truth"] == [0, 1]
    assert curves["all"]["retention"]["agreement"]["error"] == [0] * 3  # "imagined" and "nothing" are empty twice
    saved = strict_json(tmp_path / "results" / "summary.json")
    assert saved["calibration"]["coarse_ece"] is None


def test_a_probability_of_another_size_is_brought_to_the_truths_grid(folder, save_picture):
    data, predicted = folder
    for name in TRUTH:
        large = np.kron(TRUTH[name], np.ones((2, 3), bool)).astype(np.uint16) * 65535
        save_picture(predicted / "probability" / f"{name}.png", large)
    summary = evaluate(predicted, dataset_of(data))
    assert summary["calibration"] == {"ece": 0, "coarse_ece": pytest.approx(math.nan, nan_ok=True), "cases": 5}
    assert summary["probability"]["brier"]["mean"] == 0 and summary["probability"]["brier"]["n"] == 5


def test_scores_of_a_volume_are_of_all_its_voxels(volumes, save_nifti):
    data, predicted = volumes
    soft = np.full((6, 6, 4), 0.25, np.float32)
    for name in ("v1", "v2"):
        save_nifti(predicted / f"{name}_prob.nii.gz", soft)
    summary = evaluate(predicted, dataset_of(data))
    assert summary["calibration"]["ece"] == pytest.approx(abs(0.25 - 32 / 144))
    losses = 32 * math.log(4) + 112 * math.log(4 / 3)
    found = {name: one["mean"] for name, one in summary["probability"].items() if one["n"]}
    assert found == {
        "log_loss": pytest.approx(losses / 144),
        "brier": pytest.approx((32 * 0.75**2 + 112 * 0.25**2) / 144),
        "log_loss_per_area": pytest.approx(losses / 32),
        "brier_per_area": pytest.approx((32 * 0.75**2 + 112 * 0.25**2) / 32),
        "expected_volume_ratio": pytest.approx(36 / 32),
        "mask_volume_ratio": pytest.approx((16 + 32) / 64),
    }


# ---- the script --------------------------------------------------------------------------------------------------


def test_script_on_a_plain_folder(folder, script, tmp_path, capsys):
    data, predicted = folder
    script(
        "segmentation_eval",
        ["--pred_dir", predicted, "--data_name FOLDER --data_dir", data, "--out_dir", tmp_path / "out"],
    )
    out = capsys.readouterr().out
    assert re.search(r"\ndice +0.3750 ", out) and "every figure is defined in docs/evaluation.md\n" in out
    assert len(table(tmp_path / "out" / "metrics.csv")) == 5
    assert strict_json(tmp_path / "out" / "summary.json")["ensemble"]["cases"] == 5
    assert "left out:" not in out


def test_script_on_a_plain_folder_with_other_names(folder, script, refusal, save_picture, capsys):
    """NAME_mask.png is found, and files that match no case are counted."""
    data, predicted = folder
    (predicted / "half.png").rename(predicted / "half_mask.png")
    (predicted / "perfect.png").rename(predicted / "perfect_segmentation.png")
    for name in ("other", "stranger"):
        save_picture(predicted / f"{name}.png", np.zeros((8, 10), np.uint8))
    line = ["--pred_dir", predicted, "--data_name FOLDER --data_dir", data]
    script("segmentation_eval", line)
    out = capsys.readouterr().out
    assert re.search(r"\ndice +0.3750 ", out) and "left out: 2 mask files not named like any case" in out
    assert strict_json(predicted / "summary.json")["unmatched_files"] == 2
    for name in TRUTH:
        for path in predicted.glob(f"{name}*.png"):
            path.unlink()
    assert "5 have no prediction and 0 no truth; other.png is not named like any case" in refusal(
        "segmentation_eval", line
    )


def test_script_refusals(folder, refusal, tmp_path):
    data, predicted = folder
    assert "--pred_dir: is needed" in refusal("segmentation_eval", "")
    assert "--data_name and --data_dir: needed" in refusal("segmentation_eval", ["--pred_dir", predicted])
    truth = ["--data_name FOLDER --data_dir", data]
    for one, other in (truth[0].split()[:2], truth[0].split()[2:]), (["--data_dir", data], ["--data_name"]):
        line = refusal("segmentation_eval", ["--pred_dir", predicted, *one])
        assert line.startswith(f"error: {other[0]}: needed; ") and line.endswith("manifest.json that names the truth")
    assert "no such folder" in refusal("segmentation_eval", ["--pred_dir", tmp_path / "none", *truth])
    (predicted / "manifest.json").write_text('{"of": "another program"}')
    assert "--data_name and --data_dir: needed" in refusal("segmentation_eval", ["--pred_dir", predicted])
    for path in predicted.glob("*.png"):
        path.write_bytes(b"no picture")
    assert "none of 5 cases could be evaluated; the first: " in refusal(
        "segmentation_eval", ["--pred_dir", predicted, *truth]
    )
    assert "half.png: is a text that begins 'no picture', no picture" in refusal(
        "segmentation_eval", ["--pred_dir", predicted, *truth]
    )


def test_affines_do_not_matter_to_the_overlap(volumes):
    """The masks are compared voxel by voxel; the spacing is the truth's."""
    data, predicted = volumes
    image = nibabel.load(predicted / "v2_seg.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), np.eye(4)), predicted / "v2_seg.nii.gz")
    evaluate(predicted, dataset_of(data))
    assert table(predicted / "metrics.csv")["v2"]["dice"] == "1"


# ---- several raters and members -------------------------------------------------------------------------------------


def marked(top, left, height, width):
    mask = np.zeros((8, 10), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def rows_by_name(path):
    with open(path, newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


UNMARKED = np.zeros((8, 10), bool)
RATERS = {  # of 8 x 10 pixels
    "agreed": np.stack([marked(2, 2, 4, 4)] * 4),
    "disputed": np.stack([marked(1, 1, 2, 2), marked(1, 1, 2, 4), marked(1, 1, 4, 4), UNMARKED]),
    "minority": np.stack([marked(5, 5, 3, 3), UNMARKED, UNMARKED, UNMARKED]),  # the majority marks nothing
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
    rows = rows_by_name(tmp_path / "results" / "metrics.csv")
    fraction = {name: marks.mean(axis=0) for name, marks in RATERS.items()}
    p, y = (np.concatenate([maps[name] for name in RATERS]) for maps in (soft, fraction))
    for prefix, values in (("", p), ("coarse_", p / 2)):
        assert summary["calibration"][f"{prefix}ece"] == pytest.approx(ReliabilityTable.of(values, y).ece, abs=1e-5)
        assert summary["probability"][f"{prefix}brier"]["mean"] == pytest.approx(np.mean((values - y) ** 2), abs=1e-5)
    case = ReliabilityTable.of(soft["disputed"], fraction["disputed"])
    assert float(rows["disputed"]["ece"]) == pytest.approx(case.ece, abs=1e-5)
    area = fraction["disputed"].sum()
    assert float(rows["disputed"]["expected_volume_ratio"]) == pytest.approx(soft["disputed"].sum() / area, abs=1e-4)
    ratio = sum(one.mean() * one[0].size for one in members.values()) / sum(one.sum() for one in fraction.values())
    assert summary["probability"]["sample_volume_ratio"]["mean"] == pytest.approx(ratio)


def test_diversity_of_members_and_raters(tmp_path, answers):
    members, soft = answers
    save_results(tmp_path / "results", members, soft)
    summary = evaluate(tmp_path / "results", FourRaters(tmp_path, 8))
    rows = rows_by_name(tmp_path / "results" / "metrics.csv")
    expected = {name: compare_sets(list(members[name]), list(RATERS[name])) for name in RATERS}
    for figure in ("ged2", "ged2_unbiased", "ged2_floor", "matched_iou", "matched_dice", "dice_max"):
        for name in RATERS:
            assert float(rows[name][figure]) == pytest.approx(expected[name][figure], rel=1e-5)
        mean = np.mean([values[figure] for values in expected.values()])
        assert summary["diversity"][figure]["mean"] == pytest.approx(mean) and summary["diversity"][figure]["n"] == 3
    # The fused mask agrees with each rater of "agreed" as with their consensus, elsewhere it does not.
    assert rows["agreed"]["rater_dice"] == rows["agreed"]["dice"]
    assert rows["disputed"]["rater_dice"] != rows["disputed"]["dice"]
    text = format_summary(summary)
    labels = [line.split("  ")[0] for line in text.splitlines()]
    first = ["dice", "dice of one member", "dice of one rater to another", "log loss per lesion pixel"]
    first += ["expected / true volume", "members / true volume", "GED² unbiased"]
    assert labels[1:8] == first and {"matched IoU", "dice to raters"} <= set(labels)
    beside = ("level sets", "held-out reader", "raters' majority")
    assert {f"{of_whom}: GED² unbiased" for of_whom in beside} <= set(labels)
    assert len(labels) <= 40 and max(map(len, text.splitlines())) <= 120  # one screen


@pytest.mark.parametrize(("save_samples", "num_ensemble"), [(True, 1), (False, 1), (False, 0)])
def test_a_single_member_stands_for_the_levels_of_its_probability(tmp_path, answers, save_samples, num_ensemble):
    """So does an answer in one pass, without members."""
    members, soft = answers
    first = {name: m[:1] for name, m in members.items()}
    save_results(tmp_path / "results", first, soft, num_ensemble, save_samples=save_samples)
    evaluate(tmp_path / "results", FourRaters(tmp_path, 8))
    rows = rows_by_name(tmp_path / "results" / "metrics.csv")
    for name in RATERS:
        expected = compare_sets(level_sets(soft[name]), list(RATERS[name]), drawn=False)
        assert float(rows[name]["ged2_unbiased"]) == pytest.approx(expected["ged2_unbiased"], rel=1e-5)
        assert rows[name]["beyond_levels_ged2_unbiased"] == ""  # they are the answer's own set
        assert float(rows[name]["ged2"]) == pytest.approx(expected["ged2"], rel=1e-5)
        assert float(rows[name]["matched_iou"]) == pytest.approx(expected["matched_iou"], rel=1e-5)


def test_topology_and_the_copula_are_figures_where_they_are_asked_for(tmp_path, answers):
    members, soft = answers
    save_results(tmp_path / "results", members, soft)
    settings = EvaluationSettings(copula_length=2.0, topology=True)
    summary = evaluate(tmp_path / "results", FourRaters(tmp_path, 8), settings=settings)
    assert {one["n"] for one in summary["topology"].values()} <= {1, 2, 3} and len(summary["topology"]) == 10
    assert summary["diversity"]["control_copula_matched_iou"]["n"] == 3
    row = rows_by_name(tmp_path / "results" / "metrics.csv")["agreed"]
    assert 0 <= float(row["sample_cldice"]) <= 1 and row["control_copula_ged2_unbiased"] != ""


def test_members_that_were_not_saved_leave_diversity_out(tmp_path, answers):
    members, soft = answers
    save_results(tmp_path / "results", members, soft, save_samples=False)
    summary = evaluate(tmp_path / "results", FourRaters(tmp_path, 8))
    assert [summary["diversity"][name]["n"] for name in ("ged2", "matched_iou", "rater_dice")] == [0, 0, 3]
    assert math.isnan(summary["calibration"]["coarse_ece"]) and not math.isnan(summary["calibration"]["ece"])
    text = format_summary(summary)
    assert "\nGED²" not in text and "coarse" not in text and "dice to raters" in text


# ---- who they are ------------------------------------------------------------------------------------------------


@pytest.fixture
def readers(tmp_path, save_picture):
    """A FOLDER data set and predictions: anna and carl agree with them, ben does not, and anna has marked a alone."""
    right, wrong = (np.uint8(255) * marked(2, left, 4, 4) for left in (1, 5))
    for name in "ab":
        save_picture(tmp_path / "data" / "images" / f"{name}.png", np.zeros((8, 10), np.uint8))
        save_picture(tmp_path / "results" / f"{name}.png", right)
        for rater, mask in (("anna", right), ("ben", wrong), ("carl", right)):
            if (rater, name) != ("anna", "b"):
                save_picture(tmp_path / "data" / "masks" / rater / f"{name}.png", mask)
    return tmp_path


def test_a_rater_who_lacks_a_case_is_not_mistaken_for_another(script, readers, capsys):
    script("segmentation_eval", ["--data_name FOLDER --data_dir", readers / "data", "--pred_dir", readers / "results"])
    text, rows = capsys.readouterr().out, rows_by_name(readers / "results" / "metrics.csv")
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


ROOT = Path(__file__).resolve().parents[2]


def test_a_table_with_names_in_any_alphabet_is_written_where_the_locale_is_plain(tmp_path):
    """metrics.csv, as on a machine without UTF-8."""
    program = (
        "import sys; from pathlib import Path; from guided_diffusion.evaluation import evaluate as e;"
        "evaluation = e.Evaluation(('foreground',), e.EvaluationSettings(), 'pixels', 'pixels');"
        "evaluation.rows = [{'name': 'caf\\u00e9\\u4e2d', 'class': 'foreground', 'dice': 1.0}];"
        "e._write_csv(Path(sys.argv[1]), evaluation)"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(tmp_path / "metrics.csv")]
    subprocess.run(command, env={**os.environ, **plain}, check=True)
    assert "\ncafé中," in (tmp_path / "metrics.csv").read_text(encoding="utf-8")


# ---- many cases --------------------------------------------------------------------------------------------------


def test_figures_do_not_depend_on_the_number_of_workers(folder, tmp_path, monkeypatch):
    data, predicted = folder
    monkeypatch.setattr("guided_diffusion.evaluation.evaluate.PICTURES_A_WORKER", 1)
    (predicted / "missed.png").unlink()
    (predicted / "half.png").write_bytes(b"")
    for workers in (0, 2):
        evaluate(predicted, dataset_of(data), tmp_path / str(workers), num_workers=workers)
    for name in ("metrics.csv", "summary.json", "curves.json"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_a_case_that_fails_does_not_cost_the_others(folder, capsys, truncate):
    data, predicted = folder
    (predicted / "half.png").write_bytes(b"")
    truncate(data / "masks" / "perfect.png")
    summary = evaluate(predicted, dataset_of(data))
    assert sorted(table(predicted / "metrics.csv")) == ["imagined", "missed", "nothing"]
    assert (summary["failed"], summary["ensemble"]["cases"], summary["missing"]) == (2, 3, 0)
    assert "left out: 2 cases that could not be read or compared" in format_summary(summary)
    errors = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in errors] == ["half", "perfect"]
    assert "half.png: is empty" in errors[0]


def test_where_every_case_fails_the_evaluation_does(folder):
    data, predicted = folder
    for path in predicted.iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of 5 cases could be evaluated; the first: .*half.png: is empty"):
        evaluate(predicted, dataset_of(data))
    assert not (predicted / "metrics.csv").exists()


def test_few_cases_are_not_shared_out(folder):
    units = group_cases(dataset_of(folder[0]).cases)
    assert [shared_workers(units * times, 4) for times in (1, 8, 100)] == [0, 2, 4]
    assert shared_workers(units * 100, 0) == 0
