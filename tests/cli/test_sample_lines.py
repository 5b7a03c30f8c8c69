"""What sampling prints: warnings of changed images, of empty masks, and of images that a tag turns."""

import os
import shutil
import time

import torch
from conftest import FAST, write_folder
from PIL import Image

from guided_diffusion.checkpoint import load_checkpoint, save_checkpoint
from guided_diffusion.cli.sample_lines import turned_line
from guided_diffusion.data.cases import group_cases
from guided_diffusion.data.registry import build_dataset


def test_a_case_whose_image_changed_after_it_was_finished_is_said(sample, trained, pictures, capsys, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(pictures, copied)
    sample(trained, copied, f"{FAST} --num_samples 2")
    capsys.readouterr()
    sample(trained, copied, f"{FAST} --num_samples 2")
    assert "newer than the mask" not in "".join(capsys.readouterr())
    image = next((copied / "images").glob("case1.*"))
    os.utime(image, (image.stat().st_atime, time.time() + 1))
    sample(trained, copied, f"{FAST} --num_samples 2")
    assert "warning: 1 finished case, as case1, has an image newer than the mask" in "".join(capsys.readouterr())


def test_empty_masks_are_warned_of(sample, trained, pictures, tmp_path, capsys):
    checkpoint = load_checkpoint(trained)
    for state in (checkpoint.model, *checkpoint.ema.values()):
        state["head.conv.bias"] = torch.full_like(state["head.conv.bias"], -50)
    save_checkpoint(checkpoint, tmp_path / "black.pt")
    sample(tmp_path / "black.pt", pictures)
    assert "4 of 4 masks are empty" in capsys.readouterr().out
    sample(trained, pictures, out="others")
    assert "4 of 4 masks are empty" not in capsys.readouterr().out


def test_images_that_a_tag_turns_are_named(tmp_path):
    write_folder(tmp_path, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "images/case1.png"
    Image.open(path).save(path, exif=exif)
    units = group_cases(build_dataset("FOLDER", tmp_path, 16).cases)
    assert turned_line(units[:1]) == ""
    assert turned_line(units) == (
        "1 image with an EXIF tag that turns or mirrors them (case1): they are read, and their masks written, as they "
        "are shown, not as they are stored"
    )
