"""The figures of a report: the summary as a table, and the charts that are drawn of it and of all cases."""

import math
import re
from html import escape

from ..evaluation.calibration import BINS
from ..runtime.console import counted
from .page import figure

# ---- Small charts as inline SVG, coloured by the page's style sheet so that they follow its light and dark themes ---


WIDTH, HEIGHT = 340, 210


LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 38  # around the plotting area, in pixels


LINE_POINTS = 400  # of a line, at most


class Chart:
    """One chart that grows by lines, bars and dots; what is not finite is left out.

    title: what a screen reader says. x, y: (lowest value, highest, label). log: whether y is logarithmic.
    """

    def __init__(self, title, x, y, *, log=False, width=WIDTH, height=HEIGHT):
        self.title, self.width, self.height, self.log = title, width, height, log
        (self.x0, self.x1, self.x_label), (self.y0, self.y1, self.y_label) = x, y
        self.parts, self.keys = [], []

    def line(self, xs, ys, series, label=""):
        """A line through points in their order, broken where a value lacks; series: 1 to 4, its colour."""
        pieces = [[]]
        for x, y in zip(*thinned(xs, ys), strict=True):
            if _finite(x) and _finite(y) and not (self.log and y <= 0):
                pieces[-1].append(f"{self._x(x):.1f},{self._y(y):.1f}")
            elif pieces[-1]:
                pieces.append([])
        for piece in pieces:
            if len(piece) == 1:
                self.parts.append('<circle class="s{}" cx="{}" cy="{}" r="2"/>'.format(series, *piece[0].split(",")))
            elif piece:
                self.parts.append(f'<polyline class="s{series}" points="{" ".join(piece)}"/>')
        if label:
            self.keys.append((series, label))

    def area(self, xs, lows, highs, series):
        """A band between two lines, such as an interval."""
        points = [(x, low, high) for x, low, high in zip(xs, lows, highs, strict=True) if _finite(low + high)]
        there = [(x, low) for x, low, _ in points] + [(x, high) for x, _, high in reversed(points)]
        text = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in there)
        if there:
            self.parts.append(f'<polygon class="s{series} band" points="{text}"/>')

    def bars(self, edges, heights, texts=()):
        """A bar between each two edges; texts: what each one's tooltip says. It carries its edges for the page."""
        for k, height in enumerate(heights):
            left, right, top = self._x(edges[k]), self._x(edges[k + 1]), self._y(height)
            tip = f"<title>{escape(texts[k])}</title>" if texts else ""
            self.parts.append(
                f'<rect class="bar" data-from="{edges[k]:.6g}" data-to="{edges[k + 1]:.6g}" x="{left + 0.5:.1f}" '
                f'y="{top:.1f}" width="{max(right - left - 1, 0.5):.1f}" '
                f'height="{self.height - BOTTOM - top:.1f}">{tip}</rect>'
            )

    def dots(self, xs, ys, names, series=1):
        """A dot a case, which carries the case's name for the page."""
        for x, y, name in zip(xs, ys, names, strict=True):
            if _finite(x) and _finite(y):
                name = escape(str(name), quote=True)
                self.parts.append(
                    f'<circle class="dot s{series}" data-case="{name}" cx="{self._x(x):.1f}" cy="{self._y(y):.1f}" '
                    f'r="3.5"><title>{name}: {x:.4g}, {y:.4g}</title></circle>'
                )

    def mark(self, x, label):
        """A vertical line with its label."""
        at = self._x(x)
        anchor = "end" if at > self.width / 2 else "start"
        self.parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{self.height - BOTTOM}"/>'
            f'<text class="note" x="{at + (-4 if anchor == "end" else 4):.1f}" y="{TOP + 9}" '
            f'text-anchor="{anchor}">{escape(label)}</text>'
        )

    def reference(self, start, end):
        """A dashed line from one point to another."""
        (x0, y0), (x1, y1) = start, end
        self.parts.append(
            f'<line class="reference" x1="{self._x(x0):.1f}" y1="{self._y(y0):.1f}" x2="{self._x(x1):.1f}" '
            f'y2="{self._y(y1):.1f}"/>'
        )

    def svg(self):
        """The chart as SVG, with a legend below where lines have labels."""
        keys = "".join(f'<li class="s{series}">{escape(label)}</li>' for series, label in self.keys)
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.title, quote=True)}">'
            f"{self._axes()}{''.join(self.parts)}</svg>" + (f'<ul class="key">{keys}</ul>' if keys else "")
        )

    def _axes(self):
        bottom, parts = self.height - BOTTOM, []
        for value in decades(self.y0, self.y1) if self.log else ticks(self.y0, self.y1):
            y = self._y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{self.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_tick_label(value)}</text>')
        for value in ticks(self.x0, self.x1):
            x = self._x(value)
            parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{_tick_label(value)}</text>')
        middle = (LEFT + self.width - RIGHT) / 2
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{self.width - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
        parts.append(
            f'<text class="label" x="{middle}" y="{self.height - 5}" text-anchor="middle">{escape(self.x_label)}</text>'
        )
        if self.y_label:
            y = (TOP + bottom) / 2
            parts.append(
                f'<text class="label" transform="translate(11 {y}) rotate(-90)" text-anchor="middle">'
                f"{escape(self.y_label)}</text>"
            )
        return "".join(parts)

    def _x(self, value):
        return LEFT + (value - self.x0) / ((self.x1 - self.x0) or 1) * (self.width - LEFT - RIGHT)

    def _y(self, value):
        low, high = self.y0, self.y1
        if self.log:
            value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
        value = min(max(value, low), high)
        return self.height - BOTTOM - (value - low) / ((high - low) or 1) * (self.height - TOP - BOTTOM)


def histogram(title, values, label, *, bounds=None, bins=20):
    """How values are distributed, one bar for each of `bins` equal intervals of `bounds` (default: their own)."""
    values = [value for value in values if _finite(value)]
    low, high = bounds or rounded(min(values), max(values))
    edges = [low + (high - low) * k / bins for k in range(bins + 1)]
    counts = [0] * bins
    for value in values:
        counts[min(max(int((value - low) / ((high - low) or 1) * bins), 0), bins - 1)] += 1
    chart = Chart(title, (low, high, label), (0, max(counts), "cases"))
    texts = [f"{edges[k]:.4g} to {edges[k + 1]:.4g}: {count}" for k, count in enumerate(counts)]
    chart.bars(edges, counts, texts)
    chart.mark(sum(values) / len(values), f"mean {sum(values) / len(values):.3g}")
    return chart.svg()


def thinned(xs, ys):
    """At most `LINE_POINTS` points of a line: of each stretch the lowest and the highest, so that no peak is lost."""
    if len(xs) <= LINE_POINTS:
        return xs, ys
    kept, stretches = [0], LINE_POINTS // 2 - 1
    for k in range(stretches):
        part = range(k * len(xs) // stretches, (k + 1) * len(xs) // stretches)
        finite = [i for i in part if _finite(ys[i])] or [part[0]]
        kept += sorted({min(finite, key=ys.__getitem__), max(finite, key=ys.__getitem__)})
    kept = sorted({*kept, len(xs) - 1})
    return [xs[i] for i in kept], [ys[i] for i in kept]


def ticks(low, high, count=5):
    """About `count` round values (1, 2 or 5 times a power of ten apart) from low to high."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def decades(low, high):
    """The powers of ten from low to high, both above 0; where these are few, their double and fivefold too."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    few = len(powers) <= 3
    values = [factor * 10.0**power for power in powers for factor in ((1, 2, 5) if few else (1,))]
    return [value for value in values if low * 0.999 <= value <= high * 1.001]


def rounded(low, high):
    """A range with round ends that holds low and high."""
    if not high > low:
        return low - 0.5, high + 0.5
    step = (ticks(low, high) + ticks(low, high + (high - low)))[1] - ticks(low, high)[0] or high - low
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def _finite(value):
    return value is not None and math.isfinite(value)


def _tick_label(value):
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    if 1e-12 <= abs(value) < 0.005:
        digits, power = f"{value:.1e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}"


FIGURE_LABELS = {"hd95": "HD95", "assd": "ASSD", "iou": "IoU", "ged2": "GED²", "agreement": "agreement of members"}


CHARTED = ("dice", "sensitivity", "precision", "hd95")


def figure_label(key):
    """A figure's name for people."""
    text = FIGURE_LABELS.get(key, key.replace("_band", "_in_band").replace("_", " "))
    for plain, right in (("dice", "Dice"), ("ece", "ECE"), ("nsd", "NSD at"), ("f1", "F1"), ("brier", "Brier")):
        text = re.sub(rf"\b{plain}\b", right, text)
    return text[0].upper() + text[1:]


def table_of(summary):
    """The summary's statistics as a table, for each class where they are several."""
    parts = summary.get("classes") or {}
    groups = {"": summary} | (parts if len(parts) > 1 else {})
    rows = []
    for title, level in groups.items():
        if title:
            rows.append(f'<tr><th colspan="6" scope="rowgroup">{escape(title)}</th></tr>')
        rows += [_html_row(label, values) for label, values in _statistics(level, summary.get("hd95_unit", ""))]
    ensemble = summary["ensemble"]
    notes = [counted(ensemble["cases"], "case")]
    notes += [
        f"{ensemble[f'{which}_empty']} {text}"
        for which, text in (("both", "both masks empty"), ("prediction", "prediction empty"), ("truth", "truth empty"))
        if ensemble.get(f"{which}_empty")
    ]
    notes += [
        f"{counted(summary[key], 'case')} {text}"
        for key, text in (("missing", "without a prediction"), ("without_truth", "without truth"))
        if summary.get(key)
    ]
    return (
        '<div class="scroll"><table class="figures"><thead><tr><th scope="col">Figure</th><th scope="col">Mean</th>'
        '<th scope="col">95 % interval</th><th scope="col">Median</th><th scope="col">SD</th><th scope="col">n</th>'
        f'</tr></thead><tbody>{"".join(rows)}</tbody></table></div><p class="note">{escape("; ".join(notes))}.</p>'
    )


def _statistics(level, unit):
    """(label, statistics or a number) of each figure of one level of the summary that is defined."""
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
    """The charts, a list of HTML.

    cases: dicts with "name" and "scores"; columns: the figures that cases can be sorted by, dicts with "key"; curves:
    what `summary.curves_of` gives, or {}.
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
    """Histograms of the cases' figures, or of the expected Dice where there is no truth."""
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
    """Reliability of the probability, over all pixels and in the band around the boundary."""
    chart = Chart("Reliability of the probability", (0, 1, "predicted probability"), (0, 1, "fraction of true pixels"))
    chart.reference((0, 0), (1, 1))
    names = (("probability", "all pixels"), ("probability_band", "around the boundary"), ("coarse_band", "coarse mask"))
    for series, (key, label) in enumerate(names, start=1):
        bins = tables.get(key)
        if bins:
            chart.line(bins["probability"], bins["truth"], series, label)
    if not chart.keys:
        return []
    return [f'<div class="chart">{figure(f"Reliability ({BINS} bins; the diagonal is ideal)", chart.svg())}</div>']


def _retention(scores):
    """The mean error of the surest cases, by how many of them are kept."""
    highest = max((max(score["error"], default=0) for score in scores.values()), default=0)
    if not highest:
        return []
    chart = Chart(
        "Error of the surest cases", (0, 1, "share of cases kept, surest first"), (0, highest, "mean 1 - Dice")
    )
    for series, (name, score) in enumerate(scores.items(), start=1):
        chart.line(score["kept"], score["error"], series, figure_label(name))
    return [f'<div class="chart">{figure("Is the uncertainty any good? Error retention", chart.svg())}</div>']


def _scatter(cases):
    """The Dice that each case's probability promises against the one that it has."""
    both = [case for case in cases if {"dice", "expected_dice"} <= case["scores"].keys()]
    if len(both) < 3:
        return []
    promised, dices = ([case["scores"][key] for case in both] for key in ("expected_dice", "dice"))
    low = math.floor(min(*promised, *dices) * 10) / 10
    low = low if low < 1 else 0.9
    chart = Chart("Expected and true Dice of each case", (low, 1, "expected Dice"), (low, 1, "Dice"))
    chart.reference((low, low), (1, 1))
    chart.dots(promised, dices, [case["name"] for case in both])
    return [f'<div class="chart">{figure("Expected and true Dice, a dot a case", chart.svg())}</div>']


def _ensemble_size_chart(found):
    """How the Dice grows with the number of members (see `ensemble_size`)."""
    if not found:
        return []
    sizes, means, lows, highs = (
        found["sizes"],
        *([one[key] for one in found["dice"]] for key in ("mean", "low", "high")),
    )
    ends = [value for value in (*means, *lows, *highs) if value is not None]
    chart = Chart("Dice by ensemble size", (1, sizes[-1], "members"), (*rounded(min(ends), max(ends)), "mean Dice"))
    chart.area(sizes, lows, highs, 1)
    chart.line(sizes, means, 1)
    chart.mark(found["enough"], f"{found['enough']} suffice" if found["enough"] < sizes[-1] else "still grows")
    return [f'<div class="chart">{figure("Ensemble size, with the 95 % interval", chart.svg())}</div>']
