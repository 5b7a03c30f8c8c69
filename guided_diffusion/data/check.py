"""Looks at every case of a data set before anyone trains: what there is, and what training would trip over."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
from torch.utils.data import Dataset

from ..io.drawing import captions, class_colour, displayed, grey, mosaic, outline, radiological, resized
from ..io.images import write_png
from ..io.nifti import is_nifti, lies_elsewhere
from ..runtime.console import counted, listed, text_table
from ..runtime.errors import NoCasesError, NoSplitError, UserError, reason_of
from .cases import group_cases
from .dataset import REMEDY, like_photograph, mask_pictures
from .registry import build_dataset
from .splits import SPLIT_FOLDERS, known_group

LISTED_PROBLEMS = 5  # then a line says which cases have the others


FEW_PIXELS = 1e-3  # share of the foreground below which masks are hard to learn


SOFT_VALUES = 2  # values of a mask picture beyond which its greys are told


@dataclass
class Look:
    """What was seen of a case, or of all slices of a volume.

    group: see `split.known_group`. sizes: (H, W) of each image. low, high: the range of each channel's values, as the
    loader gives them. marked: the share of pixels in each class, over raters and slices; empty: of how many images all
    masks are empty. values: those in the files of masks, label values of label maps; is_soft, is_photograph: whether
    greys are among them, and as many as `case_checks.like_photograph` tells. digest: of the image's pixels, None of a
    blank one. problems: what kept it, or its truth, from being read.
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
    lies_elsewhere: str = ""
    digest: str | None = None
    problems: list = field(default_factory=list)


@dataclass
class Part:
    """A split's data set and the `Look`s at its units. name: "train", "val", "test", or "all" of undivided data."""

    name: str
    dataset: object
    looks: list = field(default_factory=list)

    @property
    def images(self):
        """How many images, or slices, there are."""
        return sum(look.count for look in self.looks)

    @property
    def is_volumes(self):
        """Whether the cases are slices of volumes."""
        return self.dataset.cases[0].volume is not None

    @property
    def trains(self):
        """Whether training reads these cases."""
        return self.name in ("train", "val", "all")


@dataclass(frozen=True)
class Finding:
    """A line about the data. is_error: whether training would trip over it, or its result mean nothing."""

    is_error: bool
    text: str

    def __str__(self):
        return f"{'error' if self.is_error else 'warning'}: {self.text}"


# ---- which cases there are ---------------------------------------------------------------------------------------


def find_parts(data_name, data_dir, **settings):
    """The `Part`s of a data set, not looked at yet: of each split that it has, or "all" where it is not divided.

    settings: see `data.build_dataset`. The classes that "auto" finds in the first, the training cases, are all splits'.
    Raises `UserError` for what the loader refuses and where nothing is found.
    """
    parts, errors = {}, []
    for split in SPLIT_FOLDERS:
        try:
            dataset = build_dataset(data_name, data_dir, 1, split=split, **settings)
            parts[split] = Part(split, dataset)
            if settings.get("classes") == "auto":
                settings["classes"] = str(dataset.classes)  # as training, sampling and evaluation do
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


# ---- looking at one ----------------------------------------------------------------------------------------------


class Looks(Dataset):
    """The `Look`s at the units of a data set, item by item, so that a DataLoader's workers share them out."""

    def __init__(self, dataset, group_key=""):
        self.dataset, self.group_key = dataset, group_key
        self.units = group_cases(dataset.cases)

    def __len__(self):
        return len(self.units)

    def load_shared(self):
        """See `data.SegmentationDataset.preload`."""
        self.dataset.load_shared()

    def __getitem__(self, index):
        return look_at(self.dataset, self.units[index], self.group_key)


