"""Brain tumours in MRI: BraTS as folders of 2-D slices and as 3-D cases, with four modalities."""

import re
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np

from ...io.files import split_suffix
from ...io.volume_formats import is_nifti
from ...runtime.console import counted
from ...runtime.errors import NoSplitError, UserError
from ..cases import Case
from ..classes import Classes
from ..dataset import SegmentationDataset
from ..intensities import normalised_channels
from ..layouts import folders_below, named_file
from ..splits import SPLIT_FOLDERS, split_of
from ..volumes import VolumeReader

MODALITIES = ("t1", "t1ce", "t2", "flair")

# BraTS 2023 renamed the modalities; some tools write t1gd or t1c for the contrast-enhanced one. MEN-RT calls its truth
# gross tumour volume.
OTHER_NAMES = {"t1n": "t1", "t1c": "t1ce", "t1gd": "t1ce", "t2w": "t2", "t2f": "flair", "gtv": "seg"}
ONLY_T1CE = ("t1ce",)
KINDS = (*MODALITIES, *OTHER_NAMES, r"seg\d*")

# brats_train_001_t1_123_w, BraTS2021_00000_flair or t1: the text before and after the kind identifies the case.
FILE_NAME = re.compile(rf"(?:(?P<case>.+?)[_-])?(?P<kind>{'|'.join(KINDS)})(?:[_-](?P<rest>.+))?", re.IGNORECASE)

# BraTS-GLI-00002-001 is the second examination of patient BraTS-GLI-00002; MEN-RT has BraTS-MEN-RT-0402-1.
PATIENT = re.compile(r"(BraTS-.+-\d{4,5})-\d{1,3}", re.IGNORECASE)

# A truth by another name, where the case's folder holds no seg: W39_1998.09.19_Segm.nii of BraTS20_Training_355.
LIKE_SEG = re.compile(r"(.*[^a-z])?(seg|segm|segmentation|manuallycorrected)([^a-z].*)?", re.IGNORECASE)

ENHANCING_NAME = re.compile(r"^ET$|^enhanc", re.IGNORECASE)  # a class's name
MEN_RT = re.compile(r"BraTS-MEN-RT-.*", re.IGNORECASE)  # of 2024: t1c alone, and the tumour as gtv
PEDIATRIC = re.compile(r"BraTS-PED-.*", re.IGNORECASE)
AFTER_TREATMENT = re.compile(r"BraTS-GLI-\d{5}-1\d\d", re.IGNORECASE)  # gliomas of 2024; those of 2023 have -000, -001
CAVITY = 4  # in those, the resection cavity


