"""The data to sample: another layout than training's, single files, and what is refused."""

from conftest import files, strict_json

QUICK = "--num_ensemble 2 --diffusion_steps 1 --num_workers 0 --precision fp32"


def test_files_that_cannot_be_sampled_give_one_line(refusal, trained, pictures, train, slices, tmp_path):
    def refused(path, flags="", checkpoint=trained):
        line = ["--model_path", checkpoint, "--data_dir", path, "--out_dir", tmp_path / "results", QUICK, flags]
        return refusal("segmentation_sample", line)

    (tmp_path / "notes.txt").write_text("x")
    assert "notes.txt: is no image; name one that ends in .png, .jpg, " in refused(tmp_path / "notes.txt")
    path = pictures / "images" / "case1.png"
    assert "case1.png: is a file, which only FOLDER reads; leave out --data_name" in refused(path, "--data_name ISIC")
    assert "none.png: no such folder" in refused(tmp_path / "none.png")
    line = refused(path, checkpoint=train("BRATS", slices, steps=1))
    assert "case1.png: is a file, but only BRATS reads images as in training; name a folder" in line
    assert not (tmp_path / "results").exists()


def test_another_layout_than_training_had_is_found_and_said(train, script, refusal, isic, pictures, tmp_path, capsys):
    checkpoint = train("ISIC", isic, steps=1)
    line = ["--model_path", checkpoint, "--data_dir", pictures, "--out_dir", tmp_path / "results", QUICK]
    capsys.readouterr()
    script("segmentation_sample", line)
    said = f"--data_name FOLDER: {pictures} has no cases for ISIC, on which the checkpoint was trained"
    assert said in capsys.readouterr().out and len(files(tmp_path / "results" / "masks")) == 4
    assert strict_json(tmp_path / "results" / "manifest.json")["data"]["data_name"] == "FOLDER"
    line[-2] = tmp_path / "other"
    assert "no cases found for ISIC" in refusal("segmentation_sample", [*line, "--data_name ISIC"])
    (tmp_path / "empty").mkdir()
    line[3] = tmp_path / "empty"
    assert refusal("segmentation_sample", line).endswith(
        "the checkpoint was trained on ISIC: for other data add --data_name"
    )
