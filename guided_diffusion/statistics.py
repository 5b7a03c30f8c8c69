"""How sure a mean over cases is: bootstrap intervals, also of paired differences."""

import numpy as np


def bootstrap_interval(values, *, level=0.95, resamples=10_000, seed=0):
    """The percentile bootstrap interval of the mean: (low, high), floats.

    values: one number a case, shape [n], without NaN; for a paired comparison their differences. Cases are drawn with
    replacement `resamples` times. (nan, nan) for no values.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or np.isnan(values).any():
        raise ValueError("values must be one-dimensional and without NaN")
    if not len(values):
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
