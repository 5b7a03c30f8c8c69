"""Calibration of a foreground probability over all pixels: reliability table and expected calibration error.

The expected calibration error is no proper score. Log loss and Brier score decide, see `proper_scores`.
"""

import math
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

BINS = 15
COUNTED_AT_ONCE = 2**22  # pixels that are counted at once
EDGES = np.linspace(0, 1, BINS + 1)[1:-1]


@dataclass(frozen=True)
class ReliabilityTable:
    """Sums over pixels, by `BINS` bins of equal width of the foreground probability p. `+` adds the tables of cases.

    A p on an edge belongs to the lower bin.
    count: int64 [BINS], the number of pixels. probability, truth: float64 [BINS], the sums of p and of the truth y in
    [0, 1].
    """

    count: np.ndarray
    probability: np.ndarray
    truth: np.ndarray

    @classmethod
    def of(cls, probability, truth):
        """The table of pixels with these probabilities and truths, two arrays of equal shape with values in [0, 1].

        truth: 0 or 1 (or bool) with one rater; with several the fraction of raters who marked the pixel.
        Raises ValueError for different shapes and for probabilities outside [0, 1].
        """
        probability, truth = np.asarray(probability), np.asarray(truth)
        if probability.shape != truth.shape:
            raise ValueError(f"probability and truth must agree in shape, not {probability.shape}, {truth.shape}")
        if probability.size > COUNTED_AT_ONCE and probability.flags.f_contiguous:
            probability, truth = probability.T, truth.T  # as the values lie in memory
        number = -(-probability.size // COUNTED_AT_ONCE)
        if number < 2:
            return cls._of_part(probability, truth)
        parts = zip(np.array_split(probability, number), np.array_split(truth, number), strict=True)
        return reduce(add, (cls._of_part(*part) for part in parts))

    @classmethod
    def _of_part(cls, probability, truth):
        p, y = (np.asarray(values, dtype=np.float64).ravel() for values in (probability, truth))
        if not ((p >= 0) & (p <= 1)).all():
            raise ValueError("probabilities must lie in [0, 1]")
        bins = np.searchsorted(EDGES, p)
        return cls(np.bincount(bins, minlength=BINS), *(np.bincount(bins, values, BINS) for values in (p, y)))

    def __add__(self, other):
        return ReliabilityTable(
            self.count + other.count, self.probability + other.probability, self.truth + other.truth
        )

    @property
    def pixels(self):
        """The number of pixels counted."""
        return int(self.count.sum())

    @property
    def ece(self):
        """Expected calibration error: the sum over bins of (n_b / n) |mean p - mean y|, in [0, 1]; NaN if n = 0."""
        gaps = np.abs(self.probability - self.truth)
        return float(gaps.sum()) / self.pixels if self.pixels else math.nan

    def diagram(self):
        """The reliability diagram: a dict of lists over the bins that are not empty.

        low, high: the bin's edges. count: its pixels. probability, truth: their mean p and mean y.
        """
        edges, filled = np.array([0, *EDGES, 1]), self.count > 0
        count, p, y = (values[filled] for values in (self.count, self.probability, self.truth))
        return {
            "low": edges[:-1][filled].tolist(),
            "high": edges[1:][filled].tolist(),
            "count": count.tolist(),
            "probability": (p / count).tolist(),
            "truth": (y / count).tolist(),
        }
