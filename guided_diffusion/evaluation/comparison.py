"""Two runs on the same cases: the paired difference of each figure, its interval and a Wilcoxon test."""

import math

import numpy as np

from ..runtime.console import counted, text_table
from ..runtime.errors import UserError
from .metrics import metric_names
from .statistics import Resampling, describe
from .summary import by_case, groups_of, mean_row, metric_label

MORE = ("sample_dice", "coarse_dice", "ece_band", "brier_band", "ged2", "matched_iou", "rater_dice", "agreement")


def compare(first, second):
    """Compare two `evaluation.Evaluated`s of one data set, case by case.

    Returns {"cases": how many both have, "only_first", "only_second", "figures": {name: {"n", "first", "second",
    "difference", "low", "high", "p"}}}, of several classes of each case's mean over them. Raises `UserError` when they
    share no case.
    """
    rows = [{case[0]["name"]: _case_row(case) for case in by_case(run.rows)} for run in (first, second)]
    shared = [name for name in rows[0] if name in rows[1]]
    if not shared:
        raise UserError("--compare: the two runs have no case in common")
    pairs = [(rows[0][name], rows[1][name]) for name in shared]
    groups = groups_of([one for one, _ in pairs])
    figures = {}
    for name in (*metric_names(first.settings.tolerances), *MORE):
        values = np.array([[row.get(name, math.nan) for row in pair] for pair in pairs])  # [cases, 2]
        found = paired(*values.T, groups)
        if found["n"]:
            figures[name] = found
    return {
        "cases": len(shared),
        "only_first": len(rows[0]) - len(shared),
        "only_second": len(rows[1]) - len(shared),
        "figures": figures,
    }


def _case_row(case):
    return case[0] if len(case) == 1 else mean_row(case)


def paired(first, second, groups):
    """The paired difference first - second of one number a case; cases in which either is NaN are left out.

    groups: a label for each case. Returns {"n", "first", "second": means, "difference": its mean, "low", "high": see
    `statistics.describe`, "p": of Wilcoxon's signed-rank test over groups; 1 where nothing differs}.
    """
    from scipy.stats import wilcoxon

    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    there = ~np.isnan(difference)
    found = {"n": int(there.sum()), "first": math.nan, "second": math.nan, "p": math.nan}
    if not there.any():
        return found | dict.fromkeys(("difference", "low", "high"), math.nan)
    resampling = Resampling(np.asarray(groups)[there])
    described = describe(difference[there], resampling)
    means = np.bincount(resampling.place, difference[there]) / np.bincount(resampling.place)
    found |= {"first": float(np.asarray(first)[there].mean()), "second": float(np.asarray(second)[there].mean())}
    found["p"] = float(wilcoxon(means).pvalue) if np.any(means) else 1.0
    return found | {"difference": described["mean"], "low": described["low"], "high": described["high"]}


def format_comparison(compared, summary, other):
    """The comparison as a table for the console.

    compared: of `compare`. summary: the first run's. other: the second run's folder.
    """
    lines, rows = [f"compared with {other}, {counted(compared['cases'], 'case')} in common"], []
    for name, one in compared["figures"].items():
        interval = "" if math.isnan(one["low"]) else f"[{one['low']:+.4f}, {one['high']:+.4f}]"
        figures = [f"{one['first']:.4f}", f"{one['second']:.4f}", f"{one['difference']:+.4f}", interval]
        label = metric_label(name, summary) + (", by case" if name in ("ece_band", "brier_band") else "")
        rows.append([label, *figures, f"{one['p']:.2g}", one["n"]])
    lines.append(text_table(["", "this", "other", "difference", "95 % interval", "p", "n"], rows))
    for key, which in (("only_first", "this run"), ("only_second", "the other")):
        if compared[key]:
            lines.append(f"left out: {counted(compared[key], 'case')} of {which} alone")
    return "\n".join(lines)
