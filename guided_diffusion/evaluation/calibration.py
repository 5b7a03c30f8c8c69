"""Calibration of a foreground probability: reliability table, expected calibration error, Brier score, boundary band.

Most pixels of a medical image are easy background, and any model looks calibrated over all of them. So each figure is
also computed in a band around the truth's boundary, where the answer is uncertain.
"""

import math
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from scipy.ndimage import distance_transform_edt

from .metrics import bounding_box

BINS = 15
COUNTED_AT_ONCE = 2**22  # pixels that are counted at once
FINE = 256  # fine bins in each bin
EDGES = np.linspace(0, 1, BINS + 1)[1:-1]
FINE_EDGES = np.arange(1, BINS * FINE) / (BINS * FINE)
FINE_EDGES[FINE - 1 :: FINE] = EDGES  # equal to the bit, so that a pixel's fine bin lies in its bin


@dataclass(frozen=True)
class ReliabilityTable:
    """Sums over pixels, by bins of the foreground probability p. `+` adds the tables of several cases.

    The reliability diagram has `BINS` bins of equal width in [0, 1]. Each is divided into `FINE` fine bins, from which
    the adaptive bins are made. A p on an edge belongs to the lower bin.
    count: int64 [BINS * FINE], the number of pixels. probability, truth, squared_error: float64 [BINS * FINE], the
    sums of p, of the truth y in [0, 1] and of (p - y)^2.
    """

    count: np.ndarray
    probability: np.ndarray
    truth: np.ndarray
    squared_error: np.ndarray

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
        return cls._sums(p, np.ones_like(p), y, (p - y) ** 2)

    @classmethod
    def weighted(cls, probability, count, truth):
        """The table of `count` pixels at each probability, `truth` of which are foreground: arrays of equal shape."""
        p, count, y = (np.asarray(values, dtype=np.float64) for values in (probability, count, truth))
        return cls._sums(p, count, y, count * p**2 - 2 * p * y + y)

    @classmethod
    def _sums(cls, p, count, truth, squared_error):
        bins = np.searchsorted(FINE_EDGES, p)
        count, *sums = (np.bincount(bins, w, BINS * FINE) for w in (count, count * p, truth, squared_error))
        return cls(count.astype(np.int64), *sums)

    def __add__(self, other):
        return ReliabilityTable(
            self.count + other.count,
            self.probability + other.probability,
            self.truth + other.truth,
            self.squared_error + other.squared_error,
        )

    @property
    def pixels(self):
        """The number of pixels counted."""
        return int(self.count.sum())

    @property
    def ece(self):
        """Expected calibration error: the sum over bins of (n_b / n) |mean p - mean y|, in [0, 1]; NaN if n = 0."""
        gaps = (self.probability - self.truth).reshape(BINS, FINE).sum(axis=1)
        return float(np.abs(gaps).sum()) / self.pixels if self.pixels else math.nan

    @property
    def adaptive_ece(self):
        """The same over `BINS` bins of equally many pixels, in the order of p; NaN if n = 0.

        All pixels of a fine bin count with its mean p and mean y. A fine bin on an edge is divided between both sides.
        """
        if not self.pixels:
            return math.nan
        shares = np.linspace(0, self.pixels, BINS + 1)
        reached = np.concatenate([[0], np.cumsum(self.count)])
        gaps = np.interp(shares, reached, np.concatenate([[0], np.cumsum(self.probability - self.truth)]))
        return float(np.abs(np.diff(gaps)).sum()) / self.pixels

    @property
    def brier(self):
        """Brier score: the mean of (p - y)^2, in [0, 1]; NaN if n = 0."""
        return float(self.squared_error.sum()) / self.pixels if self.pixels else math.nan

    def diagram(self):
        """The reliability diagram: a dict of lists over the bins that are not empty.

        low, high: the bin's edges. count: its pixels. probability, truth: their mean p and mean y.
        """
        count, p, y = (x.reshape(BINS, FINE).sum(axis=1) for x in (self.count, self.probability, self.truth))
        edges, filled = np.array([0, *EDGES, 1]), count > 0
        return {
            "low": edges[:-1][filled].tolist(),
            "high": edges[1:][filled].tolist(),
            "count": count[filled].tolist(),
            "probability": (p[filled] / count[filled]).tolist(),
            "truth": (y[filled] / count[filled]).tolist(),
        }


def boundary_band(truth, spacing=None):
    """The pixels within r of the truth's boundary, r = max(1, round(0.03 sqrt(H W))).

    A pixel's distance from the boundary is its distance to the nearest pixel of the other kind. So the band lies on
    both sides: foreground within r of background and background within r of foreground. The image's border is no
    boundary.

    truth: bool [H, W], or a volume [X, Y, Z] with X Y for H W.
    spacing: the pixel size along each axis, or None where all are equal. Distances are Euclidean, in units of the
    smallest pixel size.
    Returns bool of the same shape; it is empty where the truth is empty or full.
    """
    truth = np.asarray(truth, dtype=bool)
    band = np.zeros_like(truth)
    if truth.all() or not truth.any():
        return band
    steps = np.ones(truth.ndim) if spacing is None else np.asarray(spacing, dtype=float) / min(spacing)
    radius = max(1, round(0.03 * math.sqrt(truth.shape[0] * truth.shape[1])))
    # All of the band lies inside the box, and so does the nearest pixel of the other kind.
    box = bounding_box(truth, [int(radius / step) + 1 for step in steps])
    inside = truth[box]
    for kind in (inside, ~inside):
        band[box] |= kind & (distance_transform_edt(kind, sampling=steps) <= radius)
    return band
