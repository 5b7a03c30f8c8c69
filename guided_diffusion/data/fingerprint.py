"""The fingerprint of training data: the sizes, values and lesions that decide how to train on them."""

import math
import time
from dataclasses import dataclass, field

import numpy as np

from .cases import group_cases, spread_indices
from .compatibility import used_window
from .resizing import round_trip

GRIDS = (128, 192, 256, 384, 512)  # sides in pixels to which whole images may shrink
MOST_PICTURES, LEAST_PICTURES = 48, 8  # pictures that are looked at, spread over all
MOST_VOLUMES, SLICES_EACH, SCANNED_EACH = 12, 6, 32  # volumes; of each, marked slices, out of so many spread ones
DECODED_VOLUMES = 3  # of those, volumes whose images are decoded too, which takes seconds each
MOST_PIXELS = 30e6  # of all images looked at, so that it takes seconds
CELLS = 8  # an image has CELLS x CELLS cells, for its coverage
CERTAIN = 0.995  # a round trip above which larger grids need no measurement
SMALLEST = 0.1  # the quantile of the sizes of components that counts as the smallest: labels have stray pixels


@dataclass(frozen=True)
class Fingerprint:
    """What a spread sample of training cases shows.

    cases, images: the number of pictures or volumes, and of pictures or slices. seen: the images of which masks were
    measured. sides: (H, W) of the smallest, the median and the largest image, by the longer side. spacing: mm per axis,
    the median over volumes; () for pictures. channels: of images. values: the kind of intensities, a text. low, high:
    their range. classes: the names. raters: masks of an image. empty: the share of images with nothing marked. present:
    for each class the share of images that have it. shares: for each class the median share of the image that it marks
    where it is, NaN for a class that was not seen. smallest: the pixels, in the files' own, of a small component (see
    `SMALLEST`); 0 with nothing marked. coverage: the median share of a marked image's `CELLS` x `CELLS` cells in which
    something is marked: near 1 for what is everywhere, as cells, vessels or membranes. objects: the median number of
    components in a marked image. round_trips: {side: for each class the mean Dice of masks shrunk to side x side and
    enlarged again (see `resizing.round_trip`)}, NaN for a class that was not seen. orientation: the loader's.
    read_seconds: to read and normalise one image.
    """

    cases: int
    images: int
    seen: int
    sides: tuple
    channels: int
    classes: tuple
    spacing: tuple = ()
    values: str = ""
    low: float = 0.0
    high: float = 0.0
    raters: int = 1
    empty: float = 0.0
    present: tuple = ()
    shares: tuple = ()
    smallest: int = 0
    objects: float = 0.0
    coverage: float = 0.0
    round_trips: dict = field(default_factory=dict)
    is_volumes: bool = False
    orientation: str = "upright"
    read_seconds: float = field(default=0.0, compare=False)

    @property
    def side(self):
        """The longer side of the median image."""
        return max(self.sides[1])

    @property
    def is_marked(self):
        """Whether anything is marked in the masks looked at."""
        return any(share > 0 for share in self.present)

    def round_trip(self, side):
        """The round trip of the worst class at a side that was measured, or beyond the largest image's; NaN if no mask
        is marked. Classes that were not seen do not count."""
        known = [value for value in self.round_trips.get(side, ()) if not math.isnan(value)]
        if known:
            return min(known)
        return 1.0 if self.is_marked and side >= max(self.sides[2]) else math.nan


