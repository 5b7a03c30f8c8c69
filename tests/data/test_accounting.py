"""Every file below data_dir is used, known rubbish, or left over for a reason, and an odd one changes no other case."""

import json
import random
import shutil

import nibabel
import numpy as np
import pytest
from PIL import Image

from guided_diffusion.data.accounting import account
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.runtime.errors import UserError

RNG = np.random.default_rng(0)


def picture(path, size=(8, 10), grey=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = RNG.integers(0, 255, size if grey else (*size, 3)).astype(np.uint8)
    Image.fromarray(values).save(path)


def mask(path, size=(8, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((RNG.random(size) > 0.5).astype(np.uint8) * 255).save(path)


def volume(path, labels=False, shape=(6, 5, 3)):
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


def isic(root):
    for part in ("Training", "Test"):
        for k in range(2):
            name = f"ISIC_{k:07d}_{part}"
            picture(root / f"ISBI2016_ISIC_Part1_{part}_Data" / f"{name}.jpg", grey=False)
            mask(root / f"ISBI2016_ISIC_Part1_{part}_GroundTruth" / f"{name}_Segmentation.png")


def brats(root):
    for part, name in (
        ("training", "BraTS2021_00000"),
        ("training", "BraTS2021_00001"),
        ("testing", "BraTS2021_00002"),
    ):
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
