"""Brain tumours in MRI: BraTS as folders of 2-D slices and as 3-D cases, with four modalities."""

import os
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

from ...io.files import split_suffix
from ...io.nifti import is_nifti
from ...runtime.console import counted
from ...runtime.errors import UserError
from ..cases import Case
from ..classes import Classes
from ..dataset import SegmentationDataset
from ..splits import split_folders
from ..volumes import VolumeReader, normalised_channels

MODALITIES = ("t1", "t1ce", "t2", "flair")

# BraTS 2023 renamed the modalities; some tools write t1gd or t1c for the contrast-enhanced one.
OTHER_NAMES = {"t1n": "t1", "t1c": "t1ce", "t1gd": "t1ce", "t2w": "t2", "t2f": "flair"}
KINDS = (*MODALITIES, *OTHER_NAMES, r"seg\d*")

# brats_train_001_t1_123_w, BraTS2021_00000_flair or t1: the text before and after the kind identifies the case.
FILE_NAME = re.compile(rf"(?:(?P<case>.+?)[_-])?(?P<kind>{'|'.join(KINDS)})(?:[_-](?P<rest>.+))?", re.IGNORECASE)

# BraTS-GLI-00002-001 is the second examination of patient BraTS-GLI-00002.
PATIENT = re.compile(r"(BraTS-.+-\d{5})-\d{3}", re.IGNORECASE)


