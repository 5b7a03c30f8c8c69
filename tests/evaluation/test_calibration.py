"""Calibration: by hand and against scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from guided_diffusion.evaluation.calibration import BINS, ReliabilityTable

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
        assert parts.probability == pytest.approx(whole.probability)


# ---- the table ---------------------------------------------------------------------------------------------------


def test_by_hand():
    # The first bin has 0 and 0.05, the tenth (9/15 to 10/15) 0.65 twice, the last 1.
    table = ReliabilityTable.of(np.array([0, 0.05, 0.65, 0.65, 1]), np.array([0, 1, 1, 0, 1], bool))
    diagram = table.diagram()
    assert diagram["count"] == [2, 2, 1] and np.allclose(diagram["low"], [0, 9 / 15, 14 / 15])
    assert np.allclose(diagram["high"], [1 / 15, 10 / 15, 1]) and diagram["truth"] == [0.5, 0.5, 1]
    assert np.allclose(diagram["probability"], [0.025, 0.65, 1])
    assert table.ece == pytest.approx((abs(0.05 - 1) + abs(1.3 - 1) + 0) / 5)
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


def test_a_calibrated_forecast_tends_to_no_error():
    errors = []
    for count in (1000, 100_000):
        p = RNG.random(count)
        errors.append(ReliabilityTable.of(p, RNG.random(count) < p).ece)
    assert errors[1] < min(0.01, errors[0])


def test_tables_of_parts_add_up_to_that_of_the_whole():
    p, y = pixels()
    parts = ReliabilityTable.of(p[:1000], y[:1000]) + ReliabilityTable.of(p[1000:], y[1000:])
    whole = ReliabilityTable.of(p.reshape(50, 100), y.reshape(50, 100))
    assert np.array_equal(parts.count, whole.count) and parts.pixels == 5000
    assert parts.ece == pytest.approx(whole.ece)
    # Pooling is no averaging: errors in opposite directions meet in one bin.
    high, low = ReliabilityTable.of(np.full(4, 0.5), np.ones(4)), ReliabilityTable.of(np.full(4, 0.5), np.zeros(4))
    assert (high.ece, low.ece, (high + low).ece) == (0.5, 0.5, 0)


def test_the_fraction_of_several_raters_is_a_truth():
    p = np.array([0.5, 0.5, 0.25])
    assert ReliabilityTable.of(p, p).ece == 0
    assert ReliabilityTable.of(p, np.array([0.5, 0.5, 0.75])).ece == pytest.approx(0.5 / 3)


def test_without_pixels_nothing_is_defined():
    table = ReliabilityTable.of(np.zeros(0), np.zeros(0, bool))
    assert table.pixels == 0 and math.isnan(table.ece)
    p, y = pixels(10)
    assert (table + ReliabilityTable.of(p, y)).ece == ReliabilityTable.of(p, y).ece


@pytest.mark.parametrize("bad", [1.01, -0.1, math.nan])
def test_what_is_no_probability_is_refused(bad):
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        ReliabilityTable.of(np.array([0.5, bad]), np.array([0, 1]))


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="agree in shape"):
        ReliabilityTable.of(np.zeros((2, 3)), np.zeros((3, 2)))
