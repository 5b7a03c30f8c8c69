"""The summary of an evaluation in plain types: statistics over cases with their intervals, and the curves to draw."""

import math
import re

import numpy as np

from ..data.classes import MEAN
from .controls import CONTROLS, MEMBERS_DICE
from .diversity import REFERENCES, SET_FIGURES
from .ensemble_size import size_summary
from .metrics import metric_names
from .proper_scores import AREA_SUMS, PROPER_SCORES
from .risk_control import achieved_misses
from .statistics import Resampling, describe_ratios, describe_values, mean_defined
from .topology import TOPOLOGY_FIGURES
from .uncertainty import SCORES, rank_cases

MAPS = {"": "probability", "coarse_": "coarse"}
CALIBRATION = tuple(f"{name}ece" for name in MAPS)  # over the pixels of all cases together
PROBABILITY = (*PROPER_SCORES, *(f"coarse_{name}" for name in PROPER_SCORES), *AREA_SUMS)
DIVERSITY = (*SET_FIGURES, "dice_soft", "rater_dice", "raters_agreement", *REFERENCES, *CONTROLS, *MEMBERS_DICE)
MEMBER_FIGURES = ("staple_sensitivity", "staple_specificity", "dice")
EMPTY_LABELS = {"both": "both masks empty", "prediction": "prediction empty", "truth": "truth empty"}
LEFT_OUT = {  # cases
    "missing": "without a prediction",
    "without_truth": "without truth",
    "failed": "that could not be read or compared",
}
DEFINITIONS = "docs/evaluation.md"  # of every figure


def summary_of(evaluation):
    """The summary of an `evaluate.Evaluation`, a dict in plain types. "Statistics" are those of `describe_values`.

        ensemble       statistics of each of `metrics.metric_names`; counts "cases", "both_empty", "prediction_empty",
                       "truth_empty"
        sample, sample_iou    statistics of the mean Dice and IoU of single members
        coarse, coarse_iou    statistics of the Dice and IoU of the coarse mask
        probability    statistics of each of `PROBABILITY`; those of `proper_scores.AREA_SUMS` are `describe_ratios` to
                       the raters' mean number of pixels
        calibration    the figures `CALIBRATION` over the pixels of all cases, NaN where no probability was saved; the
                       number of "cases"
        diversity      statistics of each of `DIVERSITY`
        topology       where requested, statistics of each of `topology.TOPOLOGY_FIGURES`
        raters         a list: statistics of the Dice to each of "rater_names", over the cases that this rater marked
        members        a list: for each member the means of `MEMBER_FIGURES`, see `case_figures.member_figures`
        uncertainty    for each of `uncertainty.SCORES` its statistics and `uncertainty.rank_cases`;
                       "volume_inside" of "volume_cases" true volumes lie inside the members' interval,
                       "volume_coverage" is the share
        ensemble_size  where requested, see `ensemble_size.size_summary`
        rater_names    the raters, by number where the data do not name them
        misses         where a threshold was to limit them: "at_most", and "classes" with `risk_control.achieved_misses`
        class_names, hd95_unit, volume_unit, nsd_tolerances, lesion_iou
        groups         the number of groups, None where no case has one
        missing, without_truth, failed, unmatched_files   counts of cases and files left out

    With several classes, "classes" holds the first eleven entries of each class by name. At the top level a case's
    figure is then its mean over classes; figures over all pixels are means over the classes, and empty masks are added
    up.
    """
    rows, names = evaluation.rows, metric_names(evaluation.settings.tolerances)
    parts = {
        name: _level_summary(_of_class(rows, name), names, evaluation.tables[name], evaluation.members[name])
        for name in evaluation.class_names
    }
    sizes = _ensemble_sizes(evaluation)
    return {
        **({"ensemble_size": sizes} if sizes else {}),
        **(_mean_level(rows, names, parts) if len(parts) > 1 else parts[evaluation.class_names[0]]),
        **({"classes": parts} if len(parts) > 1 else {}),
        **({"misses": _misses(evaluation)} if evaluation.settings.max_misses else {}),
        "rater_names": raters_in(rows),
        "class_names": list(evaluation.class_names),
        "groups": len({row["group"] for row in rows}) if any(row["group"] for row in rows) else None,
        "hd95_unit": evaluation.distance_unit,
        "volume_unit": evaluation.volume_unit,
        "nsd_tolerances": list(evaluation.settings.tolerances),
        "lesion_iou": evaluation.settings.lesion_iou,
        "missing": evaluation.missing,
        "without_truth": evaluation.without_truth,
        "failed": len(evaluation.failed),
        "unmatched_files": evaluation.unmatched,
    }