def data_fingerprint(dataset):
    """The `Fingerprint` of a `SegmentationDataset` with masks; the same for the same files.

    Raises the loader's `UserError` for a file that cannot be read.
    """
    units = group_cases(dataset.cases)
    first = units[0]
    look = _look_at_volume if first.is_volume else _look_at_picture
    measured = _Measured(len(dataset.class_names))
    look(dataset, first, measured)
    count = MOST_VOLUMES if first.is_volume else MOST_PICTURES
    least = min(4, count) if first.is_volume else LEAST_PICTURES
    count = int(np.clip(MOST_PIXELS // max(measured.pixels, 1), least, count))
    for index in spread_indices(len(units), count):
        if index:  # the first was looked at
            look(dataset, units[index], measured)
    return measured.result(dataset, units)


class _Measured:
    """Adds up what images and masks show."""

    def __init__(self, classes):
        self.sides, self.spacings, self.ranges = [], [], []
        self.is_whole = self.is_16_bit = True
        self.images, self.marked, self.raters, self.pixels = 0, 0, 1, 0
        self.present = np.zeros(classes, int)  # images that have each class
        self.shares = [[] for _ in range(classes)]
        self.components, self.objects, self.coverages = [], [], []
        self.trips = {}  # {side: Dice by class, [K], of each picture or volume}
        self.seen, self.read, self.reading = 0, 0, 0.0

    def add_image(self, dataset, case):
        """Add the size, the range and the reading time of a case's image. Returns its (H, W)."""
        began = time.perf_counter()
        image = dataset.load_image(case)
        dataset.normalised(image, case)
        self.reading, self.read = self.reading + time.perf_counter() - began, self.read + 1
        self.ranges.append((float(image.min()), float(image.max())))
        self.is_whole = self.is_whole and bool((image == np.rint(image)).all())
        # Pictures of 16 bits are read as value / 257 in float32.
        self.is_16_bit = self.is_16_bit and bool((np.abs(257 * image - np.rint(257 * image)) < 0.05).all())
        self.sides.append(tuple(image.shape[-2:]))
        self.pixels += image.shape[-2] * image.shape[-1]
        return tuple(image.shape[-2:])

    def count(self, mask):
        """Note which classes a mask [R, K, H, W] marks, by any rater."""
        found = mask.any(axis=(0, 2, 3))
        self.images, self.marked = self.images + 1, self.marked + bool(found.any())
        self.present += found

    def add_masks(self, masks):
        """Add the sizes of what the marked masks, [R, K, H, W] each, of a picture or volume mark, and round trips."""
        from scipy.ndimage import label

        overlaps = {}
        for mask in masks:
            self.seen, self.raters = self.seen + 1, max(self.raters, len(mask))
            sizes = []
            for k in range(mask.shape[1]):
                marking = [one[k] for one in mask if one[k].any()]
                if marking:
                    self.shares[k].append(float(np.mean([one.mean() for one in marking])))
                    labels, found = label(marking[0], np.ones((3, 3), int))
                    sizes += np.bincount(labels.ravel())[1 : found + 1].tolist()
            if sizes:
                self.components.append(float(np.quantile(sizes, SMALLEST)))
                self.objects.append(len(sizes))
                self.coverages.append(_share_of_cells(mask.any(axis=(0, 1))))
            self._add_round_trips(mask, overlaps)
        for side, (parts, wholes) in overlaps.items():
            dice = np.where(wholes > 0, parts / np.maximum(wholes, 1), np.nan)
            self.trips.setdefault(side, []).append(dice)

    @staticmethod
    def _add_round_trips(mask, overlaps):
        """Add to {side: (twice the pixels in both, pixels in each), [K]} what the round trips of a mask give.

        An image that does not shrink keeps its masks.
        """
        parts = wholes = None
        for side in GRIDS:
            if side >= max(mask.shape[-2:]):
                parts = wholes = 2 * mask.sum(axis=(0, 2, 3))  # over raters
            elif parts is None or (parts < CERTAIN * wholes).any():
                parts, wholes = round_trip(mask, side).sum(axis=1)
            both, total = overlaps.get(side, (0, 0))
            overlaps[side] = both + parts, total + wholes

    def result(self, dataset, units):
        """The `Fingerprint`. units: of all training cases."""
        sides = sorted(self.sides, key=lambda side: (max(side), side))
        images = max(self.images, 1)
        low, high = (float(f(column)) for f, column in zip((min, max), zip(*self.ranges, strict=True), strict=True))
        spacing = tuple(float(value) for value in np.median(self.spacings, axis=0)) if self.spacings else ()
        return Fingerprint(
            cases=len(units),
            images=len(dataset),
            seen=self.seen,
            sides=(sides[0], sides[len(sides) // 2], sides[-1]),
            spacing=spacing,
            channels=dataset.image_channels,
            values=self._kind(dataset, units[0].is_volume, low, high),
            low=low,
            high=high,
            classes=tuple(dataset.class_names),
            raters=self.raters,
            empty=1 - self.marked / images,
            present=tuple((self.present / images).tolist()),
            shares=tuple(float(np.median(one)) if one else math.nan for one in self.shares),
            smallest=round(float(np.median(self.components))) if self.components else 0,
            objects=float(np.median(self.objects)) if self.objects else 0.0,
            coverage=float(np.median(self.coverages)) if self.coverages else 0.0,
            round_trips={s: _mean_by_class(d) for s, d in sorted(self.trips.items()) if s < max(sides[-1])},
            is_volumes=units[0].is_volume,
            orientation=dataset.orientation,
            # Volumes are decoded before training begins.
            read_seconds=0.0 if units[0].is_volume else self.reading / self.read,
        )

    def _kind(self, dataset, is_volume, low, high):
        if is_volume:
            window = used_window(dataset.kept_values())
            return f"CT, cut to {window.replace(',', ' to ')} HU" if window else "z-scores of each volume"
        if self.is_whole and low >= 0 and high <= 255:
            return "8 bit"
        if self.is_whole:
            return "whole numbers of more than 8 bit"
        is_16_bit = self.is_16_bit and low >= 0 and high <= 255
        return "16 bit, with white as 255" if is_16_bit else "real numbers"


def _look_at_picture(dataset, unit, measured):
    case = unit.cases[0]
    mask = dataset.load_mask(case, measured.add_image(dataset, case))
    measured.count(mask)
    measured.add_masks([mask] if mask.any() else [])


def _look_at_volume(dataset, unit, measured):
    """Look for marked slices among spread ones, measure a few of them, and forget the decoded volume."""
    cases = unit.cases
    size = None
    if len(measured.ranges) < DECODED_VOLUMES:
        size = measured.add_image(dataset, cases[len(cases) // 2])
    geometry = dataset.load_geometry(cases[0])
    if geometry is not None and len(geometry.spacing) == 3:
        measured.spacings.append(tuple(map(float, geometry.spacing)))
    marked = []
    for index in spread_indices(len(cases), SCANNED_EACH):
        mask = dataset.load_mask(cases[index], size)
        measured.count(mask)
        if mask.any():
            marked.append(mask)
    if size is None:
        measured.sides.append(tuple(mask.shape[-2:]))
    chosen = [marked[index] for index in spread_indices(len(marked), SLICES_EACH)] if marked else []
    measured.pixels += sum(mask.shape[-2] * mask.shape[-1] for mask in chosen[1:])
    measured.add_masks(chosen)
    if dataset.volumes is not None:
        dataset.volumes.forget()


def _share_of_cells(marked):
    """The share of `CELLS` x `CELLS` cells of a mask, bool [H, W], in which something is marked."""
    rows, columns = (np.arange(side) * min(CELLS, side) // side for side in marked.shape)
    cells = np.zeros((rows[-1] + 1, columns[-1] + 1), bool)
    there = marked.nonzero()
    cells[rows[there[0]], columns[there[1]]] = True
    return float(cells.mean())


def _mean_by_class(dice):
    """The mean over arrays [K] of what is defined; NaN for a class without."""
    dice = np.array(dice)
    defined = np.isfinite(dice).sum(axis=0)
    return tuple(np.where(defined, np.nansum(dice, axis=0) / np.maximum(defined, 1), np.nan).tolist())


# ---- as text -------------------------------------------------------------------------------------------------------


def fingerprint_rows(found):
    """(name, value) texts of a `Fingerprint`, for a table."""
    small, middle, large = (f"{width} x {height}" for height, width in found.sides)
    what = "volume" if found.is_volumes else "picture"
    sizes = middle if small == large else f"{middle} (median), {small} to {large}"
    yield f"{what}s", f"{found.cases}" + (f", {found.images} slices" if found.is_volumes else "")
    yield "size in pixels", sizes
    if found.spacing:
        yield "spacing in mm", " x ".join(f"{value:.3g}" for value in found.spacing)
    yield "channels, values", f"{found.channels}, {found.values} ({found.low:.4g} to {found.high:.4g})"
    if found.raters > 1:
        yield "raters", str(found.raters)
    yield "nothing marked", f"{found.empty:.0%} of {'slices' if found.is_volumes else 'pictures'} looked at"
    for k, name in enumerate(found.classes):
        if k == CLASSES_SHOWN:
            yield "further classes", str(len(found.classes) - k)
            break
        share = "not seen" if math.isnan(found.shares[k]) else f"{found.shares[k]:.2%} of an image that has it"
        yield f"class {name}", f"{share}; in {found.present[k]:.0%} of images"
    if found.is_marked:
        yield "components", f"{found.objects:g} in an image (median), small ones of {found.smallest} pixels"
        yield "spread", f"something is marked in {found.coverage:.0%} of an image's {CELLS} x {CELLS} cells"
    for side in found.round_trips:
        yield (
            f"round trip at {side}",
            f"{found.round_trip(side):.3f}" + (" (the worst class)" if len(found.classes) > 1 else ""),
        )


CLASSES_SHOWN = 12  # classes in the table
