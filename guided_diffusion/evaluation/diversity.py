"""A set of predicted masks against a set of raters' masks: GED squared, matched IoU, collective insight, Dice.

Masks are bool arrays of equal shape, 2-D or 3-D. In these comparisons two empty masks agree: their IoU and Dice are 1.
"""

import math

import numpy as np
from scipy.optimize import linear_sum_assignment

from .metrics import bounding_box, overlap

LEVEL_SETS = 16
BLOCK_PIXELS = 2**20  # multiplied at once; float32 counts exactly up to 2^24
SET_FIGURES = (
    "ged2",
    "matched_iou",
    "collective_insight",
    "combined_sensitivity",
    "dice_match",
    "diversity_agreement",
)


def level_sets(probability):
    """The level sets of a probability map, p > (k + 0.5) / 16 for k = 0..15: a deterministic model's set of masks.

    probability: [...] in [0, 1]. Returns a list of 16 bool arrays, each within the one before. Their mean at a pixel
    is the probability, rounded to sixteenths.
    """
    return [probability > (k + 0.5) / LEVEL_SETS for k in range(LEVEL_SETS)]


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

    This is the V-statistic: each mask also pairs with itself, so equal sets have distance 0.
    iou: `pair_iou` of all masks; the first `samples` of them are samples, the others raters.
    """
    distance = 1 - iou
    between, own, raters = distance[:samples, samples:], distance[:samples, :samples], distance[samples:, samples:]
    return float(2 * between.mean() - own.mean() - raters.mean())


def matched_iou(between):
    """Mean IoU of the best one-to-one matching of samples and raters (Hungarian algorithm), in [0, 1].

    Both sides are repeated to the least common multiple of their numbers, so that each mask has the same weight.
    between: the IoU of E samples and R raters, [E, R].
    """
    count = math.lcm(*between.shape)
    repeated = between.repeat(count // between.shape[0], axis=0).repeat(count // between.shape[1], axis=1)
    rows, columns = linear_sum_assignment(repeated, maximize=True)
    return float(repeated[rows, columns].mean())


def collective_insight(samples, raters, iou, dice):
    """The collective insight score of CIMD (arXiv 2304.04745) and the three figures that it combines.

        combined_sensitivity S  |A and B| / |B|, A the union of all samples, B that of all raters
        dice_match           D  mean over raters of the largest Dice to any sample
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
        "dice_match": match,
        "diversity_agreement": agreement,
    }


def compare_sets(samples, raters):
    """A dict of `SET_FIGURES` (floats) of a list of predicted masks and a list of raters' masks, neither empty."""
    shared = shared_pixels([*samples, *raters])
    iou, dice = pair_iou(shared), pair_dice(shared)
    between = iou[: len(samples), len(samples) :]
    return {
        "ged2": ged_squared(iou, len(samples)),
        "matched_iou": matched_iou(between),
        **collective_insight(samples, raters, iou, dice),
    }


def dice_to_raters(prediction, raters):
    """The Dice of one mask with each rater's mask: a list of floats, NaN for two empty masks."""
    return [overlap(prediction, rater)["dice"] for rater in raters]