class BraTSDataset(SegmentationDataset):
    """Slices [4, X, Y] of t1, t1ce, t2 and flair; the mask is the whole tumour (label > 0), or those of --classes.

    data_dir, or its training/, validation/ or testing/ sub-folder (see `split`), is searched at any depth for folders
    of NIfTI files (.nii or .nii.gz):
    - 2-D slices such as `brats_train_001_t1_123_w.nii.gz` (case `brats_train_001_123`) or `t1.nii.gz` (the case has
      the folder's name);
    - 3-D volumes of any size such as `BraTS2021_00000_flair.nii.gz` or `flair.nii.gz`. Each slice along the last axis
      is a case `BraTS2021_00000_slice_077`, empty slices included.
    A file may also lie in a folder of its name, as `x_flair.nii/FILE.nii`. Folders with the word of a split in their
    names (see `splits.split_of`), at any depth, divide the cases.
    The truth is the file `seg`, or with several raters `seg1`, `seg2` and so on; sampling needs none. Its labels are
    1 (necrotic and non-enhancing core), 2 (oedema) and 4 (enhancing tumour). In files named as in 2023 and later (t1n,
    t1c, t2w, t2f) the enhancing tumour is 3, and in gliomas of 2024 (BraTS-GLI-02064-100) 4 is the resection cavity,
    which is no tumour. `--classes regions` reads overlapping regions: WT (whole tumour), TC (core) and ET (enhancing).
    `--classes labels` reads exclusive classes: NCR, ED and ET. Both add RC in gliomas of 2024.
    Cases of MEN-RT (2024) have one modality, t1c, and the tumour in `gtv`.

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
    foreign = None  # a label that the files should not hold, such as the enhancing tumour's of other years
    why = ""  # what is wrong with it, and what to do
    modalities = MODALITIES
    other_files = ("survival*.csv", "name_mapping*.csv", "*mapping*.xlsx", "*mapping*.csv", "*metadata*.xlsx")

    @classmethod
    def recognises(cls, data_dir):
        """Whether the folder, or one below it, has a file of each modality."""
        for folder, files in folders_below(data_dir):
            for (case, _), group in _group(folder, files, strict=False)[0].items():
                if all(modality in group for modality in _modalities_of(case)):
                    return True
        return False

    def find_cases(self):
        self.volumes = VolumeReader()
        self.found = Counter()  # the number of slices or volumes of each kind, for `layout`
        self.notes = ()
        self.renamed = []  # (case, truth of another name)
        groups = [
            (folder, *key, group)
            for folder, files in self._folders_of_split()
            for key, group in sorted(self._groups_in(folder, files).items())
        ]
        modalities = {_modalities_of(case): folder for folder, case, *_ in groups}
        if len(modalities) > 1:
            raise UserError(
                f"{modalities[MODALITIES]}: has {len(MODALITIES)} modalities, {modalities[ONLY_T1CE].name} of MEN-RT "
                "has one; keep them in data sets of their own"
            )
        self.modalities = next(iter(modalities), MODALITIES)
        self.image_channels = 1 if self.modalities == ONLY_T1CE else type(self).image_channels
        cases = [case for group in groups for case in self._cases_of(*group)]
        self.layout = ", ".join(f"{counted(number, what)} {of}" for (what, of), number in sorted(self.found.items()))
        if self.renamed:
            case, path = self.renamed[0]
            more = f" (and {len(self.renamed) - 1} more of other names)" if len(self.renamed) > 1 else ""
            self.notes = (f"{case}: {path.name} is taken as its seg{more}",)
        return cases

    def read_image(self, case):
        return self.volumes.image(case)

    def read_labels(self, case):
        labels = self.volumes.labels(case)
        if self.foreign is not None and (labels == self.foreign).any():
            raise UserError(f"{case.masks[0]}: holds the label {self.foreign}, {self.why}")
        return labels

    def read_mask(self, case):
        labels = self.read_labels(case)
        if self.classes.is_binary and is_after_treatment(case):
            labels = np.where(labels == CAVITY, 0, labels)
        return self.classes.masks_of(labels).swapaxes(0, 1)

    def named_classes(self, word):
        layouts = {is_of_2023(case): case for case in self.cases}
        if len(layouts) > 1:
            raise UserError(
                f"--classes {word}: {layouts[True].images[0]} has a name of 2023 or later, "
                f"{layouts[False].images[0].name} an older one, where another label means the enhancing tumour; keep "
                "them in folders of their own"
            )
        if self.modalities == ONLY_T1CE:
            raise UserError(f"--classes {word}: cases of MEN-RT have one label, the tumour (gtv); leave it out")
        if any(PEDIATRIC.fullmatch(_unit_name(case)) for case in self.cases):
            raise UserError(
                f"--classes {word}: the labels of BraTS-PED files depend on their year; write "
                "--classes WT=1+2+3,TC=1+3,ET=3 for 2023, --classes WT=1+2+3+4,TC=1+2+3,ET=1 for 2024"
            )
        enhancing, self.foreign = (3, 4) if True in layouts else (4, 3)
        cavity = any(map(is_after_treatment, self.cases))
        self.foreign = None if cavity else self.foreign
        self.why = (
            "which files of these names do not have; write what the labels mean, as "
            f"--classes WT=1+2+{self.foreign},TC=1+{self.foreign},ET={self.foreign}"
        )
        more = (("RC",), ((CAVITY,),)) if cavity else ((), ())
        if word == "regions":
            regions = ((1, 2, enhancing), (1, enhancing), (enhancing,))
            return Classes(("WT", "TC", "ET", *more[0]), (*regions, *more[1]))
        return Classes(("NCR", "ED", "ET", *more[0]), ((1,), (2,), (enhancing,), *more[1]))

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
        stem, suffix = split_suffix(named_file(case.images[0]))
        start, end = FILE_NAME.fullmatch(stem).span("kind")
        return f"{stem[:start]}{'gtv' if self.modalities == ONLY_T1CE else 'seg'}{stem[end:]}{suffix}"

    def _choose_classes(self, text):
        chosen = super()._choose_classes(text)
        self._expect_other_year(chosen)
        if chosen.is_binary and any(map(is_after_treatment, self.cases)):
            self.notes = (
                *self.notes,
                f"the label {CAVITY} of BraTS-GLI files of 2024, the resection cavity, is no tumour here; --classes "
                "regions or labels has it as RC",
            )
        return chosen

    def _expect_other_year(self, chosen):
        """Refuse the label of the enhancing tumour where the `Classes` have that of the other years in its place, as
        those of a checkpoint that was trained on files of such a year."""
        layouts = {is_of_2023(case) for case in self.cases}
        own, other = (3, 4) if True in layouts else (4, 3)
        pairs = zip(chosen.names, chosen.values, strict=False)
        enhancing = next((set(values) for name, values in pairs if ENHANCING_NAME.search(name)), set())
        is_known = len(layouts) == 1 and not any(PEDIATRIC.fullmatch(_unit_name(case)) for case in self.cases)
        if is_known and other in enhancing and own not in enhancing:
            self.foreign = own
            self.why = (
                f"the enhancing tumour in files of these names; the classes {chosen} have {other} in its place: write "
                f"--classes {str(chosen).replace(str(other), str(own))}, or take data of the same years"
            )

    def _folders_of_split(self):
        """(folder, {name: path}) of each folder below data_dir that is of the split (see `splits.split_folders`)."""
        found = [(self._part_of(folder), folder, files) for folder, files in folders_below(self.data_dir)]
        parts = {}  # {split: the first of its folders}
        for part, folder, files in found:
            if part is None or split_of(part.name) in parts:
                continue
            if folder.parent == self.data_dir or _group(folder, files, strict=False)[0]:
                parts[split_of(part.name)] = part  # an empty folder of such a name deep down may be anything
        if not parts and self.split != "val":
            return [(folder, files) for _, folder, files in found]
        wanted = "val" if self.split == "test" and "test" not in parts else self.split
        if self.split not in (None, "val") and wanted not in parts:
            raise NoSplitError(
                f"{self.data_dir}: holds {next(iter(parts.values())).relative_to(self.data_dir)}/ but no {self.split}/ "
                f"or {self.split}ing/; name the folder to use with --data_dir"
            )
        splits = [split for split in SPLIT_FOLDERS if split in parts and wanted in (None, split)]
        return [
            (folder, files)
            for split in splits
            for part, folder, files in found
            if part and split_of(part.name) == split
        ]

    def _part_of(self, folder):
        """The topmost folder below data_dir that holds this one, or is it, and has the name of a split; else None."""
        below = folder.relative_to(self.data_dir).parts
        number = next((k for k, name in enumerate(below, 1) if split_of(name)), None)
        return number and self.data_dir.joinpath(*below[:number])

    def _groups_in(self, folder, files):
        """The groups of `_group` that are cases. A truth of another name belongs to the only case of its folder.

        Left over are groups without an image, and a single file beside complete cases.
        """
        groups, others = _group(folder, files)
        numbers = {key: sum(kind in group for kind in MODALITIES) for key, group in groups.items()}
        is_complete = {key: number == len(_modalities_of(key[0])) for key, number in numbers.items()}
        least = 2 if any(is_complete.values()) else 1
        cases = {key: group for key, group in groups.items() if is_complete[key] or numbers[key] >= least}
        if len(cases) == 1:
            alone = [group["seg"] for key, group in groups.items() if key not in cases and list(group) == ["seg"]]
            truths = [*alone, *(path for path in others if LIKE_SEG.fullmatch(split_suffix(named_file(path))[0]))]
            ((key, group),) = cases.items()
            if len(truths) == 1 and not any(kind.startswith("seg") for kind in group):
                group["seg"] = truths[0]
                self.renamed.append((_case_name(folder, *key), truths[0]))
        return cases

    def _cases_of(self, folder, case, rest, files):
        """The cases of one group of files: a single one for a 2-D slice, one per slice for a volume."""
        name = _case_name(folder, case, rest)
        missing = [modality for modality in self.modalities if modality not in files]
        if missing:
            raise UserError(
                f"{folder}: case {name} lacks the modality {' and '.join(missing)}; add the file or remove the case"
            )
        images = tuple(files[modality] for modality in self.modalities)
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
    kind = FILE_NAME.fullmatch(split_suffix(named_file(case.images[0]))[0])["kind"].lower()
    return kind in ("t1n", "t1c")  # the latter as the first image only in MEN-RT


def is_after_treatment(case):
    """Whether a case is one of the treated gliomas of BraTS 2024, where 4 is the resection cavity."""
    return AFTER_TREATMENT.fullmatch(_unit_name(case)) is not None


def _unit_name(case):
    return case.volume or case.name


def _case_name(folder, case, rest):
    """The name of the case of a group of files (see `_group`), or its folder's."""
    parts = [case, re.sub(r"_?w$", "", rest, flags=re.IGNORECASE)]
    return "_".join(filter(None, parts)) or folder.absolute().name


def _modalities_of(case):
    """The modalities that a case of this name has."""
    return ONLY_T1CE if MEN_RT.fullmatch(case) else MODALITIES


def _rater_number(kind):
    return int(kind.removeprefix("seg") or 0) if kind.startswith("seg") else -1


def _group(folder, files, strict=True):
    """The NIfTI files of a folder by case: {(case, rest of the name): {modality or "seg": path}}, and the list of those
    whose names say no kind.

    files: {name: path}. strict: raise `UserError` for a second file of a kind.
    """
    groups, others = defaultdict(dict), []
    for name, path in files.items():
        if not is_nifti(name):
            continue
        match = FILE_NAME.fullmatch(split_suffix(name)[0])
        if not match:
            others.append(path)
            continue
        kind = match["kind"].lower()
        kind = OTHER_NAMES.get(kind, kind)
        group = groups[match["case"] or "", match["rest"] or ""]
        if kind in group and strict:
            raise UserError(f"{folder / name}: is a second {kind} file of its case beside {group[kind].name}; keep one")
        group[kind] = path
    return groups, others
