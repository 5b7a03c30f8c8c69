"""The figures of a report: the summary as an HTML table, and charts of the summary's curves and of all cases."""

import math
import re
from html import escape

from ..evaluation.calibration import BINS
from ..evaluation.summary import EMPTY_LABELS, LEFT_OUT
from ..runtime.console import counted
from .charts import Chart, histogram, rounded
from .page import figure

FIGURE_LABELS = {"hd95": "HD95", "assd": "ASSD", "iou": "IoU", "ged2": "GED²", "agreement": "agreement of members"}
CHARTED = ("dice", "sensitivity", "precision", "hd95")  # figures with a histogram


def figure_label(key):
    """A figure's label, from its column in metrics.csv."""
    text = FIGURE_LABELS.get(key, key.replace("_band", "_in_band").replace("_", " "))
    for plain, right in (("dice", "Dice"), ("ece", "ECE"), ("nsd", "NSD at"), ("f1", "F1"), ("brier", "Brier")):
        text = re.sub(rf"\b{plain}\b", right, text)
    return text[0].upper() + text[1:]


def table_of(summary):
    """The summary's statistics as an HTML table; with several classes each class follows with its own rows."""
    parts = summary.get("classes") or {}
    groups = {"": summary} | (parts if len(parts) > 1 else {})
    rows = []
    for title, level in groups.items():
        if title:
            rows.append(f'<tr><th colspan="6" scope="rowgroup">{escape(title)}</th></tr>')
        rows += [_html_row(label, values) for label, values in _statistics(level, summary.get("hd95_unit", ""))]
    ensemble = summary["ensemble"]
    empties = {text: ensemble.get(f"{which}_empty") for which, text in EMPTY_LABELS.items()}
    notes = [counted(ensemble["cases"], "case"), *(f"{number} {text}" for text, number in empties.items() if number)]
    notes += [f"{counted(summary[key], 'case')} {text}" for key, text in LEFT_OUT.items() if summary.get(key)]
    return (
        '<div class="scroll"><table class="figures"><thead><tr><th scope="col">Figure</th><th scope="col">Mean</th>'
        '<th scope="col">95 % interval</th><th scope="col">Median</th><th scope="col">SD</th><th scope="col">n</th>'
        f'</tr></thead><tbody>{"".join(rows)}</tbody></table></div><p class="note">{escape("; ".join(notes))}.</p>'
    )


def _statistics(level, unit):
    """(label, statistics or a number) of each defined figure of one level of the summary."""
    described = {key: value for key, value in level["ensemble"].items() if isinstance(value, dict)}
    described |= {"sample_dice": level["sample"], "coarse_dice": level["coarse"]}
    described |= level.get("diversity", {})
    described |= {key: value for key, value in level.get("uncertainty", {}).items() if isinstance(value, dict)}
    for key, values in described.items():
        if values.get("n"):
            label = figure_label(key)
            distance = key in ("hd95", "assd") or key.startswith("nsd")
            yield f"{label} ({unit})" if distance and unit else label, values
    for key, value in level.get("calibration", {}).items():
        if isinstance(value, (int, float)) and not key.startswith("cases"):
            yield f"{figure_label(key)}, all pixels together", value


def _html_row(label, values):
    if isinstance(values, dict):
        low, high = values.get("low"), values.get("high")
        interval = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
        cells = [f"{values['mean']:.4f}", interval, f"{values['median']:.4f}", f"{values['std']:.4f}", values["n"]]
    else:
        cells = [f"{values:.4f}", "", "", "", ""]
    return f'<tr><th scope="row">{escape(label)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


# ---- charts ------------------------------------------------------------------------------------------------------


def charts_of(cases, columns, curves):
    """The charts: a list of HTML strings.

    cases: dicts with "name" and "scores". columns: dicts with the "key" of each figure. curves: of `summary.curves_of`,
    or {}.
    """
    level = curves.get("all") or next(iter(curves.get("classes", {}).values()), {})
    return [
        *_distributions(cases, columns),
        *_reliability_chart(level.get("reliability", {})),
        *_retention(level.get("retention", {})),
        *_scatter(cases),
        *_ensemble_size_chart(curves.get("ensemble_size")),
    ]


