"""Evaluation of a folder of predictions against a data set's truth: each case and class compared, tables written."""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .calibration import ReliabilityTable, boundary_band
from .data import group_cases
from .diversity import SET_FIGURES, compare_sets, dice_to_raters, level_masks, mean_over_pairs, pair_dice, shared_pixels
from .errors import UserError
from .files import atomic_path, write_json
from .logger import counted
from .metrics import LESION_IOU, TOLERANCES, evaluate_mask, metric_names, overlap, pixel_volume, volume_unit
from .results import Predictions
from .statistics import describe
from .summary import CALIBRATION, by_case, calibration_figures, curves_of, mean_row, raters_in, summary_of
from .uncertainty import case_scores


@dataclass(frozen=True)
class Settings:
    """What the figures depend on beside the masks: see `metrics.surface` and `lesions.detection`."""

    tolerances: tuple[float, ...] = TOLERANCES
    lesion_iou: float = LESION_IOU


@dataclass
class Evaluated:
    """The cases of a folder of predictions, compared with their truth.

    rows: a dict for each case and class, in the cases' order: "name", "class", "group" and the figures of `columns`.
    tables: {class: {(map, part): `ReliabilityTable`}}, sums over the cases (see `_reliability`).
    missing, without_truth: cases left out; unmatched: files of masks that belong to no case.
    """

    class_names: tuple[str, ...]
    settings: Settings
    distance_unit: str
    volume_unit: str
    rows: list = field(default_factory=list)
    tables: dict = field(default_factory=dict)
    missing: int = 0
    without_truth: int = 0
    unmatched: int = 0

    def add(self, row, tables):
        """Add a class of a case: its row and its `_reliability`."""
        self.rows.append(row)
        pooled = self.tables.setdefault(row["class"], {})
        for key, table in tables.items():
            pooled[key] = pooled[key] + table if key in pooled else table


def raters_of(dataset, cases, k=0):
    """What each rater marked as class k: bool [R, H, W], or [R, X, Y, Z] of a volume's slices; None where a mask
    lacks."""
    if not all(case.masks for case in cases):
        return None
    slices = [dataset.load_mask(case)[:, k] for case in cases]  # [R, K, H, W] -> [R, H, W]
    return slices[0] if cases[0].volume is None else np.stack(slices, axis=-1)


def majority(raters):
    """What more than half of the raters marked: bool [R, ...] -> bool [...]; None -> None."""
    return None if raters is None else raters.mean(axis=0) > 0.5


def truths_of(dataset, cases, read_raters=raters_of):
    """The truth of each class, see `majority`: bool [K, ...], or None. read_raters: called as `raters_of` is."""
    truths = []
    for k in range(len(dataset.classes)):
        raters = read_raters(dataset, cases, k)
        if raters is None:
            return None
        truths.append(majority(raters))
    return np.stack(truths)


def evaluate(pred_dir, dataset, out_dir=None, progress=None, read_raters=raters_of, settings=None):
    """Compare each prediction below `pred_dir` with its truth; write metrics.csv, summary.json, curves.json.

    They go to `out_dir`, or `pred_dir`. See `compare_cases`. Returns the summary, see `summary.summary_of`.
    """
    evaluated = compare_cases(pred_dir, dataset, progress, read_raters, settings)
    return write_evaluation(evaluated, out_dir or pred_dir)


def compare_cases(pred_dir, dataset, progress=None, read_raters=raters_of, settings=None):
    """The `Evaluated` of the predictions below `pred_dir`.

    progress: wraps the list of cases (a tqdm). read_raters: called as `raters_of` is. Raises `UserError` when nothing
    can be compared.
    """
    units = group_cases(dataset.cases)
    firsts = {unit.name: unit.cases[0] for unit in units}
    predictions = Predictions(pred_dir, firsts, dataset.classes, lambda name: dataset.geometry(firsts[name]))
    if len({unit.is_volume for unit in units}) > 1:
        raise UserError(f"{dataset.data_dir}: holds volumes and single slices, which are not averaged together")
    millimetres = dataset.geometry(units[0].cases[0]) is not None
    evaluated = Evaluated(
        dataset.classes.names,
        settings or Settings(),
        distance_unit="mm" if millimetres else "pixels",
        volume_unit=volume_unit(3 if units[0].is_volume else 2, millimetres),
    )
    for unit in progress(units) if progress else units:
        if predictions.mask(unit.name, unit.is_volume) is None:
            evaluated.missing += 1
        elif read_raters(dataset, unit.cases) is None:
            evaluated.without_truth += 1
        else:
            for k in range(len(dataset.classes)):
                evaluated.add(*_evaluate_class(dataset, unit, predictions, read_raters, k, evaluated.settings))
    unmatched = predictions.unmatched()
    evaluated.unmatched = len(unmatched)
    if not evaluated.rows:
        example = f"; {unmatched[0].name} is not named like any case" if unmatched else ""
        raise UserError(
            f"{pred_dir}: nothing to evaluate: of {counted(len(units), 'case')} in {dataset.data_dir}, "
            f"{evaluated.missing} have no prediction and {evaluated.without_truth} no truth{example}"
        )
    return evaluated


