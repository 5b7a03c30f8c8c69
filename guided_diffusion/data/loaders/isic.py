"""Dermoscopy: the published folder layouts of ISIC 2016 (Part 1 and Part 3B), 2017 and 2018."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...io.files import list_files, split_suffix
from ...io.folders import check_listed
from ...io.images import PICTURE_SUFFIXES, read_picture, read_picture_mask, stacked
from ...io.texts import read_csv
from ...runtime.console import counted
from ...runtime.errors import NoSplitError, UserError
from ..cases import Case
from ..dataset import SegmentationDataset
from ..layouts import folders_below, innermost, plain_name
from ..left_over import Reason
from ..truth import RaterFolders, files_by_name, near_notes

# Name: (image folder, its ground truth folder), any case. The regular expression's group is the part.
LAYOUTS = {
    "ISIC 2016 Part 1": (r"ISBI2016_ISIC_Part1_(Training|Test)_Data", r"ISBI2016_ISIC_Part1_\1_GroundTruth"),
    "ISIC 2016 Part 3B": (r"ISBI2016_ISIC_Part3B_(Training|Test)_Data", r"ISBI2016_ISIC_Part3B_\1_Data"),
    "ISIC 2017": (r"ISIC-2017_(Training|Validation|Test_v2)_Data", r"ISIC-2017_\1_Part1_GroundTruth"),
    "ISIC 2018": (r"ISIC2018_Task1-2_(Training|Validation|Test)_Input", r"ISIC2018_Task1_\1_GroundTruth"),
}

# Published folders of tasks other than the lesion's mask: dermoscopic features, and classes alone.
OTHER_TASKS = re.compile(
    r"ISBI2016_ISIC_Part(2|2B|3)_.*|ISIC-2017_.*_Part[23]_GroundTruth|ISIC2018_Task[23]_.*", re.IGNORECASE
)
OTHER_TASK = Reason("is of another task of ISIC", "are of other tasks of ISIC", is_data=False)

PART_1, PART_3B = "ISIC 2016 Part 1", "ISIC 2016 Part 3B"
ISIC_PARTS = ("Training", "Validation", "Test")
LABEL_FILE = "ISBI2016_ISIC_Part3B_{part}_GroundTruth.csv"
LABELS = {"benign": 0, "0": 0, "0.0": 0, "malignant": 1, "1": 1, "1.0": 1}


class ISICDataset(SegmentationDataset):
    """Skin lesions: photographs [3, H, W] in [-1, 1] with one lesion mask each.

    data_dir is, or holds at any depth, image folders named as in `LAYOUTS`, in any case and with " (1)" of a second
    download. Their ground truth folders lie beside them, or anywhere below data_dir. Each may hold a folder of its own
    name with the files. `split` picks the folders of its part; "test" means the validation folders if there are no
    test folders. If data_dir holds one part only, such as DATA/Train, that part is used for training and testing. With
    split None all folders are used. Part 3B of 2016 has the images of Part 1, which is taken where both are there.

    Masks are `NAME_Segmentation.png` in the ground truth folder, or in a sub-folder of it for each rater. Sampling
    needs none. If every image folder has the CSV file of Part 3B inside or beside it, each case has a label, benign or
    malignant. This also holds for Part 1, whose images are the same.
    """

    data_name = "ISIC"
    cache_version = "1"
    class_names = ("lesion",)
    orientation = "any"
    finds_validation = True
    other_files = (
        *("ISBI2016_ISIC_Part3*_GroundTruth.csv", "ISIC-2017_*_GroundTruth.csv", "*_metadata.csv", "*_superpixels.png"),
        *("ATTRIBUTION*", "LICENSE*", "README*"),
    )

    @classmethod
    def recognises(cls, data_dir):
        """Whether the folder, or one below it, is named as in `LAYOUTS`."""
        return bool(_image_folders(data_dir))

    def find_cases(self):
        self.notes, self.copies = (), {}
        folders = self._pick(_image_folders(self.data_dir))
        if not folders:
            return []
        cases = self._without_copies([(folder, self._cases_in(folder)) for folder in folders])
        used = {case.images[0].parent for case in cases}
        tables = [self._read_labels(folder, folders) for folder in folders if folder.path in used]
        self.layout = ", ".join(sorted({f"{folder.layout} {folder.part}" for folder in folders if folder.path in used}))
        if None in tables or not tables:
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
        folder = _image_folder(case.images[0].parent)
        return str(folder.truth(self.data_dir) / f"{case.name}_Segmentation.png")

    def further_files(self, case):
        return self.copies.get(case.name, ())

    def explain(self, path):
        """Features and classes, other tasks of the challenges, are known, and not needed."""
        return OTHER_TASK if any(OTHER_TASKS.fullmatch(plain_name(one)) for one in Path(path).parts[:-1]) else None

    def _pick(self, folders):
        """Of these `ImageFolder`s those of the split (see the class)."""
        parts = {folder.part for folder in folders}
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
        return [folder for folder in folders if folder.part == wanted]

    def _cases_in(self, folder):
        """The cases of an `ImageFolder`."""
        truth = folder.truth(self.data_dir)
        are_beside = truth == folder.outer  # Part 3B has its masks among the images
        files = list_files(folder.path, PICTURE_SUFFIXES)
        known = {
            f"{split_suffix(image)[0]}{ending}" for image in files for ending in ("_Segmentation", "_segmentation")
        }
        raters = None if are_beside else RaterFolders(innermost(truth, PICTURE_SUFFIXES), self.need_masks, known)
        beside = files_by_name(folder.path) if are_beside else {}
        cases = []
        for image in files:
            name = split_suffix(image)[0]
            if name.lower().endswith(("_segmentation", "_superpixels")):
                continue
            names = [f"{name}_Segmentation", f"{name}_segmentation"]
            if are_beside:
                masks = tuple(beside.get(names[0], beside.get(names[1], ())))
                cases.append(Case(name, (image,), masks))
            else:
                masks = raters.masks_of(image.name, names)
                cases.append(Case(name, (image,), masks, raters=raters.names_of(masks)))
        if raters is not None:
            self.notes = (*self.notes, *near_notes([raters], self.data_dir))
        return cases

    def _without_copies(self, found):
        """The cases of all folders, without those of Part 3B that Part 1 has too. found: (`ImageFolder`, its cases).

        Where only one of the two has masks, that one is taken. Sets `copies`, {name: files of the other}.
        """
        first = {}
        for folder, cases in found:
            if folder.layout == PART_1:
                first |= {(folder.part, case.name): case for case in cases}
        taken, kept = {}, []
        for folder, cases in found:
            for case in cases:
                other = first.get((folder.part, case.name)) if folder.layout == PART_3B else None
                if other is None:
                    kept.append(case)
                    continue
                better, copy = (other, case) if other.masks or not case.masks else (case, other)
                taken[other.images] = better
                self.copies[case.name] = (*copy.images, *copy.masks)
        if taken:
            self.notes += (f"Part 3B holds {counted(len(taken), 'image')} of Part 1 again; each is taken once",)
        return [taken.get(case.images, case) for case in kept]

    def _read_labels(self, folder, folders):
        """{image name: label} of Part 3B's CSV file beside or inside an image folder of 2016, or a folder of Part 3B of
        that part; None without one. folders: all `ImageFolder`s."""
        if not folder.layout.startswith("ISIC 2016"):
            return None
        alike = [other for other in folders if other.layout == PART_3B and other.part == folder.part]
        places = [place for one in (folder, *alike) for place in (one.outer.parent, one.outer, one.path)]
        name = LABEL_FILE.format(part=folder.part)
        path = next((place / name for place in places if os.path.lexists(place / name)), None)
        return None if path is None else _labels_in(path)


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images named as in `LAYOUTS`. path: where the images lie, itself or below. outer: its absolute path,
    that of the topmost such folder where one holds another of the same name. layout, part: of `LAYOUTS`. truth_name:
    that of its ground truth folder."""

    path: Path
    outer: Path
    layout: str
    part: str
    truth_name: str

    def truth(self, data_dir):
        """Its ground truth folder: beside it, else anywhere below data_dir, else where it should be.

        Raises `UserError` where two folders may be it.
        """
        if plain_name(self.outer) == self.truth_name.lower():
            return self.outer
        beside = [path for path in sorted(self.outer.parent.iterdir()) if self._is_truth(path)]
        below = beside or [path for path, _ in folders_below(data_dir) if self._is_truth(path)]
        found = [path for path in below if not self._is_truth(path.parent)]  # not NAME/NAME
        exact = [path for path in found if path.name == self.truth_name]
        if len(exact or found) > 1:
            one, other = (exact or found)[:2]
            raise UserError(f"{one}: may be the ground truth of {self.path}, and so may {other}; keep one of them")
        return next(iter(exact or found), self.outer.parent / self.truth_name)

    def _is_truth(self, path):
        return plain_name(path) == self.truth_name.lower() and path.is_dir()


def _image_folders(data_dir):
    """The `ImageFolder`s at or below data_dir."""
    found = []
    for path, _ in folders_below(data_dir):
        folder = _image_folder(path)
        if folder and all(folder.outer != other.outer for other in found):
            found.append(folder)
    return found


def _image_folder(path):
    """The `ImageFolder` of a folder named as in `LAYOUTS`; None for any other."""
    outer = Path(os.path.abspath(path))
    for layout, (image_pattern, truth_name) in LAYOUTS.items():
        match = re.fullmatch(image_pattern, plain_name(outer), re.IGNORECASE)
        if match:
            while plain_name(outer.parent) == plain_name(outer):
                outer = outer.parent
            part = next(part for part in ISIC_PARTS if match[1].startswith(part.lower()))
            written = truth_name.replace(r"\1", part + match[1][len(part) :])
            return ImageFolder(innermost(path, PICTURE_SUFFIXES), outer, layout, part, written)
    return None


def _labels_in(path):
    """{image name: label} of Part 3B's CSV file."""
    labels = {}
    for number, fields in read_csv(path):
        check_listed(path, fields[0], path.parent)
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
