"""Evaluates a folder of predictions: compares each case and class with the truth and writes the tables."""

import csv
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from ..data.accounting import unread_kinds
from ..data.batches import single_items
from ..data.cases import check_volumes, group_cases
from ..data.inspection import misplaced_file
from ..data.splits import group_of
from ..data.truth import majority, on_grid, rater_names, raters_of
from ..data.volumes import image_geometry
from ..inference.ensemble import staple
from ..inference.predictions import Predictions
from ..io.escaping import csv_cell
from ..io.files import atomic_path, write_json
from ..runtime.console import console, counted, listed
from ..runtime.errors import UserError, reason_of
from .calibration import ReliabilityTable, boundary_band
from .diversity import SET_FIGURES, compare_sets, dice_to_raters, level_sets, mean_over_pairs, pair_dice, shared_pixels
from .ensemble_size import dice_by_size
from .metrics import LESION_IOU, TOLERANCES, evaluate_mask, metric_names, overlap, pixel_volume, volume_unit
from .statistics import mean_defined
from .summary import (
    CALIBRATION,
    add_tables,
    by_case,
    calibration_figures,
    curves_of,
    mean_row,
    raters_in,
    summary_of,
)
from .temperature_fit import LevelTable
from .uncertainty import case_scores


@dataclass(frozen=True)
class EvaluationSettings:
    """The rules of an evaluation.

    tolerances, lesion_iou: see `metrics.surface` and `metrics.lesion_detection`. group_key: see `splits.group_of`.
    sizes: the method that fuses ensembles of each size (see `ensemble_size`), or "" for none. levels: whether to count
    pixels by their probability, to fit a temperature.
    """

    tolerances: tuple[float, ...] = TOLERANCES
    lesion_iou: float = LESION_IOU
    group_key: str = ""
    sizes: str = ""
    levels: bool = False


@dataclass
class Evaluation:
    """The figures of each case and class of a folder of predictions.

    rows: a dict for each case and class, in the cases' order: "name", "class", "group" and the figures of `columns`.
    tables: {class: {(map, part): `ReliabilityTable`}}, sums over the cases (see `_reliability_tables`).
    members: {class: a list of float64 [E, 3], one for each case}, see `member_figures`.
    sizes: {case: float64 [E, K]} of cases with members, where requested; see `ensemble_size.dice_by_size`.
    levels: where requested, {"": `LevelTable` of all pixels of all classes, "_band": of those in the boundary band}.
    raters: the names of all raters, see `truth.rater_names`.
    missing, without_truth: the number of cases left out. failed: {case: why it could not be read or compared}.
    unmatched: the number of mask files that belong to no case.
    """

    class_names: tuple[str, ...]
    settings: EvaluationSettings
    distance_unit: str
    volume_unit: str
    raters: tuple[str, ...] = ()
    rows: list = field(default_factory=list)
    tables: dict = field(default_factory=dict)
    members: dict = field(default_factory=dict)
    sizes: dict = field(default_factory=dict)
    levels: dict = field(default_factory=dict)
    missing: int = 0
    without_truth: int = 0
    failed: dict = field(default_factory=dict)
    unmatched: int = 0

    def add(self, row, tables, members, levels):
        """Add one class of a case: its row, `_reliability_tables`, `member_figures` and `_level_tables`."""
        self.rows.append(row)
        self.members.setdefault(row["class"], []).append(members)
        add_tables(self.tables.setdefault(row["class"], {}), tables)
        add_tables(self.levels, levels)

    def blank(self):
        """An `Evaluation` by the same rules without any case."""
        return Evaluation(self.class_names, self.settings, self.distance_unit, self.volume_unit, self.raters)

    def join(self, other):
        """Add the cases of another `Evaluation` by the same rules after those of this one."""
        self.rows += other.rows
        for name, members in other.members.items():
            self.members.setdefault(name, []).extend(members)
        for name, tables in other.tables.items():
            add_tables(self.tables.setdefault(name, {}), tables)
        add_tables(self.levels, other.levels)
        self.sizes |= other.sizes
        self.failed |= other.failed
        self.missing += other.missing
        self.without_truth += other.without_truth