def look_at(dataset, unit, group_key=""):
    """The `Look` at a `units.Unit`; what kept it from being read is among its `problems`."""
    first = unit.cases[0]
    look = Look(unit.name, known_group(first, group_key), len(unit.cases), first.label, len(first.masks))
    digest, blank, marked = hashlib.sha256(), True, []
    for case in unit.cases:
        image = _read_noting_problems(look, dataset.load_image, case)
        if image is None:
            return look  # so would be the other slices
        size = image.shape[-2:]
        flat = image.reshape(len(image), -1)
        look.sizes.add(tuple(size))
        look.low = flat.min(axis=1) if look.low is None else np.minimum(look.low, flat.min(axis=1))
        look.high = flat.max(axis=1) if look.high is None else np.maximum(look.high, flat.max(axis=1))
        blank &= bool((image == image.flat[0]).all())
        digest.update(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes())
        if case.masks:
            mask = _read_noting_problems(look, dataset.load_mask, case, size)
            if mask is None:
                break
            marked.append(mask.mean(axis=(0, 2, 3)))
            look.empty += not mask.any()
            _read_noting_problems(look, _look_at_values, dataset, case, look)
    look.digest = None if blank else digest.hexdigest()
    look.marked = np.mean(marked, axis=0) if marked else None
    if unit.is_volume:
        look.lies_elsewhere = _read_noting_problems(look, _file_that_lies_elsewhere, first) or ""
    return look


def _read_noting_problems(look, read, *arguments):
    """The result of `read(*arguments)`; None where it raises, which becomes a problem of the look."""
    try:
        return read(*arguments)
    except (UserError, OSError) as error:
        look.problems.append(reason_of(error).removesuffix(REMEDY))
        return None


def _look_at_values(dataset, case, look):
    """Count the values in a case's files of masks, where they are label maps or pictures."""
    if is_nifti(case.masks[0]) and dataset.volumes is not None:
        look.values.update(_counted_values(dataset.volumes.labels(case)))
    elif dataset.reads_labels and not dataset.classes.is_binary:
        look.values.update(_counted_values(dataset.load_labels(case)))
    else:
        for picture in mask_pictures(case):
            values = _counted_values(picture)
            look.is_photograph |= like_photograph(picture)
            look.is_soft |= len(values) > SOFT_VALUES
            look.values.update(values)


def _counted_values(array):
    values, counts = np.unique(array, return_counts=True)
    return dict(zip((round(float(value), 3) for value in values), counts.tolist(), strict=True))


def _file_that_lies_elsewhere(case):
    """The first file of a volume that lies elsewhere in space than its first one, and how; "" if all lie alike."""
    for path in (*case.images[1:], *case.masks):
        how = lies_elsewhere(path, case.images[0])
        if how:
            return f"{path} ({how})"
    return ""


# ---- what it means -----------------------------------------------------------------------------------------------


def findings(parts):
    """The `Finding`s about all `Part`s that were looked at, errors first."""
    found = [finding for part in parts for finding in (*_reading(part), *_masks(part), *_images(part))]
    found += [*_duplicates(parts), *_group_findings(parts), *_between(parts)]
    return sorted(found, key=lambda finding: not finding.is_error)


def _reading(part):
    problems = [problem for look in part.looks for problem in look.problems]
    yield from (Finding(True, f"{part.name}: {problem}") for problem in problems[:LISTED_PROBLEMS])
    if len(problems) > LISTED_PROBLEMS:
        names = [look.name for look in part.looks if look.problems]
        more = f"{len(problems) - LISTED_PROBLEMS} more that cannot be read: {listed(names[LISTED_PROBLEMS:])}"
        yield Finding(True, f"{part.name}: {more}")


