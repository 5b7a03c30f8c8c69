"""Every file below data_dir is used, known rubbish, or left over for a reason, and an odd one changes no other case."""

import json
import os
import random
import shutil
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from conftest import LOADER
from PIL import Image

from guided_diffusion.cli.sample_lines import print_sampling_summary
from guided_diffusion.cli.train import print_run_summary
from guided_diffusion.data import volumes
from guided_diffusion.data.accounting import account, walk, warn_of_left_over
from guided_diffusion.data.inspection import find_parts
from guided_diffusion.data.loaders.folder import FolderDataset
from guided_diffusion.data.registry import build_dataset, recognised
from guided_diffusion.runtime.distributed import Processes
from guided_diffusion.runtime.errors import NoCasesError, UserError

RNG = np.random.default_rng(0)


def picture(path, size=(8, 10), grey=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = RNG.integers(0, 255, size if grey else (*size, 3)).astype(np.uint8)
    Image.fromarray(values).save(path)


def mask(path, size=(8, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((RNG.random(size) > 0.5).astype(np.uint8) * 255).save(path)


def volume(path, labels=False, shape=(4, 5, 2)):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = RNG.integers(0, 2 if labels else 400, shape)
    nibabel.save(nibabel.Nifti1Image(values.astype(np.uint8 if labels else np.int16), np.eye(4)), path)


# ---- the layouts -------------------------------------------------------------------------------------------------


def folder_of_pictures(root):
    for name in ("a", "b", "Müller_1"):
        picture(root / "images" / f"{name}.png")
        mask(root / "masks" / f"{name}.png")


def folder_with_beside_masks(root):
    for kind in ("benign", "malignant"):
        for k in (1, 2):
            picture(root / kind / f"{kind} ({k}).png")
            mask(root / kind / f"{kind} ({k})_mask.png")


def folder_of_volumes(root):
    for name in ("p1", "p2"):
        volume(root / "images" / f"{name}.nii.gz")
        volume(root / "masks" / f"{name}_seg.nii.gz", labels=True)


def folder_of_patients(root):
    for part in ("train", "test"):
        for name in ("P1", "P2"):
            picture(root / part / "images" / name / f"{part}.png")
            mask(root / part / "masks" / name / f"{part}.png")


def folder_of_other_names(root):
    for name in "abc":
        picture(root / "imgs" / f"{name}.JPG")
        mask(root / "labels" / f"{name}.png")


def drive(root):
    for part, number in (("training", 21), ("training", 22), ("test", 11)):
        picture(root / part / "images" / f"{number}_{part}.tif")
        mask(root / part / "1st_manual" / f"{number}_manual1.png")
        mask(root / part / "mask" / f"{number}_{part}_mask.png")


def folder_of_raters(root):
    for name in "ab":
        picture(root / "data/images" / f"{name}.png")
        for rater in ("anna", "ben"):
            mask(root / "data/masks" / rater / f"{name}.png")


def isic(root):
    for part in ("Training", "Test"):
        for k in range(2):
            name = f"ISIC_{k:07d}_{part}"
            picture(root / f"ISBI2016_ISIC_Part1_{part}_Data" / f"{name}.jpg", grey=False)
            mask(root / f"ISBI2016_ISIC_Part1_{part}_GroundTruth" / f"{name}_Segmentation.png")


def brats(root):
    for part, name in (("training", "BraTS2021_00000"), ("testing", "BraTS2021_00002")):
        for kind in ("t1", "t1ce", "t2", "flair", "seg"):
            volume(root / part / name / f"{name}_{kind}.nii.gz", labels=kind == "seg")


def decathlon(root):
    for name in ("x_001", "x_002"):
        volume(root / "imagesTr" / f"{name}.nii.gz")
        volume(root / "labelsTr" / f"{name}.nii.gz", labels=True)
    volume(root / "imagesTs" / "x_003.nii.gz")
    listed = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in ("x_001", "x_002")]
    description = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "x"}, "training": listed}
    (root / "dataset.json").write_text(json.dumps(description))


