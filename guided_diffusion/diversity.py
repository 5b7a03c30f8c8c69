"""How well a set of predicted masks stands for a set of raters: GED squared, matched IoU, Dice to each rater.

Masks are bool arrays of equal shape, 2-D or 3-D. Here, where sets are compared, two empty masks agree: their IoU
is 1. Pure NumPy and SciPy; it never sees a model.
"""

import math

import numpy as np
from scipy.optimize import linear_sum_assignment

from .metrics import overlap

LEVELS = 16


def level_masks(probability):
    """The masks that a deterministic model's probability map stands for: it, cut above (k + 0.5) / 16, k = 0..15.

    probability: [...] in [0, 1]. Returns a list of 16 bool arrays, each within the one before. At each pixel the
    share of them that has it is the probability, rounded to sixteenths.
    """
    return [probability > (k + 0.5) / LEVELS for k in range(LEVELS)]


def iou_matrix(first, second):
    """IoU of each mask of one list with each of the other: float64 [len(first), len(second)], 1 for two empty ones."""
    sizes = [np.array([np.count_nonzero(mask) for mask in masks]) for masks in (first, second)]
    both = np.array([[np.count_nonzero(a & b) for b in second] for a in first])  # pair by pair: volumes are large
    either = sizes[0][:, None] + sizes[1] - both
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def ged_squared(between, samples, raters):
    """Generalised energy distance, squared: 2 E[d(S, Y)] - E[d(S, S')] - E[d(Y, Y')], d = 1 - IoU; 0 is best.

    All pairs count, also each mask with itself, so that it is the distance of the two sets as they are.
    between, samples, raters: `iou_matrix` of samples and raters, of samples and of raters among themselves.
    """
    return float(2 * (1 - between).mean() - (1 - samples).mean() - (1 - raters).mean())


def matched_iou(between):
    """Mean IoU of the best one-to-one matching of samples and raters (Hungarian algorithm), in [0, 1].

    Both sides are repeated to the least common multiple of their numbers, so that each weighs the same in all.
    between: `iou_matrix` of samples [E] and raters [R].
    """
    count = math.lcm(*between.shape)
    repeated = between.repeat(count // between.shape[0], axis=0).repeat(count // between.shape[1], axis=1)
    rows, columns = linear_sum_assignment(repeated, maximize=True)
    return float(repeated[rows, columns].mean())


def compare_sets(samples, raters):
    """{"ged2", "matched_iou"} of a list of predicted masks and a list of raters' masks, neither empty."""
    between = iou_matrix(samples, raters)
    ged2 = ged_squared(between, iou_matrix(samples, samples), iou_matrix(raters, raters))
    return {"ged2": ged2, "matched_iou": matched_iou(between)}


def rater_dice(prediction, raters):
    """Mean Dice of one mask to each rater's; NaN ones, of two empty masks, are left out. NaN if all are."""
    values = [overlap(prediction, rater)["dice"] for rater in raters]
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan
