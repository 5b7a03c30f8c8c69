"""Uncertainty scores of each case, and how well they rank the cases by their error."""

import math
import warnings

import numpy as np

from .diversity import mean_over_pairs, pair_dice, shared_pixels

SCORES = {"agreement": True, "expected_dice": True, "volume_spread": False}  # whether a higher score is more certain
INTERVAL = (5, 95)  # percentiles of the members' volumes
RETENTION_POINTS = 100  # of a retention curve, at most


def case_scores(mask, members, probability, unit=1.0):
    """The uncertainty scores of one case: a dict of floats, NaN where members or probability are missing.

        agreement      the mean Dice over pairs of members; two empty members agree (1)
        expected_dice  2 (sum of p in the mask) / (pixels of the mask + sum of p over the image), the expected Dice if
                       the probability p is calibrated
        volume_low, volume_high   the 5th and 95th percentile of the members' volumes, linearly interpolated
        volume_spread  the standard deviation of the members' volumes, divided by their mean

    mask: bool [...]. members: a list of such masks. probability: [...] in [0, 1], or None. unit: a pixel's volume.
    """
    scores = dict.fromkeys(("agreement", "expected_dice", "volume_low", "volume_high", "volume_spread"), math.nan)
    if probability is not None:
        inside, everywhere = _sum_inside(probability, mask), float(probability.sum(dtype=np.float64))
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


def _sum_inside(probability, mask):
    """The sum of a probability map in a mask; of a volume slice by slice, since indexing it by a mask takes seconds."""
    slices = [(probability, mask)] if mask.ndim < 3 else zip(probability.T, mask.T, strict=True)
    return sum(float((values * inside).sum(dtype=np.float64)) for values, inside in slices)


def rank_cases(uncertainty, error):
    """How well an uncertainty ranks the cases by their error, by rank correlation and by error retention.

    Returns a dict: "n", the number of cases. "spearman", the rank correlation, at best 1. "curve", the error retention:
    "error" is the mean error of the most certain cases and "kept" their share, at up to `RETENTION_POINTS` points;
    cases of equal uncertainty count with their mean error. "area", the mean of that error over all numbers of kept
    cases, 1 to n. "random", the area of an uninformed ranking, which is the mean error. "oracle", the area of a
    ranking by the error itself. Without cases all figures are NaN.
    uncertainty, error: one number for each case; cases where either is NaN are left out.
    """
    uncertainty, error = np.asarray(uncertainty, dtype=np.float64), np.asarray(error, dtype=np.float64)
    defined = ~(np.isnan(uncertainty) | np.isnan(error))
    uncertainty, error = uncertainty[defined], error[defined]
    result = dict.fromkeys(("spearman", "area", "random", "oracle"), math.nan) | {"n": len(error)}
    if not len(error):
        return result | {"curve": {"kept": [], "error": []}}
    if len(np.unique(uncertainty)) > 1 and len(np.unique(error)) > 1:
        from scipy.stats import spearmanr

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result["spearman"] = float(spearmanr(uncertainty, error).statistic)
    curve = _running_mean(uncertainty, error)
    result |= {"area": float(curve.mean()), "random": float(error.mean())}
    result["oracle"] = float(_running_mean(error, error).mean())
    shown = np.unique(np.linspace(0, len(curve) - 1, min(RETENTION_POINTS, len(curve))).round().astype(int))
    kept = ((shown + 1) / len(curve)).tolist()
    return result | {"curve": {"kept": kept, "error": curve[shown].tolist()}}


def _running_mean(uncertainty, error):
    """The mean error of the 1, 2, ... n most certain cases."""
    _, place, count = np.unique(uncertainty, return_inverse=True, return_counts=True)
    level = np.bincount(place, error) / count  # the mean error of the cases of equal uncertainty
    return np.cumsum(level.repeat(count)) / np.arange(1, len(error) + 1)
