"""The report over a results folder: so far one picture, `overview.png`, of its first cases."""

from pathlib import Path

import numpy as np

from .evaluation import raters_of, truths_of
from .files import write_png
from .pictures import captions, displayed, heat, mosaic, overlaid_tile, radiological, resized, tinted
from .results import Predictions

TILE = 128
COLUMNS = ("image", "mask (truth green)", "probability", "uncertainty")


def write_overview(results_dir, dataset, units, count=8, read_raters=raters_of):
    """Write overview.png: a row a case with the image, truth and fused mask outlined, probability and uncertainty.

    units: `data.Unit`s that have been sampled; the first `count` are shown, of a volume the slice with the largest
    mask. Of several classes each has its colour (see `pictures.overlay`), the uncertainty is the largest. Members
    follow in the row where they were saved. read_raters: called as `raters_of` is. Returns the picture's path.
    """
    folder = Path(results_dir)
    rows = [_row(folder, dataset, unit, read_raters) for unit in units[:count]]
    members = max(len(row) for row in rows) - len(COLUMNS)
    columns = COLUMNS if len(dataset.classes) == 1 else (COLUMNS[0], "mask (truth dashed)", *COLUMNS[2:])
    heading = captions([*columns, *(f"member {k}" for k in range(members))], TILE)
    path = folder / "overview.png"
    write_png(path, np.concatenate([heading, mosaic(rows)]))
    return path


def _row(folder, dataset, unit, read_raters):
    predictions = Predictions(folder, (), dataset.classes, lambda name: dataset.geometry(unit.cases[0]))

    def of_classes(read):  # [K, ...]
        return np.stack([read(unit.name, unit.is_volume, k) for k in range(len(dataset.classes))])

    masks, probability, doubt = map(of_classes, (predictions.mask, predictions.probability, predictions.uncertainty))
    members = [predictions.members(unit.name, unit.is_volume, k) for k in range(len(dataset.classes))]
    members, case = [np.stack(member) for member in zip(*members, strict=True)], unit.cases[0]
    if unit.is_volume:
        k = int(masks.sum(axis=(0, 1, 2)).argmax())
        case = unit.cases[k]
        masks, probability, doubt, *members = (maps[..., k] for maps in (masks, probability, doubt, *members))
    image = displayed(dataset.load_image(case))
    truth = truths_of(dataset, [case], read_raters)
    if truth is not None and truth.ndim == 4:  # one slice of a volume
        truth = truth[..., 0]
    layers = [image, tinted(probability), heat(doubt.max(axis=0) * 2), *(tinted(member) for member in members)]
    if unit.is_volume:
        affine = dataset.geometry(case).affine
        layers = [radiological(layer, affine) for layer in layers]
        masks, truth = (
            None if group is None else np.stack([radiological(mask, affine) for mask in group])
            for group in (masks, truth)
        )
    shown = [resized(layer, TILE) for layer in layers]
    return [shown[0], overlaid_tile(layers[0], masks, TILE, truth), *shown[1:]]
