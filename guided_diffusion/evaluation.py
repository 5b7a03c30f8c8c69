"""Evaluation of a folder of predictions against a data set's truth: per case, averaged, as table, CSV and JSON."""

import csv
import math
from pathlib import Path

import numpy as np

from .calibration import BINS, ReliabilityTable, boundary_band
from .classes import MEAN
from .data import group_cases
from .diversity import LEVELS, compare_sets, level_masks, rater_dice
from .errors import UserError
from .files import atomic_path, write_json
from .logger import counted
from .metrics import METRICS, evaluate_mask, overlap, statistics, summarise
from .results import Predictions

RULES = (
    "Dice = 2TP/(2TP+FP+FN), IoU = TP/(TP+FP+FN), per case, then averaged over cases.",
    "Both masks empty: undefined, left out of the mean. One empty: Dice and IoU 0, HD95 the image's diagonal.",
    "HD95: the larger of the two directed 95th percentiles of surface distances.",
    "A volume is one case; slices and volumes are not mixed. Volumes are compared in one orientation, which their "
    "files' affines tell.",
    "Several classes: each is scored by itself; a case's mean is over its classes that are defined, and figures of all "
    "pixels together are averaged over the classes.",
    "A prediction of another size is brought to the truth's grid by nearest neighbour.",
    "Several raters: the truth is what more than half of them marked; for ECE and Brier, the fraction who marked it.",
    f"ECE: {BINS} equal bins of the foreground's probability. ECE and Brier are of all cases' pixels together; in the "
    "table of cases they are per case.",
    "Band: pixels within max(1, round(0.03 sqrt(H W))) of the truth's boundary (of the nearest pixel of the other "
    "kind), in a volume with its in-plane size and in units of its smallest spacing. An empty truth has none.",
    "Several raters: GED2 = 2 E[d(S,Y)] - E[d(S,S')] - E[d(Y,Y')] of members S and raters Y, d = 1 - IoU, IoU of two "
    "empty masks 1, each mask also paired with itself. Matched IoU: Hungarian, both sides repeated to the least "
    "common multiple. Rater Dice: the fused mask to each rater, averaged where defined. All per case.",
    f"A run with a single member stands for {LEVELS} masks in GED2 and matched IoU: its probability cut at "
    f"(k + 0.5)/{LEVELS}.",
)
CALIBRATION = {  # figures and their labels in the table
    "ece": "ece",
    "ece_band": "  in band",
    "brier": "brier",
    "brier_band": "  in band",
    "coarse_ece": "coarse ece",
    "coarse_ece_band": "  in band",
    "coarse_brier": "coarse brier",
    "coarse_brier_band": "  in band",
}
DIVERSITY = ("ged2", "matched_iou", "rater_dice")
COLUMNS = ("name", *METRICS, "empty", "sample_dice", "coarse_dice", *CALIBRATION, *DIVERSITY)


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


def evaluate(pred_dir, dataset, out_dir=None, progress=None, read_raters=raters_of):
    """Compare each prediction below `pred_dir` with its truth; write metrics.csv and summary.json to `out_dir`.

    progress: wraps the list of cases (a tqdm). read_raters: called as `raters_of` is. Returns the summary, see
    `summary_of`, with "unmatched_files": how many files of masks belong to no case. Raises `UserError` when nothing
    can be compared.
    """
    scores, missing, without_truth = [ClassScores() for _ in dataset.classes.names], 0, 0
    units = group_cases(dataset.cases)
    firsts = {unit.name: unit.cases[0] for unit in units}
    predictions = Predictions(pred_dir, firsts, dataset.classes, lambda name: dataset.geometry(firsts[name]))
    mixed = {unit.is_volume for unit in units}
    if len(mixed) > 1:
        raise UserError(f"{dataset.data_dir}: holds volumes and single slices, which are not averaged together")
    for unit in progress(units) if progress else units:
        prediction = predictions.mask(unit.name, unit.is_volume)
        if prediction is None:
            missing += 1
            continue
        raters = read_raters(dataset, unit.cases)
        if raters is None:
            without_truth += 1
            continue
        scores[0].add(*_evaluate_case(dataset, unit, predictions, prediction, raters))
        for k in range(1, len(scores)):
            prediction, raters = (
                predictions.mask(unit.name, unit.is_volume, k),
                read_raters(dataset, unit.cases, k),
            )
            scores[k].add(*_evaluate_case(dataset, unit, predictions, prediction, raters, k))
    unmatched = predictions.unmatched()
    if not scores[0].rows:
        example = f"; {unmatched[0].name} is not named like any case" if unmatched else ""
        raise UserError(
            f"{pred_dir}: nothing to evaluate: of {counted(len(units), 'case')} in {dataset.data_dir}, {missing} "
            f"have no prediction and {without_truth} no truth{example}"
        )
    millimetres = dataset.geometry(units[0].cases[0]) is not None
    rest = (missing, without_truth, "mm" if millimetres else "pixels")
    summaries = [summary_of(score.rows, score.pooled, *rest) for score in scores]
    summary, rows = summaries[0], scores[0].rows
    if len(scores) > 1:
        names = dataset.classes.names
        rows = class_rows(names, [score.rows for score in scores])
        summary = mean_summary(names, [row for row in rows if row["class"] == MEAN], summaries, rest)
    summary["unmatched_files"] = len(unmatched)
    out_dir = Path(out_dir or pred_dir)
    _write_csv(out_dir / "metrics.csv", rows)
    write_json(out_dir / "summary.json", summary)
    return summary


