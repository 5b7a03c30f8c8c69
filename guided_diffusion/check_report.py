"""What `scripts/check_data.py` shows of a data set: a table of its splits and a contact sheet of its cases."""

from collections import Counter

import numpy as np

from .io.drawing import captions, class_colour, displayed, grey, mosaic, outline, radiological, resized
from .io.images import write_png
from .runtime.console import counted, text_table
from .runtime.errors import UserError
from .units import group_cases

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
