"""The figures of a report: the summary as an HTML table, and charts of the summary's curves and of all cases."""

import math
import re
from html import escape

from ..evaluation.calibration import BINS
from ..evaluation.diversity import LEVEL_SETS
from ..evaluation.ensemble_size import OF_SIZE
from ..evaluation.summary import CALIBRATION, EMPTY_LABELS, LEFT_OUT
from ..evaluation.summary_table import LEADING, OF_SETS, SETS, figure_name
from ..runtime.console import counted
from .charts import Chart, histogram, rounded
from .page import figure

CHARTED = ("dice", "sensitivity", "precision", "hd95")  # figures with a histogram
LEAST_PATIENTS = 5  # for an interval: resamples of fewer know too little of other patients


SETS_NOTES = {  # below the table of sets, by the prefix of the row that each explains
    "": f"A run without members stands for {LEVEL_SETS} level sets of its probability. With one rater the unbiased "
    "GED² is the energy score.",
    "control_levels_": "Level sets are as many masks as there are members, made from the probability alone.",
    "control_copula_": "So are those of the Gaussian copula.",
    "reader_": "The held-out reader answers alone, against the other readers.",
    "majority_": "The raters' majority is made from the masks that it is compared with.",
}


def with_sure_intervals(content, patients):
    """Statistics, in dicts and lists, without the bounds "low" and "high" of those of fewer than `LEAST_PATIENTS`.

    content: a summary or curves. patients: the number of patients of all cases.
    """
    if isinstance(content, list):
        return [with_sure_intervals(part, patients) for part in content]
    if not isinstance(content, dict):
        return content
    if "low" in content and "high" in content:
        enough = min(patients, content.get("n", patients)) >= LEAST_PATIENTS
        return content if enough else content | {"low": None, "high": None}
    return {key: with_sure_intervals(part, patients) for key, part in content.items()}


def patients_of(summary):
    """The number of patients of a summary; without groups each case counts as one."""
    cases = summary["ensemble"]["cases"]
    return min(summary.get("groups") or cases, cases)


def figure_label(key, size="volume", unit=""):
    """A figure's label, from its column in metrics.csv.

    size: what the masks have, "area" or "volume". unit: of distances, which their labels name.
    """
    text = re.sub(r"\bvolume\b", size, figure_name(key))
    for plain, right in (("dice", "Dice"), ("iou", "IoU"), ("ece", "ECE"), ("nsd", "NSD at"), ("f1", "F1")):
        text = re.sub(rf"\b{plain}\b", right, text)
    text = re.sub(r"\b(hd95|assd)\b", lambda found: found[0].upper(), text)
    is_distance = key in ("hd95", "assd") or key.startswith("nsd")
    return text[0].upper() + text[1:] + (f" ({unit})" if is_distance and unit else "")


def table_of(summary, size="volume"):
    """The summary's statistics as an HTML table; with several classes each has its own in an element to be opened.

    size: see `figure_label`.
    """
    unit, parts = summary.get("hd95_unit", ""), summary.get("classes") or {}
    tables = [_statistics_table(summary, unit, size)]
    for name, level in parts.items() if len(parts) > 1 else ():
        tables.append(f"<details><summary>{escape(name)}</summary>{_statistics_table(level, unit, size)}</details>")
    ensemble = summary["ensemble"]
    empties = {text: ensemble.get(f"{which}_empty") for which, text in EMPTY_LABELS.items()}
    notes = [counted(ensemble["cases"], "case"), *(f"{number} {text}" for text, number in empties.items() if number)]
    notes += [f"{counted(summary[key], 'case')} {text}" for key, text in LEFT_OUT.items() if summary.get(key)]
    return f'{"".join(tables)}<p class="note">{escape("; ".join(notes))}.</p>'


