"""What the check of data shows of a data set: its layout, a table of its splits, and a contact sheet."""

from collections import Counter

import numpy as np

from ..io.drawing import captions, class_colour, displayed, grey, mosaic, outline, radiological, resized
from ..io.images import write_png
from ..runtime.console import text_table
from .cases import group_cases, spread_indices
from .check import DOUBT, round_trips

SHEET_TILE = 160  # pixels
SHEET_COLUMNS = 8
SHOWN_VALUES = 8  # of the values in masks, the most frequent


def layout_lines(parts):
    """Lines on where the data are, which layout was recognised and which classes there are."""
    dataset = parts[0].dataset
    lines = [f"data: {dataset.data_dir}, read by {dataset.shown_name()}"]
    for part in parts:
        if part.dataset.layout:
            lines.append(f"layout ({part.name}): {part.dataset.layout}")
        lines += [f"note ({part.name}): {note}" for note in part.dataset.notes if not note.startswith(DOUBT)]
    number = len(dataset.class_names)
    lines.append(f"{number} {'class' if number == 1 else 'classes'}: {', '.join(dataset.class_names)}")
    return lines


# ---- the table ---------------------------------------------------------------------------------------------------


def table(parts):
    """A table with a column for each `inspection.Part`, as text. Rows without a value are left out."""
    rows = [[label, *map(cell, parts)] for label, cell in ROWS.items()]
    return text_table(["", *(part.name for part in parts)], [row for row in rows if any(row[1:])])


def _cases(part):
    return str(len(part.inspections))


def _slices(part):
    return str(part.images) if part.is_volumes else ""


def _group_count(part):
    groups = {one.group or one.name for one in part.inspections}
    return str(len(groups)) if len(groups) < len(part.inspections) else ""


def _without_mask(part):
    return str(sum(not one.raters for one in part.inspections))


def _unreadable(part):
    return str(sum(bool(one.problems) for one in part.inspections))


def _raters(part):
    return _span([one.raters for one in part.inspections if one.raters])


def _image_sizes(part):
    sizes = Counter(size for one in part.inspections for size in one.sizes)
    usual = sizes.most_common(2)
    text = " ".join("x".join(map(str, size)) for size, _ in usual)
    return f"{text} +{len(sizes) - len(usual)}" if len(sizes) > len(usual) else text


def _channels(part):
    return str(part.dataset.image_channels)


def _range(part):
    seen = [one for one in part.inspections if one.low is not None]
    if not seen:
        return ""
    low, high = min(one.low.min() for one in seen), max(one.high.max() for one in seen)
    return f"{low:.4g} to {high:.4g}"


def _network_range(part):
    seen = [one for one in part.inspections if one.network_low <= one.network_high]
    if not seen:
        return ""
    return f"{min(one.network_low for one in seen):.3g} to {max(one.network_high for one in seen):.3g}"


def _mask_values(part):
    values = Counter()
    for one in part.inspections:
        values.update(one.values)
    usual = sorted(value for value, _ in values.most_common(SHOWN_VALUES))
    text = " ".join(f"{value:g}" for value in usual)
    return f"{text} +{len(values) - len(usual)}" if len(values) > len(usual) else text


def _empty(part):
    return str(sum(one.empty for one in part.inspections))


def _ignored(part):
    shares = [100 * one.ignored for one in part.inspections if one.ignored is not None]
    return f"{np.mean(shares):.3g} % ({min(shares):.3g} to {max(shares):.3g})" if shares else ""


def _shares(part, k):
    """The mean share of class k in the pixels, with its range over the cases; "" if no mask was read."""
    shares = [100 * one.marked[k] for one in part.inspections if one.marked is not None]
    return f"{np.mean(shares):.3g} % ({min(shares):.3g} to {max(shares):.3g})" if shares else ""


def _round_trip(part):
    dice = [f"{value:.3f}" for value in round_trips(part) if np.isfinite(value)]
    return f"{' '.join(dice)} at {part.dataset.image_size}" if dice else ""


def _labels(part):
    names = part.dataset.label_names
    counts = Counter(one.label for one in part.inspections if one.label is not None)
    return ", ".join(
        f"{names[label] if label < len(names) else label} {count}" for label, count in sorted(counts.items())
    )


ROWS = {
    "cases": _cases,
    "slices": _slices,
    "patients or groups": _group_count,
    "without a mask": _without_mask,
    "cannot be read": _unreadable,
    "channels": _channels,
    "sizes, most often (H x W)": _image_sizes,
    "values that the loader gives": _range,
    "values that the network sees": _network_range,
    "raters": _raters,
    "values in masks": _mask_values,
    "images with empty masks": _empty,
    "pixels without truth": _ignored,
    "Dice of masks, resized and back": _round_trip,
    "labels": _labels,
}


def class_lines(parts):
    """A line for each class: its mean share of the pixels, and its range over the cases."""
    lines = []
    for k, name in enumerate(parts[0].dataset.class_names):
        shares = [f"{part.name} {_shares(part, k)}" for part in parts if _shares(part, k)]
        if shares:
            lines.append(f"{name}: {'; '.join(shares)} of the pixels")
    return lines


def _span(numbers):
    """ "3", or "1 to 4"; "" without numbers."""
    if not numbers:
        return ""
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


# ---- the contact sheet -------------------------------------------------------------------------------------------


def write_sheet(path, parts, count, progress=lambda units: units):
    """Write a picture of up to `count` evenly spaced cases of each part, with their masks outlined.

    A volume is shown by the slice with the largest mask. Each class, or with one class each rater, has its own colour.
    Cases that cannot be read are left out.
    progress: wraps the iteration over the cases, as tqdm does. Returns False if there was nothing to draw.
    """
    chosen = []
    for part in parts:
        readable = {one.name for one in part.inspections if not one.problems}
        units = [unit for unit in group_cases(part.dataset.cases) if unit.name in readable]
        chosen += [(part, units[i]) for i in spread_indices(len(units), count)]
    if not chosen:
        return False
    tiles, blank = [], np.full((SHEET_TILE, SHEET_TILE, 3), 255, np.uint8)
    for part, unit in progress(chosen):
        tiles.append((_tile(part.dataset, unit), f"{part.name} {unit.name}"))
    rows = []
    for start in range(0, len(tiles), SHEET_COLUMNS):
        row = tiles[start : start + SHEET_COLUMNS]
        row += [(blank, "")] * (min(SHEET_COLUMNS, len(tiles)) - len(row))
        rows += [captions([text for _, text in row], SHEET_TILE), mosaic([[tile for tile, _ in row]])]
    write_png(path, np.concatenate(rows))
    return True


def _tile(dataset, unit):
    """A case's image, uint8 [SHEET_TILE, SHEET_TILE, 3], with outlines: of each class by the first rater, or with one
    class of each rater's mask."""
    case = unit.cases[0]
    if unit.is_volume and case.masks:
        case = max(unit.cases, key=lambda each: dataset.load_mask(each, compare=False).sum())
    elif unit.is_volume:
        case = unit.cases[len(unit.cases) // 2]
    image, layers = displayed(dataset.load_image(case)), []
    if case.masks:
        masks = dataset.load_mask(case, compare=False)  # [R, K, H, W]
        layers = masks[0] if masks.shape[1] > 1 else masks[:, 0]
    geometry = dataset.load_geometry(case)
    if geometry is not None:
        image, *layers = (radiological(layer, geometry.affine) for layer in (image, *layers))
    picture = resized(image, SHEET_TILE)
    for k, layer in enumerate(layers):
        picture = outline(picture, resized(grey(layer), SHEET_TILE)[..., 0] > 127, class_colour(k))
    return picture
