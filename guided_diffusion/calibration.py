"""Calibration of a foreground probability: reliability table, expected calibration error, Brier score, boundary band.

Most pixels of a medical image are easy background, and over all of them any model looks calibrated. So both figures
are also taken in a band around the truth's boundary, where the answer is in doubt. Pure NumPy; it never sees a model.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt

BINS = 15
EDGES = np.linspace(0, 1, BINS + 1)[1:-1]


@dataclass(frozen=True)
class ReliabilityTable:
    """Sums over pixels by bin of the foreground probability p. Tables of several cases add up by `+`.

    The `BINS` bins share [0, 1] equally; a p on an edge belongs to the lower one.
    count: int64 [BINS], the number of pixels. probability, truth, squared_error: float64 [BINS], their sums of p, of
    the truth y in [0, 1] and of (p - y)^2.
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
        bins = np.searchsorted(EDGES, p)
        sums = (np.bincount(bins, weights, BINS) for weights in (p, y, (p - y) ** 2))
        return cls(np.bincount(bins, minlength=BINS), *sums)

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
        return float(np.abs(self.probability - self.truth).sum()) / self.pixels if self.pixels else math.nan

    @property
    def brier(self):
        """Brier score, the mean of (p - y)^2, in [0, 1]; NaN without pixels."""
        return float(self.squared_error.sum()) / self.pixels if self.pixels else math.nan


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
    box = _box(truth, [int(radius / step) + 1 for step in steps])
    inside = truth[box]
    for kind in (inside, ~inside):
        band[box] |= kind & (distance_transform_edt(kind, sampling=steps) <= radius)
    return band


def _box(truth, margins):
    """Slices that hold the truth and a margin of so many pixels along each axis."""
    box = []
    for axis, margin in enumerate(margins):
        others = tuple(other for other in range(truth.ndim) if other != axis)
        marked = np.flatnonzero(truth.any(axis=others))
        box.append(slice(max(marked[0] - margin, 0), marked[-1] + 1 + margin))
    return tuple(box)