def curves_of(evaluation):
    """The curves of an `evaluate.Evaluation` for a report: {"all": curves, "classes": {name: curves}}.

    curves["reliability"]: {"probability", "coarse"}, where saved, each a `calibration.ReliabilityTable.diagram`.
    curves["retention"]: for each of `uncertainty.SCORES` "kept", "error", "area", "random" and "oracle", see
    `uncertainty.rank_cases`. "all" has the pixels of all classes, and the cases' means over classes. "ensemble_size",
    where requested: see `ensemble_size.size_summary`.
    """
    rows, pooled = evaluation.rows, {}
    for tables in evaluation.tables.values():
        add_tables(pooled, tables)
    several = len(evaluation.class_names) > 1
    sizes = _ensemble_sizes(evaluation)
    return {
        "all": _curves(_mean_rows(rows) if several else rows, pooled),
        "classes": {name: _curves(_of_class(rows, name), evaluation.tables[name]) for name in evaluation.class_names},
        **({"ensemble_size": sizes} if sizes else {}),
    }


def calibration_figures(tables):
    """The figures `CALIBRATION` of {map: `ReliabilityTable`}, map a key of `MAPS`; NaN where a table is missing."""
    return {f"{name}ece": tables[name].ece if name in tables else math.nan for name in MAPS}


def add_tables(pooled, tables):
    """Add each of `tables` to the one of the same key in `pooled`, which changes."""
    for key, table in tables.items():
        pooled[key] = pooled[key] + table if key in pooled else table


def groups_of(rows):
    """The group of each row's case, or the case's name where it has none."""
    return [row["group"] or row["name"] for row in rows]


def raters_in(rows):
    """The names of the raters in the rows' `rater_NAME_dice`, in the order of the columns; [] with one rater."""
    matches = (re.fullmatch(r"rater_(.+)_dice", key) for row in rows for key in row)
    return list(dict.fromkeys(match[1] for match in matches if match))


def by_case(rows):
    """The rows of each case: a list of lists, in the cases' order."""
    cases = {}
    for row in rows:
        cases.setdefault(row["name"], []).append(row)
    return list(cases.values())


def mean_row(rows):
    """The row of class `classes.MEAN` of a case: the mean of each figure over the classes where it is defined."""
    mean = {"name": rows[0]["name"], "class": MEAN, "group": rows[0]["group"], "empty": ""}
    for key in dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, str)):
        mean[key] = mean_defined([row.get(key, math.nan) for row in rows])
    return mean


def _mean_rows(rows):
    return [mean_row(case) for case in by_case(rows)]


def _of_class(rows, name):
    return [row for row in rows if row["class"] == name]


def _column(rows, name):
    return np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)


def _misses(evaluation):
    found = {}
    for name in evaluation.class_names:
        rows = _of_class(evaluation.rows, name)
        found[name] = achieved_misses(rows, groups_of(rows))
    return {"at_most": evaluation.settings.max_misses, "classes": found}


# ---- parts of the summary ----------------------------------------------------------------------------------------


