"""Bootstrap intervals of means over cases, and the statistics in the tables."""

import math

import numpy as np

RESAMPLES = 2000  # of the intervals in tables
BLOCK_SIZE = 2**22  # random numbers, or weights, held in memory at once


class Resampling:
    """Bootstrap resamples of groups of cases, usually patients: a drawn group brings all of its cases.

    So cases of one patient do not count as independent.
    groups: a label for each case. resamples: how many resamples; each draws as many groups as there are, with
    replacement.
    """

    def __init__(self, groups, *, resamples=RESAMPLES, seed=0):
        labels, self.group_index = np.unique(np.asarray(groups), return_inverse=True)
        rng, weights, self.groups = np.random.default_rng(seed), [], len(labels)
        for rows in self._blocks(resamples):
            drawn = rng.integers(self.groups, size=(len(rows), self.groups))
            drawn += np.arange(len(rows))[:, None] * self.groups
            counts = np.bincount(drawn.ravel(), minlength=len(rows) * self.groups)
            weights.append(counts.astype(np.uint16).reshape(len(rows), self.groups))
        self.weights = np.concatenate(weights)  # [resamples, groups], how often each group was drawn

    def _blocks(self, resamples):
        step = max(1, BLOCK_SIZE // self.groups)
        return [range(low, min(low + step, resamples)) for low in range(0, resamples, step)]

    def interval(self, values, level=0.95, denominators=None):
        """The percentile interval of the mean: (low, high), floats; (nan, nan) where no value is defined.

        values: one number for each case, NaN where it is undefined. denominators: for each case, for the interval of
        the ratio of both sums; by default 1, which is the mean.
        """
        values = np.asarray(values, dtype=np.float64)
        defined = ~np.isnan(values)
        if not defined.any():
            return math.nan, math.nan
        sums = np.bincount(self.group_index, np.where(defined, values, 0), self.groups)
        weights = defined if denominators is None else np.where(defined, denominators, 0)
        counts = np.bincount(self.group_index, weights, self.groups)
        totals = []
        for rows in self._blocks(len(self.weights)):
            block = self.weights[rows.start : rows.stop].astype(np.float64)
            totals.append(block @ np.stack([sums, counts], axis=1))
        total, count = np.concatenate(totals).T
        low, high = np.quantile(total[count > 0] / count[count > 0], ((1 - level) / 2, (1 + level) / 2))
        return float(low), float(high)


def describe_values(values, resampling=None):
    """{"mean", "median", "std", "n", "low", "high"} of the n values that are not NaN.

    std is the population's. low and high are the 95 % interval of the mean, by a `Resampling` of the cases. All but n
    are NaN when n = 0. low and high are NaN also without a `resampling` and where fewer than two groups have a value.
    """
    values = np.asarray(values, dtype=np.float64)
    is_defined = ~np.isnan(values)
    defined = values[is_defined]
    described = dict.fromkeys(("mean", "median", "std", "low", "high"), math.nan) | {"n": len(defined)}
    if not len(defined):  # numpy would warn
        return described
    described |= {"mean": float(defined.mean()), "median": float(np.median(defined)), "std": float(defined.std())}
    if resampling is not None and len(np.unique(resampling.group_index[is_defined])) > 1:
        described["low"], described["high"] = resampling.interval(values)
    return described


def describe_ratios(numerators, denominators, resampling):
    """As `describe_values`, of ratios over cases: "mean" is the ratio of the sums of both.

    The sums weigh each case by its denominator, so cases of a small one do not decide, and cases of 0 count in the
    numerator. low and high are the interval of this ratio. n counts the cases whose numerator is defined; median and
    std are of the ratios of single cases, where the denominator is above 0. NaN all where the denominators' sum is 0.
    numerators: one number for each case, NaN where it is undefined. denominators: numbers of at least 0.
    """
    numerators, denominators = (np.asarray(values, dtype=np.float64) for values in (numerators, denominators))
    defined = ~np.isnan(numerators)
    total = denominators[defined].sum()
    if not total:
        return describe_values([])
    each = numerators[defined & (denominators > 0)] / denominators[defined & (denominators > 0)]
    described = describe_values(each) | {"mean": float(numerators[defined].sum() / total), "n": int(defined.sum())}
    if len(np.unique(resampling.group_index[defined])) > 1:
        described["low"], described["high"] = resampling.interval(numerators, denominators=denominators)
    return described


def mean_defined(values):
    """The mean of the values that are not NaN; NaN without any."""
    return describe_values(values)["mean"]