def _statistics_table(level, unit, size):
    rows = [(label, _cells(values)) for label, values in _statistics(level, unit, size)]
    heads = ["Mean", "95 % interval", "Median", "SD", "n"]
    if not any(cells[1] for _, cells in rows):  # of few patients there are no intervals
        heads, rows = [heads[0], *heads[2:]], [(label, [cells[0], *cells[2:]]) for label, cells in rows]
    head = "".join(f'<th scope="col">{text}</th>' for text in ("Figure", *heads))
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for label, cells in rows
    )
    return (
        f'<div class="scroll"><table class="figures"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cells(values):
    """The cells of a figure: mean, interval, median, standard deviation, n."""
    if not isinstance(values, dict):
        return [f"{values:.4f}", "", "", "", ""]
    mean, median, deviation = (f"{values[key]:.4f}" for key in ("mean", "median", "std"))
    return [mean, interval_text(values), median, deviation, values["n"]]


def sets_table(summary):
    """The members' unbiased GED squared and matched IoU beside the controls and references, as an HTML table.

    "" where no set of masks was compared. See `controls` and `diversity.reference_figures`.
    """
    diversity, rows, notes = summary.get("diversity", {}), [], []
    dice = {"": "rater_dice", "reader_": "reader_dice", "majority_": "majority_rater_dice"}
    for prefix, label in {"": "this run", **SETS}.items():
        keys = [f"{prefix}{figure}" for figure in OF_SETS] + [dice.get(prefix)]
        cells = [_with_interval(diversity.get(key) or {}) for key in keys]
        if any(cells[: len(OF_SETS)]):
            label = label[0].upper() + label[1:]
            rows.append(f'<tr><th scope="row">{escape(label)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
            notes += [SETS_NOTES[prefix]] if prefix in SETS_NOTES else []
    if not rows:
        return ""
    return (
        '<h3>Sets of masks</h3><div class="scroll"><table class="figures sets"><thead><tr><th scope="col">Masks of</th>'
        '<th scope="col">GED², unbiased</th><th scope="col">Matched IoU</th><th scope="col">Dice to raters</th></tr>'
        f'</thead><tbody>{"".join(rows)}</tbody></table></div><p class="note">{" ".join(notes)}</p>'
    )


def interval_text(values, digits=4):
    """The bounds of a figure's interval; "" where it has none: they are missing, None or NaN."""
    bounds = [values.get("low"), values.get("high")]
    if any(bound is None or math.isnan(bound) for bound in bounds):
        return ""
    return " to ".join(f"{bound:.{digits}f}" for bound in bounds)


def _with_interval(values):
    if not values.get("n") or values["mean"] is None:
        return ""
    interval = interval_text(values)
    return f"{values['mean']:.4f}" + (f" ({interval})" if interval else "")


def _statistics(level, unit, size):
    """(label, statistics or a number) of each defined figure of one level of the summary."""
    described = {key: value for key, value in level["ensemble"].items() if isinstance(value, dict)}
    described |= {"sample_dice": level["sample"], "coarse_dice": level["coarse"]}
    described |= level.get("probability", {})
    described |= {k: one for k, one in level.get("diversity", {}).items() if not k.startswith((*SETS, *OF_SETS))}
    described = {key: described[key] for key in LEADING if key in described} | described
    described |= level.get("topology", {})
    described |= {key: value for key, value in level.get("uncertainty", {}).items() if isinstance(value, dict)}
    for key, values in described.items():
        if values.get("n"):
            yield figure_label(key, size, unit), values
    for key, value in level.get("calibration", {}).items():
        if isinstance(value, (int, float)) and key in CALIBRATION:
            yield f"{figure_label(key, size)}, all pixels together", value


# ---- charts ------------------------------------------------------------------------------------------------------


def charts_of(cases, columns, curves, size="volume"):
    """The charts: a list of HTML strings.

    cases: dicts with "name" and "scores". columns: of `gallery.columns_of`. curves: of `summary.curves_of`,
    or {}. size: see `figure_label`.
    """
    level = curves.get("all") or next(iter(curves.get("classes", {}).values()), {})
    return [
        *_distributions(cases, columns),
        *_reliability_chart(level.get("reliability", {})),
        *_retention(level.get("retention", {}), size),
        *_scatter(cases),
        *_ensemble_size_chart(curves.get("ensemble_size")),
    ]


def _distributions(cases, columns):
    """Histograms of the figures `CHARTED`; without truth a histogram of the first figure."""
    shown, labels = [], {column["key"]: column["label"] for column in columns}
    for key in [key for key in CHARTED if key in labels] or list(labels)[:1]:
        values = [case["scores"][key] for case in cases if key in case["scores"]]
        if len(values) > 1:
            label, share = labels[key], min(values) >= 0 and max(values) <= 1
            bounds = (_low_end(min(values)) if min(values) > 0.5 else 0, 1) if share else None
            chart = histogram(f"Distribution of {label} over cases", values, label, bounds=bounds)
            shown.append(f'<div class="chart" data-column="{escape(key)}">{figure(f"{label} per case", chart)}</div>')
    return shown


def _low_end(lowest):
    """The lower end of an axis up to 1: the tenth below the lowest value, and below 1."""
    return min(math.floor(lowest * 10) / 10, 0.9)


def _reliability_chart(tables):
    """The reliability diagram over all pixels."""
    chart = Chart("Reliability of the probability", (0, 1, "predicted probability"), (0, 1, "fraction of true pixels"))
    chart.reference((0, 0), (1, 1))
    for series, (key, label) in enumerate({"probability": "probability", "coarse": "coarse mask"}.items(), start=1):
        bins = tables.get(key)
        if bins:
            chart.line(bins["probability"], bins["truth"], series, label)
    if not chart.keys:
        return []
    title = f"Reliability over all pixels ({BINS} bins; the diagonal is ideal)"
    return [f'<div class="chart">{figure(title, chart.svg())}</div>']


def _retention(scores, size):
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
        chart.line(score["kept"], score["error"], series, figure_label(name, size))
    return [f'<div class="chart">{figure("Error retention by uncertainty", chart.svg())}</div>']


def _scatter(cases):
    """Each case's expected Dice against its Dice; see `uncertainty.case_scores`."""
    both = [case for case in cases if {"dice", "expected_dice"} <= case["scores"].keys()]
    if len(both) < 3:
        return []
    expected, dices = ([case["scores"][key] for case in both] for key in ("expected_dice", "dice"))
    low = _low_end(min(*expected, *dices))
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
    return [
        f'<div class="chart">{figure("Ensemble size" + _band_note(lows), chart.svg())}</div>',
        *(_set_size_chart(summary["sets"]) if "sets" in summary else ()),
    ]


def _set_size_chart(sets):
    """The unbiased GED squared, matched IoU and log loss by the number of members; sets: of `size_summary`."""
    charts = []
    for title, keys, unit in (
        ("Sets of members by size", OF_SETS, "mean"),
        ("Log loss of the members' mean", ("log_loss_per_area",), "nats per lesion pixel"),
    ):
        values = [[one["mean"] for one in sets[key]] for key in keys]
        ends = [one[end] for key in keys for one in sets[key] for end in ("mean", "low", "high")]
        ends = [value for value in ends if value is not None]
        if not ends or len(sets["sizes"]) < 2:
            continue
        chart = Chart(title, (1, sets["sizes"][-1], "members"), (*rounded(min(ends), max(ends)), unit))
        for series, (key, line) in enumerate(zip(keys, values, strict=True), start=1):
            chart.area(sets["sizes"], *([one[end] for one in sets[key]] for end in ("low", "high")), series)
            chart.line(sets["sizes"], line, series, figure_label(key) if len(keys) > 1 else "")
        note = _band_note([one["low"] for key in keys for one in sets[key]])
        charts.append(f'<div class="chart">{figure(title + note, chart.svg())}</div>')
    return charts


def _band_note(lows):
    """What a chart's title says of the intervals, by their lower bounds."""
    return ", with the 95 % interval" if any(low is not None for low in lows) else ""


def sizes_table(summary):
    """The figures of sets by the number of members as an HTML table, of a summary's "ensemble_size"; "" without."""
    sets = (summary.get("ensemble_size") or {}).get("sets")
    if not sets:
        return ""
    heads = "".join(f'<th scope="col">{escape(figure_label(key))}</th>' for key in OF_SIZE)
    rows = []
    for place, size in enumerate(sets["sizes"]):
        cells = "".join(f"<td>{_with_interval(sets[key][place] | {'n': 1})}</td>" for key in OF_SIZE)
        rows.append(f'<tr><th scope="row">{size}</th>{cells}</tr>')
    return (
        '<h3>By number of members</h3><div class="scroll"><table class="figures"><thead><tr><th scope="col">Members'
        f"</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
