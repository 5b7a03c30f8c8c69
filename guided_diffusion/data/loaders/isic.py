"""Dermoscopy: the published folder layouts of ISIC 2016 (Part 1 and Part 3B), 2017 and 2018."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...io.files import list_files, read_csv, split_suffix
from ...io.images import PICTURE_SUFFIXES, read_picture, read_picture_mask, stacked
from ...runtime.errors import NoSplitError, UserError
from ..cases import Case
from ..dataset import SegmentationDataset
from ..truth import RaterFolders, files_by_name

# Name: (image folder, ground truth folder beside it). The regular expression's group is the part.
LAYOUTS = {
    "ISIC 2016 Part 1": (r"ISBI2016_ISIC_Part1_(Training|Test)_Data", r"ISBI2016_ISIC_Part1_\1_GroundTruth"),
    "ISIC 2016 Part 3B": (r"ISBI2016_ISIC_Part3B_(Training|Test)_Data", r"ISBI2016_ISIC_Part3B_\1_Data"),
    "ISIC 2017": (r"ISIC-2017_(Training|Validation|Test_v2)_Data", r"ISIC-2017_\1_Part1_GroundTruth"),
    "ISIC 2018": (r"ISIC2018_Task1-2_(Training|Validation|Test)_Input", r"ISIC2018_Task1_\1_GroundTruth"),
}

LABEL_FILE = "ISBI2016_ISIC_Part3B_{part}_GroundTruth.csv"
LABELS = {"benign": 0, "0": 0, "0.0": 0, "malignant": 1, "1": 1, "1.0": 1}


class ISICDataset(SegmentationDataset):
    """Skin lesions: photographs [3, H, W] in [-1, 1] with one lesion mask each.

    data_dir is, or holds at any depth, image folders named as in `LAYOUTS`. `split` picks the folders of its part;
    "test" means the validation folders if there are no test folders. If data_dir holds one part only, such as
    DATA/Train, that part is used for training and testing. With split None all folders are used.

    Masks are `NAME_Segmentation.png` in the ground truth folder, or in a sub-folder of it for each rater. Sampling
    needs none. If every image folder has the CSV file of Part 3B inside or beside it, each case has a label, benign or
    malignant. This also holds for Part 1, whose images are the same.
    """

    data_name = "ISIC"
    class_names = ("lesion",)
    orientation = "any"
    finds_validation = True

    @classmethod
    def recognises(cls, data_dir):
        """Whether the folder, or one below it, is named as in `LAYOUTS`."""
        return bool(_image_folders(data_dir))

    def find_cases(self):
        folders = self._pick(_image_folders(self.data_dir))
        cases = [case for folder, truth, _ in folders for case in _cases_in(folder, truth, self.need_masks)]
        if not folders:
            return []
        tables = [_read_labels(folder, part) for folder, _, part in folders]
        self.layout = ", ".join(sorted({f"{_layout_name(folder)} {part}" for folder, _, part in folders}))
        if None in tables:
            return cases
        self.layout += ", with the labels of Part 3B"
        self.label_names = ("benign", "malignant")
        labels = {name: label for table in tables for name, label in table.items()}
        return [_with_label(case, labels) for case in cases]

    def read_image(self, case):
        image = read_picture(case.images[0])
        return np.repeat(image, 3, axis=0) if image.shape[0] == 1 else image

    def read_mask(self, case):
        return stacked(case.masks, [read_picture_mask(path) for path in case.masks])[:, None]

    def expected_layout(self):
        return (
            "it must hold, at any depth, pairs of folders such as ISBI2016_ISIC_Part1_Training_Data and "
            "ISBI2016_ISIC_Part1_Training_GroundTruth with JPEG images and PNG masks"
        )

    def expected_mask(self, case):
        return str(_truth_folder(case.images[0].parent)[0] / f"{case.name}_Segmentation.png")

    def _pick(self, folders):
        """Of these image folders those of the split (see the class)."""
        parts = {part for _, _, part in folders}
        if self.split is None or (len(parts) <= 1 and self.split != "val"):
            return folders
        test = "Test" if "Test" in parts else "Validation"
        wanted = {"train": "Training", "val": "Validation", "test": test}[self.split]
        if self.split == "val" and (len(parts) <= 1 or wanted not in parts):
            return []
        if wanted not in parts:
            raise NoSplitError(
                f"{self.data_dir}: holds {' and '.join(sorted(parts))} folders, but none for {self.split}"
            )
        return [folder for folder in folders if folder[2] == wanted]


def _image_folders(data_dir):
    """(image folder, ground truth folder, part) of each image folder at or below data_dir."""
    found = []
    for path, subfolders, _ in os.walk(data_dir, followlinks=True):
        subfolders.sort()
        match = _truth_folder(Path(path))
        if match:
            found.append((Path(path), *match))
            subfolders.clear()
    return found


def _truth_folder(folder):
    """(ground truth folder, part) of an image folder named as in `LAYOUTS`; None for any other folder."""
    folder = Path(os.path.abspath(folder))
    for image_pattern, truth_name in LAYOUTS.values():
        match = re.fullmatch(image_pattern, folder.name)
        if match:
            return folder.parent / match.expand(truth_name), match[1].removesuffix("_v2")
    return None


def _layout_name(folder):
    """The name in `LAYOUTS` of an image folder."""
    name = folder.absolute().name
    return next(layout for layout, (pattern, _) in LAYOUTS.items() if re.fullmatch(pattern, name))


def _cases_in(folder, truth, complete):
    """The cases of an image folder. complete: see `truth.RaterFolders`."""
    raters = None if truth == Path(os.path.abspath(folder)) else RaterFolders(truth, complete)
    beside = files_by_name(truth)  # Part 3B has its masks among the images
    cases = []
    for image in list_files(folder, PICTURE_SUFFIXES):
        name = split_suffix(image)[0]
        if name.lower().endswith(("_segmentation", "_superpixels")):
            continue
        names = [f"{name}_Segmentation", f"{name}_segmentation"]
        masks = raters.masks_of(image.name, names) if raters else tuple(beside.get(names[0], beside.get(names[1], ())))
        cases.append(Case(name, (image,), masks, raters=raters.names_of(masks) if raters else ()))
    return cases


def _read_labels(folder, part):
    """{image name: label} of Part 3B's CSV file beside or inside an image folder of 2016; None without one."""
    folder = Path(os.path.abspath(folder))
    name = LABEL_FILE.format(part=part)
    path = next((path for path in (folder.parent / name, folder / name) if path.is_file()), None)
    if path is None or not folder.name.startswith("ISBI2016"):
        return None
    labels = {}
    for number, fields in read_csv(path):
        text = fields[1].lower() if len(fields) > 1 else ""
        if text in LABELS:
            labels[fields[0]] = LABELS[text]
        elif number > 1:  # the first line may be a header
            raise UserError(f"{path}: line {number} is not NAME,benign or NAME,malignant (or 0, 1); correct it")
    return labels


def _with_label(case, labels):
    if case.name not in labels:
        raise UserError(f"{case.images[0]}: has no line in the Part 3B CSV file of labels; add one or remove the CSV")
    return replace(case, label=labels[case.name])
