"""Evaluation of a folder of predictions against a data set's truth: each case and class compared, tables written."""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..data.cases import check_volumes, group_cases
from ..data.splits import group_of
from ..data.truth import majority, on_grid, rater_names, raters_of
from ..inference.ensemble import staple
from ..inference.predictions import Predictions
from ..io.files import atomic_path, write_json
from ..runtime.console import counted
from ..runtime.errors import UserError
from .calibration import ReliabilityTable, boundary_band
from .diversity import SET_FIGURES, compare_sets, dice_to_raters, level_masks, mean_over_pairs, pair_dice, shared_pixels
from .ensemble_size import dice_by_size
from .metrics import LESION_IOU, TOLERANCES, evaluate_mask, metric_names, overlap, pixel_volume, volume_unit
from .statistics import describe
from .summary import CALIBRATION, by_case, calibration_figures, curves_of, mean_row, raters_in, summary_of
from .temperature_fit import LevelTable
from .uncertainty import case_scores


@dataclass(frozen=True)
class Settings:
    """What the figures depend on beside the masks, and which of the longer ones are wanted.

    tolerances, lesion_iou: see `metrics.surface` and `lesions.detection`. group_key: see `split.group_of`.
    sizes: the method by which ensembles of every size are fused (`ensemble_size`), or "". levels: whether to count
    pixels by their probability, to fit a temperature.
    """

    tolerances: tuple[float, ...] = TOLERANCES
    lesion_iou: float = LESION_IOU
    group_key: str = ""
    sizes: str = ""
    levels: bool = False


@dataclass
class Evaluated:
    """The cases of a folder of predictions, compared with their truth.

    rows: a dict for each case and class, in the cases' order: "name", "class", "group" and the figures of `columns`.
    tables: {class: {(map, part): `ReliabilityTable`}}, sums over the cases (see `_reliability_tables`).
    members: {class: a float64 [E, 3] for each case}, see `member_figures`.
    sizes: for each case with members, where asked for, float64 [E, K], see `ensemble_size.dice_by_size`, by its name.
    levels: where asked for, {"": `LevelTable` of all pixels of all classes, "_band": of those in the boundary band}.
    is_volume: whether the cases are volumes. raters: the names of all raters in one order, see `raters.rater_names`.
    missing, without_truth: cases left out; unmatched: files of masks that belong to no case.
    """

    class_names: tuple[str, ...]
    settings: Settings
    distance_unit: str
    volume_unit: str
    is_volume: bool = False
    raters: tuple[str, ...] = ()
    rows: list = field(default_factory=list)
    tables: dict = field(default_factory=dict)
    members: dict = field(default_factory=dict)
    sizes: dict = field(default_factory=dict)
    levels: dict = field(default_factory=dict)
    missing: int = 0
    without_truth: int = 0
    unmatched: int = 0

    def add(self, row, tables, members, levels):
        """Add a class of a case: its row, its `_reliability_tables`, its `member_figures` and its `_levels`."""
        self.rows.append(row)
        self.members.setdefault(row["class"], []).append(members)
        for pooled, own in ((self.tables.setdefault(row["class"], {}), tables), (self.levels, levels)):
            for key, table in own.items():
                pooled[key] = pooled[key] + table if key in pooled else table


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
    predictions = Predictions(pred_dir, firsts, dataset.classes, lambda name: dataset.load_geometry(firsts[name]))
    if len({unit.is_volume for unit in units}) > 1:
        raise UserError(f"{dataset.data_dir}: holds volumes and single slices, which are not averaged together")
    check_volumes(dataset, units)
    millimetres = dataset.load_geometry(units[0].cases[0]) is not None
    evaluated = Evaluated(
        dataset.classes.names,
        settings or Settings(),
        distance_unit="mm" if millimetres else "pixels",
        volume_unit=volume_unit(3 if units[0].is_volume else 2, millimetres),
        is_volume=units[0].is_volume,
        raters=rater_names(dataset.cases),
    )
    for unit in progress(units) if progress else units:
        if predictions.mask(unit.name, unit.is_volume) is None:
            evaluated.missing += 1
        elif read_raters(dataset, unit.cases) is None:
            evaluated.without_truth += 1
        else:
            _evaluate_case(evaluated, dataset, unit, predictions, read_raters)
    unmatched = predictions.unmatched()
    evaluated.unmatched = len(unmatched)
    if not evaluated.rows:
        example = f"; {unmatched[0].name} is not named like any case" if unmatched else ""
        raise UserError(
            f"{pred_dir}: nothing to evaluate: of {counted(len(units), 'case')} in {dataset.data_dir}, "
            f"{evaluated.missing} have no prediction and {evaluated.without_truth} no truth{example}"
        )
    return evaluated