def write_evaluation(evaluated, out_dir):
    """Write metrics.csv, summary.json and curves.json to `out_dir`; returns the summary."""
    summary = summary_of(evaluated)
    _write_csv(Path(out_dir) / "metrics.csv", evaluated)
    write_json(Path(out_dir) / "summary.json", summary)
    write_json(Path(out_dir) / "curves.json", curves_of(evaluated))
    return summary


# ---- one case ----------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """What was predicted of one class of one case, on the truth's grid: arrays [H, W] or [X, Y, Z].

    mask: bool. members: a list of bool. probability, coarse: float in [0, 1] or None. single: whether the run drew one
    member alone.
    """

    mask: np.ndarray
    members: list
    probability: np.ndarray | None
    coarse: np.ndarray | None
    single: bool


def read_answer(predictions, unit, shape, k=0):
    """The `Answer` for class k of a case that has been predicted, on a grid of this shape."""
    who = (unit.name, unit.is_volume, k)
    members = [on_grid(member, shape) for member in predictions.members(*who)]
    soft = (predictions.probability(*who), predictions.coarse(*who))
    return Answer(
        on_grid(predictions.mask(*who), shape),
        members,
        *(None if values is None else on_grid(values, shape) for values in soft),
        single=len(members) == 1 or predictions.num_ensemble == 1,
    )


def _evaluate_class(dataset, unit, predictions, read_raters, k, settings):
    """Of class k a case's row of metrics.csv, and its tables (see `_reliability`)."""
    raters = read_raters(dataset, unit.cases, k)  # [R, ...]
    fraction = raters.mean(axis=0, dtype=np.float32)
    truth = fraction > 0.5
    geometry = dataset.geometry(unit.cases[0])
    spacing = None if geometry is None else geometry.spacing[: truth.ndim]
    answer = read_answer(predictions, unit, truth.shape, k)
    row = {"name": unit.name, "class": dataset.classes.names[k], "group": unit.cases[0].group or ""}
    row |= evaluate_mask(answer.mask, truth, spacing, settings.tolerances, settings.lesion_iou)
    row["sample_dice"] = describe([overlap(member, truth)["dice"] for member in answer.members])["mean"]
    if answer.coarse is not None:
        row["coarse_dice"] = overlap(answer.coarse > 0.5, truth)["dice"]
    tables = _reliability({"": answer.probability, "coarse_": answer.coarse}, fraction, truth, spacing)
    row |= calibration_figures(tables)
    row |= case_scores(answer.mask, answer.members, answer.probability, pixel_volume(spacing))
    if len(raters) > 1:
        row |= _against_raters(answer, list(raters))
    return row, tables


def _against_raters(answer, raters):
    """The figures of one class of one case that need several raters."""
    each = dice_to_raters(answer.mask, raters)
    row = {f"rater_{r}_dice": dice for r, dice in enumerate(each, start=1)}
    row["rater_dice"] = describe(each)["mean"]
    row["raters_agreement"] = mean_over_pairs(pair_dice(shared_pixels(raters)))
    as_levels = answer.single and answer.probability is not None
    samples = level_masks(answer.probability) if as_levels else answer.members
    return row | compare_sets(samples, raters) if samples else row


def _reliability(maps, fraction, truth, spacing):
    """{(map, part): `ReliabilityTable`} of each map that is there; part: "" for all pixels, "_band" for the band.

    maps: {"": probability, "coarse_": coarse}, either may be None. fraction: the share of raters at each pixel.
    """
    present = {name: soft for name, soft in maps.items() if soft is not None}
    if not present:
        return {}
    band = boundary_band(truth, spacing)
    tables = {(name, ""): ReliabilityTable.of(soft, fraction) for name, soft in present.items()}
    return tables | {(name, "_band"): ReliabilityTable.of(soft[band], fraction[band]) for name, soft in present.items()}


def on_grid(mask, shape):
    """The mask on a grid of this shape, by nearest neighbour (as it is, where the shapes agree)."""
    if mask.ndim != len(shape):
        raise UserError(f"a mask of shape {mask.shape} cannot be compared with one of shape {tuple(shape)}")
    for axis, (have, want) in enumerate(zip(mask.shape, shape, strict=True)):
        if have != want:
            mask = mask.take(((np.arange(want) + 0.5) * have / want).astype(int), axis=axis)
    return mask


# ---- the table of cases ------------------------------------------------------------------------------------------


def columns(tolerances=TOLERANCES, raters=0, several_classes=False):
    """The columns of metrics.csv, for so many raters."""
    return (
        *(("name", "class") if several_classes else ("name",)),
        *("group", *metric_names(tolerances), "empty", "sample_dice", "coarse_dice", *CALIBRATION),
        *("agreement", "expected_dice", "volume_spread"),
        *("volume", "truth_volume", "volume_low", "volume_high", "lesions", "lesions_predicted", "lesions_found"),
        *(*SET_FIGURES, "rater_dice", "raters_agreement"),
        *(f"rater_{r}_dice" for r in range(1, raters + 1)),
    )


def _write_csv(path, evaluated):
    """A row a case; of several classes one for each, and after them that of their means, `classes.MEAN`."""
    several = len(evaluated.class_names) > 1
    names = columns(evaluated.settings.tolerances, raters_in(evaluated.rows), several)
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for case in by_case(evaluated.rows):
            for row in [*case, mean_row(case)] if several else case:
                writer.writerow({name: _cell(row.get(name, math.nan)) for name in names})


def _cell(value):
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value
