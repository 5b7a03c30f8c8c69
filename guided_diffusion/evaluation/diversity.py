"""A set of predicted masks against a set of raters' masks: GED squared, matching, collective insight, references.

Masks are bool arrays of equal shape, 2-D or 3-D. In these comparisons two empty masks agree: their IoU and Dice are 1.
"""

import math

import numpy as np

from ..data.truth import majority
from .metrics import bounding_box, matched_pairs, overlap
from .statistics import mean_defined

LEVEL_SETS = 16
BLOCK_PIXELS = 2**20  # multiplied at once; float32 counts exactly up to 2^24
SOFT_DICE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
SET_FIGURES = (
    "ged2_unbiased",
    "matched_iou",
    "ged2",
    "ged2_floor",
    "dice_max",
    "matched_dice",
    "collective_insight",
    "combined_sensitivity",
    "diversity_agreement",
)
REFERENCES = (
    "reader_dice",
    "reader_ged2_unbiased",
    "reader_matched_iou",
    "majority_rater_dice",
    "majority_ged2_unbiased",
    "majority_matched_iou",
)


def level_sets(probability, count=LEVEL_SETS):
    """The level sets of a probability map, p > (k + 0.5) / n for k = 0..n - 1: a deterministic model's set of masks.

    probability: [...] in [0, 1]. Returns a list of n = `count` bool arrays, each within the one before. Their mean at a
    pixel is the probability, rounded to multiples of 1 / n.
    """
    return [probability > (k + 0.5) / count for k in range(count)]


def level_dice(probability, truth, count=LEVEL_SETS):
    """The mean Dice of the `level_sets` of a probability with a mask: what members that are as sure score, whatever
    their shapes; two empty masks are left out. probability: [...] in [0, 1]; truth: bool [...]. NaN if all are empty.
    """
    above = np.ceil(probability * count - 0.5).astype(np.int64)  # the number of thresholds below the probability

    def sizes(pixels):
        return np.bincount(pixels, minlength=count + 1)[::-1].cumsum()[-2::-1]  # of level k: pixels above more than k

    total = sizes(above.ravel()) + np.count_nonzero(truth)
    with np.errstate(invalid="ignore"):
        return mean_defined(2 * sizes(above[truth]) / total)


def shared_pixels(masks):
    """The number of pixels that each two masks share: float64 [n, n]; the diagonal has the masks' sizes."""
    stack = np.stack(masks)
    anywhere = stack.any(axis=0)
    if not anywhere.any():
        return np.zeros((len(stack), len(stack)))
    flat = stack[(slice(None), *bounding_box(anywhere))].reshape(len(stack), -1)
    shared = np.zeros((len(stack), len(stack)))
    for low in range(0, flat.shape[1], BLOCK_PIXELS):
        part = flat[:, low : low + BLOCK_PIXELS].astype(np.float32)
        shared += part @ part.T
    return shared


def pair_iou(shared):
    """IoU of each two masks, from their `shared_pixels`: float64 [n, n], 1 for two empty masks."""
    sizes = np.diag(shared)
    either = sizes[:, None] + sizes - shared
    return np.where(either > 0, shared / np.maximum(either, 1), 1.0)


def pair_dice(shared):
    """Dice of each two masks, from their `shared_pixels`: float64 [n, n], 1 for two empty masks."""
    total = np.diag(shared)[:, None] + np.diag(shared)
    return np.where(total > 0, 2 * shared / np.maximum(total, 1), 1.0)


def mean_over_pairs(figures):
    """The mean of a symmetric matrix over pairs of different masks; NaN for a single mask."""
    first, second = np.triu_indices(len(figures), 1)
    return float(figures[first, second].mean()) if len(first) else math.nan


def ged_squared(iou, samples):
    """Generalised energy distance, squared: 2 E[d(S, Y)] - E[d(S, S')] - E[d(Y, Y')], d = 1 - IoU; 0 is best.

    This is the V-statistic, which papers report: each mask also pairs with itself, so equal sets have distance 0. A
    perfect sampler does not reach 0, see `ged_floor`.
    iou: `pair_iou` of all masks; the first `samples` of them are samples, the others raters.
    """
    between, own, raters = _distances_by_side(iou, samples)
    return float(2 * between.mean() - own.mean() - raters.mean())


def ged_squared_unbiased(iou, samples, drawn=True):
    """The estimate of GED squared without pairs of a mask with itself; 0 is a perfect sampler's mean.

    Its expectation does not depend on the numbers of samples and raters, and it may be negative. A single sample is a
    deterministic answer, so E[d(S, S')] = 0. With one rater E[d(Y, Y')] is unknown and taken as 0, which makes this the
    energy score.
    iou, samples: see `ged_squared`. drawn: False for level sets. Their thresholds are no random draws but the midpoints
    of a quadrature of E[d(S, S')] over all pairs of thresholds, to which pairs of equal thresholds belong.
    """
    between, own, raters = _distances_by_side(iou, samples)
    within = mean_over_pairs(own) if drawn and samples > 1 else own.mean()
    return float(2 * between.mean() - within - (mean_over_pairs(raters) if len(raters) > 1 else 0))


def ged_floor(iou, samples):
    """What `ged_squared` of a perfect sampler is on average: (1 / E + 1 / R) E[d(Y, Y')] over pairs of raters.

    If E samples and R raters come from one distribution, E[d(S, Y)] = E[d(Y, Y')], and 1 / E and 1 / R of the pairs of
    each set are those of a mask with itself, at distance 0. NaN for a single rater. See `ged_squared`.
    """
    raters = _distances_by_side(iou, samples)[2]
    return (1 / samples + 1 / len(raters)) * mean_over_pairs(raters)


