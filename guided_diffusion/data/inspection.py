"""Reads every case of a data set once and records what a check needs: sizes, ranges, mask values, unreadable files."""

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from torch.utils.data import Dataset

from ..config.options import ModelOptions
from ..io.nifti import is_unplaced, lies_elsewhere
from ..io.pictures import noted_masks
from ..io.volume_formats import is_volume_path
from ..runtime.errors import NoCasesError, NoSplitError, UserError, reason_of
from .cases import check_shape, check_volumes, group_cases, same_cases
from .loader_checks import case_remedy
from .registry import build_dataset
from .resizing import round_trip
from .splits import SPLIT_FOLDERS, known_group


@dataclass
class Inspection:
    """What was found in a case, or in all slices of a volume.

    name, group: of the case or volume; see `splits.known_group`. count: number of images. label: the class label.
    raters: number of masks. sizes: (H, W) of the images. low, high: [C], the range of each channel as the loader gives
    it. network_low, network_high: the range that the network sees, after `normalise`. typical: the range without the
    lowest and the highest `RARE` of the pixels. is_fine: whether a value is no whole number, as of more than 8 bits.
    spread: [C], the standard deviation of each channel's values other than 0, NaN where there are none; None for
    pictures. marked: [K], the share of pixels in each class, over raters and slices. ignored: the share of pixels
    without truth, None without an `ignore_label`. empty: number of images with nothing marked. compared, apart: number
    of images in which two raters or more mark something, and of those in which no pixel is marked by two. values: how
    often each value occurs in the mask files. round_trip: [K], the Dice of each class's mask with its round trip
    through the network's grid (see `resizing.round_trip`), the mean over raters; NaN for a class that is nowhere, None
    without masks and where images keep their size. shrinks: whether an image has a side above the network's. is_soft: a
    mask has greys that were cut at half. is_inside_out: see `_is_inside_out`. foregrounds: {how the foreground is
    written, see `pictures.MaskNote`: the first such file}. elsewhere: see `misplaced_file`. unplaced: see
    `_unplaced_file`. unwritable: see `_unwritable`. digest: a hash of the images, None if they are blank. problems:
    messages about what could not be read. strict: what cannot be read raises instead.
    """

    name: str
    group: str | None
    count: int
    label: int | None = None
    raters: int = 0
    sizes: set = field(default_factory=set)
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    network_low: float = math.inf
    network_high: float = -math.inf
    typical: tuple = ()
    is_fine: bool = False
    marked: np.ndarray | None = None
    round_trip: np.ndarray | None = None
    shrinks: bool = False
    empty: int = 0
    compared: int = 0
    apart: int = 0
    values: Counter = field(default_factory=Counter)
    is_soft: bool = False
    is_inside_out: bool = False
    foregrounds: dict = field(default_factory=dict)
    spread: np.ndarray | None = None
    elsewhere: str = ""
    unplaced: str = ""
    unwritable: str = ""
    ignored: float | None = None
    digest: str | None = None
    problems: list = field(default_factory=list)
    strict: bool = False


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


def find_parts(data_name, data_dir, image_size=ModelOptions.image_size, **settings):
    """The `Part`s of a data set, not inspected yet: one for each split, or "all" of undivided data.

    image_size: of a network, for the masks' round trip. settings: see `build_dataset`. `classes="auto"` means the
    classes of the first split, the training cases, in all.
    Raises `UserError` for what the loader refuses, and where there are no cases.
    """
    parts, errors = {}, []
    settings["keep_unreadable"] = True
    for split in SPLIT_FOLDERS:
        try:
            dataset = build_dataset(data_name, data_dir, image_size, split=split, **settings)
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
    if "test" in cases and any(same_cases(cases["test"], cases.get(other, [])) for other in ("train", "val")):
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


def inspect_unit(dataset, unit, group_key="", strict=False):
    """The `Inspection` of a `cases.Unit`. A file that cannot be read becomes one of its `problems`, or with `strict`
    raises."""
    first = unit.cases[0]
    group = known_group(first, group_key)
    found = Inspection(unit.name, group, len(unit.cases), first.label, len(first.masks), strict=strict)
    has_spread = dataset.volumes is not None and is_volume_path(first.images[0])
    digest, marked, ignored, sums, overlap, raters = hashlib.sha256(), [], [], 0, 0, set()
    for case in unit.cases:
        image = _try_read(found, dataset.load_image, case)
        normalised = None if image is None else _try_read(found, dataset.normalised, image, case)
        if normalised is None:
            return found  # the other slices come from the same files
        _add_image(found, image, normalised)
        digest.update(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes())
        if has_spread:
            exact = image.reshape(len(image), -1).astype(np.float64)
            sums = sums + np.stack([np.count_nonzero(exact, axis=1), exact.sum(axis=1), (exact**2).sum(axis=1)])
        if case.masks:
            with noted_masks() as notes:
                mask = _try_read(found, dataset.load_mask, case, image.shape[-2:], False)
            if mask is None:
                break
            raters.add(len(mask))
            marked.append(mask.mean(axis=(0, 2, 3)))
            if not dataset.view.keep_size and mask.any() and len(raters) == 1:
                overlap = overlap + round_trip(mask, dataset.image_size)  # [2, R, K]
            _add_mask(found, mask, notes)
            _try_read(found, _count_mask_values, dataset, case, found, notes)
            if dataset.ignore_label:
                ignored.append(dataset.load_ignored(case).mean())
    found.digest = None if (found.low == found.high).all() and len(set(found.low)) == 1 else digest.hexdigest()
    found.spread = _deviation(*sums) if has_spread else None
    found.marked = np.mean(marked, axis=0) if marked else None
    found.shrinks = any(max(size) > dataset.image_size for size in found.sizes)
    if np.any(overlap):
        found.round_trip = _mean_ratio(*overlap)
    found.ignored = float(np.mean(ignored)) if ignored else None
    if len(raters) > 1:
        numbers = " and ".join(map(str, sorted(raters)))
        found.problems.append(
            f"{first.masks[0]}: slices of {unit.name} have masks of {numbers} raters; read_mask must return one of each"
        )
    found.raters = max(raters, default=found.raters)
    if unit.is_volume and not found.problems and not strict:
        found.unwritable = _unwritable(dataset, unit, found) or ""
    if unit.is_volume and not found.problems:
        found.elsewhere = _try_read(found, misplaced_file, first) or ""
        found.unplaced = _try_read(found, _unplaced_file, first) or ""
    return found


