"""check_data.py: its flags, its exit status and what it refuses."""

import os

import pytest
from conftest import write_folder
from PIL import Image

from guided_diffusion.io.pictures import LIMIT


def test_nothing_to_check(refusal, tmp_path):
    (tmp_path / "data").mkdir()
    line = ["--data_dir", tmp_path / "data", "--out_dir", tmp_path / "out"]
    assert "data: is in none of the layouts MSD, ISIC, LIDC, BRATS, FOLDER" in refusal("check_data", line)
    assert "no cases found for ISIC;" in refusal("check_data", [*line, "--data_name ISIC"])
    assert "--data_dir: is needed" in refusal("check_data", "")


@pytest.mark.parametrize("workers", [0, 1])
def test_the_limit_of_pixels_reaches_the_workers(script, tmp_path, capsys, monkeypatch, workers):
    monkeypatch.setenv(LIMIT, "179")
    write_folder(tmp_path / "data", 2)
    for part in ("images", "masks"):
        path = tmp_path / "data" / part / "case0.png"
        Image.open(path).crop((5, 5, 30, 30)).save(path)
    line = ["--data_dir", tmp_path / "data", f"--num_workers {workers} --out_dir", tmp_path / "checked"]
    assert script("check_data", [*line, "--max_megapixels 0.001"]) == 1
    text = capsys.readouterr().out
    assert "case1.png: has 40x32 pixels, more than --max_megapixels 0.001 allows" in text and "1 error," in text
    assert script("check_data", line) == 0 and os.environ[LIMIT] == "179"


def test_masks_of_several_foregrounds_are_one_error_and_are_drawn(script, tmp_path, capsys):
    write_folder(tmp_path / "data", 3)
    path = tmp_path / "data/masks/case1.png"
    Image.open(path).point(lambda value: value // 255 * 2).save(path)
    line = ["--data_dir", tmp_path / "data", "--num_workers 0 --out_dir", tmp_path / "checked"]
    assert script("check_data", line) == 1 and (tmp_path / "checked/contact_sheet.png").is_file()
    text = capsys.readouterr().out
    assert "error: the foreground of masks is 255 in 2 cases" in text and "1 error, 1 warning" in text
