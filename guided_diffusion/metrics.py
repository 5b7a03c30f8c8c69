"""Overlap and surface metrics of one mask against its truth, by the rules of section 7 of the design.

A case is one 2-D image or one whole volume, and one class of it. Metrics are computed per case and then averaged over
cases. A volume is one case, however many slices it has; rows of slices and rows of volumes must never meet in one
call of `summarise`, which is the caller's duty.
"""

import math
import warnings

import numpy as np

METRICS = ("dice", "iou", "sensitivity", "precision", "hd95")


def evaluate_mask(prediction, truth, spacing=None):
    """All metrics of one case.

    prediction, truth: bool arrays of equal shape, [H, W] or [X, Y, Z]. spacing: see `hd95`.
    Returns a dict with each of `METRICS` (float) and "empty": which of the two masks is empty, one of "", "both",
    "prediction" and "truth". See `overlap` and `hd95` for the values that empty masks get.
    """
    row = overlap(prediction, truth)
    row["hd95"] = hd95(prediction, truth, spacing)
    empty = {(True, True): "", (False, False): "both", (False, True): "prediction", (True, False): "truth"}
    row["empty"] = empty[bool(np.any(prediction)), bool(np.any(truth))]
    return row


def overlap(prediction, truth):
    """Overlap of two masks, from the pixels they share (TP), the prediction alone has (FP) and the truth alone (FN).

        dice         2 TP / (2 TP + FP + FN)
        iou          TP / (TP + FP + FN)
        sensitivity  TP / (TP + FN)             undefined without truth
        precision    TP / (TP + FP)             undefined without prediction

    prediction, truth: bool arrays of equal shape, 2-D or 3-D.
    Returns a dict of floats in [0, 1], NaN where the denominator is 0. So if both masks are empty all four are NaN;
    if only the prediction is, dice, iou and sensitivity are 0 and precision is NaN; if only the truth is, dice, iou
    and precision are 0 and sensitivity is NaN.
    Raises ValueError for arrays that are not bool, differ in shape or are neither 2-D nor 3-D.
    """
    prediction, truth = _as_masks(prediction, truth)
    tp = int(np.count_nonzero(prediction & truth))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    return {
        "dice": _ratio(2 * tp, 2 * tp + fp + fn),
        "iou": _ratio(tp, tp + fp + fn),
        "sensitivity": _ratio(tp, tp + fn),
        "precision": _ratio(tp, tp + fp),
    }


def hd95(prediction, truth, spacing=None):
    """The 95th percentile Hausdorff distance: the larger of the two directed 95th percentiles.

    A mask's surface is its pixels with a background neighbour across an edge (in 3-D, a face). Beyond the image's
    border all is background, so a single slice passed as a volume is all surface: pass it as 2-D. Of the distances
    from each surface pixel of one mask to the nearest of the other the 95th percentile is taken, in either direction,
    and the larger of the two is returned.

    prediction, truth: bool arrays of equal shape, 2-D or 3-D.
    spacing: the pixel size in mm along each axis of the arrays, or None for distances in pixels.
    Returns a float in the spacing's unit: NaN if both masks are empty, and the image's diagonal, from corner to
    corner, if one is.
    Raises ValueError as `overlap` does, and for a spacing that is not one positive number per axis.
    """
    prediction, truth = _as_masks(prediction, truth)
    size = (1.0,) * truth.ndim if spacing is None else tuple(float(step) for step in spacing)
    if len(size) != truth.ndim or not all(0 < step < math.inf for step in size):
        raise ValueError(f"spacing must be {truth.ndim} positive numbers, not {spacing}")
    if not prediction.any() and not truth.any():
        return math.nan
    if not prediction.any() or not truth.any():
        return math.hypot(*(length * step for length, step in zip(truth.shape, size, strict=True)))

    from monai.metrics import compute_hausdorff_distance  # takes seconds to import

    box = _joint_box(prediction, truth)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of a deprecated argument that it passes itself
        distance = compute_hausdorff_distance(
            prediction[box][None, None],  # [1, 1, ...]
            truth[box][None, None],
            include_background=True,  # the one channel is the foreground
            percentile=95,
            spacing=size,
        )
    return float(distance)


def summarise(rows):
    """Average the metrics over cases.

    rows: list of dicts from `evaluate_mask`, one per case; every case weighs the same.
    Returns a dict with the `statistics` of each of `METRICS`, and the counts "cases", "both_empty",
    "prediction_empty" and "truth_empty".
    """
    summary = {metric: statistics([row[metric] for row in rows]) for metric in METRICS}
    summary["cases"] = len(rows)
    for which in ("both", "prediction", "truth"):
        summary[f"{which}_empty"] = sum(row["empty"] == which for row in rows)
    return summary


def statistics(values):
    """{"mean", "median", "std", "n"} of the n values that are defined (not NaN).

    std is the population's; all three are NaN when n = 0.
    """
    defined = np.array([value for value in values if not math.isnan(value)])
    if defined.size == 0:  # numpy would warn
        return {"mean": math.nan, "median": math.nan, "std": math.nan, "n": 0}
    return {
        "mean": float(defined.mean()),
        "median": float(np.median(defined)),
        "std": float(defined.std()),
        "n": defined.size,
    }


def _ratio(numerator, denominator):
    return numerator / denominator if denominator else math.nan


def _as_masks(prediction, truth):
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    for mask in (prediction, truth):
        if mask.dtype != bool:
            raise ValueError(f"masks must be bool, not {mask.dtype}; cut soft predictions first (consensus > 0.5)")
    if prediction.shape != truth.shape or truth.ndim not in (2, 3):
        raise ValueError(f"masks must be 2-D or 3-D and of equal shape, not {prediction.shape} and {truth.shape}")
    return prediction, truth


def _joint_box(prediction, truth):
    """Slices that hold both masks and a margin of one pixel, so that every surface pixel keeps its neighbours."""
    either = prediction | truth
    box = []
    for axis in range(either.ndim):
        others = tuple(other for other in range(either.ndim) if other != axis)
        inside = np.flatnonzero(either.any(axis=others))
        box.append(slice(max(inside[0] - 1, 0), inside[-1] + 2))
    return tuple(box)
