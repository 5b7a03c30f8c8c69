"""The summary of an evaluation: means over cases with their intervals, curves and the console's table."""

import math
import re

import numpy as np

from ..data.classes import MEAN
from ..runtime.console import counted, text_table
from .diversity import SET_FIGURES
from .ensemble_size import format_sizes, size_summary
from .metrics import metric_names
from .statistics import Resampling, describe
from .uncertainty import SCORES, judge

CALIBRATION = {  # figures and their labels in the table
    f"{name}{figure}{part}": "  in band" if part else f"{label}{figure.replace('_', ' ')}"
    for name, label in (("", ""), ("coarse_", "coarse "))
    for figure in ("ece", "adaptive_ece", "brier")
    for part in ("", "_band")
}


DIVERSITY = (*SET_FIGURES, "rater_dice", "raters_agreement")


MAPS = {"": "probability", "coarse_": "coarse"}


EMPTY_LABELS = {"both": "both empty", "prediction": "prediction empty", "truth": "truth empty"}


DEFINITIONS = "docs/evaluation.md"  # of every figure


HEAD = ("", "mean", "95 % interval", "median", "std", "n")  # of the console's table


PER_CLASS = ("dice", "iou", "sensitivity", "precision", "hd95", "assd", "lesion_f1")


def summary_of(evaluated):
    """The summary of an `evaluation.Evaluated`, in plain types.

    "ensemble": the `statistics.describe` of each of `metrics.metric_names` and the counts "cases", "both_empty",
    "prediction_empty" and "truth_empty"; "sample" and "coarse": that of the Dice of single members and of the coarse
    mask, and "sample_iou" and "coarse_iou"; "calibration": the figures `CALIBRATION` of all cases' pixels together, NaN
    where no probability was saved, and "cases", "cases_band", over how many; "diversity": that of each of `DIVERSITY`;
    "raters": a list of that of the Dice to each of "rater_names", over the cases that he marked; "members": of each
    member the means over cases of "staple_sensitivity", "staple_specificity" and "dice" (see
    `evaluation.member_figures`); "uncertainty": of each of `uncertainty.SCORES` that and its `uncertainty.judge`, and
    "volume_coverage", the share of true volumes within the members' interval.
    With several classes these are of each case's mean over its classes; of figures of all pixels together they are the
    means over the classes, of empty masks the sums; and "classes" holds the same of each class by name.
    "ensemble_size", where asked for: see `ensemble_size.size_summary`.
    "rater_names" (numbers where the data tell none), "class_names", "groups" (how many, None where no case has one),
    "hd95_unit", "volume_unit", "nsd_tolerances", "lesion_iou"; "missing", "without_truth", "unmatched_files": cases and
    files left out.
    """
    rows, names = evaluated.rows, metric_names(evaluated.settings.tolerances)
    parts = {
        name: _level_summary(_of_class(rows, name), names, evaluated.tables[name], evaluated.members[name])
        for name in evaluated.class_names
    }
    sizes = _ensemble_sizes(evaluated)
    return {
        **({"ensemble_size": sizes} if sizes else {}),
        **(_mean_part(rows, names, parts) if len(parts) > 1 else parts[evaluated.class_names[0]]),
        **({"classes": parts} if len(parts) > 1 else {}),
        "rater_names": raters_in(rows),
        "class_names": list(evaluated.class_names),
        "groups": len({row["group"] for row in rows}) if any(row["group"] for row in rows) else None,
        "hd95_unit": evaluated.distance_unit,
        "volume_unit": evaluated.volume_unit,
        "nsd_tolerances": list(evaluated.settings.tolerances),
        "lesion_iou": evaluated.settings.lesion_iou,
        "missing": evaluated.missing,
        "without_truth": evaluated.without_truth,
        "unmatched_files": evaluated.unmatched,
    }


def curves_of(evaluated):
    """What a report draws of an `evaluation.Evaluated`: {"all": curves, "classes": {name: curves}}.

    curves["reliability"]: {"probability", "probability_band", "coarse", "coarse_band"}, where saved, each a
    `calibration.ReliabilityTable.diagram`. curves["retention"]: for each of `uncertainty.SCORES` "kept", "error",
    "area", "random" and "oracle", see `uncertainty.judge`. "all" has the pixels of all classes together, and the
    cases' means over them. "ensemble_size", where asked for: see `ensemble_size.size_summary`.
    """
    rows, pooled = evaluated.rows, {}
    for tables in evaluated.tables.values():
        for key, table in tables.items():
            pooled[key] = pooled[key] + table if key in pooled else table
    several = len(evaluated.class_names) > 1
    return {
        "all": _curves(_means(rows) if several else rows, pooled),
        "classes": {name: _curves(_of_class(rows, name), evaluated.tables[name]) for name in evaluated.class_names},
        **({"ensemble_size": sizes} if (sizes := _ensemble_sizes(evaluated)) else {}),
    }


