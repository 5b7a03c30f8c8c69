"""--dry_run: what it prints, and that it writes nothing. What training says of its data before the first step."""

import numpy as np
import pytest
import yaml
from conftest import TINY, files
from helpers import values

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.cli.train import warn_of_data
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.resizing import View
from guided_diffusion.runtime.errors import UserError


@pytest.fixture
def dry(script, pictures, tmp_path, capsys):
    """A function (flags) that runs dry and returns what is printed: the YAML's values and the text."""

    def run(flags=""):
        capsys.readouterr()
        line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / "run", TINY, flags]
        assert script("segmentation_train", [*line, "--dry_run True"]) == 0
        text = capsys.readouterr().out
        return yaml.safe_load(text), text

    return run


def test_it_prints_what_would_run_and_writes_nothing(dry, pictures, tmp_path):
    before = files(pictures)
    record, text = dry("--preset S --num_channels 8 --channel_mult 1,2")
    assert not (tmp_path / "run").exists() and files(pictures) == before
    assert record["objective"] == "x0" and record["mask_loss"] != "auto" and record["input_scale"] == 0.1
    assert record["num_res_blocks"] == 1 and record["num_channels"] == 8 and "dry_run" not in record
    assert "# data: 4 cases of " in text and "3 channels" in text and "nothing was written" in text


@pytest.mark.parametrize("flags", ["--version v2", "--version v2 --recipe auto --coarse_loss mse"])
def test_what_it_prints_is_a_config_and_what_a_run_records(dry, script, tmp_path, flags):
    record, text = dry(flags)
    (tmp_path / "run.yaml").write_text(text)
    assert record.items() <= (values(f"--config {tmp_path / 'run.yaml'}")).items()
    script("segmentation_train", ["--config", tmp_path / "run.yaml", "--max_steps 1"])
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == record | {"max_steps": 1}


def test_a_mistake_is_told_as_training_would(refusal, tmp_path):
    line = ["--data_name FOLDER --data_dir", tmp_path / "none", "--dry_run True"]
    assert "no such folder" in refusal("segmentation_train", line)


def test_it_prints_the_size_of_the_network_that_is_trained(dry, script, pictures, tmp_path):
    text = dry("--version v2")[1]
    data = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path]
    script("segmentation_train", [*data, TINY, "--version v2 --max_steps 1"])
    model, _ = load_checkpoint(tmp_path / "model000001.pt").build()
    assert f"# model: {sum(p.numel() for p in model.parameters()) / 1e6:.4g} M parameters" in text


def test_of_several_processes_the_first_prints(dry, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "nothing was written" in dry()[1]
    monkeypatch.setenv("RANK", "1")
    assert dry()[1] == ""


@pytest.fixture
def said(tmp_path, save_picture, capsys):
    """A function (masks, image, flags) that returns what training says of such a FOLDER data set."""

    def say(masks, image=None, **settings):
        ramp = np.add.outer(np.arange(32) * 4, np.arange(32) * 3).astype(np.uint8)
        for k, mask in enumerate(masks):
            save_picture(tmp_path / f"images/{k}.png", ramp if image is None else image)
            save_picture(tmp_path / f"masks/{k}.png", mask)
        capsys.readouterr()
        warn_of_data(build_dataset("FOLDER", tmp_path, 16, split="train", need_masks=True, **settings))
        return capsys.readouterr().out.splitlines()

    return say


def test_training_says_of_its_data_what_check_data_says(said):
    disc = (np.hypot(*np.mgrid[-16:16, -16:16]) < 9).astype(np.uint8)
    end = " (of 3 cases looked at; python scripts/check_data.py reads all)"
    assert said([disc * 255] * 3) == []
    (line,) = said([disc, disc, disc * 255])
    assert line.startswith("warning: the foreground of masks is 1 in 2 cases") and line.endswith(end)
    (line,) = said([disc * 255] * 3, image=np.add.outer(np.arange(32), np.arange(32)).astype(np.uint16) * 60)
    assert line.startswith("warning: 3 images nearly black: 99 % of pixels are below") and line.endswith(end)
    void = np.where(np.eye(32) > 0, 255, disc).astype(np.uint8)
    assert said([void] * 3, classes="a=1") == [
        "warning: no class has the label value 255 (usually void: not annotated; --ignore_label 255 leaves it out): "
        f"it counts as background{end}"
    ]
    lines = np.where(np.arange(32) % 4 == 1, 255, 0) * np.ones((32, 1))
    (line,) = said([lines.astype(np.uint8)] * 3)
    assert line.startswith("warning: --image_size 16 is coarse for these masks") and line.endswith(end)
    assert said([lines.astype(np.uint8)] * 3, view=View(keep_size=True)) == []
    with pytest.raises(UserError, match="its values 0 .* 255 beside small values is void"):
        said([void] * 3)
    with pytest.raises(UserError, match="the foreground of masks is 1 in 2 cases .*2 in 1 case .*label map"):
        said([disc, disc * 2, disc])


def test_validation_masks_write_their_foreground_as_the_training_masks(tmp_path, save_picture):
    for part, value in (("train", 1), ("val", 2)):
        save_picture(tmp_path / part / "images/a.png", np.eye(32, dtype=np.uint8) * 255)
        save_picture(tmp_path / part / "masks/a.png", np.eye(32, dtype=np.uint8) * value)
    training, validation = (build_dataset("FOLDER", tmp_path, 16, split=split) for split in ("train", "val"))
    with pytest.raises(UserError, match="train/masks/a.png: its foreground is 1, that of .*val/masks/a.png is 2"):
        warn_of_data(training, validation)
