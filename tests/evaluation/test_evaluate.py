"""Evaluation: figures of tiny masks by hand, cases without prediction or truth, and the files."""

import csv
import json
import math
import re

import nibabel
import numpy as np
import pytest
from conftest import one_class

from guided_diffusion.data.cases import Case, group_cases
from guided_diffusion.data.dataset import SegmentationDataset
from guided_diffusion.data.loaders.folder import FolderDataset
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.truth import majority, on_grid, raters_of
from guided_diffusion.evaluation.evaluate import columns, evaluate
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


def test_predictions_of_another_size(folder, save_picture):
    data, predicted = folder
    for name in TRUTH:
        save_picture(predicted / f"{name}.png", np.kron(PREDICTED[name], np.ones((2, 3), bool)).astype(np.uint8) * 255)
    summary = evaluate(predicted, dataset_of(data))
    assert summary["ensemble"]["dice"]["mean"] == pytest.approx(1.5 / 4)
    assert summary["ensemble"]["hd95"]["mean"] == pytest.approx((2 + 2 * DIAGONAL) / 4)


@pytest.mark.parametrize("have, want", [((4, 6), (8, 6)), ((8, 9), (4, 3)), ((5,), (7,)), ((2, 3, 4), (4, 3, 2))])
def test_on_grid_is_the_nearest_neighbour(have, want):
    mask = np.random.default_rng(0).random(have) > 0.5
    expected = np.zeros(want, bool)
    for place in np.ndindex(*want):
        source = [int((p + 0.5) / w * h) for p, h, w in zip(place, have, want, strict=True)]  # pixel centres
        expected[place] = mask[tuple(source)]
    assert np.array_equal(on_grid(mask, want), expected)


def test_dimensions_that_differ_are_refused():
    with pytest.raises(UserError, match="cannot be compared"):
        on_grid(np.zeros((4, 4), bool), (4, 4, 4))


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
    assert re.search(r"\nsample dice +0.6250 ", text) and re.search(r"\ncoarse dice +0.2500 ", text)


def test_without_samples_the_table_has_no_such_line(folder):
    data, predicted = folder
    text = format_summary(evaluate(predicted, dataset_of(data)))
    assert "sample dice" not in text and "coarse" not in text
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


# ---- several raters ----------------------------------------------------------------------------------------------


class Raters(SegmentationDataset):
    """One case with three raters, or with the first two of them."""

    count = 3

    def find_cases(self):
        return [Case("a", (self.data_dir / "x",), (self.data_dir / "x",))]

    def read_mask(self, case):
        marks = [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
        return np.array(marks[: self.count])[:, None, None]  # [R, K, H, W]


def test_truth_is_the_majority_and_a_tie_is_background(tmp_path):
    three, two = Raters(tmp_path, 8), type("Two", (Raters,), {"count": 2})(tmp_path, 8)
    assert majority(raters_of(three, three.cases)).tolist() == [[True, True, False, False]]
    assert majority(raters_of(two, two.cases)).tolist() == [[True, True, False, False]]


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
    figures = [summary["calibration"][name] for name in ("ece", "ece_band", "brier", "brier_band")]
    assert figures == [0, 0, 0, 0] and summary["calibration"]["cases_band"] == 3
    assert {values["n"] for values in summary["diversity"].values()} == {0} and summary["raters"] == []
    curves = strict_json(tmp_path / "results" / "curves.json")
    assert curves["all"] == curves["classes"]["foreground"] and set(curves["all"]["reliability"]) == {
        "probability",
        "probability_band",
    }
    assert curves["all"]["reliability"]["probability"]["truth"] == [0, 1]
    assert curves["all"]["retention"]["agreement"]["error"] == [0] * 3  # "imagined" and "nothing" are empty twice
    saved = strict_json(tmp_path / "results" / "summary.json")
    assert saved["calibration"]["coarse_ece"] is None


def test_a_probability_of_another_size_is_brought_to_the_truths_grid(folder, save_picture):
    data, predicted = folder
    for name in TRUTH:
        large = np.kron(TRUTH[name], np.ones((2, 3), bool)).astype(np.uint16) * 65535
        save_picture(predicted / "probability" / f"{name}.png", large)
    calibration = evaluate(predicted, dataset_of(data))["calibration"]
    assert calibration["ece"] == calibration["brier_band"] == 0 and calibration["cases"] == 5


def test_calibration_of_a_volume_has_its_band_in_space(volumes, save_nifti):
    data, predicted = volumes
    soft = np.full((6, 6, 4), 0.25, np.float32)
    for name in ("v1", "v2"):
        save_nifti(predicted / f"{name}_prob.nii.gz", soft)
    calibration = evaluate(predicted, dataset_of(data))["calibration"]
    assert calibration["ece"] == pytest.approx(abs(0.25 - 32 / 144))
    # 1 x 2 x 3 mm, a band of 1 mm: only neighbours along the first axis are in it, 2 x 8 on either side.
    assert calibration["ece_band"] == pytest.approx(0.25) and calibration["brier_band"] == pytest.approx(0.3125)


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
    (predicted / "half.png").write_bytes(b"no picture")
    assert "half.png: is truncated or damaged" in refusal("segmentation_eval", ["--pred_dir", predicted, *truth])


def test_affines_do_not_matter_to_the_overlap(volumes):
    """The masks are compared voxel by voxel; the spacing is the truth's."""
    data, predicted = volumes
    image = nibabel.load(predicted / "v2_seg.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), np.eye(4)), predicted / "v2_seg.nii.gz")
    evaluate(predicted, dataset_of(data))
    assert table(predicted / "metrics.csv")["v2"]["dice"] == "1"