def _add_image(found, image, normalised):
    """Add the size and the ranges of an image [C, H, W], as the loader and as the network has it."""
    flat = image.reshape(len(image), -1)
    found.sizes.add(tuple(image.shape[-2:]))
    found.low = flat.min(axis=1) if found.low is None else np.minimum(found.low, flat.min(axis=1))
    found.high = flat.max(axis=1) if found.high is None else np.maximum(found.high, flat.max(axis=1))
    found.typical = _typical_range(image, found.typical)
    found.is_fine = found.is_fine or bool((image != np.rint(image)).any())
    found.network_low = min(found.network_low, normalised.min().item())
    found.network_high = max(found.network_high, normalised.max().item())


def _add_mask(found, mask, notes):
    """Add what a mask [R, K, H, W] marks, and what its `MaskNote`s say."""
    found.empty += not mask.any()
    if len(mask) > 1 and mask.any(axis=(1, 2, 3)).sum() > 1:
        found.compared += 1
        found.apart += not (mask.sum(axis=0) > 1).any()
    found.is_inside_out |= mask.shape[1] == 1 and _is_inside_out(mask[:, 0])
    for note in notes:
        found.is_soft |= note.is_soft
        if note.foreground:
            found.foregrounds.setdefault(note.foreground, note.path)


def _unwritable(dataset, unit, found):
    """Why masks of a volume could not be written, one line; "" if they can. A wrong geometry is one of the problems."""
    geometry = _try_read(found, dataset.load_geometry, unit.cases[0])
    if found.problems:
        return ""
    try:
        check_volumes(dataset, [unit], to_write=True)
        check_shape(unit, geometry, (*next(iter(found.sizes)), len(unit.cases)))
    except UserError as error:
        return str(error)
    return ""


def _mean_ratio(parts, wholes):
    """The mean over R of parts / wholes, both [R, K]; NaN for a class whose wholes are all 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = parts / wholes
    defined = (wholes > 0).sum(axis=0)
    return np.where(defined, np.nansum(ratios, axis=0) / np.maximum(defined, 1), np.nan)


def _deviation(count, total, squares):
    """The standard deviation of values from their number, sum and sum of squares; NaN where there are none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))


def _try_read(inspection, read, *arguments):
    """The result of `read(*arguments)`; None where it raises, and the message joins the inspection's problems."""
    try:
        return read(*arguments)
    except (UserError, OSError) as error:
        if inspection.strict:
            raise
        inspection.problems.append(reason_of(error).removesuffix(case_remedy()))
        return None


def _count_mask_values(dataset, case, inspection, notes):
    """Count the values in a case's mask files, if they are label maps or pictures."""
    if is_volume_path(case.masks[0]) and dataset.volumes is not None:
        inspection.values.update(_value_counts(dataset.volumes.labels(case)))
    elif dataset.reads_labels and not dataset.classes.is_binary:
        inspection.values.update(_value_counts(dataset.load_labels(case)))
    else:
        for note in notes:
            inspection.values.update(note.counts or {})


RARE = 0.005  # of the pixels: fewer do not make an image bright
SEEN_PIXELS = 2**16  # of an image, for the range without outliers


def _typical_range(image, before):
    """The range (low, high) of an image [C, H, W] without `RARE` of the pixels at either end, joined with another."""
    step = max(int(np.sqrt(image[0].size / SEEN_PIXELS)), 1)
    seen = image[:, ::step, ::step].ravel()
    first = int(RARE * (seen.size - 1))
    last = seen.size - 1 - first
    low, high = np.partition(seen, (first, last))[[first, last]].tolist()  # np.quantile takes four times as long
    return (min(low, before[0]), max(high, before[1])) if before else (low, high)


def _is_inside_out(mask):
    """Whether masks [R, H, W] mark nearly all of the border and most pixels, but not all, as inverted masks do."""
    border = np.concatenate([mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]], axis=1)
    return bool(border.mean() > 0.9 and 0.5 < mask.mean() < 0.98)


def _value_counts(array):
    """{value, rounded to three decimals: number of pixels}."""
    values, counts = np.unique(array, return_counts=True)
    return dict(zip((round(float(value), 3) for value in values), counts.tolist(), strict=True))


def misplaced_file(case):
    """The first file of a volume that lies elsewhere in space than its first image, and where; "" if there is none."""
    for path in (*case.images[1:], *case.masks):
        how = is_volume_path(path) and is_volume_path(case.images[0]) and lies_elsewhere(path, case.images[0])
        if how:
            return f"{path} ({how})"
    return ""


def _unplaced_file(case):
    """The first file of a volume that has lost its affine, unlike its first image; "" if there is none."""
    for path in (*case.images[1:], *case.masks):
        if is_volume_path(path) and is_volume_path(case.images[0]) and is_unplaced(path, case.images[0]):
            return str(path)
    return ""
