"""Calibration of a foreground probability: reliability table, expected calibration error, Brier score, boundary band.

Most pixels of a medical image are easy background, and over all of them any model looks calibrated. So all figures
are also taken in a band around the truth's boundary, where the answer is in doubt. Pure NumPy; it never sees a model.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt

from .metrics import joint_box

BINS = 15


FINE = 256  # fine bins to each of them


EDGES = np.linspace(0, 1, BINS + 1)[1:-1]


FINE_EDGES = np.arange(1, BINS * FINE) / (BINS * FINE)


FINE_EDGES[FINE - 1 :: FINE] = EDGES  # to the bit


@dataclass(frozen=True)
class ReliabilityTable:
    """Sums over pixels by fine bin of the foreground probability p. Tables of several cases add up by `+`.

    The `BINS` bins of the reliability diagram share [0, 1] equally, and each of them `FINE` fine ones, from which the
    adaptive bins are made; a p on an edge belongs to the lower one.
    count: int64 [BINS * FINE], the number of pixels. probability, truth, squared_error: float64 [BINS * FINE], their
    sums of p, of the truth y in [0, 1] and of (p - y)^2.
    """

    count: np.ndarray
    probability: np.ndarray
    truth: np.ndarray
    squared_error: np.ndarray

    @classmethod
    def of(cls, probability, truth):
        """The table of pixels with these probabilities and truths, two arrays of equal shape with values in [0, 1].

        truth: of one rater 0 or 1 (or bool), of several the fraction who marked the pixel. Raises ValueError for
        shapes that differ and for probabilities outside [0, 1].
        """
        p, y = (np.asarray(values, dtype=np.float64).ravel() for values in (probability, truth))
        if np.shape(probability) != np.shape(truth):
            raise ValueError(
                f"probability and truth must agree in shape, not {np.shape(probability)}, {np.shape(truth)}"
            )
        if not ((p >= 0) & (p <= 1)).all():
            raise ValueError("probabilities must lie in [0, 1]")
        return cls._sums(p, np.ones_like(p), y, (p - y) ** 2)

    @classmethod
    def weighted(cls, probability, count, truth):
        """The table of `count` pixels at each probability, whose truths add up to `truth` and are 0 or 1."""
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
        """Expected calibration error, sum over bins of (n_b / n) |mean p - mean y| in [0, 1]; NaN without pixels."""
        gaps = (self.probability - self.truth).reshape(BINS, FINE).sum(axis=1)
        return float(np.abs(gaps).sum()) / self.pixels if self.pixels else math.nan

    @property
    def adaptive_ece(self):
        """The same over `BINS` bins that hold equally many pixels each, in the order of p; NaN without pixels.

        Within a fine bin all pixels count as one of its mean p and mean y; one that an edge falls into is shared out.
        """
        if not self.pixels:
            return math.nan
        shares = np.linspace(0, self.pixels, BINS + 1)
        reached = np.concatenate([[0], np.cumsum(self.count)])
        gaps = np.interp(shares, reached, np.concatenate([[0], np.cumsum(self.probability - self.truth)]))
        return float(np.abs(np.diff(gaps)).sum()) / self.pixels

    @property
    def brier(self):
        """Brier score, the mean of (p - y)^2, in [0, 1]; NaN without pixels."""
        return float(self.squared_error.sum()) / self.pixels if self.pixels else math.nan

    def diagram(self):
        """What a reliability diagram shows, of the `BINS` bins that are not empty: lists by name.

        low, high: a bin's edges; count: its pixels; probability, truth: their mean p and mean y.
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

    A pixel's distance from the boundary is that to the nearest pixel of the other kind, so the band has both sides
    of it: the foreground within r of background and the background within r of foreground. The image's border is no
    boundary.

    truth: bool [H, W], or a volume [X, Y, Z] whose in-plane size X Y stands for H W.
    spacing: the pixel size along each axis, or None where all are equal. Distances are Euclidean, in units of the
    smallest.
    Returns bool of the same shape: nothing where the truth is empty or full.
    """
    truth = np.asarray(truth, dtype=bool)
    band = np.zeros_like(truth)
    if truth.all() or not truth.any():
        return band
    steps = np.ones(truth.ndim) if spacing is None else np.asarray(spacing, dtype=float) / min(spacing)
    radius = max(1, round(0.03 * math.sqrt(truth.shape[0] * truth.shape[1])))
    # Outside the box is no band, and no pixel inside has its nearest pixel of the other kind there.
    box = joint_box(truth, [int(radius / step) + 1 for step in steps])
    inside = truth[box]
    for kind in (inside, ~inside):
        band[box] |= kind & (distance_transform_edt(kind, sampling=steps) <= radius)
    return band
