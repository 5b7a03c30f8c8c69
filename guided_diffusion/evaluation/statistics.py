"""How sure a mean over cases is: bootstrap intervals; and what else describes a set of values."""

import math

import numpy as np

RESAMPLES = 2000  # of the intervals in tables


AT_ONCE = 2**22  # numbers that are drawn, or weighed, in one go


class Resampling:
    """Bootstrap resamples of groups of cases (patients), each drawn with all of its cases.

    So cases of one patient do not count as independent. groups: a label for each case; resamples: how many times as
    many groups as there are, are drawn with replacement.
    """

    def __init__(self, groups, *, resamples=RESAMPLES, seed=0):
        labels, self.place = np.unique(np.asarray(groups), return_inverse=True)
        rng, weights, self.groups = np.random.default_rng(seed), [], len(labels)
        for rows in self._parts(resamples):
            drawn = rng.integers(self.groups, size=(len(rows), self.groups))
            drawn += np.arange(len(rows))[:, None] * self.groups
            counts = np.bincount(drawn.ravel(), minlength=len(rows) * self.groups)
            weights.append(counts.astype(np.uint16).reshape(len(rows), self.groups))
        self.weights = np.concatenate(weights)  # [resamples, groups], how often each was drawn

    def _parts(self, resamples):
        step = max(1, AT_ONCE // self.groups)
        return [range(low, min(low + step, resamples)) for low in range(0, resamples, step)]

    def interval(self, values, level=0.95):
        """The percentile interval of the mean of one value a case, NaN where it has none: (low, high), floats.

        (nan, nan) where no case has one.
        """
        values = np.asarray(values, dtype=np.float64)
        there = ~np.isnan(values)
        if not there.any():
            return math.nan, math.nan
        sums = np.bincount(self.place, np.where(there, values, 0), self.groups)
        counts = np.bincount(self.place, there, self.groups)
        totals = []
        for rows in self._parts(len(self.weights)):
            part = self.weights[rows.start : rows.stop].astype(np.float64)
            totals.append(part @ np.stack([sums, counts], axis=1))
        total, count = np.concatenate(totals).T
        low, high = np.quantile(total[count > 0] / count[count > 0], ((1 - level) / 2, (1 + level) / 2))
        return float(low), float(high)


def bootstrap_interval(values, groups=None, *, level=0.95, resamples=10_000, seed=0):
    """The percentile bootstrap interval of the mean: (low, high), floats.

    values: one number a case, shape [n], without NaN; for a paired comparison their differences. groups: a label for
    each case of what it belongs to (see `Resampling`), or None where each stands for itself. (nan, nan) for no values.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or np.isnan(values).any():
        raise ValueError("values must be one-dimensional and without NaN")
    if not len(values):
        return math.nan, math.nan
    labels = np.arange(len(values)) if groups is None else groups
    return Resampling(labels, resamples=resamples, seed=seed).interval(values, level)


def describe(values, resampling=None):
    """{"mean", "median", "std", "n", "low", "high"} of the n values that are defined (not NaN).

    std is the population's; low and high are the 95 % interval of the mean by a `Resampling` of the cases. All are
    NaN when n = 0, low and high also without a `resampling` and where fewer than two groups have a value.
    """
    values = np.asarray(values, dtype=np.float64)
    there = ~np.isnan(values)
    defined = values[there]
    described = dict.fromkeys(("mean", "median", "std", "low", "high"), math.nan) | {"n": len(defined)}
    if not len(defined):  # numpy would warn
        return described
    described |= {"mean": float(defined.mean()), "median": float(np.median(defined)), "std": float(defined.std())}
    if resampling is not None and len(np.unique(resampling.place[there])) > 1:
        described["low"], described["high"] = resampling.interval(values)
    return described
