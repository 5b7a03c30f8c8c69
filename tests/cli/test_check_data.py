"""check_data.py: its flags, its exit status and what it refuses."""


def test_nothing_to_check(refusal, tmp_path):
    (tmp_path / "data").mkdir()
    line = ["--data_dir", tmp_path / "data", "--out_dir", tmp_path / "out"]
    assert "data: is in none of the layouts MSD, ISIC, LIDC, BRATS, FOLDER" in refusal("check_data", line)
    assert "no cases found for ISIC;" in refusal("check_data", [*line, "--data_name ISIC"])
    assert "--data_dir: is needed" in refusal("check_data", "")
