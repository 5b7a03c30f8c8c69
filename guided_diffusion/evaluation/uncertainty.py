"""How sure an ensemble is of each case, and how well that ranks the cases by their error."""

import math
import warnings

import numpy as np

from .diversity import mean_over_pairs, pair_dice, shared_pixels

SCORES = {  # of a case, and whether a higher one means a surer answer
    "agreement": True,
    "expected_dice": True,
    "volume_spread": False,
}


INTERVAL = (5, 95)  # percentiles of the members' volumes


RETENTION_POINTS = 100  # of a retention curve, at most


def case_scores(mask, members, probability, unit=1.0):
    """How sure one case's answer is, by what was saved of it; NaN for what cannot be said.

        agreement      mean Dice over the pairs of members; two empty members agree (1)
        expected_dice  2 sum of p in the mask / (pixels of the mask + sum of p over the image): the Dice that is to be
                       expected if the probability p is right
        volume_low, volume_high   the 5th and 95th percentile of the members' volumes, linearly interpolated
        volume_spread  the standard deviation of their volumes over its mean

    mask: bool [...]; members: a list of the like; probability: [...] in [0, 1] or None; unit: a pixel's volume.
    """
    scores = dict.fromkeys(("agreement", "expected_dice", "volume_low", "volume_high", "volume_spread"), math.nan)
    if probability is not None:
        inside, everywhere = float(probability[mask].sum(dtype=np.float64)), float(probability.sum(dtype=np.float64))
        if everywhere:
            scores["expected_dice"] = 2 * inside / (np.count_nonzero(mask) + everywhere)
    if len(members) > 1:
        shared = shared_pixels(members)
        sizes = np.diag(shared)
        scores["agreement"] = mean_over_pairs(pair_dice(shared))
        scores["volume_low"], scores["volume_high"] = (np.percentile(sizes, INTERVAL) * unit).tolist()
        if sizes.any():
            scores["volume_spread"] = float(sizes.std() / sizes.mean())
    return scores


def judge(doubt, error):
    """How well the doubt ranks the cases by their error: {"spearman", "area", "random", "oracle", "n"} and the curve.

    spearman: the rank correlation of doubt and error; 1 is best. Retention: the surest cases are kept; "kept" and
    "error" are the share that is kept and the mean error among these, at `RETENTION_POINTS` or fewer places; cases
    of equal doubt count by their mean. area: the mean of that error over all numbers of cases kept, 1 to n. random: the
    area of a doubt that knows nothing of the error, which is the mean error. oracle: that of a doubt which sorts the
    cases by their error.
    doubt, error: one number a case; cases in which either is NaN are left out.
    """
    doubt, error = np.asarray(doubt, dtype=np.float64), np.asarray(error, dtype=np.float64)
    there = ~(np.isnan(doubt) | np.isnan(error))
    doubt, error = doubt[there], error[there]
    result = dict.fromkeys(("spearman", "area", "random", "oracle"), math.nan) | {"n": len(error)}
    if not len(error):
        return result | {"curve": {"kept": [], "error": []}}
    if len(np.unique(doubt)) > 1 and len(np.unique(error)) > 1:
        from scipy.stats import spearmanr

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result["spearman"] = float(spearmanr(doubt, error).statistic)
    curve = _running_mean(doubt, error)
    result |= {"area": float(curve.mean()), "random": float(error.mean())}
    result["oracle"] = float(_running_mean(error, error).mean())
    shown = np.unique(np.linspace(0, len(curve) - 1, min(RETENTION_POINTS, len(curve))).round().astype(int))
    kept = ((shown + 1) / len(curve)).tolist()
    return result | {"curve": {"kept": kept, "error": curve[shown].tolist()}}


def _running_mean(doubt, error):
    """The mean error of the 1, 2, ... n surest cases."""
    _, place, count = np.unique(doubt, return_inverse=True, return_counts=True)
    level = np.bincount(place, error) / count  # the mean error of the cases of each doubt
    return np.cumsum(level.repeat(count)) / np.arange(1, len(error) + 1)