def calibration_figures(tables):
    """The figures `CALIBRATION` of the tables of one case, or of all together; NaN where one lacks.

    tables: {(map, part): `ReliabilityTable`}, map "" or "coarse_", part "" or "_band".
    """
    figures = dict.fromkeys(CALIBRATION, math.nan)
    for (name, part), table in tables.items():
        for figure in ("ece", "adaptive_ece", "brier"):
            figures[f"{name}{figure}{part}"] = getattr(table, figure)
    return figures


def groups_of(rows):
    """What each row's case belongs to: its group, or itself."""
    return [row["group"] or row["name"] for row in rows]


def raters_in(rows):
    """The names of the raters whose Dice any row has, in the order of the rows' figures; [] of one rater alone."""
    found = (re.fullmatch(r"rater_(.+)_dice", key) for row in rows for key in row)
    return list(dict.fromkeys(match[1] for match in found if match))


def by_case(rows):
    """The rows of each case: lists, in the cases' order."""
    cases = {}
    for row in rows:
        cases.setdefault(row["name"], []).append(row)
    return list(cases.values())


def mean_row(rows):
    """The row `classes.MEAN` of a case: the mean of each figure over those of its classes where it is defined."""
    mean = {"name": rows[0]["name"], "class": MEAN, "group": rows[0]["group"], "empty": ""}
    for key in dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, str)):
        mean[key] = describe([row.get(key, math.nan) for row in rows])["mean"]
    return mean


# ---- parts -------------------------------------------------------------------------------------------------------


def _of_class(rows, name):
    return [row for row in rows if row["class"] == name]


def _means(rows):
    return [mean_row(case) for case in by_case(rows)]


def _column(rows, name):
    return np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)


def _ensemble_sizes(evaluated):
    """`ensemble_size.size_summary` of the cases' means over their classes, up to the size that all have, or None."""
    if not evaluated.sizes:
        return None
    most = min(len(dice) for dice in evaluated.sizes.values())
    groups = {row["name"]: row["group"] or row["name"] for row in evaluated.rows}
    means = [[describe(row)["mean"] for row in dice[:most]] for dice in evaluated.sizes.values()]
    return size_summary(means, [groups[name] for name in evaluated.sizes], evaluated.settings.sizes)


def _members(figures):
    """The means over cases of `evaluation.member_figures`: a dict for each member."""
    names = ("staple_sensitivity", "staple_specificity", "dice")
    most = max((len(one) for one in figures), default=0)
    return [
        {
            name: describe([one[e, column] for one in figures if e < len(one)])["mean"]
            for column, name in enumerate(names)
        }
        for e in range(most)
    ]


def _level_summary(rows, names, tables, members=()):
    """The summary of a row a case. tables: see `calibration_figures`; members: `evaluation.member_figures` of each."""
    resampling = Resampling(groups_of(rows))

    def described(name):
        return describe(_column(rows, name), resampling)

    ensemble = {name: described(name) for name in names} | {"cases": len(rows)}
    ensemble |= {f"{which}_empty": sum(row["empty"] == which for row in rows) for which in EMPTY_LABELS}
    there = {f"cases{part}": int((~np.isnan(_column(rows, f"ece{part}"))).sum()) for part in ("", "_band")}
    low, high, truth = (_column(rows, name) for name in ("volume_low", "volume_high", "truth_volume"))
    known = ~np.isnan(low)
    uncertainty = {name: described(name) | _judged(rows, name) for name in SCORES}
    for score in uncertainty.values():
        score.pop("curve")
    uncertainty["volume_coverage"] = float(((low <= truth) & (truth <= high))[known].mean()) if any(known) else math.nan
    return {
        "ensemble": ensemble,
        "sample": described("sample_dice"),
        "sample_iou": described("sample_iou"),
        "coarse": described("coarse_dice"),
        "coarse_iou": described("coarse_iou"),
        "calibration": calibration_figures(tables) | there,
        "diversity": {name: described(name) for name in DIVERSITY},
        "raters": [described(f"rater_{name}_dice") for name in raters_in(rows)],
        "members": _members(members),
        "uncertainty": uncertainty,
    }


def _mean_part(rows, names, parts):
    """The summary of several classes together, see `summary_of`. parts: {class: its own}."""
    whole = _level_summary(_means(rows), names, {})

    def mean_of(part, key):
        return describe([one[part][key] for one in parts.values()])["mean"]

    whole["calibration"] = {key: mean_of("calibration", key) for key in whole["calibration"]}
    whole["uncertainty"]["volume_coverage"] = mean_of("uncertainty", "volume_coverage")
    whole["members"] = [
        {key: describe([member[key] for member in each])["mean"] for key in each[0]}
        for each in zip(*(one["members"] for one in parts.values()), strict=True)
    ]
    for which in EMPTY_LABELS:
        whole["ensemble"][f"{which}_empty"] = sum(one["ensemble"][f"{which}_empty"] for one in parts.values())
    return whole