LAYOUTS = {
    "FOLDER pictures": folder_of_pictures,
    "FOLDER beside": folder_with_beside_masks,
    "FOLDER volumes": folder_of_volumes,
    "FOLDER patients": folder_of_patients,
    "FOLDER other names": folder_of_other_names,
    "FOLDER drive": drive,
    "FOLDER raters": folder_of_raters,
    "ISIC": isic,
    "BRATS": brats,
    "MSD": decathlon,
}

# ---- the odd files: {name: a function of the path that makes it} ---------------------------------------------------


def text(content):
    return lambda path: path.write_text(content)


def link(target):
    return lambda path: path.symlink_to(target)


ODD_FILES = {
    ".DS_Store": text("x"),
    "Thumbs.db": text("x"),
    "desktop.ini": text("x"),
    "._a.png": text("x"),
    ".nfs0001": text("x"),
    ".gitkeep": text(""),
    ".hidden.png": picture,
    ".ipynb_checkpoints/a-checkpoint.png": picture,
    "__MACOSX/._a.png": text("x"),
    "LICENSE": text("x"),
    "README.md": text("x"),
    "checksums.md5": text("x"),
    "a_superpixels.png": picture,
    "report.pdf": text("x"),
    "notes.txt": text("x"),
    "patients.xlsx": text("x"),
    "clinical.csv": text("id,age\n"),
    "bak.zip": text("x"),
    "all.tar.gz": text("x"),
    "scan.dcm": text("x"),
    "scan.mha": text("x"),
    "scan.nrrd": text("x"),
    "slide.svs": text("x"),
    "photo.heic": text("x"),
    "photo.jp2": text("x"),
    "array.npy": text("x"),
    "IM0001": text("x"),
    "lost.png": link("gone/lost.png"),
    "lost.nii.gz": link("gone/lost.nii.gz"),
    "lost": link("gone"),
    "round": link("round"),
    "up": link("."),
    "stranger.png": picture,
    "stranger.nii.gz": volume,
    "a_mask_old.png": mask,
    "empty.png": text(""),
    "backup.png": lambda path: path.mkdir(),
    "train2/extra.png": picture,
    "Test_old/extra.png": picture,
    "old/extra_mask.png": mask,
    "images/x.png": picture,
    "imgs/x.png": picture,
    "masks/x.png": mask,
    "mask/x.png": mask,
    "gt/x.png": mask,
    "1st_manual/x.png": mask,
    "test/x.png": picture,
    "train/notes.txt": text("x"),
    "P9/x_mask.png": mask,
    "A.PNG": picture,
    "m.json": text("{}"),
    "model.pt": text("x"),
}


def reading(dataset):
    """{case: (files, image, mask)} as bytes."""
    found = {}
    for case in dataset.cases:
        files = tuple(path.name for path in (*case.images, *case.masks))
        truth = dataset.load_mask(case).tobytes() if case.masks else b""
        found[case.name] = (files, dataset.load_image(case).tobytes(), truth)
    return found


