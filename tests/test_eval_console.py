"""What the evaluation script prints: tables whose columns never touch, and the rules of the figures that are there."""

import re

import numpy as np
import pytest
from conftest import one_class, strict_json, write_folder

from guided_diffusion.results import ResultsFolder
from guided_diffusion.text_table import text_table

COARSE = np.diag([120.0, 120.0, 180.0, 1.0])  # mm, so that distances have four digits before the point


def block(shape, *corner, value=1):
    volume = np.zeros((24, 24, 16), np.uint8)
    volume[tuple(slice(low, low + size) for low, size in zip(corner, shape, strict=True))] = value
    return volume


@pytest.fixture
def far_off(tmp_path, save_nifti):
    """Three volumes of two classes, and predictions: far/, off by another distance in each, and near/."""
    for index in range(3):
        truth = block((4, 4, 3), 2, 2, 2) + block((2, 2, 2), 10, 10, 10, value=2)
        far = truth + block((3, 3, 3), 18, 10 + 2 * index, 9)
        near = truth * (block((4, 4, 2), 2, 2, 2) + block((2, 2, 2), 10, 10, 10))
        save_nifti(tmp_path / "data" / "images" / f"v{index}.nii.gz", truth.astype(np.float32), COARSE)
        save_nifti(tmp_path / "data" / "masks" / f"v{index}.nii.gz", truth, COARSE)
        save_nifti(tmp_path / "far" / f"v{index}_seg.nii.gz", far, COARSE)
        save_nifti(tmp_path / "near" / f"v{index}_seg.nii.gz", near, COARSE)
    return tmp_path


def tables(text):
    """The tables in what was printed, each a list of lines: from a heading on, as long as there are columns."""
    lines, found = text.splitlines(), []
    for index, line in enumerate(lines):
        if re.match(r"(class|) {2,}\w", line):
            end = next(k for k in range(index, len(lines)) if not re.search(r" {2,}\S", lines[k]))
            found.append(lines[index:end])
    return found


def test_columns_never_touch_and_stay_aligned(script, far_off, capsys):
    data = ["--data_name FOLDER --classes an-organ-of-a-long-name=1,b=2 --data_dir", far_off / "data"]
    script("segmentation_eval", ["--pred_dir", far_off / "far", "--compare", far_off / "near", *data])
    found = tables(capsys.readouterr().out)
    classes, figures, compared = found
    assert len(classes) == 3 and len(figures) == len(compared) == 15
    for table, columns in ((classes, 11), (figures, 6), (compared, 7)):
        # Of cells two blanks apart at least, as many as there are columns, all of which end at the same places.
        ends = {tuple(cell.end() for cell in re.finditer(r"\S+( \S+)*", line))[-columns + 1 :] for line in table}
        assert len(ends) == 1 and len(ends.pop()) == columns - 1, table
    assert re.search(r"  \d{4}\.\d{4}  \[\d{3,4}\.\d{4}, \d{4}\.\d{4}\]  ", "\n".join(figures))


def test_a_table_of_text():
    text = text_table(["", "mean", "n"], [["dice", "1234.5678", 4], ["a longer name"], ["ece", "0.1"]])
    assert text.splitlines() == [
        "                    mean  n",
        "dice           1234.5678  4",
        "a longer name",
        "ece                  0.1",
    ]


# ---- the rules ---------------------------------------------------------------------------------------------------

OF_RATERS = ("Several raters:", "Rater Dice:", "GED2 =", "Collective insight =")
OF_MEMBERS = ("Members:", "agreement = mean Dice", "volume spread =", "the members' interval")
OF_PROBABILITY = ("ECE:", "Band:", "expected Dice =")
ALWAYS = ("Dice = 2TP", "Both masks empty", "HD95:", "Volume difference:", "Lesions:", "A prediction of another size")