def _masks(part):
    without = [look.name for look in part.looks if not look.raters]
    if without and part.trains:
        yield Finding(True, f"{part.name}: {counted(len(without), 'case')} without a mask: {listed(without)}")
    elif without:
        words = (
            f"{part.name}: {counted(len(without), 'case')} without a mask, which cannot be scored: {listed(without)}"
        )
        yield Finding(False, words)
    numbers = Counter(look.raters for look in part.looks if look.raters)
    if len(numbers) > 1:
        usual = numbers.most_common(1)[0][0]
        odd = [look.name for look in part.looks if look.raters not in (0, usual)]
        yield Finding(part.trains, f"{part.name}: not masked by {counted(usual, 'rater')} as the others: {listed(odd)}")
    seen = [look for look in part.looks if look.marked is not None]
    if seen and all(not look.marked.any() for look in seen) and part.trains:
        yield Finding(True, f"{part.name}: all masks are empty: there is nothing to learn; are they the right files?")
    empty = [look.name for look in seen if look.empty == look.count]
    if empty and len(empty) < len(seen):
        yield Finding(False, f"{part.name}: {counted(len(empty), 'case')} with nothing marked: {listed(empty)}")
    full = [look.name for look in seen if look.marked.max() > 0.98]
    if full:
        yield Finding(False, f"{part.name}: {counted(len(full), 'case')} marked all over: {listed(full)}")
    photographs = [look.name for look in part.looks if look.is_photograph]
    if photographs and part.dataset.classes.is_binary:
        yield Finding(
            False,
            f"{part.name}: {counted(len(photographs), 'mask')} with the many greys of a photograph: "
            f"{listed(photographs)}; are images/ and masks/ swapped, or these the wrong files?",
        )
    soft = [look.name for look in part.looks if look.is_soft and not look.is_photograph]
    if soft and part.dataset.classes.is_binary:
        yield Finding(
            False,
            f"{part.name}: {counted(len(soft), 'mask')} with greys between background and foreground, which are cut at "
            f"half: {listed(soft)}",
        )
    yield from _balance(part, seen)


def _balance(part, seen):
    """On classes that are rare, or that label maps do not hold."""
    shares = np.mean([look.marked for look in seen], axis=0) if seen else []
    for name, share in zip(part.dataset.class_names, shares, strict=True) if seen else ():
        if share == 0 and len(shares) > 1:
            yield Finding(part.trains, f"{part.name}: no pixel is {name}")
        elif 0 < share < FEW_PIXELS:
            yield Finding(False, f"{part.name}: {name} is {100 * share:.2g} % of the pixels, which is hard to learn")
    if part.dataset.reads_labels and not part.dataset.classes.is_binary:
        known = {value for values in part.dataset.classes.values for value in values} | {0}
        others = sorted({value for look in part.looks for value in look.values} - known)
        if others:
            told = ", ".join(f"{value:g}" for value in others)
            yield Finding(False, f"{part.name}: no class has the label value {told}: it counts as background")


def _images(part):
    blank = [look.name for look in part.looks if look.digest is None and look.sizes and not look.problems]
    if blank:
        yield Finding(False, f"{part.name}: {counted(len(blank), 'image')} of one value alone: {listed(blank)}")
    elsewhere = [look.lies_elsewhere for look in part.looks if look.lies_elsewhere]
    if elsewhere:
        more = f" and {len(elsewhere) - 1} more" if len(elsewhere) > 1 else ""
        yield Finding(False, f"{part.name}: a file lies elsewhere in space than its image: {elsewhere[0]}{more}")
    if not part.is_volumes and not is_nifti(part.dataset.cases[0].images[0]):
        dark = [look.name for look in part.looks if look.digest and 0 < look.high.max() <= 1]
        if dark:
            yield Finding(
                False, f"{part.name}: nearly black, with values from 0 to 1: {listed(dark)}; save them as 0-255"
            )


def _duplicates(parts):
    places = defaultdict(list)
    for part in parts:
        for look in part.looks:
            if look.digest:
                places[look.digest].append((part.name, look.name))
    across, within = [], []
    for found in places.values():
        if len(found) > 1:
            told = " = ".join(f"{name} ({part})" for part, name in found)
            (across if len({part for part, _ in found}) > 1 else within).append(told)
    if across:
        words = "in two splits, so that what is trained on is also tested on"
        yield Finding(True, f"{counted(len(across), 'image')} {words}: {listed(across)}; keep each in one")
    if within:
        yield Finding(False, f"{counted(len(within), 'image')} more than once in a split: {listed(within)}")


