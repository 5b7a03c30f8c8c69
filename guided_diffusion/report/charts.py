"""Small charts as inline SVG. The page's style sheet colours them, so they follow its light and dark themes."""

import math
from html import escape

WIDTH, HEIGHT = 340, 210  # in pixels
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 38  # margins around the plotting area, in pixels
LINE_POINTS = 400  # of a line, at most


class Chart:
    """A chart to which lines, bars and dots are added. Values that are not finite are left out.

    title: for screen readers. x, y: (lowest value, highest value, label) of an axis. log: whether y is logarithmic.
    whole: whether y counts, so that its axis has whole numbers alone.
    """

    def __init__(self, title, x, y, *, log=False, whole=False, width=WIDTH, height=HEIGHT):
        self.title, self.width, self.height, self.log, self.whole = title, width, height, log, whole
        (self.x0, self.x1, self.x_label), (self.y0, self.y1, self.y_label) = x, y
        self.parts, self.keys = [], []

    def line(self, xs, ys, series, label=""):
        """Add a line through points in their order, broken at missing values. series: its colour, 1 to 4."""
        pieces = [[]]
        for x, y in zip(*thinned(xs, ys), strict=True):
            if _is_finite(x) and _is_finite(y) and not (self.log and y <= 0):
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
        """Add a band between two lines, such as an interval."""
        bounds = list(zip(xs, lows, highs, strict=True))
        bounds = [(x, low, high) for x, low, high in bounds if _is_finite(low) and _is_finite(high)]
        outline = [(x, low) for x, low, _ in bounds] + [(x, high) for x, _, high in reversed(bounds)]
        points = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in outline)
        if points:
            self.parts.append(f'<polygon class="s{series} band" points="{points}"/>')

    def bars(self, edges, heights, texts=()):
        """Add a bar between each two edges, which become its data attributes. texts: the tooltips."""
        for k, height in enumerate(heights):
            left, right, top = self._x(edges[k]), self._x(edges[k + 1]), self._y(height)
            tip = f"<title>{escape(texts[k])}</title>" if texts else ""
            self.parts.append(
                f'<rect class="bar" data-from="{edges[k]:.6g}" data-to="{edges[k + 1]:.6g}" x="{left + 0.5:.1f}" '
                f'y="{top:.1f}" width="{max(right - left - 1, 0.5):.1f}" '
                f'height="{self.height - BOTTOM - top:.1f}">{tip}</rect>'
            )

    def dots(self, xs, ys, names, series=1):
        """Add a dot for each case, with the case's name as a data attribute."""
        for x, y, name in zip(xs, ys, names, strict=True):
            if _is_finite(x) and _is_finite(y):
                name = escape(str(name), quote=True)
                self.parts.append(
                    f'<circle class="dot s{series}" data-case="{name}" cx="{self._x(x):.1f}" cy="{self._y(y):.1f}" '
                    f'r="3.5"><title>{name}: {x:.4g}, {y:.4g}</title></circle>'
                )

    def mark(self, x, label):
        """Add a vertical line with a label."""
        at = self._x(x)
        anchor = "end" if at > self.width / 2 else "start"
        self.parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{self.height - BOTTOM}"/>'
            f'<text class="note" x="{at + (-4 if anchor == "end" else 4):.1f}" y="{TOP + 9}" '
            f'text-anchor="{anchor}">{escape(label)}</text>'
        )

    def reference(self, start, end):
        """Add a dashed line from one point to another."""
        (x0, y0), (x1, y1) = start, end
        self.parts.append(
            f'<line class="reference" x1="{self._x(x0):.1f}" y1="{self._y(y0):.1f}" x2="{self._x(x1):.1f}" '
            f'y2="{self._y(y1):.1f}"/>'
        )

    def svg(self):
        """The chart as SVG; a legend follows it where lines have labels."""
        keys = "".join(f'<li class="s{series}">{escape(label)}</li>' for series, label in self.keys)
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.title, quote=True)}">'
            f"{self._axes()}{''.join(self.parts)}</svg>" + (f'<ul class="key">{keys}</ul>' if keys else "")
        )

    def _axes(self):
        bottom, parts = self.height - BOTTOM, []
        marks = decades(self.y0, self.y1) if self.log else ticks(self.y0, self.y1)
        for value in [mark for mark in marks if not self.whole or float(mark).is_integer()]:
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
    """The SVG of a histogram over `bins` equal intervals of `bounds` (default: the range of the values)."""
    values = [value for value in values if _is_finite(value)]
    low, high = bounds or rounded(min(values), max(values))
    edges = [low + (high - low) * k / bins for k in range(bins + 1)]
    counts = [0] * bins
    for value in values:
        counts[min(max(int((value - low) / ((high - low) or 1) * bins), 0), bins - 1)] += 1
    chart = Chart(title, (low, high, label), (0, max(counts), "cases"), whole=True)
    texts = [f"{edges[k]:.4g} to {edges[k + 1]:.4g}: {count}" for k, count in enumerate(counts)]
    chart.bars(edges, counts, texts)
    chart.mark(sum(values) / len(values), f"mean {sum(values) / len(values):.3g}")
    return chart.svg()


def thinned(xs, ys):
    """At most `LINE_POINTS` points of a line: the lowest and the highest of each stretch, so that no peak is lost."""
    if len(xs) <= LINE_POINTS:
        return xs, ys
    kept, stretches = [0], LINE_POINTS // 2 - 1
    for k in range(stretches):
        part = range(k * len(xs) // stretches, (k + 1) * len(xs) // stretches)
        finite = [i for i in part if _is_finite(ys[i])] or [part[0]]
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
    """The powers of ten from low to high, both above 0; where these are few, also 2 and 5 times each."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    few = len(powers) <= 3
    values = [factor * 10.0**power for power in powers for factor in ((1, 2, 5) if few else (1,))]
    return [value for value in values if low * 0.999 <= value <= high * 1.001]


def rounded(low, high):
    """A range with round ends that includes low and high."""
    if not high > low:
        return low - 0.5, high + 0.5
    step = (ticks(low, high) + ticks(low, high + (high - low)))[1] - ticks(low, high)[0] or high - low
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def _is_finite(value):
    """Whether a value is a finite number; None is not."""
    return value is not None and math.isfinite(value)


def _tick_label(value):
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    if 1e-12 <= abs(value) < 0.005:
        digits, power = f"{value:.1e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}"
