"""Comparison of two runs on the same cases: paired differences with intervals and Wilcoxon tests."""

import math

import numpy as np

from ..runtime.console import counted, text_table
from ..runtime.errors import UserError
from .metrics import metric_names
from .statistics import Resampling, describe_values
from .summary import by_case, groups_of, mean_row
from .summary_table import metric_label

MORE_FIGURES = (
    *("sample_dice", "coarse_dice", "log_loss", "brier"),
    *("ged2_unbiased", "ged2", "matched_iou", "rater_dice", "agreement"),
)


def compare_runs(first, second):
    """The comparison of two `evaluate.Evaluation`s of one data set, case by case.

    Returns {"cases": how many both have, "only_first", "only_second": how many one alone has, "figures": {name: see
    `paired_difference`}}. With several classes a case's figure is its mean over classes. Raises `UserError` where the
    runs share no case.
    """
    rows = [{case[0]["name"]: _case_row(case) for case in by_case(run.rows)} for run in (first, second)]
    shared = [name for name in rows[0] if name in rows[1]]
    if not shared:
        raise UserError("--compare: the two runs have no case in common; name a run on the same data")
    pairs = [(rows[0][name], rows[1][name]) for name in shared]
    groups = groups_of([one for one, _ in pairs])
    figures = {}
    for name in (*metric_names(first.settings.tolerances), *MORE_FIGURES):
        values = np.array([[row.get(name, math.nan) for row in pair] for pair in pairs])  # [cases, 2]
        result = paired_difference(*values.T, groups)
        if result["n"]:
            figures[name] = result
    return {
        "cases": len(shared),
        "only_first": len(rows[0]) - len(shared),
        "only_second": len(rows[1]) - len(shared),
        "figures": figures,
    }


def _case_row(case):
    return case[0] if len(case) == 1 else mean_row(case)


def paired_difference(first, second, groups):
    """The mean of the paired difference first - second, with its interval and test.

    first, second: one number for each case; cases where either is NaN are left out. groups: a label for each case.
    Returns {"n": the cases, "first", "second": the means, "difference": the mean difference, "low", "high": its 95 %
    interval (see `statistics.describe_values`), "p": of Wilcoxon's signed-rank test over groups, 1 without any
    difference}. All but n are NaN if n = 0.
    """
    from scipy.stats import wilcoxon

    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    defined = ~np.isnan(difference)
    if not defined.any():
        return {"n": 0} | dict.fromkeys(("first", "second", "p", "difference", "low", "high"), math.nan)
    resampling = Resampling(np.asarray(groups)[defined])
    described = describe_values(difference[defined], resampling)
    group_means = np.bincount(resampling.group_index, difference[defined]) / np.bincount(resampling.group_index)
    return {
        "n": int(defined.sum()),
        "first": float(np.asarray(first)[defined].mean()),
        "second": float(np.asarray(second)[defined].mean()),
        "p": float(wilcoxon(group_means).pvalue) if np.any(group_means) else 1.0,
        "difference": described["mean"],
        "low": described["low"],
        "high": described["high"],
    }


def format_comparison(compared, summary, other):
    """The comparison as a table for the console.

    compared: of `compare_runs`. summary: of the first run. other: the folder of the second run.
    """
    lines, rows = [f"compared with {other}, {counted(compared['cases'], 'case')} in common"], []
    for name, one in compared["figures"].items():
        interval = "" if math.isnan(one["low"]) else f"[{one['low']:+.4f}, {one['high']:+.4f}]"
        figures = [f"{one['first']:.4f}", f"{one['second']:.4f}", f"{one['difference']:+.4f}", interval]
        rows.append([metric_label(name, summary), *figures, f"{one['p']:.2g}", one["n"]])
    lines.append(text_table(["", "this", "other", "difference", "95 % interval", "p", "n"], rows))
    for key, which in (("only_first", "this run"), ("only_second", "the other run")):
        if compared[key]:
            lines.append(f"left out: {counted(compared[key], 'case')} in {which} only")
    return "\n".join(lines)