def where(account):
    """Every path of an `Account`."""
    return {*account.used, *account.rubbish, *(path for paths in account.left_over.values() for path in paths)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_odd_file_never_changes_the_reading_of_the_others(tmp_path, layout):
    chance = random.Random(layout)
    root = tmp_path / "data"
    root.mkdir()
    LAYOUTS[layout](root)
    name = layout.split()[0]
    whole = reading(build_dataset(name, root, 8))
    assert not account([build_dataset(name, root, 8)]).data_like
    folders = sorted({root, *(path for path in root.rglob("*") if path.is_dir())})
    refused = []
    for odd, write in ODD_FILES.items():
        path = chance.choice(folders) / odd
        below = str(path.relative_to(root))
        path.parent.mkdir(exist_ok=True)
        write(path)
        try:
            dataset = build_dataset(name, root, 8, need_masks=chance.random() < 0.5 and layout != "MSD")
            account_of = account([dataset])
            assert {key: value for key, value in reading(dataset).items() if key in whole} == whole, below
            parents = {below, *map(str, path.relative_to(root).parents)}
            if path.is_file() or path.is_symlink() and not path.exists():
                assert parents & where(account_of), below
        except UserError as error:
            refused.append(odd)
            assert path.name in str(error) or path.parent.name in str(error), f"{below}: {error}"
        finally:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            if path.parent not in folders:
                shutil.rmtree(path.parent)
    assert reading(build_dataset(name, root, 8)) == whole
    assert len(refused) < len(ODD_FILES) / 4


# ---- what is said --------------------------------------------------------------------------------------------------


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("x")


@pytest.fixture
def root(tmp_path):
    """A folder of three pictures and their masks."""
    folder_of_pictures(tmp_path / "data")
    return tmp_path / "data"


def of_folder(root, **keywords):
    return account([build_dataset("FOLDER", root, 8, **keywords)])


def test_links_without_a_target_are_named_and_counted(root, script, tmp_path, capsys):
    """As git-annex leaves files whose content was not fetched; also links to folders, in a circle and of documents."""
    for name in "efgh":
        (root / "images" / f"{name}.png").symlink_to(f"../.git/annex/objects/{name}.png")
    (root / "more").symlink_to("gone", target_is_directory=True)
    (root / "circle.nii.gz").symlink_to("circle.nii.gz")
    line = (
        "6 files are links without a target: circle.nii.gz, more, images/e.png and 3 more; fetch them (git annex get, "
        "git lfs pull) or remove them"
    )
    assert of_folder(root).error_lines() == [line]
    flags = ["--data_name FOLDER --data_dir", root]
    assert script("check_data", [*flags, "--num_workers 0 --out_dir", tmp_path / "checked"]) == 1
    assert f"error: {line}" in capsys.readouterr().out.splitlines()
    warning = (
        f"warning: 6 files of {root} are not used (6 links without a target, as circle.nii.gz); "
        "python scripts/check_data.py names them"
    )
    dataset = build_dataset("FOLDER", root, 8)
    options = SimpleNamespace(fsdp=False, augment="none", out_dir="run", max_minutes=0)
    run = SimpleNamespace(dataset=dataset, settings=SimpleNamespace(train=options), precision="fp32", plan=None)
    run.validation, run.start, run.warnings, run.units = None, None, (), []
    run.checkpoints = {"last.pt": SimpleNamespace(config={"data": {}})}
    for rank in (0, 1):
        processes = Processes(rank, 2, torch.device("cpu"))
        print_run_summary(run, torch.nn.Linear(1, 1), processes)
        assert capsys.readouterr().out.splitlines().count(warning) == (rank == 0)
        print_sampling_summary(run, [], processes)
        assert capsys.readouterr().out.splitlines().count(warning) == (rank == 0)


def test_a_case_whose_mask_was_not_fetched(root):
    (root / "masks/a.png").unlink()
    (root / "masks/a.png").symlink_to("gone.png")
    with pytest.raises(
        UserError, match="a.png: has no mask; .*; 1 file is a link without a target: masks/a.png; fetch"
    ):
        build_dataset("FOLDER", root, 8, need_masks=True)


def test_each_reason_has_its_line(root):
    picture(root / "masks/lost.png")
    mask(root / "masks/a_copy.png")
    picture(root / "train2/x.png")
    picture(root / "other/x.png")
    touch(root, "images/c.png.gz", "masks/scan.mha.bz2")
    touch(root, "images/scan.mgz", "images/IM0001", "images/b.npy", "code/model.pt", "notes.txt", "old.zip", ".secret")
    (root / "masks/none.png").write_bytes(b"")
    found = of_folder(root)
    assert {line.split(": ")[0]: line.split(": ")[1].split(";")[0] for line in found.error_lines()} == {
        "1 file is a second mask of an image": "masks/a_copy.png",
        "1 file is a mask that belongs to no image": "masks/lost.png",
        "1 file is empty (0 bytes)": "masks/none.png",
        "1 file is in a folder that looks like a part of the split and is none": "train2/x.png",
        "1 file is in no case": "other/x.png",
        "2 files are compressed": "images/c.png.gz, masks/scan.mha.bz2",
        "1 file is of a kind that is not read (.mgz)": "images/scan.mgz",
        "1 file is of a kind that is not read (.npy)": "images/b.npy",
        "1 file among the images has no suffix": "images/IM0001",
    }
    assert found.note() == (
        "files beside the data that are not read: 1 table or document, 1 archive, not unpacked, 1 of another kind, "
        "as code/model.pt, 1 hidden"
    )
    assert found.warning().startswith(f"warning: 10 files of {root} are not used (2 compressed, as im")


def test_a_folder_that_cannot_be_opened(root, monkeypatch):
    scandir = os.scandir
    (root / "closed").mkdir()

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert of_folder(root).error_lines() == ["1 file is a folder that cannot be opened: closed; change its permissions"]


def test_masks_of_another_spelling_are_masks_whatever_their_folder_is_called(tmp_path):
    isic(tmp_path)
    folder = tmp_path / "ISBI2016_ISIC_Part1_Training_GroundTruth"
    for path in sorted(folder.iterdir()):
        path.rename(path.with_name(path.name.replace("ISIC", "Lesion")))
    (line,) = account([build_dataset("ISIC", tmp_path, 8)]).error_lines()
    assert line.startswith("2 files are masks that belong to no image: ISBI2016_ISIC_Part1_Training_GroundTruth/Lesion")


def test_a_walk_enters_each_folder_once(root):
    (root / "images/again").symlink_to(root)
    (root / "latest").symlink_to(root / "images")
    found = walk(root)
    assert sorted(found.files) == sorted(
        f"{part}/{name}.png" for part in ("images", "masks") for name in ("Müller_1", "a", "b")
    )
    assert not of_folder(root).left_over


def test_our_own_output_inside_the_data_is_no_data(root):
    touch(root, "results/manifest.json", "results/report.html", "results/masks/a.png", "data_check/contact_sheet.png")
    touch(
        root, "run/config.yaml", "run/log.jsonl", "run/model000001.pt", "run/validation/step1.png", "images/.a.77.png"
    )
    assert not of_folder(root).left_over


def test_all_files_of_other_splits_are_accounted_for_without_reading_a_header(tmp_path, monkeypatch):
    brats(tmp_path)
    dataset = build_dataset("BRATS", tmp_path, 8, split="train")
    headers = []
    monkeypatch.setattr(volumes, "read_nifti_header", lambda path, **_: headers.append(path))
    assert not account([dataset]).left_over and not headers
    assert len(dataset.cases) == 2  # it has not changed


def test_held_out_cases_and_those_of_a_small_trial_are_used(root):
    dataset = build_dataset("FOLDER", root, 8, split="train")
    dataset.cases = dataset.cases[:1]  # as --overfit does
    assert not account([dataset]).left_over
    picture(root / "held/images/x.png")
    mask(root / "held/masks/x.png")
    assert len(account([dataset]).error_lines()) == 1
    assert not account([dataset, build_dataset("FOLDER", root / "held", 8)]).left_over  # as --val_dir does


def test_a_part_that_cannot_be_listed_is_said(tmp_path):
    for part in ("train", "test"):
        folder_of_pictures(tmp_path / part)
    mask(tmp_path / "test/masks/a_mask.png")
    line = account([build_dataset("FOLDER", tmp_path, 8, split="train")]).warning()
    assert "test/masks/a_mask.png: is a second mask of a.png beside a.png; keep one)" in line


# ---- a data set that is not all there ------------------------------------------------------------------------------


def test_only_a_training_part_is_checked_as_what_it_is(tmp_path, script, capsys):
    folder_of_pictures(tmp_path / "data/train")
    assert [part.name for part in find_parts("FOLDER", tmp_path / "data")] == ["train"]
    line = ["--data_dir", tmp_path / "data", "--num_workers 0 --out_dir", tmp_path / "checked"]
    assert script("check_data", line) == 0
    assert "warning: there is only a training part: nothing to sample; hold some out" in capsys.readouterr().out
    for parts in (("test",), ("val",), ("val", "test"), ("train", "val")):
        folder = tmp_path / "_".join(parts)
        for part in parts:
            folder_of_pictures(folder / part)
        assert {part.name for part in find_parts("FOLDER", folder)} == set(parts)


@pytest.mark.parametrize(
    "name, words",
    [
        ("images/slide.svs", "it holds 1 .svs file: export tiles as PNG"),
        ("images/a.heic", "it holds 1 .heic file: save them as PNG or TIFF"),
        ("images/a.mgz", "it holds 1 .mgz file: export NIfTI"),
        ("data.zip", "it holds the archive data.zip: unpack it"),
        ("images/a.h5", "it holds 1 .h5 file: write a loader of your own"),
    ],
)
def test_a_folder_without_cases_says_what_it_holds(tmp_path, name, words):
    touch(tmp_path, name)
    with pytest.raises(NoCasesError, match=f"no cases found for FOLDER; .*; {words}"):
        build_dataset("FOLDER", tmp_path, 8)
    (tmp_path / "images").rename(tmp_path / "pixels") if "/" in name else None
    with pytest.raises(UserError, match=f"name a loader with --data_name; {words}"):
        recognised("AUTO", tmp_path)
    (tmp_path / "images").mkdir()
    picture(tmp_path / "deeper/pixels/a.png")
    if name == "images/a.h5":
        (tmp_path / "pixels/a.h5").unlink()
        with pytest.raises(NoCasesError, match="; pictures or volumes are elsewhere: deeper/pixels/ has 1; rename or"):
            build_dataset("FOLDER", tmp_path, 8)
    (tmp_path / "images/a.png").symlink_to("gone")
    with pytest.raises(NoCasesError, match="; 1 file is a link without a target: images/a.png; fetch"):
        build_dataset("FOLDER", tmp_path, 8)


# ---- loaders of users' own -----------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """A function (changes to the loader's text) that builds a data set of two cases with a loader of one's own."""
    for name in ("p1", "p2"):
        picture(tmp_path / "data" / name / "photo.png", grey=False)
        mask(tmp_path / "data" / name / "truth.png")

    def build(old="", new="", **keywords):
        (tmp_path / "own.py").write_text(LOADER.replace(old, new))
        return build_dataset(f"{tmp_path / 'own.py'}:Polyps", tmp_path / "data", 8, **keywords)

    return build


def test_a_loader_of_ones_own_is_not_alarmed_by_what_it_uses(own, tmp_path):
    touch(tmp_path / "data", "p1/scan.dcm", "p1/table.h5", "p2/IM0001", "p2/notes.txt")
    assert not account([own()]).data_like
    assert not account([own("sorted(self.data_dir", "sorted(self.data_dir.resolve()")]).data_like
    picture(tmp_path / "data/p2/second.png")
    assert account([own()]).error_lines() == [
        "1 file is in no case: p2/second.png; give each a case in find_cases, or name what is no data in the loader's "
        "other_files"
    ]
    assert not account([own("image_channels = 3", "image_channels = 3\n    other_files = ('SECOND.*',)")]).data_like


def test_links_and_folders_that_a_loader_of_ones_own_gives_as_files(own, tmp_path):
    (tmp_path / "data").rename(tmp_path / "real")
    (tmp_path / "data").symlink_to("real")
    (tmp_path / "real/p3").symlink_to("p1")
    resolved = own("Case(image.parent.name, (image,)", "Case(image.parent.name, (image.resolve(),)")
    assert not account([resolved]).data_like
    assert not account([own("(image,), (truth,)", "(image.parent,), (truth,)")]).data_like


def test_a_loader_of_ones_own_that_knows_only_some_splits(own):
    splits = "self.data_dir.glob({'train': 'p1/photo.png', 'test': 'p2/photo.png'}[self.split])"
    assert not account([own('self.data_dir.glob("*/photo.png")', splits, split="train")]).data_like


def test_the_warning_is_one_line(own, tmp_path, capsys):
    warn_of_left_over(own())
    assert capsys.readouterr().out == ""
    for k in range(7):
        picture(tmp_path / f"data/p1/x{k}.png")
    warn_of_left_over(own())
    assert capsys.readouterr().out == (
        f"warning: 7 files of {tmp_path / 'data'} are not used (7 in no case, as p1/x0.png); "
        "python scripts/check_data.py names them\n"
    )


def test_a_loader_of_ones_own_that_takes_some_cases_alone(tmp_path, save_picture):
    for name in ("a", "b"):
        for kind in ("images", "masks"):
            save_picture(tmp_path / kind / f"{name}.png", np.eye(4, dtype=np.uint8) * 255)

    class Some(FolderDataset):
        def find_cases(self):
            return super().find_cases()[:1]

    (line,) = account([Some(tmp_path, 4)]).error_lines()
    assert line.startswith("2 files are in no case: images/b.png, masks/b.png; give each a case in find_cases, or name")
