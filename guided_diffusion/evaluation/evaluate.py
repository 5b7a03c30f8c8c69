"""Evaluates a folder of predictions: compares each case and class with the truth and writes the tables."""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from ..data.accounting import unread_kinds
from ..data.batches import single_items
from ..data.cases import check_volumes, group_cases
from ..data.inspection import misplaced_file
from ..data.splits import group_of
from ..data.truth import known_of, rater_names, raters_of
from ..data.volumes import image_geometry
from ..inference.predictions import Predictions
from ..io.escaping import csv_cell
from ..io.files import atomic_path, write_json
from ..runtime.console import console, counted, listed
from ..runtime.errors import UserError, reason_of
from .case_figures import (
    ClassTruth,
    coarse_masks,
    level_tables,
    mask_figures,
    member_figures,
    probability_figures,
    rater_figures,
    read_prediction,
    reliability_tables,
    set_figures,
)
from .cleanup_fit import cleanup_dice
from .controls import dice_beyond_levels
from .ensemble_size import EnsembleFigures, dice_by_size, sets_by_size
from .metrics import LESION_IOU, TOLERANCES, metric_names, pixel_volume, volume_unit
from .risk_control import LesionLevels
from .statistics import mean_defined
from .summary import (
    CALIBRATION,
    DIVERSITY,
    PROBABILITY,
    add_tables,
    by_case,
    calibration_figures,
    curves_of,
    mean_row,
    raters_in,
    summary_of,
)
from .temperature_fit import ExclusiveLosses, LevelTable
from .topology import TOPOLOGY_FIGURES, topology_figures
from .uncertainty import case_scores


@dataclass(frozen=True)
class EvaluationSettings:
    """The rules of an evaluation.

    tolerances, lesion_iou: see `metrics.surface` and `metrics.lesion_detection`. group_key: see `splits.group_of`.
    sizes: the method that fuses ensembles of each size (see `ensemble_size`), or "" for none. levels: whether to count
    pixels by their probability, to fit a temperature. copula_length: of the Gaussian-copula control in pixels (see
    `controls`), 0 for none. topology: whether to compute `topology.TOPOLOGY_FIGURES`. cleanups, lesions: whether to
    collect what `cleanup_fit` and `risk_control` choose by. max_misses: the share of missed lesion pixels for which the
    masks were thresholded, with which the summary compares theirs; 0 for none.
    """

    tolerances: tuple[float, ...] = TOLERANCES
    lesion_iou: float = LESION_IOU
    group_key: str = ""
    sizes: str = ""
    levels: bool = False
    copula_length: float = 0.0
    topology: bool = False
    cleanups: bool = False
    lesions: bool = False
    max_misses: float = 0.0