def results(folder, data, raters, members=3, save_samples=True):
    """A results folder of a FOLDER data set of four pictures, of which some raters marked each."""
    write_folder(data, 4)
    manifest = {"checkpoint_sha256": "ab", "settings": {"num_ensemble": members, "fuse": "mean"}}
    manifest |= {"data": {"data_name": "FOLDER", "data_dir": str(data)}}
    written = ResultsFolder(folder, manifest, save_samples=save_samples)
    rng = np.random.default_rng(0)
    for path in sorted((data / "masks").glob("*.png")):
        soft = rng.random((32, 40)).astype(np.float32)
        drawn = rng.random((members, 32, 40)) < soft
        written.write_image(path.stem, one_class(soft > 0.5, soft, soft / 2, drawn, None), np.zeros((3, 32, 40)))
        content = path.read_bytes()
        for rater in raters:
            (data / "masks" / rater).mkdir(exist_ok=True)
            (data / "masks" / rater / path.name).write_bytes(content)
        if raters:
            path.unlink()
    return folder


@pytest.fixture
def told(script, capsys):
    """A function (results folder, flags) that evaluates it and returns the rules that are printed, as one text."""

    def run(folder, flags=""):
        capsys.readouterr()
        script("segmentation_eval", ["--pred_dir", folder, *flags])
        printed = [line[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("- ")]
        assert printed == strict_json(folder / "summary.json")["rules"]
        assert all(any(rule.startswith(start) for rule in printed) for start in ALWAYS)
        return "\n".join(printed)

    return run


def test_one_rater_needs_no_rules_of_several(told, tmp_path):
    text = told(results(tmp_path / "results", tmp_path / "data", ()))
    assert not [rule for rule in (*OF_RATERS, "single member", "A volume is", "Several classes") if rule in text]
    assert all(rule in text for rule in (*OF_MEMBERS, *OF_PROBABILITY, "Is a score any good", "Interval:"))
    assert "in a volume" not in text


def test_several_raters_bring_theirs(told, tmp_path):
    text = told(results(tmp_path / "results", tmp_path / "data", ("anna", "ben")))
    assert all(rule in text for rule in (*OF_RATERS, *OF_MEMBERS)) and "single member" not in text
    text = told(results(tmp_path / "unsaved", tmp_path / "other", ("anna", "ben"), save_samples=False))
    assert [rule in text for rule in OF_RATERS] == [True, True, False, False]
    assert not [rule for rule in OF_MEMBERS if rule in text]


def test_a_single_member_against_several_raters(told, tmp_path):
    text = told(results(tmp_path / "results", tmp_path / "data", ("anna", "ben"), members=1))
    assert "A run with a single member stands for 16 masks" in text and "Members:" not in text
    alone = told(results(tmp_path / "alone", tmp_path / "one", (), members=1))
    assert "single member" not in alone


def test_a_folder_of_masks_has_the_rules_of_masks_alone(told, far_off):
    data = ["--data_name FOLDER --classes a=1,b=2 --data_dir", far_off / "data"]
    text = told(far_off / "far", data)
    assert not [rule for rule in (*OF_RATERS, *OF_MEMBERS, *OF_PROBABILITY, "Is a score") if rule in text]
    assert "A volume is one case" in text and "Several classes" in text and "Scores of a case" not in text
    for name in ("v1", "v2"):
        (far_off / "far" / f"{name}_seg.nii.gz").unlink()
    assert "Interval:" not in told(far_off / "far", data)  # of one case there is none


def test_the_size_of_the_ensemble_has_its_rule_where_there_are_members(told, tmp_path):
    folder = results(tmp_path / "results", tmp_path / "data", ())
    assert "Ensemble size:" not in told(folder) and "Ensemble size:" in told(folder, ["--ensemble_curve True"])
    folder = results(tmp_path / "unsaved", tmp_path / "other", (), save_samples=False)
    assert "Ensemble size:" not in told(folder, ["--ensemble_curve True"])