def evaluate(pred_dir, dataset, out_dir=None, progress=None, read_raters=raters_of, settings=None, num_workers=0):
    """Evaluate the predictions below `pred_dir`, write the tables to `out_dir` (default: `pred_dir`).

    Arguments and errors are those of `evaluate_cases`. Returns the summary, see `summary.summary_of`.
    """
    evaluation = evaluate_cases(pred_dir, dataset, progress, read_raters, settings, num_workers)
    return write_evaluation(evaluation, out_dir or pred_dir)


def evaluate_cases(pred_dir, dataset, progress=None, read_raters=raters_of, settings=None, num_workers=0):
    """The `Evaluation` of the predictions below `pred_dir`.

    progress: wraps the list of cases, such as tqdm. read_raters: replaces `raters_of`. settings: an
    `EvaluationSettings`. num_workers: processes that share the cases; the result does not depend on it.
    A case that cannot be read or compared is reported, and is one of `Evaluation.failed`. Raises `UserError` where no
    prediction has a truth or can be compared with it, and for volumes mixed with single slices.
    """
    units = group_cases(dataset.cases)
    predictions = predictions_of(pred_dir, dataset, units)
    readable = check_volumes(dataset, units) or units
    if len({unit.is_volume for unit in readable}) > 1:
        raise UserError(f"{dataset.data_dir}: holds volumes and single slices, which are not averaged together")
    millimetres = dataset.load_geometry(readable[0].cases[0]) is not None
    evaluation = Evaluation(
        dataset.classes.names,
        settings or EvaluationSettings(),
        distance_unit="mm" if millimetres else "pixels",
        volume_unit=volume_unit(3 if readable[0].is_volume else 2, millimetres),
        raters=rater_names(dataset.cases),
    )
    misplaced = []
    items = EvaluatedCases(evaluation.blank(), dataset, units, predictions, read_raters)
    results = single_items(items, shared_workers(units, num_workers))
    for _, case in zip(progress(units) if progress else units, results, strict=True):
        evaluation.join(case.evaluation)
        predictions.add_notes(case.notes)
        misplaced.append(case.misplaced)
    _warn_of_predictions(predictions, list(filter(None, misplaced)), units[0].is_volume)
    unmatched = predictions.unmatched()
    evaluation.unmatched = len(unmatched)
    if not evaluation.rows and evaluation.failed:
        number, first = len(evaluation.failed), next(iter(evaluation.failed.values()))
        raise UserError(first if number == 1 else f"none of {number} cases could be evaluated; the first: {first}")
    for name, why in list(evaluation.failed.items())[:SHOWN_FAILURES]:
        console().warning(f"warning: {name}: is left out: {why}")
    if not evaluation.rows:
        example = f"; {unmatched[0].name} is not named like any case" if unmatched else unread_kinds(pred_dir)
        raise UserError(
            f"{pred_dir}: nothing to evaluate: of {counted(len(units), 'case')} in {dataset.data_dir}, "
            f"{evaluation.missing} have no prediction and {evaluation.without_truth} no truth{example}"
        )
    return evaluation


def _warn_of_predictions(predictions, misplaced, is_volume):
    """Warn of masks that lie elsewhere or on another grid than their image, and of label values without a class.

    predictions: `Predictions` with the notes of all cases. misplaced: of truths, see `inspection.misplaced_file`.
    """
    if misplaced:
        console().warning(
            f"warning: the truth of {counted(len(misplaced), 'volume')} lies elsewhere in space than the image, and is "
            f"taken voxel for voxel: {misplaced[0]}"
        )
    if predictions.assumed:
        number, first = len(predictions.assumed), next(iter(predictions.assumed.values()))
        console().warning(
            f"warning: {counted(number, 'prediction')} taken voxel for voxel over the image, since one of the two has "
            f"lost its affine: {first}"
        )
    if predictions.elsewhere:
        first = next(iter(predictions.elsewhere.values()))
        console().warning(
            f"warning: {counted(len(predictions.elsewhere), 'prediction')} on another grid than the image, brought to "
            f"it by nearest neighbour{' (with 0 outside)' if is_volume else ''}: {first}"
        )
    if predictions.unknown:
        values = listed([str(value) for value in sorted(predictions.unknown)])
        console().warning(
            f"warning: no class has the label value {values} of {next(iter(predictions.unknown.values()))}: it counts "
            "as background; where the truth has another value for the same thing, write that one"
        )


