"""docs/custom_dataset.md and docs/data.md keep their word: the loader runs as it stands, the messages are as said."""

import json
import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import FAST, TINY, rows
from PIL import Image

from guided_diffusion.data import phantoms as phantom
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.splits import HoldOut
from guided_diffusion.runtime.errors import UserError

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = (DOCS / "custom_dataset.md").read_text(encoding="utf-8")


# ---- the guide ---------------------------------------------------------------------------------------------------


def commands(name):
    """The commands of the guide that call a script, a list of words each."""
    text = GUIDE.replace("\\\n", " ")
    return [line.split()[2:] for line in text.splitlines() if line.startswith(f"python scripts/{name}.py ")]


def given(words, flag):
    return words[words.index(flag) + 1]


def test_the_guide_works_as_it_stands(script, tmp_path, monkeypatch, capsys):
    """Its file and its commands, but for the size of the network and the number of steps."""
    monkeypatch.chdir(tmp_path)
    (loader,) = re.findall(r"```python\n(# my_loader.py\n.*?)```", GUIDE, re.DOTALL)
    Path("my_loader.py").write_text(loader)
    for index in range(8):
        folder = Path("POLYPS") / f"patient{index // 2:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        image, mask, _ = phantom.isic_case(index, size=32)
        Image.fromarray(image).save(folder / f"frame{index:03d}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"frame{index:03d}_mask.png")

    (check,) = commands("check_data")
    assert script("check_data", [*check, "--num_workers 0"]) == 0
    said = capsys.readouterr().out
    assert "patients or groups" in said and "0 errors, 0 warnings" in said
    assert Path("data_check/contact_sheet.png").exists()

    (train,) = commands("segmentation_train")
    kept = [
        word
        for flag in ("--data_name", "--data_dir", "--val_fraction", "--out_dir")
        for word in (flag, given(train, flag))
    ]
    script("segmentation_train", [*kept, TINY, "--max_steps 2 --lr 1e-2"])
    assert f"--out_dir {given(train, '--out_dir')} " in " ".join(train) + " "
    (sample,) = commands("segmentation_sample")
    script("segmentation_sample", [*sample, FAST])
    held = build_dataset("my_loader.py:Polyps", "POLYPS", 32, split="val", hold_out=HoldOut(0.25))
    assert len({case.group for case in held.cases}) * 2 == len(held) and len(held) in (2, 4, 6)
    (evaluate,) = commands("segmentation_eval")
    script("segmentation_eval", evaluate)
    assert [row["name"] for row in rows(Path(given(evaluate, "--pred_dir")))] == [case.name for case in held.cases]


def test_the_guide_s_volumes_are_checked_and_their_masks_lie_over_them(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (loader,) = re.findall(r"```python\n(# my_volumes.py\n.*?)```", GUIDE, re.DOTALL)
    Path("my_volumes.py").write_text(loader)
    affine = np.array([[-0.8, 0, 0, 40], [0, -0.8, 0.1, 30], [0, 0.2, 2.5, -20], [0, 0, 0, 1]])
    for index in (1, 2):
        rng, folder = np.random.default_rng(index), Path(f"SCANS/P{index}")
        folder.mkdir(parents=True)
        mask = np.zeros((24, 20, 3), bool)
        mask[5 : 12 + index, 6:14, :2] = True
        np.save(folder / "image.npy", (rng.normal(0, 30, mask.shape) + 100 * mask).astype(np.int16))
        np.save(folder / "mask.npy", mask)
        np.save(folder / "affine.npy", affine)
    data = "--data_name my_volumes.py:Scans --data_dir SCANS"
    assert script("check_data", f"{data} --out_dir checked --num_workers 0") == 0
    assert "0 errors" in capsys.readouterr().out
    script("segmentation_train", f"{data} --out_dir run {TINY} --max_steps 1")
    script("segmentation_sample", f"--model_path run/last.pt {data} --out_dir out {FAST}")
    written = nibabel.load("out/P2_seg.nii.gz")
    assert written.shape == (24, 20, 3)
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)


# ---- the messages ------------------------------------------------------------------------------------------------


class Spoilt:
    """Writes a data set of two images below `folder`, which a scenario then spoils."""

    def __init__(self, folder):
        self.folder = folder

    def picture(self, path, array):
        path = self.folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)

    def nifti(self, path, array, axes=(1, 1, 1)):
        path = self.folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nibabel.Nifti1Image(array, np.eye(4))
        image.set_sform(np.diag([*axes, 1]))
        nibabel.save(image, path)

    def pair(self, name, image=None, mask=None, rater=""):
        self.picture(f"images/{name}.png", IMAGE if image is None else image)
        self.picture(Path("masks") / rater / f"{name}.png", MASK if mask is None else mask)

    def write(self, path, text):
        (self.folder / path).write_text(text if isinstance(text, str) else json.dumps(text))

    def cut(self, path):
        data = (self.folder / path).read_bytes()
        (self.folder / path).write_bytes(data[: len(data) // 2])

    def patches(self, patient=("P1", "P2"), **arrays):
        images = np.zeros((2, 16, 16), np.uint8)
        arrays = {"images": images, "masks": images[:, None, :, :2], "is_test": np.array([0, 1]), **arrays}
        np.savez(self.folder / "data.npz", patient=np.array(patient), **arrays)

    def brats(self, shapes=(), kinds=("t1", "t1ce", "t2", "flair", "seg")):
        for kind in kinds:
            self.nifti(f"P/P_{kind}.nii.gz", np.ones(dict(shapes).get(kind, (6, 8, 5)), np.uint8))

    def task(self, **description):
        self.nifti("imagesTr/a.nii.gz", np.ones((6, 8, 2), np.uint8))
        self.nifti("labelsTr/a.nii.gz", np.ones((6, 8, 2), np.uint8))
        training = [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]
        self.write("dataset.json", {"modality": {"0": "MRI"}, "training": training, **description})


IMAGE = np.zeros((20, 30, 3), np.uint8)
MASK = np.eye(20, 30, dtype=np.uint8) * 255
CLASSES = np.eye(20, 30, dtype=np.uint8) + 2 * np.eye(20, 30, 5, dtype=np.uint8)
TRUTH = "ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_0000000_Segmentation.png"
PART1, PART3B = (f"ISBI2016_ISIC_{part}_Training_Data/ISIC_0000000.jpg" for part in ("Part1", "Part3B"))


def cut_short(data):
    data.pair("a")
    data.pair("b")
    data.cut("images/b.png")


def listed(split):
    def spoil(data):
        data.pair("a")
        data.write("split.json", split)

    return spoil


def without_label(data):
    data.pair("a")
    data.pair("b")
    data.write("labels.csv", "a,benign\n")


def rater_lacks(data):
    for name, rater in (("a", "anna"), ("a", "ben"), ("b", "anna")):
        data.pair(name, rater=rater)


def masks_and_folders(data):
    data.pair("a")
    data.pair("a", rater="anna")


def csv_lacks(data):
    data.picture(PART3B, IMAGE)
    data.write("ISBI2016_ISIC_Part3B_Training_GroundTruth.csv", "ISIC_0000009,benign\n")


def of_two_years(data):
    for path in (PART1, "ISIC-2017_Training_Data/ISIC_0000000.jpg", TRUTH):
        data.picture(path, IMAGE)


def not_finite(data):
    data.brats()
    data.nifti("P/P_t2.nii.gz", np.full((6, 8, 5), np.nan, np.float32))


def placed_nowhere(data):
    data.brats()
    data.nifti("P/P_t2.nii.gz", np.ones((6, 8, 5), np.uint8), axes=(1, 1, 0))


def nifti_beside(data):
    data.pair("a")
    data.nifti("images/c.nii.gz", np.ones((4, 4, 2), np.uint8))


OWN = """
from guided_diffusion.data import Case, SegmentationDataset


class Polyps(SegmentationDataset):
    def find_cases(self):
        name = NAME
        return [Case(name, (self.data_dir,), (self.data_dir,))]

    def read_mask(self, case):
        return True

    def read_image(self, case):
        return IMAGE
"""


def fails(name="'a'", image="None"):
    return lambda data: data.write("my_loader.py", OWN.lstrip().replace("NAME", name).replace("IMAGE", image))


# (layout, what is wrong) of the table: what makes it so.
SCENARIOS = {
    ("any", "a folder that is not there"): lambda data: None,
    ("AUTO", "an unknown layout"): lambda data: None,
    ("FOLDER", "an image without a mask"): lambda data: (data.pair("a"), data.picture("images/b.png", IMAGE)),
    ("FOLDER", "two masks of an image"): lambda data: (data.pair("a"), data.picture("masks/a_mask.png", MASK)),
    ("FOLDER", "a file cut short"): cut_short,
    ("FOLDER", "a mask of another size"): lambda data: data.pair("a", mask=MASK.T.copy()),
    ("FOLDER", "class numbers in a mask, without `--classes`"): lambda data: data.pair("a", mask=CLASSES),
    ("FOLDER", "a file name that is not in UTF-8"): lambda data: data.pair(os.fsdecode(b"caf\xe9")),
    ("FOLDER", "grey among colour"): lambda data: (data.pair("a"), data.pair("b", image=MASK)),
    ("FOLDER", "pictures and NIfTI"): nifti_beside,
    ("FOLDER", "a name in two lists"): listed({"train": ["a"], "test": ["a"]}),
    ("FOLDER", "a name without an image"): listed({"train": ["a", "lost"], "test": []}),
    ("FOLDER", "a label that lacks"): without_label,
    ("FOLDER", "a rater's mask that lacks"): rater_lacks,
    ("FOLDER", "masks beside folders of masks"): masks_and_folders,
    ("FOLDER", "all in one group"): lambda data: (data.pair("P1"), data.pair("P2")),
    ("ISIC", "an image without a mask"): lambda data: data.picture(PART1, IMAGE),
    ("ISIC", "a label that lacks"): csv_lacks,
    ("ISIC", "an image of 2016 and of 2017"): of_two_years,
    ("BRATS", "a modality that lacks"): lambda data: data.brats(kinds=("t1", "t2", "flair")),
    ("BRATS", "files of different shapes"): lambda data: data.brats(shapes={"t2": (6, 8, 4)}),
    ("BRATS", "values that are no numbers"): not_finite,
    ("BRATS", "an affine that places nothing"): placed_nowhere,
    ("LIDC", "masks that are not packed"): lambda data: data.patches(masks=np.zeros((2, 1, 16, 16), np.uint8)),
    ("LIDC", "a patient on both sides"): lambda data: data.patches(patient=("P1", "P1")),
    ("MSD", "no modality"): lambda data: data.task(modality={}),
    ("MSD", "a file that lacks"): lambda data: data.task(training=[{"image": "imagesTr/gone.nii.gz"}]),
    ("MSD", "other channels than dataset.json says"): lambda data: data.task(modality={"0": "T1", "1": "T2"}),
    ("your own", "no such class"): lambda data: data.write("my_loader.py", "class Other: pass\n"),
    ("your own", "an error in the file"): lambda data: data.write("my_loader.py", "x = 1\nimport not_there\n"),
    ("your own", "an exception for a case"): fails(image="[][1]"),
    ("your own", "an exception in `find_cases`"): fails(name="1 / 0"),
}
TABLE = [
    tuple(cell.strip() for cell in row.strip("|").split(" | "))
    for row in (DOCS / "data.md").read_text(encoding="utf-8").split("## Messages about bad files")[1].splitlines()
    if row.startswith("| ")
][1:]


def test_every_scenario_is_in_the_table():
    assert [(layout, wrong) for layout, wrong, _ in TABLE] == list(SCENARIOS)


@pytest.mark.parametrize("layout, wrong, said", TABLE, ids=[f"{row[0]}: {row[1]}" for row in TABLE])
def test_the_messages_are_those_in_the_table(tmp_path, layout, wrong, said):
    SCENARIOS[layout, wrong](Spoilt(tmp_path))
    name = {"any": "FOLDER", "your own": f"{tmp_path}/my_loader.py:Polyps"}.get(layout, layout)
    folder = tmp_path / "gone" if layout == "any" else tmp_path
    settings = {"hold_out": HoldOut(0.5, group_key="^P")} if wrong == "all in one group" else {}
    with pytest.raises(UserError) as error:
        dataset = build_dataset(name, folder, 16, split="train", need_masks=True, **settings)
        for index in range(len(dataset)):
            dataset[index]
    message = str(error.value).replace(f"{tmp_path}/", "").replace(f"{tmp_path}: ", "")
    pattern = ".*".join(re.escape(part) for part in said.strip("`").split("..."))
    assert re.search(pattern, message), message
    assert "\n" not in str(error.value)