def _distances_by_side(iou, samples):
    """d = 1 - IoU: [E, R] of samples and raters, [E, E] of samples, [R, R] of raters."""
    distance = 1 - iou
    return distance[:samples, samples:], distance[:samples, :samples], distance[samples:, samples:]


def best_matching(between):
    """The mean IoU, or Dice, of the best one-to-one matching of samples and raters (Hungarian algorithm), in [0, 1].

    Both sides are repeated to the least common multiple of their numbers, so that each mask has the same weight.
    between: the IoU or Dice of E samples and R raters, [E, R].
    """
    count = math.lcm(*between.shape)
    repeated = between.repeat(count // between.shape[0], axis=0).repeat(count // between.shape[1], axis=1)
    rows, columns = matched_pairs(repeated)
    return float(repeated[rows, columns].mean())


def collective_insight(samples, raters, iou, dice):
    """The collective insight score of CIMD (arXiv 2304.04745) and the three figures that it combines.

    The paper abbreviates it CI; it is a score from 0 to 1 and no confidence interval.

        combined_sensitivity S  |A and B| / |B|, A the union of all samples, B that of all raters
        dice_max             D  mean over raters of the largest Dice to any sample; others call it Dice_max
        diversity_agreement  V  1 - (|v_min(S) - v_min(Y)| + |v_max(S) - v_max(Y)|) / 2
        collective_insight      3 S D V / (S + D + V)

    v_min and v_max are the smallest and the largest variance among the pairs of a set's masks. The paper does not
    define a pair's variance in full; here it is 1 - IoU, the distance of GED (0 for a single mask). The combined
    sensitivity is 1 where both unions are empty and 0 where only B is.

    samples, raters: lists of masks. iou, dice: `pair_iou` and `pair_dice` of samples and raters, in this order.
    Returns a dict of floats.
    """
    count = len(samples)
    predicted, marked = np.any(samples, axis=0), np.any(raters, axis=0)
    if marked.any():
        sensitivity = float(np.count_nonzero(predicted & marked) / np.count_nonzero(marked))
    else:
        sensitivity = float(not predicted.any())
    match = float(dice[:count, count:].max(axis=0).mean())
    spreads = []
    for own in (1 - iou[:count, :count], 1 - iou[count:, count:]):
        pairs = own[np.triu_indices(len(own), 1)]
        spreads.append((pairs.min(), pairs.max()) if len(pairs) else (0.0, 0.0))
    agreement = float(1 - np.abs(np.subtract(*spreads)).mean())
    total = sensitivity + match + agreement
    return {
        "collective_insight": 3 * sensitivity * match * agreement / total if total else 0.0,
        "combined_sensitivity": sensitivity,
        "dice_max": match,
        "diversity_agreement": agreement,
    }


def compare_sets(samples, raters, drawn=True):
    """A dict of `SET_FIGURES` (floats) of a list of predicted masks and a list of raters' masks, neither empty.

    drawn: see `ged_squared_unbiased`.
    """
    shared, count = shared_pixels([*samples, *raters]), len(samples)
    iou, dice = pair_iou(shared), pair_dice(shared)
    return {
        "ged2_unbiased": ged_squared_unbiased(iou, count, drawn),
        "matched_iou": best_matching(iou[:count, count:]),
        "ged2": ged_squared(iou, count),
        "ged2_floor": ged_floor(iou, count),
        "matched_dice": best_matching(dice[:count, count:]),
        **collective_insight(samples, raters, iou, dice),
    }


def compare_with_raters(samples, raters, drawn=True):
    """{"ged2_unbiased", "matched_iou"} of two lists of masks, neither empty; drawn: see `ged_squared_unbiased`."""
    iou, count = pair_iou(shared_pixels([*samples, *raters])), len(samples)
    return {
        "ged2_unbiased": ged_squared_unbiased(iou, count, drawn),
        "matched_iou": best_matching(iou[:count, count:]),
    }


def soft_dice(probability, fraction):
    """Dice_soft: the mean Dice of p > t and of the raters' fraction > t, over t in `SOFT_DICE_LEVELS`.

    probability, fraction: [...] in [0, 1]. Levels where both are empty are left out; NaN where all are.
    """
    return mean_defined([overlap(probability > t, fraction > t)["dice"] for t in SOFT_DICE_LEVELS])


def reference_figures(raters):
    """The `REFERENCES` that stand beside the figures of a model, of a list of at least two raters' masks.

        reader_*    each reader as the one answer to the others, mean over readers: Dice with the others' majority,
                    unbiased GED squared and matched IoU to the others
        majority_*  the majority of all as the one answer to all: mean Dice to each rater, unbiased GED squared and
                    matched IoU; what a perfect consensus without any diversity scores

    Returns a dict of floats, NaN where undefined.
    """
    found = {name: [] for name in ("reader_dice", "reader_ged2_unbiased", "reader_matched_iou")}
    everyone = np.stack(raters)
    for number, reader in enumerate(raters):
        others = np.delete(everyone, number, axis=0)
        found["reader_dice"].append(overlap(reader, majority(others))["dice"])
        for figure, value in compare_with_raters([reader], list(others)).items():
            found[f"reader_{figure}"].append(value)
    consensus = majority(everyone)
    best = compare_with_raters([consensus], raters)
    return {
        **{name: mean_defined(values) for name, values in found.items()},
        "majority_rater_dice": mean_defined(dice_to_raters(consensus, raters)),
        **{f"majority_{figure}": value for figure, value in best.items()},
    }


def dice_to_raters(prediction, raters):
    """The Dice of one mask with each rater's mask: a list of floats, NaN for two empty masks."""
    return [overlap(prediction, rater)["dice"] for rater in raters]
