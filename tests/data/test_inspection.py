"""Inspection of a data set: photographs in place of masks, ranges without outliers, masks inside out, foregrounds."""

import numpy as np
import pytest
from conftest import LOADER, TINY, write_folder
from PIL import Image

from guided_diffusion.data import phantoms as phantom
from guided_diffusion.data.cases import group_cases
from guided_diffusion.data.inspection import inspect_unit
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.runtime.errors import UserError

WARNING = "of a photograph"


def inspected(folder):
    """The inspections of a FOLDER data set."""
    dataset = build_dataset("FOLDER", folder, 1)
    return [inspect_unit(dataset, unit) for unit in group_cases(dataset.cases)]


def test_a_range_leaves_out_a_few_outliers(pictures, tmp_path, save_picture):
    image = np.tile(np.arange(16, dtype=np.uint8), (64, 4))
    image[3, 4] = 255
    save_picture(tmp_path / "images/a.png", image)
    (one,) = inspected(tmp_path)
    assert one.high == [255] and one.typical == (0, 15)
    assert all(one.typical[1] > 100 for one in inspected(pictures))


def test_what_the_masks_are_written_as(tmp_path, save_picture):
    disc = np.hypot(*np.mgrid[-16:16, -16:16]) < 9
    for name, mask in {"a": disc * 255, "b": disc, "c": ~disc * 255, "d": disc * 0}.items():
        save_picture(tmp_path / f"images/{name}.png", np.eye(32, dtype=np.uint8) * 200)
        save_picture(tmp_path / f"masks/{name}.png", mask.astype(np.uint8))
    found = inspected(tmp_path)
    assert [list(one.foregrounds) for one in found] == [["255"], ["1"], ["255"], []]
    assert [one.is_inside_out for one in found] == [False, False, True, False]
    assert found[1].values == {0: (~disc).sum(), 1: disc.sum()} and found[3].empty == 1


@pytest.fixture
def trained_on(script, tmp_path, capsys):
    """A function (folder, data name, flags) that trains a step and returns the lines that warn of photographs."""

    def run(folder, data_name="FOLDER", flags=""):
        capsys.readouterr()
        line = [f"--data_name {data_name} --data_dir", folder, "--out_dir", tmp_path / f"run_{folder.name}", TINY]
        script("segmentation_train", [*line, "--max_steps 1", flags])
        return [line for line in capsys.readouterr().out.splitlines() if WARNING in line]

    return run


def test_swapped_folders_are_refused_by_training_and_check_data(trained_on, script, tmp_path, capsys):
    for name in ("whole", "swapped"):
        write_folder(tmp_path / name, 3)
    data = tmp_path / "swapped"
    for old, new in (("images", "x"), ("masks", "images"), ("x", "masks")):
        (data / old).rename(data / new)
    assert trained_on(tmp_path / "whole") == []
    with pytest.raises(UserError, match="case0.png: its colours .* are images/ and masks/ swapped"):
        trained_on(data)
    assert script("check_data", ["--data_dir", data, "--num_workers 0 --out_dir", tmp_path / "checked"]) == 1
    errors = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and all("are images/ and masks/ swapped" in line for line in errors)
    for path in (data / "masks").iterdir():
        Image.open(path).convert("L").save(path)
    with pytest.raises(UserError, match="case0.png: its values .* are the many greys of a photograph: are images/ and"):
        trained_on(data)


def test_photographs_are_label_maps_with_classes(trained_on, tmp_path):
    data = tmp_path / "data"
    write_folder(data, 4)
    for path in (data / "masks").iterdir():
        Image.open(data / "images" / path.name).convert("L").save(path)
    assert trained_on(data, flags="--classes lesion=120+130+140+150") == []


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
