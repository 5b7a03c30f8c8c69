"""Calibration: by hand, against scikit-learn, and the band against a loop over all pairs of pixels."""

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from guided_diffusion.evaluation.calibration import BINS, ReliabilityTable, boundary_band

RNG = np.random.default_rng(0)


def pixels(count=5000):
    """Random probabilities that are too sure of themselves, and what happened."""
    p = RNG.random(count)
    return np.clip(1.4 * p - 0.2, 0, 1), RNG.random(count) < p


def test_a_large_map_is_counted_in_parts(monkeypatch):
    p, y = (values.reshape(10, 20, 25) for values in pixels())
    whole = ReliabilityTable.of(p, y)
    monkeypatch.setattr("guided_diffusion.evaluation.calibration.COUNTED_AT_ONCE", 700)
    for order in "CF":
        parts = ReliabilityTable.of(p.copy(order), y)
        assert (parts.count == whole.count).all() and parts.truth == pytest.approx(whole.truth)
        assert parts.squared_error == pytest.approx(whole.squared_error)


# ---- the table ---------------------------------------------------------------------------------------------------


def test_by_hand():
    # The first bin has 0 and 0.05, the tenth (9/15 to 10/15) 0.65 twice, the last 1.
    table = ReliabilityTable.of(np.array([0, 0.05, 0.65, 0.65, 1]), np.array([0, 1, 1, 0, 1], bool))
    diagram = table.diagram()
    assert diagram["count"] == [2, 2, 1] and np.allclose(diagram["low"], [0, 9 / 15, 14 / 15])
    assert np.allclose(diagram["high"], [1 / 15, 10 / 15, 1]) and diagram["truth"] == [0.5, 0.5, 1]
    assert np.allclose(diagram["probability"], [0.025, 0.65, 1])
    assert table.ece == pytest.approx((abs(0.05 - 1) + abs(1.3 - 1) + 0) / 5)
    assert table.brier == pytest.approx((0 + 0.95**2 + 0.35**2 + 0.65**2 + 0) / 5)
    assert table.pixels == 5


def test_ece_and_bins_are_those_of_scikit_learn():
    p, y = pixels()
    p[:BINS] = np.linspace(0, 1, BINS + 1)[:BINS]  # edges too
    table = ReliabilityTable.of(p, y)
    truth, predicted = calibration_curve(y, p, n_bins=BINS)  # of the bins that are not empty
    diagram = table.diagram()
    np.testing.assert_allclose(diagram["truth"], truth)
    np.testing.assert_allclose(diagram["probability"], predicted)
    assert table.ece == pytest.approx(np.average(np.abs(truth - predicted), weights=diagram["count"]))
    assert table.brier == pytest.approx(brier_score_loss(y, p))


def test_adaptive_bins_hold_equally_many_pixels():
    p, y = pixels(BINS * 300)
    order = np.argsort(p)
    parts = [(p[part].mean(), y[part].mean()) for part in np.array_split(order, BINS)]
    assert ReliabilityTable.of(p, y).adaptive_ece == pytest.approx(np.mean([abs(a - b) for a, b in parts]), abs=2e-3)
    # Two values of p, each of half the pixels: the middle bin, the eighth of 15, gets half a share of either.
    p, y = np.repeat([0.2, 0.9], 150), np.concatenate([np.zeros(150), np.ones(75), np.zeros(75)])
    middle = abs((0.2 + (0.9 - 0.5)) / 2)
    table = ReliabilityTable.of(p, y)
    assert table.adaptive_ece == pytest.approx((7 * 0.2 + middle + 7 * 0.4) / 15)
    assert table.ece == pytest.approx((0.2 + 0.4) / 2)


def test_a_calibrated_forecast_tends_to_no_error():
    errors = []
    for count in (1000, 100_000):
        p = RNG.random(count)
        table = ReliabilityTable.of(p, RNG.random(count) < p)
        errors.append((table.ece, table.adaptive_ece))
        assert table.brier == pytest.approx(1 / 6, abs=0.02)  # E[p (1 - p)]
    assert max(errors[1]) < 0.01 and np.all(np.array(errors[1]) < np.array(errors[0]))