def write_evaluation(evaluated, out_dir, compared=None):
    """Write metrics.csv, summary.json and curves.json to `out_dir`; returns the summary.

    compared: of `comparison.compare`, which becomes the summary's "comparison".
    """
    summary = summary_of(evaluated) | ({"comparison": compared} if compared else {})
    _write_csv(Path(out_dir) / "metrics.csv", evaluated)
    write_json(Path(out_dir) / "summary.json", summary)
    write_json(Path(out_dir) / "curves.json", curves_of(evaluated))
    return summary


# ---- one case ----------------------------------------------------------------------------------------------------


@dataclass
class ClassPrediction:
    """What was predicted of one class of one case, on the truth's grid: arrays [H, W] or [X, Y, Z].

    mask: bool. members: a list of bool. probability, coarse: float in [0, 1] or None. single: whether the run drew one
    member alone.
    """

    mask: np.ndarray
    members: list
    probability: np.ndarray | None
    coarse: np.ndarray | None
    single: bool


def read_prediction(predictions, unit, shape, k=0):
    """The `ClassPrediction` for class k of a case that has been predicted, on a grid of this shape."""
    who = (unit.name, unit.is_volume, k)
    members = [on_grid(member, shape) for member in predictions.members(*who)]
    soft = (predictions.probability(*who), predictions.coarse(*who))
    return ClassPrediction(
        on_grid(predictions.mask(*who), shape),
        members,
        *(None if values is None else on_grid(values, shape) for values in soft),
        single=len(members) == 1 or predictions.num_ensemble == 1,
    )


def _evaluate_case(evaluated, dataset, unit, predictions, read_raters):
    """Add a case to an `Evaluated`, class by class."""
    answers, truths, settings, case = [], [], evaluated.settings, unit.cases[0]
    geometry = dataset.load_geometry(case)
    group = group_of(case, settings.group_key) if settings.group_key else case.group or ""
    for k, class_name in enumerate(evaluated.class_names):
        raters = read_raters(dataset, unit.cases, k)  # [R, ...]
        spacing = None if geometry is None else geometry.spacing[: raters.ndim - 1]
        answer = read_prediction(predictions, unit, raters.shape[1:], k)
        figures, tables = _evaluate_class(answer, raters, spacing, settings)
        if max(len(raters), len(evaluated.raters)) > 1:
            figures |= _against_raters(answer, list(raters), evaluated.raters and case.raters, evaluated.raters)
        members = member_figures(answer.members, majority(raters))
        row = {"name": unit.name, "class": class_name, "group": group, **figures}
        dice = members[:, 2]
        row |= {"sample_dice": describe(dice)["mean"], "sample_iou": describe(dice / (2 - dice))["mean"]}
        levels = _levels(answer.probability, raters, spacing) if settings.levels else {}
        evaluated.add(row, tables, members, levels)
        answers.append(answer)
        truths.append(majority(raters))
    if settings.sizes and len(answers[0].members) > 1:
        members = np.stack([np.stack(answer.members) for answer in answers], axis=1)  # [E, K, ...]
        exclusive = dataset.classes.is_exclusive
        evaluated.sizes[unit.name] = dice_by_size(members, np.stack(truths), settings.sizes, exclusive, unit.name)


def _evaluate_class(answer, raters, spacing, settings):
    """The figures of one class of one case, and its tables (see `_reliability_tables`). raters: bool [R, ...]."""
    fraction = raters.mean(axis=0, dtype=np.float32)
    truth = fraction > 0.5
    row = evaluate_mask(answer.mask, truth, spacing, settings.tolerances, settings.lesion_iou)
    if answer.coarse is not None:
        coarse = overlap(answer.coarse > 0.5, truth)
        row |= {"coarse_dice": coarse["dice"], "coarse_iou": coarse["iou"]}
    tables = _reliability_tables({"": answer.probability, "coarse_": answer.coarse}, fraction, truth, spacing)
    row |= calibration_figures(tables)
    row |= case_scores(answer.mask, answer.members, answer.probability, pixel_volume(spacing))
    return row, tables


