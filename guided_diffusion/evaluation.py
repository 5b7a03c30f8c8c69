"""Evaluation of a folder of predictions against a data set's truth: per case, averaged, as table, CSV and JSON."""

import csv
import math
from pathlib import Path

import numpy as np

from .data import group_cases
from .errors import UserError
from .files import atomic_path, write_json
from .logger import counted
from .metrics import METRICS, evaluate_mask, overlap, summarise
from .results import Predictions

RULES = (
    "Dice = 2TP/(2TP+FP+FN), IoU = TP/(TP+FP+FN), per case, then averaged over cases.",
    "Both masks empty: undefined, left out of the mean. One empty: Dice and IoU 0, HD95 the image's diagonal.",
    "HD95: the larger of the two directed 95th percentiles of surface distances.",
    "A volume is one case; slices and volumes are not mixed.",
    "A prediction of another size is brought to the truth's grid by nearest neighbour.",
    "Several raters: the truth is what more than half of them marked.",
)
COLUMNS = ("name", *METRICS, "empty", "sample_dice", "coarse_dice")


def truth_of(dataset, cases):
    """The truth bool [H, W], or [X, Y, Z] of a volume's slices, by majority of the raters; None where one lacks."""
    if not all(case.masks for case in cases):
        return None
    slices = [dataset.load_mask(case)[:, 0].mean(axis=0) > 0.5 for case in cases]  # [R, K, H, W] -> [H, W]
    return slices[0] if cases[0].volume is None else np.stack(slices, axis=-1)


def evaluate(pred_dir, dataset, out_dir=None, progress=None, read_truth=truth_of):
    """Compare each prediction below `pred_dir` with its truth; write metrics.csv and summary.json to `out_dir`.

    progress: wraps the list of cases (a tqdm). read_truth: called as `truth_of` is. Returns the summary, see
    `summary_of`, with "unmatched_files": how many files of masks belong to no case. Raises `UserError` when nothing
    can be compared.
    """
    rows, missing, without_truth = [], 0, 0
    units = group_cases(dataset.cases)
    predictions = Predictions(pred_dir, [unit.name for unit in units])
    mixed = {unit.is_volume for unit in units}
    if len(mixed) > 1:
        raise UserError(f"{dataset.data_dir}: holds volumes and single slices, which are not averaged together")
    for unit in progress(units) if progress else units:
        prediction = predictions.mask(unit.name, unit.is_volume)
        if prediction is None:
            missing += 1
            continue
        truth = read_truth(dataset, unit.cases)
        if truth is None:
            without_truth += 1
            continue
        rows.append(_evaluate_case(dataset, unit, predictions, prediction, truth))
    unmatched = predictions.unmatched()
    if not rows:
        example = f"; {unmatched[0].name} is not named like any case" if unmatched else ""
        raise UserError(
            f"{pred_dir}: nothing to evaluate: of {counted(len(units), 'case')} in {dataset.data_dir}, {missing} "
            f"have no prediction and {without_truth} no truth{example}"
        )
    millimetres = dataset.geometry(units[0].cases[0]) is not None
    summary = summary_of(rows, missing, without_truth, "mm" if millimetres else "pixels")
    summary["unmatched_files"] = len(unmatched)
    out_dir = Path(out_dir or pred_dir)
    _write_csv(out_dir / "metrics.csv", rows)
    write_json(out_dir / "summary.json", summary)
    return summary


def _evaluate_case(dataset, unit, predictions, prediction, truth):
    geometry = dataset.geometry(unit.cases[0])
    spacing = None if geometry is None else geometry.spacing[: truth.ndim]
    row = {"name": unit.name, **evaluate_mask(on_grid(prediction, truth.shape), truth, spacing)}
    members = [overlap(on_grid(m, truth.shape), truth)["dice"] for m in predictions.members(unit.name, unit.is_volume)]
    defined = [dice for dice in members if not math.isnan(dice)]
    row["sample_dice"] = float(np.mean(defined)) if defined else math.nan
    coarse = predictions.coarse(unit.name, unit.is_volume)
    row["coarse_dice"] = math.nan if coarse is None else overlap(on_grid(coarse, truth.shape), truth)["dice"]
    return row


def on_grid(mask, shape):
    """The mask on a grid of this shape, by nearest neighbour (as it is, where the shapes agree)."""
    if mask.ndim != len(shape):
        raise UserError(f"a mask of shape {mask.shape} cannot be compared with one of shape {tuple(shape)}")
    for axis, (have, want) in enumerate(zip(mask.shape, shape, strict=True)):
        if have != want:
            mask = mask.take(((np.arange(want) + 0.5) * have / want).astype(int), axis=axis)
    return mask


def summary_of(rows, missing, without_truth, unit):
    """The summary of per-case rows.

    "ensemble": see `metrics.summarise`; "sample" and "coarse": mean, median, std, n of the Dice of single members and
    of the coarse mask, where saved; "hd95_unit"; "missing", "without_truth": cases left out; "rules".
    """
    ensemble = summarise(rows)
    single = {}
    for name in ("sample", "coarse"):
        renamed = [{**row, "dice": row[f"{name}_dice"]} for row in rows]
        single[name] = summarise(renamed)["dice"]
    return {
        "ensemble": ensemble,
        **single,
        "hd95_unit": unit,
        "missing": missing,
        "without_truth": without_truth,
        "rules": list(RULES),
    }


def format_summary(summary):
    """The summary as a table for the console."""
    ensemble = summary["ensemble"]
    lines = [f"{'':14}{'mean':>9}{'median':>9}{'std':>9}{'n':>6}"]
    for metric in METRICS:
        label = f"hd95 ({summary['hd95_unit']})" if metric == "hd95" else metric
        lines.append(_table_line(label, ensemble[metric]))
    for name, label in (("sample", "sample dice"), ("coarse", "coarse dice")):
        if summary[name]["n"]:
            lines.append(_table_line(label, summary[name]))
    empties = ", ".join(
        f"{ensemble[f'{w}_empty']} {text}"
        for w, text in (("both", "both empty"), ("prediction", "prediction empty"), ("truth", "truth empty"))
    )
    lines.append(f"{counted(ensemble['cases'], 'case')} ({empties})")
    for key, text in (("missing", "without a prediction"), ("without_truth", "without truth")):
        if summary[key]:
            lines.append(f"left out: {counted(summary[key], 'case')} {text}")
    if summary.get("unmatched_files"):
        lines.append(f"left out: {counted(summary['unmatched_files'], 'file')} of masks not named like any case")
    return "\n".join(lines)


def _table_line(label, values):
    return f"{label:14}{values['mean']:9.4f}{values['median']:9.4f}{values['std']:9.4f}{values['n']:6d}"


def _write_csv(path, rows):
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(row[name]) for name in COLUMNS})


def _cell(value):
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value