def _distributions(cases, columns):
    """Histograms of the figures `CHARTED`; without truth a histogram of the first figure."""
    shown, keys = [], [column["key"] for column in columns]
    for key in [key for key in CHARTED if key in keys] or keys[:1]:
        values = [case["scores"][key] for case in cases if key in case["scores"]]
        if len(values) > 1:
            label, share = figure_label(key), min(values) >= 0 and max(values) <= 1
            bounds = (math.floor(min(values) * 10) / 10 if min(values) > 0.5 else 0, 1) if share else None
            chart = histogram(f"Distribution of {label} over cases", values, label, bounds=bounds)
            shown.append(f'<div class="chart" data-column="{escape(key)}">{figure(f"{label} per case", chart)}</div>')
    return shown


def _reliability_chart(tables):
    """The reliability diagram, over all pixels and in the boundary band."""
    chart = Chart("Reliability of the probability", (0, 1, "predicted probability"), (0, 1, "fraction of true pixels"))
    chart.reference((0, 0), (1, 1))
    names = (
        ("probability", "all pixels"),
        ("probability_band", "around the boundary"),
        ("coarse_band", "coarse mask, around the boundary"),
    )
    for series, (key, label) in enumerate(names, start=1):
        bins = tables.get(key)
        if bins:
            chart.line(bins["probability"], bins["truth"], series, label)
    if not chart.keys:
        return []
    return [f'<div class="chart">{figure(f"Reliability ({BINS} bins; the diagonal is ideal)", chart.svg())}</div>']


def _retention(scores):
    """Error retention: the mean error of the most certain cases, by the share that is kept."""
    highest = max((max(score["error"], default=0) for score in scores.values()), default=0)
    if not highest:
        return []
    chart = Chart(
        "Error of the most certain cases",
        (0, 1, "share of cases kept, most certain first"),
        (0, highest, "mean 1 - Dice"),
    )
    for series, (name, score) in enumerate(scores.items(), start=1):
        chart.line(score["kept"], score["error"], series, figure_label(name))
    return [f'<div class="chart">{figure("Error retention by uncertainty", chart.svg())}</div>']


def _scatter(cases):
    """Each case's expected Dice against its Dice; see `uncertainty.case_scores`."""
    both = [case for case in cases if {"dice", "expected_dice"} <= case["scores"].keys()]
    if len(both) < 3:
        return []
    expected, dices = ([case["scores"][key] for case in both] for key in ("expected_dice", "dice"))
    low = math.floor(min(*expected, *dices) * 10) / 10
    low = low if low < 1 else 0.9
    chart = Chart("Expected and true Dice of each case", (low, 1, "expected Dice"), (low, 1, "Dice"))
    chart.reference((low, low), (1, 1))
    chart.dots(expected, dices, [case["name"] for case in both])
    return [f'<div class="chart">{figure("Expected and true Dice, one dot for each case", chart.svg())}</div>']


def _ensemble_size_chart(summary):
    """The Dice by the number of members; summary: of `ensemble_size.size_summary`, or None."""
    if not summary:
        return []
    sizes = summary["sizes"]
    means, lows, highs = ([one[key] for one in summary["dice"]] for key in ("mean", "low", "high"))
    ends = [value for value in (*means, *lows, *highs) if value is not None]
    chart = Chart("Dice by ensemble size", (1, sizes[-1], "members"), (*rounded(min(ends), max(ends)), "mean Dice"))
    chart.area(sizes, lows, highs, 1)
    chart.line(sizes, means, 1)
    enough = summary["enough"]
    chart.mark(enough, f"{enough} suffice" if enough < sizes[-1] else "still grows")
    return [f'<div class="chart">{figure("Ensemble size, with the 95 % interval", chart.svg())}</div>']