class ClassScores:
    """What is known of one class: `rows`, a dict for each case, and `pooled`, the sums of the cases' tables."""

    def __init__(self):
        self.rows, self.pooled = [], {}

    def add(self, row, tables):
        """Add a case (see `_evaluate_case`)."""
        self.rows.append(row)
        for name, table in tables.items():
            self.pooled[name] = self.pooled[name] + table if name in self.pooled else table


def class_rows(names, rows):
    """Each case's rows of its classes, with the column "class", and after them its row `classes.MEAN`, of the means
    over the classes that are defined. rows: for each class those of all cases."""
    table = []
    for of_case in zip(*rows, strict=True):
        table += [{"class": name} | row for name, row in zip(names, of_case, strict=True)]
        numbers = [name for name in COLUMNS if name not in ("name", "empty")]
        means = {name: statistics([row[name] for row in of_case])["mean"] for name in numbers}
        table.append({"name": of_case[0]["name"], "class": MEAN, "empty": "", **means})
    return table


def mean_summary(names, rows, summaries, rest):
    """The summary of several classes: that of the cases' means over the classes (`rows`), and below "classes" each
    class's own. Figures of all pixels together are the means of the classes', and counts of empty masks their sums."""
    summary = summary_of(rows, {}, *rest)
    figures = [one["calibration"] for one in summaries]
    summary["calibration"] = {key: statistics([one[key] for one in figures])["mean"] for key in figures[0]}
    for which in ("both", "prediction", "truth"):
        summary["ensemble"][f"{which}_empty"] = sum(one["ensemble"][f"{which}_empty"] for one in summaries)
    own = ("ensemble", "sample", "coarse", "calibration", "diversity")
    summary["classes"] = {name: {key: one[key] for key in own} for name, one in zip(names, summaries, strict=True)}
    return summary


def _evaluate_case(dataset, unit, predictions, prediction, raters, k=0):
    """Of class k a case's row of metrics.csv, and its tables (see `_reliability`)."""
    fraction = raters.mean(axis=0, dtype=np.float32)
    truth = fraction > 0.5
    geometry = dataset.geometry(unit.cases[0])
    spacing = None if geometry is None else geometry.spacing[: truth.ndim]
    fused = on_grid(prediction, truth.shape)
    members = [on_grid(member, truth.shape) for member in predictions.members(unit.name, unit.is_volume, k)]
    probability, coarse = (
        None if soft is None else on_grid(soft, truth.shape)
        for soft in (read(unit.name, unit.is_volume, k) for read in (predictions.probability, predictions.coarse))
    )
    row = {name: math.nan for name in COLUMNS} | {"name": unit.name, **evaluate_mask(fused, truth, spacing)}
    row["sample_dice"] = statistics([overlap(member, truth)["dice"] for member in members])["mean"]
    if coarse is not None:
        row["coarse_dice"] = overlap(coarse > 0.5, truth)["dice"]
    tables = _reliability({"": probability, "coarse_": coarse}, fraction, truth, spacing)
    row |= _calibration_figures(tables)
    if len(raters) > 1:
        row["rater_dice"] = rater_dice(fused, raters)
        single = len(members) == 1 or predictions.num_ensemble == 1
        samples = level_masks(probability) if single and probability is not None else members
        if samples:
            row |= compare_sets(samples, raters)
    return row, tables


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


def _calibration_figures(tables):
    """The figures `CALIBRATION` of the tables of one case, or of all together; NaN where one lacks."""
    figures = dict.fromkeys(CALIBRATION, math.nan)
    for (name, part), table in tables.items():
        figures |= {f"{name}ece{part}": table.ece, f"{name}brier{part}": table.brier}
    return figures


