"""Reads every case of a data set once and records what a check needs: sizes, ranges, mask values, unreadable files."""

import hashlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from torch.utils.data import Dataset

from ..io.files import split_suffix
from ..io.images import PICTURE_SUFFIXES, read_picture
from ..io.nifti import is_nifti, is_unplaced, lies_elsewhere
from ..runtime.errors import NoCasesError, NoSplitError, UserError, reason_of
from .cases import group_cases
from .dataset import REMEDY
from .registry import build_dataset
from .splits import SPLIT_FOLDERS, known_group


@dataclass
class Inspection:
    """What was found in a case, or in all slices of a volume.

    name, group: of the case or volume; see `splits.known_group`. count: number of images. label: the class label.
    raters: number of masks. sizes: (H, W) of the images. low, high: [C], the range of each channel as the loader gives
    it. marked: [K], the share of pixels in each class, over raters and slices. empty: number of images with nothing
    marked. values: how often each value occurs in the mask files. is_soft: a mask picture has more than two values.
    is_photograph: see `like_photograph`. spread: [C], the standard deviation of each channel's values other than 0, NaN
    where there are none; None for pictures. elsewhere: see `_misplaced_file`. unplaced: see `_unplaced_file`. digest:
    a hash of the images, None if they are blank. problems: messages about what could not be read.
    """

    name: str
    group: str | None
    count: int
    label: int | None = None
    raters: int = 0
    sizes: set = field(default_factory=set)
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    marked: np.ndarray | None = None
    empty: int = 0
    values: Counter = field(default_factory=Counter)
    is_soft: bool = False
    is_photograph: bool = False
    spread: np.ndarray | None = None
    elsewhere: str = ""
    unplaced: str = ""
    digest: str | None = None
    problems: list = field(default_factory=list)


@dataclass
class Part:
    """A split's data set and the `Inspection`s of its cases. name: "train", "val", "test", or "all" if undivided."""

    name: str
    dataset: object
    inspections: list = field(default_factory=list)

    @property
    def images(self):
        """Number of images, or slices."""
        return sum(inspection.count for inspection in self.inspections)

    @property
    def is_volumes(self):
        """Whether the cases are slices of volumes."""
        return self.dataset.cases[0].volume is not None

    @property
    def trains(self):
        """Whether training reads these cases."""
        return self.name in ("train", "val", "all")


def find_parts(data_name, data_dir, **settings):
    """The `Part`s of a data set, not inspected yet: one for each split, or "all" of undivided data.

    settings: see `build_dataset`. `classes="auto"` means the classes of the first split, the training cases, in all.
    Raises `UserError` for what the loader refuses, and where there are no cases.
    """
    parts, errors = {}, []
    settings["keep_unreadable"] = True
    for split in SPLIT_FOLDERS:
        try:
            dataset = build_dataset(data_name, data_dir, 1, split=split, **settings)
            parts[split] = Part(split, dataset)
            if settings.get("classes") == "auto":
                settings["classes"] = str(dataset.classes)  # as training, sampling and evaluation do
            if "ct_window" in dataset.kept and settings.get("ct_window") is None:
                settings["ct_window"] = dataset.ct_window or ()  # as training does
        except NoCasesError as error:
            errors += [error] if split == "train" else []
        except NoSplitError:
            pass
    if not parts:
        raise errors[0] if errors else NoCasesError(f"{data_dir}: no cases found")
    cases = {split: part.dataset.cases for split, part in parts.items()}
    if cases.get("test") in (cases.get("train"), cases.get("val")):
        if "val" not in parts:
            parts["train"].name = "all"
        del parts["test"]
    return list(parts.values())


# ---- one case ----------------------------------------------------------------------------------------------------


class Inspections(Dataset):
    """The `Inspection`s of a data set's images or volumes, item by item, so that DataLoader workers share the work."""

    def __init__(self, dataset, group_key=""):
        self.dataset, self.group_key = dataset, group_key
        self.units = group_cases(dataset.cases)

    def __len__(self):
        return len(self.units)

    def load_shared(self):
        """See `SegmentationDataset.preload`."""
        self.dataset.load_shared()

    def __getitem__(self, index):
        return inspect_unit(self.dataset, self.units[index], self.group_key)