@dataclass
class Evaluation:
    """The figures of each case and class of a folder of predictions.

    rows: a dict for each case and class, in the cases' order: "name", "class", "group" and the figures of `columns`.
    tables: {class: {map: `ReliabilityTable`}}, sums over the cases (see `case_figures.reliability_tables`).
    members: {class: a list of float64 [E, 3], one for each case}, see `case_figures.member_figures`.
    sizes: {case: `ensemble_size.EnsembleFigures`} of cases with members, where requested.
    levels: where requested, the `LevelTable` of all pixels of all classes, of exclusive classes the `ExclusiveLosses`,
    else None.
    cleanups, lesions: where requested, {case: `cleanup_fit.cleanup_dice`} and {case: the `risk_control.LesionLevels` of
    each class}.
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
    levels: LevelTable | ExclusiveLosses | None = None
    cleanups: dict = field(default_factory=dict)
    lesions: dict = field(default_factory=dict)
    missing: int = 0
    without_truth: int = 0
    failed: dict = field(default_factory=dict)
    unmatched: int = 0

    def add(self, row, tables, members):
        """Add one class of a case: its row, and the other two of `case_figures`."""
        self.rows.append(row)
        self.members.setdefault(row["class"], []).append(members)
        add_tables(self.tables.setdefault(row["class"], {}), tables)

    def add_levels(self, levels):
        """Add the `case_figures.level_tables` of a case, or None."""
        if levels is not None:
            self.levels = levels if self.levels is None else self.levels + levels

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
        self.add_levels(other.levels)
        self.sizes |= other.sizes
        self.cleanups |= other.cleanups
        self.lesions |= other.lesions
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


def write_evaluation(evaluation, out_dir, compared=None, folds=None):
    """Write metrics.csv, summary.json and curves.json to `out_dir`; returns the summary.

    compared: of `comparison.compare_runs`; it becomes the summary's "comparison". folds: of `pooling.fold_figures`; it
    becomes its "folds".
    """
    summary = summary_of(evaluation) | ({"comparison": compared} if compared else {})
    summary |= {"folds": folds} if folds else {}
    _write_csv(Path(out_dir) / "metrics.csv", evaluation)
    write_json(Path(out_dir) / "summary.json", summary)
    write_json(Path(out_dir) / "curves.json", curves_of(evaluation))
    return summary


# ---- one case ----------------------------------------------------------------------------------------------------


def _evaluate_case(evaluation, dataset, unit, predictions, read_raters):
    """Add a case to an `Evaluation`, class by class."""
    settings, case, exclusive = evaluation.settings, unit.cases[0], dataset.classes.is_exclusive
    geometry = dataset.load_geometry(case)
    group = group_of(case, settings.group_key) if settings.group_key else case.group or ""
    answers, truths, whole, known = [], [], [], known_of(dataset, unit.cases)
    for k in range(len(evaluation.class_names)):
        raters = read_raters(dataset, unit.cases, k)
        spacing = None if geometry is None else geometry.spacing[: raters.ndim - 1]
        truths.append(ClassTruth(raters, spacing, known))
        found = read_prediction(predictions, unit, raters.shape[1:], k)
        whole.append(found.mask)
        answers.append(found.within(known))
    coarse = coarse_masks(answers, exclusive)
    for answer, truth, own_coarse, class_name in zip(answers, truths, coarse, evaluation.class_names, strict=True):
        tables = reliability_tables(answer, truth)
        at_known = [truth.at_known(member)[None] if known is not None else member for member in answer.members]
        members = member_figures(at_known, truth.at_known(truth.mask)[None] if known is not None else truth.mask)
        row = {"name": unit.name, "class": class_name, "group": group}
        row |= mask_figures(answer, truth, own_coarse, settings)
        row |= probability_figures(answer, truth) | calibration_figures(tables)
        row |= case_scores(answer.mask, answer.members, answer.probability, pixel_volume(truth.spacing))
        if max(len(truth.raters), len(evaluation.raters)) > 1:
            row |= rater_figures(answer.mask, list(truth.raters), case.raters, evaluation.raters)
        row |= set_figures(answer, truth, unit.name, settings.copula_length)
        if settings.topology:
            row |= topology_figures(answer.mask, answer.members, truth.mask, known)
        dice = members[:, 2]
        row |= {"sample_dice": mean_defined(dice), "sample_iou": mean_defined(dice / (2 - dice))}
        if len(dice) > 1 and answer.probability is not None:
            row |= dice_beyond_levels(row["sample_dice"], answer.probability, truth.mask)
        evaluation.add(row, tables, members)
    if settings.levels:
        evaluation.add_levels(level_tables(answers, truths, exclusive))
    if settings.cleanups:
        true = np.stack([truth.mask for truth in truths])
        evaluation.cleanups[unit.name] = cleanup_dice(np.stack(whole), true, exclusive, known)
    if settings.lesions and all(answer.probability is not None for answer in answers):
        each = zip(answers, truths, strict=True)
        evaluation.lesions[unit.name] = [LesionLevels.of(answer.probability, truth.mask) for answer, truth in each]
    if settings.sizes and len(answers[0].members) > 1:
        members = np.stack([np.stack(answer.members) for answer in answers], axis=1)  # [E, K, ...]
        members = truths[0].at_known(members)
        masks = np.stack([truth.at_known(truth.mask) for truth in truths])
        evaluation.sizes[unit.name] = EnsembleFigures(
            dice_by_size(members, masks, settings.sizes, exclusive, unit.name),
            [sets_by_size(members[:, k], truth.at_known(truth.raters), unit.name) for k, truth in enumerate(truths)],
            len(members),
        )


# ---- the table of cases ------------------------------------------------------------------------------------------


def columns(tolerances=TOLERANCES, raters=(), several_classes=False, topology=False):
    """The columns of metrics.csv. raters: the raters' names, see `summary.raters_in`."""
    return (
        *(("name", "class") if several_classes else ("name",)),
        *("group", *metric_names(tolerances), "empty"),
        *("sample_dice", "sample_iou", "coarse_dice", "coarse_iou", *PROBABILITY, *CALIBRATION),
        *("agreement", "expected_dice", "volume_spread"),
        *("volume", "truth_volume", "volume_low", "volume_high", "lesions", "lesions_predicted", "lesions_found"),
        *DIVERSITY,
        *(TOPOLOGY_FIGURES if topology else ()),
        *(f"rater_{name}_dice" for name in raters),
    )


def _write_csv(path, evaluation):
    """One row for each case. With several classes: one for each class, then one of their means (`classes.MEAN`)."""
    several = len(evaluation.class_names) > 1
    settings = evaluation.settings
    names = columns(settings.tolerances, raters_in(evaluation.rows), several, settings.topology)
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