def _judged(cases, name):
    """`uncertainty.judge` of a score against the Dice error 1 - Dice."""
    score = _column(cases, name)
    judged = judge(-score if SCORES[name] else score, 1 - _column(cases, "dice"))
    return judged | {"judged": judged.pop("n")}


def _curves(rows, tables):
    retention = {}
    for name in SCORES:
        judged = _judged(rows, name)
        if judged["judged"]:
            retention[name] = judged["curve"] | {key: judged[key] for key in ("area", "random", "oracle")}
    return {
        "reliability": {f"{MAPS[name]}{part}": table.diagram() for (name, part), table in tables.items()},
        "retention": retention,
    }


# ---- the console -------------------------------------------------------------------------------------------------


def format_summary(summary):
    """The summary as a table for the console; of several classes first a line for each."""
    lines = [*_class_lines(summary), text_table(HEAD, _rows(summary))]
    lines += _judgement_lines(summary["uncertainty"]) + _member_lines(summary["members"])
    if "ensemble_size" in summary:
        lines.append(format_sizes(summary["ensemble_size"]))
    ensemble = summary["ensemble"]
    empties = ", ".join(f"{ensemble[f'{which}_empty']} {text}" for which, text in EMPTY_LABELS.items())
    groups = f" of {counted(summary['groups'], 'group')}" if summary["groups"] else ""
    of_all = " of all classes" if "classes" in summary else ""
    lines.append(f"{counted(ensemble['cases'], 'case')}{groups} ({empties}{of_all})")
    for key, text in (("missing", "without a prediction"), ("without_truth", "without truth")):
        if summary[key]:
            lines.append(f"left out: {counted(summary[key], 'case')} {text}")
    if summary["unmatched_files"]:
        lines.append(f"left out: {counted(summary['unmatched_files'], 'file')} of masks not named like any case")
    return "\n".join(lines)


def _class_lines(summary):
    """The table of the classes' means, and the heading of the means over them; nothing for a single class."""
    if "classes" not in summary:
        return []
    names = [name for name in metric_names(summary["nsd_tolerances"]) if name in PER_CLASS or name.startswith("nsd_")]
    rows = [
        [name, *(f"{one['ensemble'][metric]['mean']:.4f}" for metric in names), one["ensemble"]["dice"]["n"]]
        for name, one in summary["classes"].items()
    ]
    return [
        text_table(["class", *names, "cases"], rows),
        "all classes, each case's mean over its defined classes:",
    ]


def _rows(summary):
    """The rows of the table."""
    names = metric_names(summary["nsd_tolerances"])
    rows = [_statistics_row(metric_label(name, summary), summary["ensemble"][name]) for name in names]
    values = {"sample dice": summary["sample"], "sample iou": summary["sample_iou"]}
    values |= {"coarse dice": summary["coarse"], "coarse iou": summary["coarse_iou"]}
    values |= {name.replace("_", " "): described for name, described in summary["diversity"].items()}
    if len(summary["raters"]) > 1:
        raters = zip(summary["rater_names"], summary["raters"], strict=True)
        values |= {f"  to rater {name}": described for name, described in raters}
    values |= {name.replace("_", " "): summary["uncertainty"][name] for name in SCORES}
    rows += [_statistics_row(label, described) for label, described in values.items() if described["n"]]
    # These are of all pixels together, so they have no median.
    figures = summary["calibration"]
    return rows + [[label, f"{figures[key]:.4f}"] for key, label in CALIBRATION.items() if not _nan(figures[key])]


def _statistics_row(label, values):
    interval = "" if _nan(values["low"]) else f"[{values['low']:.4f}, {values['high']:.4f}]"
    return [label, f"{values['mean']:.4f}", interval, f"{values['median']:.4f}", f"{values['std']:.4f}", values["n"]]


def _member_lines(members):
    if len(members) < 2:
        return []
    names = ("dice", "staple_sensitivity", "staple_specificity")
    rows = [[f"  {e}", *(f"{one[name]:.4f}" for name in names)] for e, one in enumerate(members)]
    return [text_table(["member", "dice", "sensitivity by STAPLE", "specificity by STAPLE"], rows)]


def _judgement_lines(uncertainty):
    lines = []
    for name in SCORES:
        score = uncertainty[name]
        if score["judged"] > 1:
            lines.append(
                f"{name.replace('_', ' ')} and error: rank correlation {score['spearman']:.3f}, area under retention "
                f"{score['area']:.4f} (no knowledge {score['random']:.4f}, best order {score['oracle']:.4f})"
            )
    if not _nan(uncertainty["volume_coverage"]):
        lines.append(f"true volume within the members' interval: {uncertainty['volume_coverage']:.1%} of cases")
    return lines


def metric_label(name, summary):
    """A metric's name in tables, with its unit."""
    unit = summary["hd95_unit"]
    if name.startswith("nsd_"):
        return f"nsd at {name[4:]} {unit}"
    return f"{name} ({unit})" if name in ("hd95", "assd") else name.replace("_", " ")


def _nan(value):
    return value is None or math.isnan(value)
