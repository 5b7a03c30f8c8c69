"""The summary of an evaluation: means over cases with their intervals, curves, the console's table and its rules."""

import math
import re

import numpy as np

from .calibration import BINS
from .classes import MEAN
from .diversity import LEVELS, SET_FIGURES
from .ensemble_size import RULE, format_sizes, size_summary
from .logger import counted
from .metrics import metric_names
from .statistics import RESAMPLES, Resampling, describe
from .uncertainty import INTERVAL, SCORES, judge

CALIBRATION = {  # figures and their labels in the table
    f"{name}{figure}{part}": "  in band" if part else f"{label}{figure.replace('_', ' ')}"
    for name, label in (("", ""), ("coarse_", "coarse "))
    for figure in ("ece", "adaptive_ece", "brier")
    for part in ("", "_band")
}
DIVERSITY = (*SET_FIGURES, "rater_dice", "raters_agreement")
MAPS = {"": "probability", "coarse_": "coarse"}
EMPTY = {"both": "both empty", "prediction": "prediction empty", "truth": "truth empty"}
PER_CLASS = ("dice", "iou", "sensitivity", "precision", "hd95", "assd", "lesion_f1")
WIDTH = 22


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
    Of several classes these are of each case's mean over its classes; of figures of all pixels together they are the
    means over the classes, of empty masks the sums; and "classes" holds the same of each class by name.
    "ensemble_size", where asked for: see `ensemble_size.size_summary`.
    "rater_names" (numbers where the data tell none), "class_names", "groups" (how many, None where no case has one),
    "hd95_unit", "volume_unit", "nsd_tolerances"; "missing", "without_truth", "unmatched_files": cases and files left
    out; "rules".
    """
    rows, names = evaluated.rows, metric_names(evaluated.settings.tolerances)
    parts = {
        name: _part(_of_class(rows, name), names, evaluated.tables[name], evaluated.members[name])
        for name in evaluated.class_names
    }
    sizes = _sizes(evaluated)
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
        "missing": evaluated.missing,
        "without_truth": evaluated.without_truth,
        "unmatched_files": evaluated.unmatched,
        "rules": rules_of(evaluated),
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
        **({"ensemble_size": sizes} if (sizes := _sizes(evaluated)) else {}),
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


def _sizes(evaluated):
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


def _part(rows, names, tables, members=()):
    """The summary of a row a case. tables: see `calibration_figures`; members: `evaluation.member_figures` of each."""
    resampling = Resampling(groups_of(rows))

    def described(name):
        return describe(_column(rows, name), resampling)

    ensemble = {name: described(name) for name in names} | {"cases": len(rows)}
    ensemble |= {f"{which}_empty": sum(row["empty"] == which for row in rows) for which in EMPTY}
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
    whole = _part(_means(rows), names, {})

    def mean_of(part, key):
        return describe([one[part][key] for one in parts.values()])["mean"]

    whole["calibration"] = {key: mean_of("calibration", key) for key in whole["calibration"]}
    whole["uncertainty"]["volume_coverage"] = mean_of("uncertainty", "volume_coverage")
    whole["members"] = [
        {key: describe([member[key] for member in each])["mean"] for key in each[0]}
        for each in zip(*(one["members"] for one in parts.values()), strict=True)
    ]
    for which in EMPTY:
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


# ---- the rules ---------------------------------------------------------------------------------------------------


def rules_of(evaluated):
    """The rules that the figures follow, a sentence or two each."""
    tolerances = ", ".join(f"{tolerance:g}" for tolerance in evaluated.settings.tolerances)
    spread = "groups (patients)" if any(row["group"] for row in evaluated.rows) else "cases"
    several = len(evaluated.class_names) > 1
    return [
        "Dice = 2TP/(2TP+FP+FN), IoU = TP/(TP+FP+FN), per case, then averaged over cases.",
        "Both masks empty: undefined, left out of the mean. One empty: Dice, IoU, NSD and lesion F1 0, HD95 and ASSD "
        "the image's diagonal.",
        f"Interval: 95 %, of the mean, by {RESAMPLES} bootstrap resamples of {spread}.",
        *(
            [
                "Several classes: each is scored by itself; a case's mean is over its classes that are defined, and "
                "figures of all pixels together are averaged over the classes."
            ]
            if several
            else []
        ),
        "HD95: the larger of the two directed 95th percentiles of surface distances; ASSD: the mean of both "
        f"directions' together; NSD: the share of them within {tolerances} {evaluated.distance_unit}.",
        f"Volume difference: (prediction - truth) / truth; volume error: its absolute value; in {evaluated.volume_unit}"
        " in the table of cases. Undefined without truth.",
        "Lesions: connected components (over corners too), matched one to one by the largest sum of IoU; found where "
        f"a pair's IoU is at least {evaluated.settings.lesion_iou:g}. Lesion F1 = 2TP/(2TP+FP+FN) of lesions.",
        "A volume is one case; slices and volumes are not mixed. Volumes are compared in one orientation, which their "
        "files' affines tell.",
        "A prediction of another size is brought to the truth's grid by nearest neighbour.",
        "Several raters: the truth is what more than half of them marked; for ECE and Brier, the fraction who marked "
        "it.",
        f"ECE: {BINS} equal bins of the foreground's probability; adaptive ECE: {BINS} bins of equally many pixels. "
        "They and Brier are of all cases' pixels together; in the table of cases they are per case.",
        "Band: pixels within max(1, round(0.03 sqrt(H W))) of the truth's boundary (of the nearest pixel of the other "
        "kind), in a volume with its in-plane size and in units of its smallest spacing. An empty truth has none.",
        "Scores of a case: agreement = mean Dice over pairs of members; expected Dice = what the probability p "
        "promises, 2 sum(p in mask)/(mask + sum p); volume spread = std/mean of the members' volumes; their interval: "
        f"the {INTERVAL[0]}th to {INTERVAL[1]}th percentile.",
        "Is a score any good: its rank correlation (Spearman) with the error 1 - Dice, and the area under the "
        "retention curve: mean error of the k surest cases, averaged over k = 1..n; beside it that of no knowledge "
        "(the mean error) and of the best order (oracle).",
        "Several raters: GED2 = 2 E[d(S,Y)] - E[d(S,S')] - E[d(Y,Y')] of members S and raters Y, d = 1 - IoU, IoU of "
        "two empty masks 1, each mask also paired with itself. Matched IoU: Hungarian, both sides repeated to the "
        "least common multiple. Rater Dice: the fused mask to each rater, averaged where defined; raters' agreement: "
        "mean Dice over pairs of raters. All per case; of a rater over the cases that he marked.",
        "Collective insight = 3 S D V/(S + D + V): S the sensitivity of the members' union to the raters' union, D the "
        "mean over raters of the best Dice of a member, V = 1 - mean difference of the smallest and of the largest "
        "1 - IoU among pairs of members and of raters.",
        "Members: sensitivity and specificity are STAPLE's estimates, which know no truth, averaged over cases.",
        *([RULE.format(method=evaluated.settings.sizes)] if evaluated.settings.sizes else []),
        f"A run with a single member stands for {LEVELS} masks where sets are compared: its probability cut at "
        f"(k + 0.5)/{LEVELS}.",
    ]


# ---- the console -------------------------------------------------------------------------------------------------


def format_summary(summary):
    """The summary as a table for the console; of several classes first a line for each."""
    lines = [*_class_lines(summary), f"{'':{WIDTH}}{'mean':>9}{'95 % interval':>20}{'median':>9}{'std':>9}{'n':>6}"]
    lines += _lines(summary)
    if "ensemble_size" in summary:
        lines.append(format_sizes(summary["ensemble_size"]))
    ensemble = summary["ensemble"]
    empties = ", ".join(f"{ensemble[f'{which}_empty']} {text}" for which, text in EMPTY.items())
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
    width = max(14, *(len(name) + 2 for name in summary["classes"]))
    lines = [f"{'class':{width}}{''.join(f'{name:>13}' for name in names)}{'cases':>7}"]
    for name, one in summary["classes"].items():
        means = "".join(f"{one['ensemble'][metric]['mean']:13.4f}" for metric in names)
        lines.append(f"{name:{width}}{means}{one['ensemble']['dice']['n']:7d}")
    return [*lines, "all classes, each case's mean over those that are defined:"]


def _lines(summary):
    """The lines of the table."""
    names = metric_names(summary["nsd_tolerances"])
    lines = [_table_line(label_of(name, summary), summary["ensemble"][name]) for name in names]
    values = {"sample dice": summary["sample"], "sample iou": summary["sample_iou"]}
    values |= {"coarse dice": summary["coarse"], "coarse iou": summary["coarse_iou"]}
    values |= {name.replace("_", " "): described for name, described in summary["diversity"].items()}
    if len(summary["raters"]) > 1:
        raters = zip(summary["rater_names"], summary["raters"], strict=True)
        values |= {f"  to rater {name}": described for name, described in raters}
    values |= {name.replace("_", " "): summary["uncertainty"][name] for name in SCORES}
    lines += [_table_line(label, described) for label, described in values.items() if described["n"]]
    # These are of all pixels together, so they have no median.
    figures = summary["calibration"]
    lines += [f"{label:{WIDTH}}{figures[key]:9.4f}" for key, label in CALIBRATION.items() if not _nan(figures[key])]
    return lines + _judgement_lines(summary["uncertainty"]) + _member_lines(summary["members"])


def _member_lines(members):
    if len(members) < 2:
        return []
    lines = [f"{'member':{WIDTH}}{'dice':>9}{'sensitivity and specificity by STAPLE':>41}"]
    for e, one in enumerate(members):
        lines.append(f"  {e:<20}{one['dice']:9.4f}{one['staple_sensitivity']:20.4f}{one['staple_specificity']:20.4f}")
    return lines


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


def label_of(name, summary):
    """A metric's name in tables, with its unit."""
    unit = summary["hd95_unit"]
    if name.startswith("nsd_"):
        return f"nsd at {name[4:]} {unit}"
    return f"{name} ({unit})" if name in ("hd95", "assd") else name.replace("_", " ")


def _table_line(label, values):
    interval = "" if _nan(values["low"]) else f"[{values['low']:.4f}, {values['high']:.4f}]"
    figures = f"{values['mean']:9.4f}{interval:>20}{values['median']:9.4f}{values['std']:9.4f}{values['n']:6d}"
    return f"{label:{WIDTH}}{figures}"


def _nan(value):
    return value is None or math.isnan(value)
