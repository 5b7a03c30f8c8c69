"""What the evaluation script prints: tables with columns that never touch."""

import re

import numpy as np
import pytest

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
    assert len(classes) == 3 and len(figures) == len(compared) == 15
    for table, columns in ((classes, 11), (figures, 6), (compared, 7)):
        # Of cells two blanks apart at least, as many as there are columns, all of which end at the same places.
        ends = {tuple(cell.end() for cell in re.finditer(r"\S+( \S+)*", line))[-columns + 1 :] for line in table}
        assert len(ends) == 1 and len(ends.pop()) == columns - 1, table
    assert re.search(r"  \d{4}\.\d{4}  \[\d{3,4}\.\d{4}, \d{4}\.\d{4}\]  ", "\n".join(figures))
