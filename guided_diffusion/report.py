"""The report over a results folder: so far one picture, `overview.png`, of its first cases."""

from pathlib import Path

import numpy as np

from .evaluation import majority, raters_of
from .files import read_nifti, read_picture, write_png
from .pictures import captions, displayed, grey, heat, mosaic, overlaid_tile, radiological, resized
from .results import Predictions

TILE = 128
COLUMNS = ("image", "mask (truth green)", "probability", "uncertainty")


def write_overview(results_dir, dataset, units, count=8, read_raters=raters_of):
    """Write overview.png: a row a case with the image, truth and fused mask outlined, probability and uncertainty.

    units: `data.Unit`s that have been sampled; the first `count` are shown, of a volume the slice with the largest
    mask. Members follow in the row where they were saved. read_raters: called as `raters_of` is. Returns the
    picture's path.
    """
    folder = Path(results_dir)
    rows = [_row(folder, dataset, unit, read_raters) for unit in units[:count]]
    members = max(len(row) for row in rows) - len(COLUMNS)
    heading = captions([*COLUMNS, *(f"member {k}" for k in range(members))], TILE)
    path = folder / "overview.png"
    write_png(path, np.concatenate([heading, mosaic(rows)]))
    return path


def _row(folder, dataset, unit, read_raters):
    predictions = Predictions(folder)
    mask = predictions.mask(unit.name, unit.is_volume)
    if unit.is_volume:
        k = int(mask.sum(axis=(0, 1)).argmax())
        case = unit.cases[k]
        probability = read_nifti(folder / f"{unit.name}_prob.nii.gz")[0][..., k]
        uncertainty = read_nifti(folder / f"{unit.name}_uncertainty.nii.gz")[0][..., k] * 2
        mask, members = mask[..., k], [member[..., k] for member in predictions.members(unit.name, True)]
    else:
        case = unit.cases[0]
        probability = read_picture(folder / "probability" / f"{unit.name}.png")[0] / 255
        uncertainty = read_picture(folder / "uncertainty" / f"{unit.name}.png")[0] / 255
        members = predictions.members(unit.name, False)
    image = displayed(dataset.load_image(case))
    truth = majority(read_raters(dataset, [case]))
    if truth is not None:  # of one class and, of a volume, one slice
        truth = truth[0, ..., 0] if unit.is_volume else truth[0]
    layers = [image, grey(mask), grey(probability), heat(uncertainty), *(grey(member) for member in members)]
    truths = [] if truth is None else [grey(truth)]
    if unit.is_volume:
        affine = dataset.geometry(case).affine
        layers, truths = ([radiological(layer, affine) for layer in group] for group in (layers, truths))
    outlined = overlaid_tile([*layers[:2], *truths], TILE)
    return [resized(layers[0], TILE), outlined, *(resized(layer, TILE) for layer in layers[2:])]