def _level_summary(rows, names, tables, members=()):
    """The summary of one row for each case: of one class, or of the means over classes.

    tables: see `calibration_figures`. members: the `case_figures.member_figures` of each case.
    """
    resampling = Resampling(groups_of(rows))

    def statistics(name):
        return describe_values(_column(rows, name), resampling)

    ensemble = {name: statistics(name) for name in names} | {"cases": len(rows)}
    ensemble |= {f"{which}_empty": sum(row["empty"] == which for row in rows) for which in EMPTY_LABELS}
    calibrated = {"cases": int((~np.isnan(_column(rows, "ece"))).sum())}
    topology = {name: statistics(name) for name in TOPOLOGY_FIGURES if any(name in row for row in rows)}

    def probability_statistics(name):
        if name not in AREA_SUMS:
            return statistics(name)
        return describe_ratios(_column(rows, AREA_SUMS[name]), _column(rows, "rater_pixels"), resampling)

    uncertainty = {name: statistics(name) | _ranking(rows, name) for name in SCORES}
    for score in uncertainty.values():
        score.pop("curve")
    return {
        "ensemble": ensemble,
        "sample": statistics("sample_dice"),
        "sample_iou": statistics("sample_iou"),
        "coarse": statistics("coarse_dice"),
        "coarse_iou": statistics("coarse_iou"),
        "probability": {name: probability_statistics(name) for name in PROBABILITY},
        "calibration": calibration_figures(tables) | calibrated,
        "diversity": {name: statistics(name) for name in DIVERSITY},
        **({"topology": topology} if topology else {}),
        "raters": [statistics(f"rater_{name}_dice") for name in raters_in(rows)],
        "members": _member_means(members),
        "uncertainty": uncertainty | _volume_coverage(rows),
    }


def _mean_level(rows, names, parts):
    """The summary of several classes together, see `summary_of`. parts: {class: its summary}."""
    whole = _level_summary(_mean_rows(rows), names, {})
    for key in whole["calibration"]:
        whole["calibration"][key] = mean_defined([one["calibration"][key] for one in parts.values()])
    counts = [sum(one["uncertainty"][key] for one in parts.values()) for key in ("volume_inside", "volume_cases")]
    whole["uncertainty"] |= _coverage(*counts)
    whole["members"] = [
        {key: mean_defined([member[key] for member in each]) for key in MEMBER_FIGURES}
        for each in zip(*(one["members"] for one in parts.values()), strict=True)
    ]
    for which in EMPTY_LABELS:
        whole["ensemble"][f"{which}_empty"] = sum(one["ensemble"][f"{which}_empty"] for one in parts.values())
    return whole


def _member_means(figures):
    """The means over cases of `case_figures.member_figures`: a dict of `MEMBER_FIGURES` for each member."""
    most = max((len(one) for one in figures), default=0)
    return [
        {
            name: mean_defined([one[e, column] for one in figures if e < len(one)])
            for column, name in enumerate(MEMBER_FIGURES)
        }
        for e in range(most)
    ]


def _volume_coverage(rows):
    """How often the true volume lies inside the members' interval: "volume_inside" of the "volume_cases" that have an
    interval; "volume_coverage" is the share, NaN where no case has one."""
    low, high, truth = (_column(rows, name) for name in ("volume_low", "volume_high", "truth_volume"))
    known = ~np.isnan(low)
    inside = int(((low <= truth) & (truth <= high))[known].sum())
    return _coverage(inside, int(known.sum()))


def _coverage(inside, cases):
    return {"volume_inside": inside, "volume_cases": cases, "volume_coverage": inside / cases if cases else math.nan}


def _ranking(rows, name):
    """The `uncertainty.rank_cases` of a score against 1 - Dice; the number of cases is "judged"."""
    score = _column(rows, name)
    ranking = rank_cases(-score if SCORES[name] else score, 1 - _column(rows, "dice"))
    return ranking | {"judged": ranking.pop("n")}


def _curves(rows, tables):
    retention = {}
    for name in SCORES:
        ranking = _ranking(rows, name)
        if ranking["judged"]:
            retention[name] = ranking["curve"] | {key: ranking[key] for key in ("area", "random", "oracle")}
    return {
        "reliability": {MAPS[name]: table.diagram() for name, table in tables.items()},
        "retention": retention,
    }


def _ensemble_sizes(evaluation):
    """The `ensemble_size.size_summary` of the cases' means over classes, or None. Cases of fewer members than others
    are left out."""
    if not evaluation.sizes:
        return None
    count = max(figures.count for figures in evaluation.sizes.values())
    cases = {name: figures for name, figures in evaluation.sizes.items() if figures.count == count}
    row_groups = {row["name"]: row["group"] or row["name"] for row in evaluation.rows}
    dice = [[mean_defined(row) for row in figures.dice] for figures in cases.values()]
    sets = [
        {key: np.mean([one[key] for one in figures.sets], axis=0) for key in figures.sets[0]}
        for figures in cases.values()
    ]
    return size_summary(dice, [row_groups[name] for name in cases], evaluation.settings.sizes, count, sets)
