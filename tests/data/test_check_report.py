"""The report of check_data: the table's cells, the classes' lines and the contact sheet."""

import numpy as np
import pytest
from conftest import write_folder
from PIL import Image

from guided_diffusion.cli.check_data import read_cases
from guided_diffusion.config.options import DataOptions
from guided_diffusion.data.check_report import class_lines, layout_lines, table, write_sheet
from guided_diffusion.data.inspection import find_parts


@pytest.fixture
def parts(tmp_path):
    """The inspected parts of a FOLDER data set: five pictures, one without a mask, one with an empty one."""
    folder = tmp_path / "data"
    write_folder(folder, 5)
    (folder / "masks" / "case4.png").unlink()
    Image.fromarray(np.zeros((32, 40), np.uint8)).save(folder / "masks" / "case3.png")
    found = find_parts("FOLDER", folder)
    read_cases(found, DataOptions(num_workers=0))
    return found


def test_layout_and_classes(parts, tmp_path):
    lines = layout_lines(parts)
    assert lines[0] == f"data: {tmp_path / 'data'}, read by FOLDER"
    assert lines[-1] == "1 class: foreground"


def test_the_table_counts_each_part(parts):
    cells = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in table(parts).splitlines()}
    assert (cells["cases"], cells["without a mask"], cells["cannot be read"]) == ("5", "1", "0")
    assert cells["images with empty masks"] == "1" and cells["values in masks"] == "0 255"


def test_the_sheet_has_as_many_cases_as_asked_for(parts, tmp_path):
    seen = []

    def progress(units):
        seen.append(len(units))
        return units

    assert write_sheet(tmp_path / "all.png", parts, 5, progress) and write_sheet(tmp_path / "one.png", parts, 1)
    sizes = [Image.open(tmp_path / name).size for name in ("all.png", "one.png")]
    assert sizes[0][0] * sizes[0][1] > sizes[1][0] * sizes[1][1] > 0 and seen
    assert not write_sheet(tmp_path / "none.png", parts, 0) and not (tmp_path / "none.png").exists()


def test_the_share_of_a_class_is_the_mean_over_the_masks(parts):
    (line,) = class_lines(parts)
    masks = [np.asarray(Image.open(path)) > 0 for path in sorted((parts[0].dataset.data_dir / "masks").iterdir())]
    shares = [100 * mask.mean() for mask in masks]
    assert len(shares) == 4 and min(shares) == 0
    assert line.endswith(f" {np.mean(shares):.3g} % (0 to {max(shares):.3g}) of the pixels")
