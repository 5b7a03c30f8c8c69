"""Inspection of a data set: photographs in place of masks, as where images/ and masks/ are swapped, are found."""

import io

import numpy as np
import pytest
from conftest import LOADER, TINY, write_folder
from PIL import Image, ImageFilter

from guided_diffusion.data import phantoms as phantom
from guided_diffusion.data.inspection import like_photograph

WARNING = "of a photograph"


def picture(image):
    values = np.asarray(image.convert("RGB"), np.float32)
    return values.transpose(2, 0, 1)


def as_jpeg(mask, quality):
    data = io.BytesIO()
    mask.save(data, "JPEG", quality=quality)
    return Image.open(data)


def with_background(image):
    """The image as a small head on black."""
    values = np.asarray(image).copy()
    rows, columns = np.mgrid[-1 : 1 : values.shape[0] * 1j, -1 : 1 : values.shape[1] * 1j]
    values[rows**2 + columns**2 > 0.45] = 0
    return Image.fromarray(values)


@pytest.mark.parametrize("size", [32, 256])
@pytest.mark.parametrize("index", range(3))
def test_photographs_differ_from_masks_however_they_were_saved(index, size):
    image, mask, _ = phantom.isic_case(index, size=size)
    image, mask = Image.fromarray(image), Image.fromarray(mask.astype(np.uint8) * 255)
    photographs = [image, image.convert("L"), as_jpeg(image, 30), with_background(image)]
    grey = Image.fromarray(np.asarray(mask) // 2 + 60)  # background 60, foreground 187
    larger = mask.resize((4 * mask.width, 4 * mask.height), Image.Resampling.BICUBIC)
    smaller = mask.resize((mask.width // 2, mask.height // 2), Image.Resampling.BOX)
    blurred = mask.filter(ImageFilter.GaussianBlur(size / 32))
    masks = [mask, grey, larger, smaller, blurred, *(as_jpeg(mask, quality) for quality in (10, 50, 90))]
    assert [like_photograph(picture(one)) for one in photographs] == [True] * 4
    assert [like_photograph(picture(one)) for one in masks] == [False] * 8


@pytest.fixture
def trained_on(script, tmp_path, capsys):
    """A function (folder, data name, flags) that trains a step and returns the lines that warn of photographs."""

    def run(folder, data_name="FOLDER", flags=""):
        capsys.readouterr()
        line = [f"--data_name {data_name} --data_dir", folder, "--out_dir", tmp_path / f"run_{folder.name}", TINY]
        script("segmentation_train", [*line, "--max_steps 1", flags])
        return [line for line in capsys.readouterr().out.splitlines() if WARNING in line]

    return run


def test_swapped_folders_are_warned_of(trained_on, script, tmp_path, capsys):
    for name in ("whole", "swapped"):
        write_folder(tmp_path / name, 5)
    data = tmp_path / "swapped"
    for old, new in (("images", "x"), ("masks", "images"), ("x", "masks")):
        (data / old).rename(data / new)
    assert trained_on(tmp_path / "whole") == []
    assert trained_on(data) == [
        f"warning: 4 of 4 masks looked at have the many greys of a photograph, as {data / 'masks' / 'case0.png'}: are "
        "images/ and masks/ swapped, or these the wrong files? python scripts/check_data.py draws them"
    ]
    assert script("check_data", ["--data_dir", data, "--num_workers 0 --out_dir", tmp_path / "checked"]) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "greys" in line]
    assert warnings == [
        "warning: all: 5 masks with the many greys of a photograph: case0, case1, case2, case3, case4; are images/ and "
        "masks/ swapped, or these the wrong files?"
    ]


def test_one_odd_mask_among_several_and_label_maps_are_not(trained_on, tmp_path):
    data = tmp_path / "data"
    write_folder(data, 4)
    (data / "masks" / "case0.png").write_bytes((data / "images" / "case0.png").read_bytes())
    assert trained_on(data) == []  # check_data names it
    for path in (data / "masks").iterdir():
        Image.open(data / "images" / path.name).convert("L").save(path)
    data.rename(tmp_path / "maps")
    assert trained_on(tmp_path / "maps", flags="--classes lesion=120+130+140+150") == []


def test_masks_in_files_that_are_no_pictures(trained_on, script, tmp_path, save_picture, capsys):
    """A loader of one's own may read anything."""
    loader = LOADER.replace('"truth.png"', '"truth.npy"').replace(
        "read_picture_mask(case.masks[0])", "__import__('numpy').load(case.masks[0])"
    )
    (tmp_path / "own.py").write_text(loader)
    for index in range(2):
        image, mask, _ = phantom.isic_case(index, size=32)
        np.save(save_picture(tmp_path / "own" / f"p{index}" / "photo.png", image).with_name("truth.npy"), mask)
    name = f"{tmp_path / 'own.py'}:Polyps"
    assert trained_on(tmp_path / "own", name) == []
    line = ["--data_name", name, "--data_dir", tmp_path / "own", "--num_workers 0 --out_dir", tmp_path / "checked"]
    assert script("check_data", line) == 0 and "0 errors, 1 warning" in capsys.readouterr().out
