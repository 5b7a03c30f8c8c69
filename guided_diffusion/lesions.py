"""Lesion-wise detection: connected components of prediction and truth, matched one to one."""

import math

import numpy as np
from scipy.optimize import linear_sum_assignment

LESION_METRICS = ("lesion_f1", "lesion_sensitivity", "lesion_precision")


def detection(prediction, truth, least_iou):
    """How many of the truth's lesions were found, and how much was found that is none.

    Lesions are connected components, over edges and corners (8 neighbours in 2-D, 26 in 3-D), of whatever size. Each
    predicted one is matched with at most one true one and the other way round, so that the sum of their IoUs is
    largest (Hungarian algorithm); a pair counts as found (TP) when its IoU is at least `least_iou`.

        lesion_f1           2 TP / (2 TP + FP + FN)
        lesion_sensitivity  TP / (TP + FN)           the share of true lesions that were found
        lesion_precision    TP / (TP + FP)           the share of predicted lesions that are true

    prediction, truth: bool arrays of equal shape, 2-D or 3-D. least_iou: above 0, at most 1.
    Returns a dict of `LESION_METRICS` in [0, 1], NaN where the denominator is 0, and the counts "lesions" (true ones),
    "lesions_predicted" and "lesions_found" (TP).
    """
    ious = component_ious(prediction, truth)
    rows, columns = linear_sum_assignment(np.where(ious >= least_iou, ious, 0), maximize=True)
    found = int((ious[rows, columns] >= least_iou).sum())
    predicted, true = ious.shape
    return {
        "lesion_f1": 2 * found / (predicted + true) if predicted + true else math.nan,
        "lesion_sensitivity": found / true if true else math.nan,
        "lesion_precision": found / predicted if predicted else math.nan,
        "lesions": true,
        "lesions_predicted": predicted,
        "lesions_found": found,
    }


def component_ious(prediction, truth):
    """IoU of each connected component of the prediction with each of the truth: float64 [predicted, true]."""
    own, predicted = components(prediction)
    true, count = components(truth)
    pairs = np.bincount(own.ravel() * (count + 1) + true.ravel(), minlength=(predicted + 1) * (count + 1))
    both = pairs.reshape(predicted + 1, count + 1)  # how many pixels have this label here and that one there; 0: none
    sizes = both.sum(axis=1)[1:, None] + both.sum(axis=0)[None, 1:]
    shared = both[1:, 1:]
    return shared / np.maximum(sizes - shared, 1)


def components(mask):
    """The connected components of a bool mask, over edges and corners: labels int64 (0: none) and their number."""
    from scipy.ndimage import label

    labels, count = label(mask, np.ones((3,) * mask.ndim))
    return labels.astype(np.int64), count