def test_tables_of_parts_add_up_to_that_of_the_whole():
    p, y = pixels()
    parts = ReliabilityTable.of(p[:1000], y[:1000]) + ReliabilityTable.of(p[1000:], y[1000:])
    whole = ReliabilityTable.of(p.reshape(50, 100), y.reshape(50, 100))
    assert np.array_equal(parts.count, whole.count) and parts.pixels == 5000
    assert (parts.ece, parts.brier) == pytest.approx((whole.ece, whole.brier))
    # Pooling is no averaging: errors in opposite directions meet in one bin.
    high, low = ReliabilityTable.of(np.full(4, 0.5), np.ones(4)), ReliabilityTable.of(np.full(4, 0.5), np.zeros(4))
    assert (high.ece, low.ece, (high + low).ece) == (0.5, 0.5, 0)


def test_the_fraction_of_several_raters_is_a_truth():
    p = np.array([0.5, 0.5, 0.25])
    perfect = ReliabilityTable.of(p, p)
    assert perfect.ece == 0 and perfect.brier == 0
    assert ReliabilityTable.of(p, np.array([0.5, 0.5, 0.75])).brier == pytest.approx(0.25 / 3)


def test_without_pixels_nothing_is_defined():
    table = ReliabilityTable.of(np.zeros(0), np.zeros(0, bool))
    assert table.pixels == 0 and all(math.isnan(x) for x in (table.ece, table.adaptive_ece, table.brier))
    p, y = pixels(10)
    assert (table + ReliabilityTable.of(p, y)).ece == ReliabilityTable.of(p, y).ece


@pytest.mark.parametrize("bad", [1.01, -0.1, math.nan])
def test_what_is_no_probability_is_refused(bad):
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        ReliabilityTable.of(np.array([0.5, bad]), np.array([0, 1]))


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="agree in shape"):
        ReliabilityTable.of(np.zeros((2, 3)), np.zeros((3, 2)))


# ---- the band ----------------------------------------------------------------------------------------------------


def band_by_loop(truth, radius, steps):
    """Each pixel by its distance to every pixel of the other kind."""
    band = np.zeros_like(truth)
    for place in np.ndindex(truth.shape):
        others = np.argwhere(truth != truth[place])
        distance = np.sqrt((((others - place) * steps) ** 2).sum(axis=1))
        band[place] = distance.min(initial=np.inf) <= radius
    return band


def blobs(shape, seed):
    grid = np.indices(shape).reshape(len(shape), -1).T
    rng = np.random.default_rng(seed)
    marked = np.zeros(len(grid), bool)
    for _ in range(2):
        marked |= np.linalg.norm((grid - rng.uniform(0, shape)) / shape, axis=1) < rng.uniform(0.1, 0.35)
    return marked.reshape(shape)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "shape, spacing, radius, steps",
    [
        ((12, 17), None, 1, 1),  # 0.03 sqrt(204) = 0.43
        ((48, 61), None, 2, 1),  # 1.62
        ((90, 100), None, 3, 1),  # 2.85
        ((60, 40, 4), (0.5, 0.5, 0.9), 1, (1, 1, 1.8)),  # 1.47: the next slice is farther than the band is wide
        ((70, 60, 5), (2.0, 1.5, 2.5), 2, (4 / 3, 1, 5 / 3)),  # 1.94, in units of 1.5 mm
    ],
)
def test_the_band_is_that_of_a_loop(shape, spacing, radius, steps, seed):
    truth = blobs(shape, seed)
    assert truth.any()
    assert np.array_equal(boundary_band(truth, spacing), band_by_loop(truth, radius, steps))


def test_the_band_has_both_sides_by_hand():
    truth = np.zeros((5, 9), bool)
    truth[:, 3:7] = True
    assert boundary_band(truth)[2].tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0]


def test_a_border_of_the_image_is_no_boundary():
    truth = np.zeros((6, 6), bool)
    truth[:, 3:] = True
    assert boundary_band(truth)[0].tolist() == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("value", [False, True])
def test_without_a_boundary_there_is_no_band(value):
    assert not boundary_band(np.full((6, 7, 3), value)).any()
