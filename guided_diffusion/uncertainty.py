"""How much an ensemble doubts its answer, per pixel and per case, and whether that doubt tells where it is wrong."""

import math
import warnings
from typing import NamedTuple

import numpy as np

from .diversity import mean_over_pairs, pair_dice, shared_pixels

SCORES = {  # of a case, and whether a higher one means a surer answer
    "agreement": True,
    "expected_dice": True,
    "volume_spread": False,
}
INTERVAL = (5, 95)  # percentiles of the members' volumes
POINTS = 100  # of a retention curve, at most


class PixelUncertainty(NamedTuple):
    """What `pixel_uncertainty` finds, each of one shape [...].

    mean: of the members' soft predictions p, in [0, 1]. variance: of p, in [0, 0.25]. entropy: H(mean), in [0, 1] bit.
    mutual_information: H(mean) - mean of H(p), in [0, 1] bit: the part of the entropy that is the members'
    disagreement; the rest is what each of them doubts by itself.
    """

    mean: np.ndarray
    variance: np.ndarray
    entropy: np.ndarray
    mutual_information: np.ndarray


def pixel_uncertainty(soft):
    """The `PixelUncertainty` of the members' soft predictions [E, ...] in [0, 1], each of [...] as float64."""
    soft = np.asarray(soft, dtype=np.float64)
    mean = soft.mean(axis=0)
    total = entropy(mean)
    own = entropy(soft).mean(axis=0)
    return PixelUncertainty(mean, soft.var(axis=0), total, np.maximum(total - own, 0))


def entropy(p):
    """H(p) = -p log2 p - (1 - p) log2 (1 - p), in bits, 0 for 0 and 1."""
    p = np.asarray(p, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    return np.where((p > 0) & (p < 1), bits, 0.0)


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
    """Whether the doubt tells the error, over cases: {"spearman", "area", "random", "oracle", "n"} and the curve.

    spearman: the rank correlation of doubt and error; 1 is best. Retention: the surest cases are kept; "kept" and
    "error" are the share that is kept and the mean error among these, at `POINTS` or fewer places; cases of equal
    doubt count by their mean. area: the mean of that error over all numbers of cases kept, 1 to n. random: the area
    where the doubt tells nothing, which is the mean error; oracle: where it sorts the cases by their error.
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
    shown = np.unique(np.linspace(0, len(curve) - 1, min(POINTS, len(curve))).round().astype(int))
    kept = ((shown + 1) / len(curve)).tolist()
    return result | {"curve": {"kept": kept, "error": curve[shown].tolist()}}


def _running_mean(doubt, error):
    """The mean error of the 1, 2, ... n surest cases."""
    _, place, count = np.unique(doubt, return_inverse=True, return_counts=True)
    level = np.bincount(place, error) / count  # the mean error of the cases of each doubt
    return np.cumsum(level.repeat(count)) / np.arange(1, len(error) + 1)