def _group_findings(parts):
    """On patients, and on names, which may be theirs, in two splits."""
    groups, names = defaultdict(set), defaultdict(set)
    for part in parts:
        for look in part.looks:
            if look.group:
                groups[look.group].add(part.name)
            else:
                names[look.name].add(look.digest)
    both = sorted(group for group, sides in groups.items() if len(sides) > 1)
    if both:
        yield Finding(
            True,
            f"{counted(len(both), 'patient')} (or other group) in two splits, so that what is trained on is also "
            f"tested on: {listed(both)}; keep each in one",
        )
    # The same name with the same pixels has been told as an image in two splits.
    same = sorted(name for name, digests in names.items() if len(digests) > 1)
    if same:
        yield Finding(
            False,
            f"{counted(len(same), 'name')} in two splits, of different images: {listed(same)}; if that is one patient, "
            "keep each in one",
        )


def _between(parts):
    """On splits that do not fit each other."""
    channels = {part.dataset.image_channels for part in parts}
    if len(channels) > 1:
        told = ", ".join(f"{part.name} {part.dataset.image_channels}" for part in parts)
        yield Finding(True, f"the splits differ in their number of channels: {told}; they must agree")
    if [part.name for part in parts] == ["all"]:
        yield Finding(
            False,
            "the data are not divided: all are trained on and sampled; hold some out, as --val_fraction 0.2",
        )


# ---- What `scripts/check_data.py` shows of a data set: a table of its splits and a contact sheet of its cases -------


SHEET_TILE = 160  # pixels


SHEET_COLUMNS = 8


VALUES = 8  # that are told of masks


def table(parts):
    """A table of the parts, a column each, as text."""
    rows = [[label, *map(tell, parts)] for label, tell in ROWS.items()]
    return text_table(["", *(part.name for part in parts)], [row for row in rows if any(row[1:])])


def _cases(part):
    return str(len(part.looks))


def _slices(part):
    return str(part.images) if part.is_volumes else ""


def _group_count(part):
    groups = {look.group or look.name for look in part.looks}
    return str(len(groups)) if len(groups) < len(part.looks) else ""


def _without_mask(part):
    return str(sum(not look.raters for look in part.looks))


def _unreadable(part):
    return str(sum(bool(look.problems) for look in part.looks))


def _raters(part):
    return _span([look.raters for look in part.looks if look.raters])


def _image_sizes(part):
    sizes = Counter(size for look in part.looks for size in look.sizes)
    usual = sizes.most_common(2)
    told = " ".join("x".join(map(str, size)) for size, _ in usual)
    return f"{told} +{len(sizes) - len(usual)}" if len(sizes) > len(usual) else told


def _channels(part):
    return str(part.dataset.image_channels)


def _range(part):
    seen = [look for look in part.looks if look.low is not None]
    if not seen:
        return ""
    low, high = min(look.low.min() for look in seen), max(look.high.max() for look in seen)
    return f"{low:.4g} to {high:.4g}"


def _mask_values(part):
    values = Counter()
    for look in part.looks:
        values.update(look.values)
    usual = sorted(value for value, _ in values.most_common(VALUES))
    told = " ".join(f"{value:g}" for value in usual)
    return f"{told} +{len(values) - len(usual)}" if len(values) > len(usual) else told


def _empty(part):
    return str(sum(look.empty for look in part.looks))


def _shares(part, k):
    """The mean share of a class in the images, and its span over the cases."""
    shares = [100 * look.marked[k] for look in part.looks if look.marked is not None]
    return f"{np.mean(shares):.3g} % ({min(shares):.2g} to {max(shares):.3g})" if shares else ""


def _labels(part):
    names = part.dataset.label_names
    counts = Counter(look.label for look in part.looks if look.label is not None)
    return ", ".join(f"{names[label]} {count}" for label, count in sorted(counts.items()))


