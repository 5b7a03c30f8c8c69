"""Loaders by name: the project's, those of installed packages, and AUTO."""

import pickle
import shutil
import sys

import numpy as np
import pytest
from conftest import LOADER, TINY

from guided_diffusion.data.dataset import SegmentationDataset
from guided_diffusion.data.phantoms import write_lidc
from guided_diffusion.data.registry import ENTRY_POINTS, build_dataset, find_loader, recognised
from guided_diffusion.runtime.errors import UserError

# ---- loaders of installed packages -------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function (module text, entry points) that installs a distribution with loaders into a folder on the path."""

    def install(text, points):
        site = tmp_path / "site"
        (site / "clinic_loaders-1.0.dist-info").mkdir(parents=True)
        (site / "clinic_loaders.py").write_text(text)
        (site / "clinic_loaders-1.0.dist-info" / "METADATA").write_text("Name: clinic-loaders\nVersion: 1.0\n")
        (site / "clinic_loaders-1.0.dist-info" / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n{points}\n")
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, "clinic_loaders", raising=False)

    return install


def test_an_installed_package_registers_its_loaders(tmp_path, installed, save_picture):
    recognises = "    @classmethod\n    def recognises(cls, data_dir):\n        return (data_dir / 'clinic').is_dir()\n"
    installed(LOADER + recognises, "polyps = clinic_loaders:Polyps")
    for name in ("p1", "p2"):
        save_picture(tmp_path / "clinic" / name / "photo.png", np.full((24, 40, 3), 255, np.uint8))
    dataset = build_dataset("Polyps", tmp_path / "clinic", 32)
    assert [case.name for case in dataset.cases] == ["p1", "p2"] and dataset.class_names == ("polyp",)
    (tmp_path / "own" / "clinic").mkdir(parents=True)
    assert recognised("AUTO", tmp_path / "own") == "POLYPS"
    with pytest.raises(UserError, match="use BRATS, .*AUTO, POLYPS or path/to/my_loader.py"):
        find_loader("nodules")


@pytest.mark.parametrize(
    "text, points, words",
    [
        ("import not_there", "bad = clinic_loaders:Bad", "clinic_loaders:Bad of an installed package fails: No module"),
        ("class Bad: pass", "bad = clinic_loaders:Bad", "clinic_loaders has no class Bad that extends Segmentation"),
        ("", "bad = clinic_loaders:Bad", "clinic_loaders:Bad of an installed package fails: "),
    ],
)
def test_a_package_whose_loader_fails_is_named(installed, text, points, words):
    installed(text, points)
    with pytest.raises(UserError, match=f"--data_name bad: {words}"):
        find_loader("bad")


# ---- AUTO --------------------------------------------------------------------------------------------------------


def test_layouts_are_found_by_themselves(tmp_path, isic, brats, slices, pictures):
    write_lidc(tmp_path / "lidc", 1, 1, size=32)
    expected = [
        (isic, "ISIC", "ISIC 2016 Part 1 Test, ISIC 2016 Part 1 Training, with the labels of Part 3B"),
        (brats, "BRATS", "3 volumes with the names of BraTS to 2021"),
        (slices, "BRATS", "5 slices with the names of BraTS to 2021"),
        (pictures, "FOLDER", "folder of 4 pictures, not divided"),
        (tmp_path / "lidc", "LIDC", "LIDC patches in lidc4_phantom.npz, 4 raters"),
    ]
    for folder, name, layout in expected:
        assert recognised("auto", folder) == name
        assert build_dataset("AUTO", folder, 32).layout == layout
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: is in none of the layouts MSD, ISIC, LIDC, BRATS, FOLDER; name a"):
        recognised("AUTO", tmp_path / "empty")
    with pytest.raises(UserError, match="gone: no such folder"):
        recognised("AUTO", tmp_path / "gone")


def test_training_recognises_the_folder_and_says_as_what(tmp_path, isic, slices, script, capsys):
    for folder, name in ((isic, "ISIC"), (slices / "training", "BRATS")):  # the latter as in the published command
        script("segmentation_train", ["--data_dir", folder, "--out_dir", tmp_path / name, TINY, "--dry_run"])
        out = capsys.readouterr().out
        assert f"data_name: {name}\n" in out and f", read as {name}\n" in out


def test_two_layouts_in_a_folder_are_named(tmp_path, isic, slices, refusal):
    for folder in (isic, slices):
        shutil.copytree(folder, tmp_path / "both" / folder.name)
    line = refusal("segmentation_train", ["--data_dir", tmp_path / "both", "--out_dir", tmp_path / "run"])
    assert line == (
        f"error: {tmp_path / 'both'}: has the layouts of ISIC and BRATS; choose one with --data_name ISIC or "
        "--data_name BRATS"
    )


def test_a_file_is_no_folder_to_recognise(tmp_path, pictures, refusal):
    line = ["--data_dir", pictures / "images" / "case0.png", "--out_dir", tmp_path / "run"]
    assert "case0.png: is a file; --data_dir must name the folder" in refusal("segmentation_train", line)
    line.append("--data_name FOLDER")
    assert "case0.png: is a file; --data_dir must name the folder" in refusal("segmentation_train", line)


@pytest.mark.parametrize("name", ["ISIC", "isic", "BRATS", "FOLDER", "LIDC"])
def test_named_loaders_can_be_found_and_pickled(name):
    loader = find_loader(name)
    assert issubclass(loader, SegmentationDataset) and pickle.loads(pickle.dumps(loader)) is loader


def test_unknown_loaders_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(UserError, match="--data_name CAMUS: unknown; use BRATS, ISIC, FOLDER, LIDC, MSD, AUTO or path"):
        find_loader("CAMUS")
    with pytest.raises(UserError, match="none.py: no such file"):
        find_loader(f"{tmp_path}/none.py:A")
    (tmp_path / "bad.py").write_text("x = 1\nclass A(:\n")
    with pytest.raises(UserError, match="bad.py: line 2: "):
        find_loader(f"{tmp_path}/bad.py:A")
    (tmp_path / "gone.py").write_text("x = 1\nimport not_installed_anywhere\n")
    with pytest.raises(UserError, match="gone.py: line 2: ModuleNotFoundError: No module named 'not_installed"):
        find_loader(f"{tmp_path}/gone.py:A")
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "two.py").write_text("import beside\n")
    with pytest.raises(UserError, match=f"named 'beside'; it lies beside the loader: set PYTHONPATH={tmp_path}$"):
        find_loader(f"{tmp_path}/two.py:A")
    (tmp_path / "other.py").write_text("class A: pass\n")
    for name in ("A", "B"):
        with pytest.raises(UserError, match=f"other.py has no class {name} that extends .*; it has none"):
            find_loader(f"{tmp_path}/other.py:{name}")
    (tmp_path / "mine.py").write_text(LOADER)
    with pytest.raises(UserError, match="mine.py has no class polyps that extends SegmentationDataset; it has Polyps$"):
        find_loader(f"{tmp_path}/mine.py:polyps")