class BraTSDataset(SegmentationDataset):
    """Slices [4, X, Y] of t1, t1ce, t2 and flair; the mask is the whole tumour (label > 0), or those of --classes.

    data_dir, or its training/, validation/ or testing/ sub-folder (see `split`), is searched at any depth for folders
    of NIfTI files (.nii or .nii.gz):
    - 2-D slices such as `brats_train_001_t1_123_w.nii.gz` (case `brats_train_001_123`) or `t1.nii.gz` (the case has
      the folder's name);
    - 3-D volumes of any size such as `BraTS2021_00000_flair.nii.gz` or `flair.nii.gz`. Each slice along the last axis
      is a case `BraTS2021_00000_slice_077`, empty slices included.
    The truth is the file `seg`, or with several raters `seg1`, `seg2` and so on; sampling needs none. Its labels are
    1 (necrotic and non-enhancing core), 2 (oedema) and 4 (enhancing tumour). In files named as in 2023 and later (t1n,
    t1c, t2w, t2f) the enhancing tumour is 3. `--classes regions` reads overlapping regions: WT (whole tumour), TC
    (core) and ET (enhancing). `--classes labels` reads exclusive classes: NCR, ED and ET.

    Images are z-scores of each modality over the case's non-zero voxels (of the whole volume in 3-D), clipped to +-5.
    The background is 0.
    """

    data_name = "BRATS"
    image_channels = len(MODALITIES)
    class_names = ("tumour",)
    declared_labels = (1, 2, 3, 4)
    finds_validation = True
    left_right_axis = -2  # a slice is [X, Y]
    background = 0.0
    foreign = None  # with --classes regions or labels: the enhancing tumour's label in the other years' files

    @classmethod
    def recognises(cls, data_dir):
        """Whether the folder, or one below it, has a file of each modality."""
        for path, _, names in os.walk(data_dir, followlinks=True):
            groups = _group(Path(path), names, strict=False).values()
            if any(all(modality in files for modality in MODALITIES) for files in groups):
                return True
        return False

    def find_cases(self):
        self.volumes = VolumeReader()
        self.found = Counter()  # the number of slices or volumes of each kind, for `layout`
        cases = []
        for root in split_folders(self.data_dir, self.split):
            for path, subfolders, names in os.walk(root, followlinks=True):
                subfolders.sort()
                for (case, rest), files in sorted(_group(Path(path), names).items()):
                    cases += self._cases_of(Path(path), case, rest, files)
        self.layout = ", ".join(f"{counted(number, what)} {of}" for (what, of), number in sorted(self.found.items()))
        return cases

    def read_image(self, case):
        return self.volumes.image(case)

    def read_labels(self, case):
        labels = self.volumes.labels(case)
        if self.foreign is not None and (labels == self.foreign).any():
            raise UserError(
                f"{case.masks[0]}: holds the label {self.foreign}, which files of these names do not have; write what "
                f"the labels mean, as --classes WT=1+2+{self.foreign},TC=1+{self.foreign},ET={self.foreign}"
            )
        return labels

    def named_classes(self, word):
        layouts = {is_of_2023(case): case for case in self.cases}
        if len(layouts) > 1:
            raise UserError(
                f"--classes {word}: {layouts[True].images[0]} has a name of 2023 or later, "
                f"{layouts[False].images[0].name} an older one, where another label means the enhancing tumour; keep "
                "them in folders of their own"
            )
        enhancing, self.foreign = (3, 4) if True in layouts else (4, 3)
        if word == "regions":
            return Classes(("WT", "TC", "ET"), ((1, 2, enhancing), (1, enhancing), (enhancing,)))
        return Classes(("NCR", "ED", "ET"), ((1,), (2,), (enhancing,)))

    def normalise(self, image):
        return image  # done for the whole volume when it is read

    def normalise_raw(self, raw):
        return normalised_channels(raw)

    def geometry(self, case):
        return self.volumes.geometry(case)

    def expected_layout(self):
        return (
            "it must hold, at any depth, files such as brats_train_001_t1_123_w.nii.gz, BraTS2021_00000_t1.nii.gz or "
            "t1.nii.gz, and the same for t1ce, t2, flair and seg"
        )

    def expected_mask(self, case):
        stem, suffix = split_suffix(case.images[0])
        start, end = FILE_NAME.fullmatch(stem).span("kind")
        return f"{stem[:start]}seg{stem[end:]}{suffix}"

    def _cases_of(self, folder, case, rest, files):
        """The cases of one group of files: a single one for a 2-D slice, one per slice for a volume."""
        parts = [case, re.sub(r"_?w$", "", rest, flags=re.IGNORECASE)]
        name = "_".join(filter(None, parts)) or folder.absolute().name
        missing = [modality for modality in MODALITIES if modality not in files]
        if missing:
            raise UserError(
                f"{folder}: case {name} lacks the modality {' and '.join(missing)}; add the file or remove the case"
            )
        images = tuple(files[modality] for modality in MODALITIES)
        raters = tuple(kind for kind in sorted(files, key=_rater_number) if kind.startswith("seg"))
        masks = tuple(files[kind] for kind in raters)
        if re.fullmatch(r"\d+_w", rest, re.IGNORECASE):  # a 2-D slice by its name: reading thousands of headers is slow
            found = [Case(name, images, masks, group=case or None, raters=raters)]
        else:
            found = self.volumes.cases(name, images, masks, raters=raters, check_masks=self.need_masks)
            patient = PATIENT.fullmatch(name)
            found = [replace(one, group=patient[1]) for one in found] if patient else found
        names = "with the names of BraTS 2023 and later" if is_of_2023(found[0]) else "with the names of BraTS to 2021"
        self.found["slice" if found[0].volume is None else "volume", names] += 1
        return found


def is_of_2023(case):
    """Whether a case's files have the names of BraTS 2023 and later, where the enhancing tumour is 3, not 4."""
    return FILE_NAME.fullmatch(split_suffix(case.images[0])[0])["kind"].lower() == "t1n"


def _rater_number(kind):
    return int(kind.removeprefix("seg") or 0) if kind.startswith("seg") else -1


def _group(folder, names, strict=True):
    """The NIfTI files of a folder by case: {(case, rest of the name): {modality or "seg": path}}.

    strict: raise `UserError` for a second file of a kind.
    """
    groups = defaultdict(dict)
    for name in sorted(names):
        match = FILE_NAME.fullmatch(split_suffix(name)[0])
        if not match or not is_nifti(name) or name.startswith("."):
            continue
        kind = match["kind"].lower()
        kind = OTHER_NAMES.get(kind, kind)
        group = groups[match["case"] or "", match["rest"] or ""]
        if kind in group and strict:
            raise UserError(f"{folder / name}: is a second {kind} file of its case beside {group[kind].name}; keep one")
        group[kind] = folder / name
    return groups