def on_grid(mask, shape):
    """The mask on a grid of this shape, by nearest neighbour (as it is, where the shapes agree)."""
    if mask.ndim != len(shape):
        raise UserError(f"a mask of shape {mask.shape} cannot be compared with one of shape {tuple(shape)}")
    for axis, (have, want) in enumerate(zip(mask.shape, shape, strict=True)):
        if have != want:
            mask = mask.take(((np.arange(want) + 0.5) * have / want).astype(int), axis=axis)
    return mask


def summary_of(rows, pooled, missing, without_truth, unit):
    """The summary of per-case rows and of the sums `pooled` of their tables (see `_reliability`).

    "ensemble": see `metrics.summarise`; "sample" and "coarse": mean, median, std, n of the Dice of single members and
    of the coarse mask, where saved; "calibration": the figures `CALIBRATION` of all cases' pixels together, NaN where
    no probability was saved, and "cases", "cases_band", over how many; "diversity": mean, median, std, n of each of
    `DIVERSITY`; "hd95_unit"; "missing", "without_truth": cases left out; "rules". Of several classes see
    `mean_summary`.
    """
    counted = {f"cases{part}": sum(not math.isnan(row[f"ece{part}"]) for row in rows) for part in ("", "_band")}
    return {
        "ensemble": summarise(rows),
        **{name: statistics([row[f"{name}_dice"] for row in rows]) for name in ("sample", "coarse")},
        "calibration": _calibration_figures(pooled) | counted,
        "diversity": {name: statistics([row[name] for row in rows]) for name in DIVERSITY},
        "hd95_unit": unit,
        "missing": missing,
        "without_truth": without_truth,
        "rules": list(RULES),
    }


def format_summary(summary):
    """The summary as a table for the console."""
    ensemble = summary["ensemble"]
    lines = _class_lines(summary)
    lines += [f"{'':14}{'mean':>9}{'median':>9}{'std':>9}{'n':>6}"]
    for metric in METRICS:
        label = f"hd95 ({summary['hd95_unit']})" if metric == "hd95" else metric
        lines.append(_table_line(label, ensemble[metric]))
    for name, label in (("sample", "sample dice"), ("coarse", "coarse dice")):
        if summary[name]["n"]:
            lines.append(_table_line(label, summary[name]))
    lines += [
        _table_line(name.replace("_", " "), summary["diversity"][name])
        for name in DIVERSITY
        if summary["diversity"][name]["n"]
    ]
    lines += _calibration_lines(summary["calibration"])
    empties = ", ".join(
        f"{ensemble[f'{w}_empty']} {text}"
        for w, text in (("both", "both empty"), ("prediction", "prediction empty"), ("truth", "truth empty"))
    )
    of_all = " of all classes" if "classes" in summary else ""
    lines.append(f"{counted(ensemble['cases'], 'case')} ({empties}{of_all})")
    for key, text in (("missing", "without a prediction"), ("without_truth", "without truth")):
        if summary[key]:
            lines.append(f"left out: {counted(summary[key], 'case')} {text}")
    if summary.get("unmatched_files"):
        lines.append(f"left out: {counted(summary['unmatched_files'], 'file')} of masks not named like any case")
    return "\n".join(lines)


def _class_lines(summary):
    """The table of the classes' means, and the heading of the means over them; nothing for a single class."""
    if "classes" not in summary:
        return []
    width = max(14, *(len(name) + 2 for name in summary["classes"]))
    lines = [f"{'class':{width}}{''.join(f'{metric:>13}' for metric in METRICS)}{'cases':>7}"]
    for name, one in summary["classes"].items():
        means = "".join(f"{one['ensemble'][metric]['mean']:13.4f}" for metric in METRICS)
        lines.append(f"{name:{width}}{means}{one['ensemble']['dice']['n']:7d}")
    return [*lines, "all classes, each case's mean over those that are defined:"]


def _calibration_lines(figures):
    """One line for each figure, which is of all pixels together: it has no median."""
    return [f"{label:14}{figures[name]:9.4f}" for name, label in CALIBRATION.items() if not math.isnan(figures[name])]


def _table_line(label, values):
    return f"{label:14}{values['mean']:9.4f}{values['median']:9.4f}{values['std']:9.4f}{values['n']:6d}"


def _write_csv(path, rows):
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        columns = ("name", "class", *COLUMNS[1:]) if "class" in rows[0] else COLUMNS
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(row[name]) for name in columns})


def _cell(value):
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value
