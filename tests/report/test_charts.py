"""Charts: ticks, thinning, and what is not finite."""

import re

import pytest

from guided_diffusion.report import charts
from guided_diffusion.report.figures import figure_label


def test_ticks_are_round_and_peaks_are_kept():
    assert charts.ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1]) and charts.ticks(3, 3) == [3]
    assert charts.decades(0.01, 10) == pytest.approx([0.01, 0.1, 1, 10])
    low, high = charts.rounded(0.83, 0.97)
    assert low <= 0.83 and high >= 0.97 and high - low < 0.3
    ys = [0.0] * 10_000
    ys[1234], ys[7000] = 5.0, float("nan")
    xs, kept = charts.thinned(list(range(10_000)), ys)
    assert len(xs) <= charts.LINE_POINTS + 2 and 1234 in xs and max(kept) == 5 and xs == sorted(xs) and xs[-1] == 9999


def test_charts_leave_out_what_is_not_finite():
    chart = charts.Chart('a "title" <', (0, 4, "x"), (0.1, 10, "y"), log=True)
    chart.line([0, 1, 2, 3, 4], [1, 2, float("nan"), 0, 5], 1, "loss")
    drawn = chart.svg()
    assert drawn.count("<polyline") == 1 and drawn.count("<circle") == 1 and "nan" not in drawn
    assert 'aria-label="a &quot;title&quot; &lt;"' in drawn
    bars = re.findall(
        r'data-from="(.*?)" data-to="(.*?)"', charts.histogram("t", [0.0, 0.1, 0.1, 1.0], "x", bounds=(0, 1))
    )
    assert len(bars) == 20 and bars[0] == ("0", "0.05") and figure_label("nsd_1") == "NSD at 1"


def test_a_histogram_counts_in_whole_numbers():
    counts = re.findall(r'text-anchor="end">([^<]*)</text>', charts.histogram("t", [0.1, 0.1, 0.9], "x", bounds=(0, 1)))
    assert [label for label in counts if not label.startswith("mean")] == ["0", "1", "2"]
