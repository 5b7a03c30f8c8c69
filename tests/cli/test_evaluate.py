"""The evaluation command: which truth it compares with, and tables with columns that never touch."""

import json
import re
import shutil

import numpy as np
import pytest
from conftest import FAST, TINY, rows, strict_json, write_folder

NAMES = [f"case{index}" for index in range(6)]


@pytest.fixture
def scored(script, tmp_path):
    """A function (results folder, flags) that evaluates it and returns {name: Dice}, and the summary."""

    def run(results, flags=""):
        script("segmentation_eval", ["--pred_dir", results, "--out_dir", tmp_path / "scores", *flags])
        found = {row["name"]: float(row["dice"]) for row in rows(tmp_path / "scores")}
        return found, strict_json(tmp_path / "scores" / "summary.json")

    return run


def results_of(folder, masks, data):
    """A results folder with these masks, and what its manifest says of the data."""
    shutil.copytree(masks, folder / "masks")
    manifest = {"checkpoint_sha256": "aa", "data": {"data_name": "FOLDER", **data}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def divided(tmp_path, save_picture):
    """val/ and test/ with cases of the same names and other masks, and perfect predictions of val/."""
    for part, count in (("val", 3), ("test", 4)):
        write_folder(tmp_path / "data" / part, count)
    for path in (tmp_path / "data" / "test" / "masks").iterdir():
        save_picture(path, np.eye(32, 40, dtype=np.uint8) * 255)
    data = {"data_dir": str(tmp_path / "data"), "split": "val"}
    return results_of(tmp_path / "results", tmp_path / "data" / "val" / "masks", data)


def test_the_recorded_split_is_kept_however_the_folder_is_written(divided, scored, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    perfect = dict.fromkeys(NAMES[:3], 1.0)
    for written in ("data", "./data/", f"{tmp_path}/results/../data"):
        assert scored(divided, ["--data_dir", written])[0] == perfect, written
    assert "--split names others" not in capsys.readouterr().out
    others, summary = scored(divided, ["--split test"])
    assert others.keys() == perfect.keys() and max(others.values()) < 0.5 and summary["missing"] == 1


def test_a_moved_data_set_is_divided_as_before(divided, scored, refusal, tmp_path, capsys):
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = ["--data_dir", tmp_path / "moved"]
    assert scored(divided, moved)[0] == dict.fromkeys(NAMES[:3], 1.0)
    assert "moved: its val cases are scored, as in" in capsys.readouterr().out
    (tmp_path / "moved" / "val").rename(tmp_path / "elsewhere")
    message = refusal("segmentation_eval", ["--pred_dir", divided, *moved])
    assert "has no validation cases" in message and "--split names others" in message
    truth = ["--data_dir", tmp_path / "elsewhere", "--split all"]
    assert scored(divided, truth)[0] == dict.fromkeys(NAMES[:3], 1.0)


def test_what_was_held_out_is_kept_in_a_moved_data_set(script, sample, scored, tmp_path):
    write_folder(tmp_path / "data", 6)
    data = ["--data_name FOLDER --data_dir", tmp_path / "data", "--out_dir", tmp_path / "run", TINY]
    script("segmentation_train", [*data, "--max_steps 1 --val_fraction 0.4"])
    results = sample(tmp_path / "run" / "model000001.pt", tmp_path / "data")
    held, _ = scored(results)
    assert 0 < len(held) < 6
    (tmp_path / "data").rename(tmp_path / "moved")
    again, summary = scored(results, ["--data_dir", tmp_path / "moved"])
    assert again == held and summary["missing"] == 0
    assert scored(results, ["--data_dir", tmp_path / "moved", "--split all"])[1]["missing"] == 6 - len(held)


# ---- patients ----------------------------------------------------------------------------------------------------


def test_sampling_and_evaluation_count_the_same_patients(trained, sample, scored, pictures):
    results = sample(trained, pictures, FAST + " --group_key ^case[01]|^case")
    at_once = strict_json(results / "summary.json")
    assert at_once["groups"] == 3
    _, summary = scored(results)
    assert summary == at_once
    assert [row["group"] for row in rows(results)] == ["case0", "case1", "case", "case"]
    assert scored(results, ["--group_key ^case"])[1]["groups"] == 1
    assert scored(results, ["--group_key ''"])[1]["groups"] is None


def test_keys_that_do_not_fit_are_refused_at_once(trained, refusal, pictures, script, tmp_path):
    line = ["--model_path", trained, "--data_dir", pictures, "--out_dir", tmp_path / "out", FAST]
    message = refusal("segmentation_sample", [*line, "--group_key ^P"])
    assert "--group_key ^P: is not found in the case name 'case0'" in message and not (tmp_path / "out").exists()
    assert "is no regular expression" in refusal("segmentation_eval", "--pred_dir x --group_key (")
    data = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / "run", TINY]
    script("segmentation_train", [*data, "--max_steps 1 --val_fraction 0.4"])
    line[1] = tmp_path / "run" / "model000001.pt"
    message = refusal("segmentation_sample", [*line, "--group_key ^case"])
    assert "--group_key ^case: training divided" in message and "without --group_key" in message


# ---- what it prints -------------------------------------------------------------------------------------------------


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
    out = capsys.readouterr().out
    assert "every figure is defined in docs/evaluation.md\n" in out
    found = tables(out)
    classes, figures, compared = found
    assert (len(classes), len(figures), len(compared)) == (4, 11, 15)
    for table, columns in ((classes, 7), (figures, 6), (compared, 7)):
        # Of cells two blanks apart at least, as many as there are columns, all of which end at the same places.
        ends = {tuple(cell.end() for cell in re.finditer(r"\S+( \S+)*", line))[-columns + 1 :] for line in table}
        assert len(ends) == 1 and len(ends.pop()) == columns - 1, table
    assert re.search(r"  \d{4}\.\d{4}  \[\d{3,4}\.\d{4}, \d{4}\.\d{4}\]  ", "\n".join(figures))


def test_a_failed_case_is_counted_at_the_end_and_in_the_exit_status(divided, script, capsys):
    (divided / "masks" / f"{NAMES[1]}.png").write_bytes(b"")
    status = script("segmentation_eval", ["--pred_dir", divided])
    last = capsys.readouterr().err.splitlines()[-1]
    assert status == 1 and last.startswith(f"error: 1 of 3 cases could not be evaluated: {NAMES[1]}; ")