SHOWN_FAILURES = 20  # cases whose errors are printed; the others are counted
PICTURES_A_WORKER = 16  # fewer are evaluated sooner than another process has started


def shared_workers(units, num_workers):
    """The number of processes that share these `cases.Unit`s, at most `num_workers`; 0: this process does them all."""
    each = 1 if any(unit.is_volume for unit in units) else PICTURES_A_WORKER
    workers = min(num_workers, len(units) // each)
    return workers if workers > 1 else 0


@dataclass
class EvaluatedCase:
    """The `Evaluation` of one case, `inspection.misplaced_file` of a volume, and `Predictions.take_notes`."""

    evaluation: Evaluation
    misplaced: str
    notes: tuple


class EvaluatedCases(Dataset):
    """The `EvaluatedCase` of each of `units`, item by item, so that several processes can share them."""

    def __init__(self, blank, dataset, units, predictions, read_raters):
        self.blank, self.dataset, self.units = blank, dataset, units
        self.predictions, self.read_raters = predictions, read_raters

    def __len__(self):
        return len(self.units)

    def load_shared(self):
        """See `SegmentationDataset.preload`."""
        self.dataset.load_shared()

    def __getitem__(self, index):
        unit, found, misplaced = self.units[index], self.blank.blank(), ""
        try:
            if self.predictions.mask(unit.name, unit.is_volume) is None:
                found.missing = 1
            elif self.read_raters(self.dataset, unit.cases) is None:
                found.without_truth = 1
            else:
                _evaluate_case(found, self.dataset, unit, self.predictions, self.read_raters)
                misplaced = misplaced_file(unit.cases[0]) if unit.is_volume else ""
        except (UserError, OSError) as error:
            found = self.blank.blank()
            found.failed[unit.name] = reason_of(error)
        finally:
            if get_worker_info() is not None and unit.is_volume and self.dataset.volumes is not None:
                self.dataset.volumes.forget()  # another worker, or none, reads it again
        return EvaluatedCase(found, misplaced, self.predictions.take_notes())


def predictions_of(pred_dir, dataset, units):
    """The `Predictions` below `pred_dir` for these `cases.Unit`s, in the geometry of the data set's volumes."""
    firsts = {unit.name: unit.cases[0] for unit in units}
    return Predictions(pred_dir, firsts, dataset.classes, lambda name: image_geometry(dataset, firsts[name]))


def write_evaluation(evaluation, out_dir, compared=None):
    """Write metrics.csv, summary.json and curves.json to `out_dir`; returns the summary.

    compared: of `comparison.compare_runs`; it becomes the summary's "comparison".
    """
    summary = summary_of(evaluation) | ({"comparison": compared} if compared else {})
    _write_csv(Path(out_dir) / "metrics.csv", evaluation)
    write_json(Path(out_dir) / "summary.json", summary)
    write_json(Path(out_dir) / "curves.json", curves_of(evaluation))
    return summary


# ---- one case ----------------------------------------------------------------------------------------------------


@dataclass
class ClassPrediction:
    """The prediction of one class of one case, on the truth's grid: arrays [H, W] or [X, Y, Z].

    mask: bool. members: a list of bool arrays. probability, coarse: float in [0, 1], or None where not saved. single:
    whether the run drew a single member.
    """

    mask: np.ndarray
    members: list
    probability: np.ndarray | None
    coarse: np.ndarray | None
    single: bool


@dataclass
class ClassTruth:
    """The truth of one class of one case. raters: bool [R, H, W] or [R, X, Y, Z]. spacing: see `metrics.surface`."""

    raters: np.ndarray
    spacing: tuple | None

    @cached_property
    def fraction(self):
        """The fraction of raters who marked each pixel, float32."""
        return self.raters.mean(axis=0, dtype=np.float32)

    @cached_property
    def mask(self):
        """The pixels that more than half of the raters marked, bool."""
        return majority(self.raters)

    @cached_property
    def band(self):
        """The band around the mask's boundary, bool; see `calibration.boundary_band`."""
        return boundary_band(self.mask, self.spacing)


def read_prediction(predictions, unit, shape, k=0):
    """The `ClassPrediction` of class k of a predicted case, on a grid of this shape.

    A picture of another size is stretched, which `predictions.elsewhere` then says. Raises `UserError` for a volume of
    another shape: its place in space is unknown.
    """
    key = (unit.name, unit.is_volume, k)
    mask = predictions.mask(*key)
    if mask.shape != tuple(shape):
        sizes = ["x".join(map(str, size)) for size in (mask.shape, shape)]
        where = f"{predictions.masks}: the mask of {unit.name}"
        if unit.is_volume:
            raise UserError(
                f"{where} has {sizes[0]} voxels, its image {sizes[1]}, and the loader gives no geometry by which they "
                "could be compared; save it on its image's grid"
            )
        predictions.elsewhere.setdefault(unit.name, f"{where} has {sizes[0]} pixels, its image {sizes[1]}")
    members = [on_grid(member, shape) for member in predictions.members(*key)]
    probability, coarse = predictions.probability(*key), predictions.coarse(*key)
    return ClassPrediction(
        on_grid(mask, shape),
        members,
        None if probability is None else on_grid(probability, shape),
        None if coarse is None else on_grid(coarse, shape),
        single=len(members) == 1 or predictions.num_ensemble == 1,
    )


def _evaluate_case(evaluation, dataset, unit, predictions, read_raters):
    """Add a case to an `Evaluation`, class by class."""
    answers, truths, settings, case = [], [], evaluation.settings, unit.cases[0]
    geometry = dataset.load_geometry(case)
    group = group_of(case, settings.group_key) if settings.group_key else case.group or ""
    for k, class_name in enumerate(evaluation.class_names):
        raters = read_raters(dataset, unit.cases, k)
        truth = ClassTruth(raters, None if geometry is None else geometry.spacing[: raters.ndim - 1])
        answer = read_prediction(predictions, unit, raters.shape[1:], k)
        tables = _reliability_tables(answer, truth)
        members = member_figures(answer.members, truth.mask)
        row = {"name": unit.name, "class": class_name, "group": group, **_mask_figures(answer, truth, settings)}
        row |= calibration_figures(tables)
        row |= case_scores(answer.mask, answer.members, answer.probability, pixel_volume(truth.spacing))
        if max(len(raters), len(evaluation.raters)) > 1:
            row |= _rater_figures(answer, list(raters), case.raters, evaluation.raters)
        dice = members[:, 2]
        row |= {"sample_dice": mean_defined(dice), "sample_iou": mean_defined(dice / (2 - dice))}
        evaluation.add(row, tables, members, _level_tables(answer, truth) if settings.levels else {})
        answers.append(answer)
        truths.append(truth.mask)
    if settings.sizes and len(answers[0].members) > 1:
        members = np.stack([np.stack(answer.members) for answer in answers], axis=1)  # [E, K, ...]
        exclusive = dataset.classes.is_exclusive
        evaluation.sizes[unit.name] = dice_by_size(members, np.stack(truths), settings.sizes, exclusive, unit.name)


def _mask_figures(answer, truth, settings):
    """The metrics of a mask, and the Dice and IoU of the coarse mask where it was saved."""
    row = evaluate_mask(answer.mask, truth.mask, truth.spacing, settings.tolerances, settings.lesion_iou)
    if answer.coarse is not None:
        coarse = overlap(answer.coarse > 0.5, truth.mask)
        row |= {"coarse_dice": coarse["dice"], "coarse_iou": coarse["iou"]}
    return row


def _rater_figures(answer, raters, names, all_names):
    """The figures of one class of one case of a data set with several raters.

    raters: the masks of this case's raters, whose names are `names`. all_names: the names of the data set's raters, or
    () where raters have numbers. Each of them has a Dice in the row, NaN where this case lacks that rater.
    """
    if not all_names:
        names = all_names = [str(number) for number in range(1, len(raters) + 1)]
    dice = dict(zip(names, dice_to_raters(answer.mask, raters), strict=True))
    row = {f"rater_{name}_dice": dice.get(name, math.nan) for name in all_names}
    row["rater_dice"] = mean_defined(list(dice.values()))
    if len(raters) == 1:
        return row
    row["raters_agreement"] = mean_over_pairs(pair_dice(shared_pixels(raters)))
    # A single member is no sample of masks, but its probability stands for a set of level sets.
    is_deterministic = answer.single and answer.probability is not None
    samples = level_sets(answer.probability) if is_deterministic else answer.members
    return row | compare_sets(samples, raters) if samples else row


def member_figures(members, truth):
    """The `summary.MEMBER_FIGURES` of each member: float64 [E, 3], NaN where undefined.

    These are STAPLE's estimates of sensitivity and specificity, which need no truth and more than one member, and the
    Dice with the truth.
    """
    figures = np.full((len(members), 3), math.nan)
    if len(members) > 1:
        fused = staple(torch.from_numpy(np.stack(members)).reshape(len(members), 1, 1, 1, -1))
        figures[:, 0], figures[:, 1] = fused.sensitivity[:, 0, 0], fused.specificity[:, 0, 0]
    for e, member in enumerate(members):
        figures[e, 2] = overlap(member, truth)["dice"]
    return figures


def _level_tables(answer, truth):
    """{"": `LevelTable` of all pixels, "_band": of those in the boundary band}; {} without a probability."""
    if answer.probability is None:
        return {}
    p, y, band = answer.probability, truth.fraction, truth.band
    return {"": LevelTable.of(p, y), "_band": LevelTable.of(p[band], y[band])}


def _reliability_tables(answer, truth):
    """{(map, part): `ReliabilityTable`}; maps that were not saved have none.

    map: "" for the probability, "coarse_" for the coarse mask. part: "" for all pixels, "_band" for the boundary band.
    """
    maps = {name: soft for name, soft in (("", answer.probability), ("coarse_", answer.coarse)) if soft is not None}
    tables = {(name, ""): ReliabilityTable.of(soft, truth.fraction) for name, soft in maps.items()}
    for name, soft in maps.items():
        tables[name, "_band"] = ReliabilityTable.of(soft[truth.band], truth.fraction[truth.band])
    return tables


# ---- the table of cases ------------------------------------------------------------------------------------------


def columns(tolerances=TOLERANCES, raters=(), several_classes=False):
    """The columns of metrics.csv. raters: the raters' names, see `summary.raters_in`."""
    return (
        *(("name", "class") if several_classes else ("name",)),
        *("group", *metric_names(tolerances), "empty"),
        *("sample_dice", "sample_iou", "coarse_dice", "coarse_iou", *CALIBRATION),
        *("agreement", "expected_dice", "volume_spread"),
        *("volume", "truth_volume", "volume_low", "volume_high", "lesions", "lesions_predicted", "lesions_found"),
        *(*SET_FIGURES, "rater_dice", "raters_agreement"),
        *(f"rater_{name}_dice" for name in raters),
    )


def _write_csv(path, evaluation):
    """One row for each case. With several classes: one for each class, then one of their means (`classes.MEAN`)."""
    several = len(evaluation.class_names) > 1
    names = columns(evaluation.settings.tolerances, raters_in(evaluation.rows), several)
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for case in by_case(evaluation.rows):
            for row in [*case, mean_row(case)] if several else case:
                writer.writerow({name: _cell(row.get(name, math.nan)) for name in names})


def _cell(value):
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return csv_cell(value) if isinstance(value, str) else value