def inspect_unit(dataset, unit, group_key=""):
    """The `Inspection` of a `cases.Unit`. A file that cannot be read becomes one of its `problems`."""
    first = unit.cases[0]
    found = Inspection(unit.name, known_group(first, group_key), len(unit.cases), first.label, len(first.masks))
    digest, blank, marked = hashlib.sha256(), True, []
    has_spread, sums = dataset.volumes is not None and is_nifti(first.images[0]), 0
    for case in unit.cases:
        image = _try_read(found, dataset.load_image, case)
        if image is None:
            return found  # the other slices come from the same files
        size = image.shape[-2:]
        flat = image.reshape(len(image), -1)
        found.sizes.add(tuple(size))
        found.low = flat.min(axis=1) if found.low is None else np.minimum(found.low, flat.min(axis=1))
        found.high = flat.max(axis=1) if found.high is None else np.maximum(found.high, flat.max(axis=1))
        if has_spread:
            exact = flat.astype(np.float64)
            sums = sums + np.stack([np.count_nonzero(exact, axis=1), exact.sum(axis=1), (exact**2).sum(axis=1)])
        blank &= bool((image == image.flat[0]).all())
        digest.update(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes())
        if case.masks:
            mask = _try_read(found, dataset.load_mask, case, size)
            if mask is None:
                break
            marked.append(mask.mean(axis=(0, 2, 3)))
            found.empty += not mask.any()
            _try_read(found, _count_mask_values, dataset, case, found)
    found.digest = None if blank else digest.hexdigest()
    found.spread = _deviation(*sums) if has_spread else None
    found.marked = np.mean(marked, axis=0) if marked else None
    if unit.is_volume and not found.problems:
        found.elsewhere = _try_read(found, _misplaced_file, first) or ""
        found.unplaced = _try_read(found, _unplaced_file, first) or ""
    return found


def _deviation(count, total, squares):
    """The standard deviation of values from their number, sum and sum of squares; NaN where there are none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))


def _try_read(inspection, read, *arguments):
    """The result of `read(*arguments)`; None where it raises, and the message joins the inspection's problems."""
    try:
        return read(*arguments)
    except (UserError, OSError) as error:
        inspection.problems.append(reason_of(error).removesuffix(REMEDY))
        return None


def _count_mask_values(dataset, case, inspection):
    """Count the values in a case's mask files, if they are label maps or pictures."""
    if is_nifti(case.masks[0]) and dataset.volumes is not None:
        inspection.values.update(_value_counts(dataset.volumes.labels(case)))
    elif dataset.reads_labels and not dataset.classes.is_binary:
        inspection.values.update(_value_counts(dataset.load_labels(case)))
    else:
        for picture in mask_pictures(case):
            counts = _value_counts(picture)
            inspection.is_photograph |= like_photograph(picture)
            inspection.is_soft |= len(counts) > 2
            inspection.values.update(counts)


def _value_counts(array):
    """{value, rounded to three decimals: number of pixels}."""
    values, counts = np.unique(array, return_counts=True)
    return dict(zip((round(float(value), 3) for value in values), counts.tolist(), strict=True))


def _misplaced_file(case):
    """The first file of a volume that lies elsewhere in space than its first image, and where; "" if there is none."""
    for path in (*case.images[1:], *case.masks):
        how = is_nifti(path) and is_nifti(case.images[0]) and lies_elsewhere(path, case.images[0])
        if how:
            return f"{path} ({how})"
    return ""


def _unplaced_file(case):
    """The first file of a volume that has lost its affine, unlike its first image; "" if there is none."""
    for path in (*case.images[1:], *case.masks):
        if is_nifti(path) and is_nifti(case.images[0]) and is_unplaced(path, case.images[0]):
            return str(path)
    return ""


# ---- photographs in place of masks -------------------------------------------------------------------------------

# Greys well between background and foreground. A mask's two values, and JPEG's noise around them, lie outside. A
# photograph has nearly all of its pixels inside (a head on black a third), a mask only its smoothed edges. A mask in
# grey instead of white may have all of them inside, but with one or two values.
BETWEEN = (32, 223)
PHOTOGRAPH_PIXELS = 1 / 4
PHOTOGRAPH_VALUES = 32


def mask_pictures(case):
    """The case's mask files that are pictures, read by `read_picture`: a list of float32 [C, H, W].

    A picture that cannot be read is left out: a user's own loader may read it in another way.
    """
    pictures = []
    for path in case.masks:
        if split_suffix(path)[1].lower() in PICTURE_SUFFIXES and path not in case.images:
            with suppress(UserError):
                pictures.append(read_picture(path))
    return pictures


def like_photograph(picture):
    """Whether a picture [C, H, W] in 0..255 has the many grey values of a photograph, not the few of a mask."""
    grey = picture.mean(axis=0).round()
    between = grey[(grey > BETWEEN[0]) & (grey < BETWEEN[1])]
    return between.size >= PHOTOGRAPH_PIXELS * grey.size and len(np.unique(between)) >= PHOTOGRAPH_VALUES
