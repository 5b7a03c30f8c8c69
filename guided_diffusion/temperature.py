"""Temperature scaling: one number that makes probabilities neither too sure nor too unsure, fitted on validation cases.

p becomes sigmoid(logit(p) / T): T above 1 draws probabilities towards 0.5, T below 1 away from it. What is above 0.5
stays above it, so no mask changes.
"""

import math
from dataclasses import dataclass

import numpy as np

from .calibration import ReliabilityTable

LEVELS = 65535  # above 0: probabilities as 16-bit pictures hold them
BOUNDS = (0.05, 20.0)


def scaled(probability, temperature):
    """sigmoid(logit(p) / T) of an array in [0, 1], of the same type; 0, 0.5 and 1 stay what they are."""
    if temperature == 1:
        return probability
    probability = np.asarray(probability)
    p = probability.astype(np.float64)
    with np.errstate(divide="ignore"):
        odds = np.log(p) - np.log1p(-p)
    return (1 / (1 + np.exp(-odds / temperature))).astype(probability.dtype)


@dataclass(frozen=True)
class LevelTable:
    """Sums over pixels by their probability in 65535ths: count int64 [65536], truth float64 [65536]. They add up by
    `+`."""

    count: np.ndarray
    truth: np.ndarray

    @classmethod
    def of(cls, probability, truth):
        """probability, truth: arrays of equal shape in [0, 1]; of several raters the truth is their fraction."""
        level = np.rint(np.asarray(probability, dtype=np.float64).ravel() * LEVELS).astype(np.int64)
        truth = np.asarray(truth, dtype=np.float64).ravel()
        return cls(np.bincount(level, minlength=LEVELS + 1), np.bincount(level, truth, LEVELS + 1))

    def __add__(self, other):
        return LevelTable(self.count + other.count, self.truth + other.truth)

    def _present(self):
        """(p, count, truth) of the levels that occur; p kept half a level from 0 and 1."""
        there = np.flatnonzero(self.count)
        p = np.clip(there / LEVELS, 0.5 / LEVELS, 1 - 0.5 / LEVELS)
        return p, self.count[there], self.truth[there]

    def log_loss(self, temperature=1.0):
        """The mean of -y log p - (1 - y) log(1 - p) in nats, of the probabilities scaled by a temperature."""
        p, count, truth = self._present()
        odds = (np.log(p) - np.log1p(-p)) / temperature
        # log(1 + e^x) - y x, written so that nothing overflows
        return float((count * np.logaddexp(0, odds) - truth * odds).sum() / count.sum())

    def ece(self, temperature=1.0):
        """The expected calibration error (`calibration.ReliabilityTable.ece`) at a temperature."""
        p, count, truth = self._present()
        table = ReliabilityTable.weighted(scaled(p, temperature), count, truth)
        return table.ece

    def fit(self):
        """The temperature of least log loss, between 0.05 and 20."""
        from scipy.optimize import minimize_scalar

        low, high = np.log(BOUNDS)
        found = minimize_scalar(lambda x: self.log_loss(math.exp(x)), bounds=(low, high), method="bounded")
        return math.exp(found.x)
