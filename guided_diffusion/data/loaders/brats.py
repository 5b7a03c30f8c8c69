"""Brain tumours in MRI: BraTS as 2-D slice folders and as 3-D cases, four modalities each."""

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

# brats_train_001_t1_123_w, BraTS2021_00000_flair or t1: what comes before and after the kind tells the case.
FILE_NAME = re.compile(rf"(?:(?P<case>.+?)[_-])?(?P<kind>{'|'.join(KINDS)})(?:[_-](?P<rest>.+))?", re.IGNORECASE)

# BraTS-GLI-00002-001: the second time that a patient was examined; one side of a split has all of a patient.
PATIENT = re.compile(r"(BraTS-.+-\d{5})-\d{3}", re.IGNORECASE)


class BraTSDataset(SegmentationDataset):
    """Slices [4, X, Y] of t1, t1ce, t2, flair with the whole tumour (label > 0) as mask, or in --classes.

    data_dir, or its training/, validation/ or testing/ sub-folder picked by `split`, is searched at any depth for
    folders with NIfTI files (.nii or .nii.gz) of either kind:
    - 2-D slices, `brats_train_001_t1_123_w.nii.gz` and so on (case `brats_train_001_123`) or `t1.nii.gz` and so on
      (the case has the folder's name);
    - 3-D volumes, `BraTS2021_00000_flair.nii.gz` and so on or `flair.nii.gz`, of any size; each slice along the last
      axis, empty ones too, is a case `BraTS2021_00000_slice_077`.
    The truth is the file `seg`, or of several raters `seg1`, `seg2` and so on; it is not needed for sampling. Its
    labels are 1 (necrotic and non-enhancing core), 2 (oedema) and, of the enhancing tumour, 4, or 3 where the files
    have the names of 2023 and later (t1n, t1c, t2w, t2f). `--classes regions` reads them as the regions WT (whole
    tumour), TC (core) and ET (enhancing), which overlap; `labels` as NCR, ED and ET, one of many.

    Images are z-scores per modality over the case's non-zero voxels (of the whole volume in 3-D), clipped to +-5,
    with 0 as background.
    """

    image_channels = len(MODALITIES)
    class_names = ("tumour",)
    finds_validation = True
    left_right_axis = -2  # a slice lies as in the file, [X, Y]
    background = 0.0
    foreign = None  # the label that must not be there, where --classes leaves the labels' meaning to us

    @classmethod
    def recognises(cls, data_dir):
        """Whether a folder there, or below, has a file of each modality."""
        for path, _, names in os.walk(data_dir, followlinks=True):
            groups = _group(Path(path), names, strict=False).values()
            if any(all(modality in files for modality in MODALITIES) for files in groups):
                return True
        return False

    def find_cases(self):
        self.volumes = VolumeReader()
        self.found = Counter()  # of what kind the groups of files are
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
            "folders with files such as brats_train_001_t1_123_w.nii.gz, BraTS2021_00000_t1.nii.gz or t1.nii.gz, "
            "and the same for t1ce, t2, flair and seg, are looked for there and below"
        )

    def expected_mask(self, case):
        stem, suffix = split_suffix(case.images[0])
        start, end = FILE_NAME.fullmatch(stem).span("kind")
        return f"{stem[:start]}seg{stem[end:]}{suffix}"

    def _cases_of(self, folder, case, rest, files):
        """The cases of one group of files: one of a 2-D slice, one per slice of a volume."""
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
        if re.fullmatch(r"\d+_w", rest, re.IGNORECASE):  # by its name: no header of the many thousands is read
            found = [Case(name, images, masks, group=case or None, raters=raters)]
        else:
            found = self.volumes.cases(name, images, masks, raters=raters, check_masks=self.need_masks)
            patient = PATIENT.fullmatch(name)
            found = [replace(one, group=patient[1]) for one in found] if patient else found
        names = "with the names of BraTS 2023 and later" if is_of_2023(found[0]) else "with the names of BraTS to 2021"
        self.found["slice" if found[0].volume is None else "volume", names] += 1
        return found


def is_of_2023(case):
    """Whether a case's files have the names of BraTS 2023 and later, where 3 means the enhancing tumour, not 4."""
    return FILE_NAME.fullmatch(split_suffix(case.images[0])[0])["kind"].lower() == "t1n"


def _rater_number(kind):
    return int(kind.removeprefix("seg") or 0) if kind.startswith("seg") else -1


def _group(folder, names, strict=True):
    """Group the NIfTI files of a folder: {(case, rest of the name): {modality or "seg": path}}.

    strict: whether a second file of a kind is an error.
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