def _against_raters(answer, raters, names, everyone):
    """The figures of one class of one case where the data set has several raters.

    names: those of the case's raters, or () to count them; everyone: those of all the data set's, each of whom has a
    Dice, NaN if he lacks here.
    """
    names = names or [str(number) for number in range(1, len(raters) + 1)]
    each = dict(zip(names, dice_to_raters(answer.mask, raters), strict=True))
    row = {f"rater_{name}_dice": each.get(name, math.nan) for name in everyone or names}
    row["rater_dice"] = describe(list(each.values()))["mean"]
    if len(raters) == 1:
        return row
    row["raters_agreement"] = mean_over_pairs(pair_dice(shared_pixels(raters)))
    as_levels = answer.single and answer.probability is not None
    samples = level_masks(answer.probability) if as_levels else answer.members
    return row | compare_sets(samples, raters) if samples else row


def member_figures(members, truth):
    """Of each member STAPLE's estimate of its sensitivity and specificity, which knows no truth, and its Dice to the
    truth: float64 [E, 3], NaN where undefined, and for the estimates where there is but one member."""
    figures = np.full((len(members), 3), math.nan)
    if len(members) > 1:
        found = staple(torch.from_numpy(np.stack(members)).reshape(len(members), 1, 1, 1, -1))
        figures[:, 0], figures[:, 1] = found.sensitivity[:, 0, 0], found.specificity[:, 0, 0]
    for e, member in enumerate(members):
        figures[e, 2] = overlap(member, truth)["dice"]
    return figures


def _levels(probability, raters, spacing):
    """{"": `LevelTable` of all pixels, "_band": of those in the boundary band}; {} without a probability."""
    if probability is None:
        return {}
    fraction = raters.mean(axis=0, dtype=np.float32)
    band = boundary_band(fraction > 0.5, spacing)
    return {"": LevelTable.of(probability, fraction), "_band": LevelTable.of(probability[band], fraction[band])}


def _reliability_tables(maps, fraction, truth, spacing):
    """{(map, part): `ReliabilityTable`} of each map that is there; part: "" for all pixels, "_band" for the band.

    maps: {"": probability, "coarse_": coarse}, either may be None. fraction: the share of raters at each pixel.
    """
    present = {name: soft for name, soft in maps.items() if soft is not None}
    if not present:
        return {}
    band = boundary_band(truth, spacing)
    tables = {(name, ""): ReliabilityTable.of(soft, fraction) for name, soft in present.items()}
    return tables | {(name, "_band"): ReliabilityTable.of(soft[band], fraction[band]) for name, soft in present.items()}


# ---- the table of cases ------------------------------------------------------------------------------------------


def columns(tolerances=TOLERANCES, raters=(), several_classes=False):
    """The columns of metrics.csv. raters: their names, see `summary.raters_in`."""
    return (
        *(("name", "class") if several_classes else ("name",)),
        *("group", *metric_names(tolerances), "empty"),
        *("sample_dice", "sample_iou", "coarse_dice", "coarse_iou", *CALIBRATION),
        *("agreement", "expected_dice", "volume_spread"),
        *("volume", "truth_volume", "volume_low", "volume_high", "lesions", "lesions_predicted", "lesions_found"),
        *(*SET_FIGURES, "rater_dice", "raters_agreement"),
        *(f"rater_{name}_dice" for name in raters),
    )


def _write_csv(path, evaluated):
    """A row a case; of several classes one for each, and after them that of their means, `classes.MEAN`."""
    several = len(evaluated.class_names) > 1
    names = columns(evaluated.settings.tolerances, raters_in(evaluated.rows), several)
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for case in by_case(evaluated.rows):
            for row in [*case, mean_row(case)] if several else case:
                writer.writerow({name: _cell(row.get(name, math.nan)) for name in names})


def _cell(value):
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value