ROWS = {
    "cases": _cases,
    "slices": _slices,
    "patients or groups": _group_count,
    "without a mask": _without_mask,
    "cannot be read": _unreadable,
    "channels": _channels,
    "sizes, most often (H x W)": _image_sizes,
    "values that the loader gives": _range,
    "raters": _raters,
    "values in masks": _mask_values,
    "images with empty masks": _empty,
    "labels": _labels,
}


def class_lines(parts):
    """A line for each class: which share of the pixels it has, on average and from case to case."""
    lines = []
    for k, name in enumerate(parts[0].dataset.class_names):
        told = [f"{part.name} {_shares(part, k)}" for part in parts if _shares(part, k)]
        if told:
            lines.append(f"{name}: {'; '.join(told)} of the pixels")
    return lines


def _span(numbers):
    if not numbers:
        return ""
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


# ---- the contact sheet -------------------------------------------------------------------------------------------


def write_sheet(path, parts, count, progress=lambda units: units):
    """Write a picture of up to `count` cases of each part, spread over it, with the outlines of their masks.

    Of a volume the slice with the largest mask is shown. A single mask is outlined in red; of several classes, and
    else of several raters, each has its own colour. Cases that cannot be read are left out.
    """
    chosen = []
    for part in parts:
        readable = {look.name for look in part.looks if not look.problems}
        units = [unit for unit in group_cases(part.dataset.cases) if unit.name in readable]
        picked = np.unique(np.linspace(0, len(units) - 1, min(count, len(units))).round().astype(int)) if units else []
        chosen += [(part, units[i]) for i in picked]
    if not chosen:
        return False
    tiles, blank = [], np.full((SHEET_TILE, SHEET_TILE, 3), 255, np.uint8)
    for part, unit in progress(chosen):
        tiles.append((_tile(part.dataset, unit), f"{part.name} {unit.name}"))
    rows = []
    for start in range(0, len(tiles), SHEET_COLUMNS):
        row = tiles[start : start + SHEET_COLUMNS]
        row += [(blank, "")] * (min(SHEET_COLUMNS, len(tiles)) - len(row))
        rows += [captions([_short(text) for _, text in row], SHEET_TILE), mosaic([[tile for tile, _ in row]])]
    write_png(path, np.concatenate(rows))
    return True


def _short(text):
    most = SHEET_TILE // 6 - 1  # characters that fit
    return text if len(text) <= most else f"{text[: most // 2 - 1]}..{text[-(most // 2) :]}"


def _tile(dataset, unit):
    case, masks = unit.cases[0], None
    if unit.is_volume and case.masks:
        case = max(unit.cases, key=lambda each: dataset.load_mask(each).sum())
    elif unit.is_volume:
        case = unit.cases[len(unit.cases) // 2]
    image = displayed(dataset.load_image(case))
    if case.masks:
        try:
            masks = dataset.load_mask(case)
        except UserError:
            masks = None
    layers = [] if masks is None else _layers(masks)
    geometry = dataset.load_geometry(case)
    if geometry is not None:
        image, *layers = (radiological(layer, geometry.affine) for layer in (image, *layers))
    picture = resized(image, SHEET_TILE)
    for k, layer in enumerate(layers):
        picture = outline(picture, resized(grey(layer), SHEET_TILE)[..., 0] > 127, class_colour(k))
    return picture


def _layers(masks):
    """The masks that are outlined, of bool [R, K, H, W]: of several classes the first rater's, else each rater's."""
    return list(masks[0]) if masks.shape[1] > 1 else list(masks[:, 0])


def told_layout(parts):
    """Lines on where the data are and what was recognised."""
    dataset = parts[0].dataset
    lines = [f"data: {dataset.data_dir}, read by {type(dataset).__name__}"]
    for part in parts:
        if part.dataset.layout:
            lines.append(f"layout ({part.name}): {part.dataset.layout}")
        lines += [f"note ({part.name}): {note}" for note in part.dataset.notes]
    classes = ", ".join(dataset.class_names)
    lines.append(f"{counted(len(dataset.class_names), 'class').replace('classs', 'classes')}: {classes}")
    return lines
