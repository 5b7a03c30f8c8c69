"""Overlap, surface, volume and lesion metrics of one mask against its truth; docs/evaluation.md has every rule.

A case is one 2-D image or one whole volume. Metrics are computed for each case and class, then averaged over cases.
Never average images and volumes together: the caller has to keep them apart.
"""

import math

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt, label

OVERLAP = ("dice", "iou", "sensitivity", "specificity", "precision")
LESION_METRICS = ("lesion_f1", "lesion_sensitivity", "lesion_precision")
TOLERANCES = (1.0, 2.0)
LESION_IOU = 0.1


def metric_names(tolerances=TOLERANCES):
    """The metrics of `evaluate_mask`, in the order of the tables."""
    surface = ("hd95", "assd", *(nsd_name(tolerance) for tolerance in tolerances))
    return (*OVERLAP, *surface, "volume_difference", "volume_error", *LESION_METRICS)


def nsd_name(tolerance):
    """The column of the normalised surface Dice at a tolerance: nsd_1, nsd_0.5, ..."""
    return f"nsd_{tolerance:g}"


def evaluate_mask(prediction, truth, spacing=None, tolerances=TOLERANCES, lesion_iou=LESION_IOU):
    """All metrics of one case and class.

    prediction, truth: bool arrays of equal shape, [H, W] or [X, Y, Z]. spacing, tolerances: see `surface`.
    lesion_iou: see `lesion_detection`.
    Returns a dict with each of `metric_names` (float), "volume" and "truth_volume" (see `volumes`), the counts of
    `lesion_detection`, and "empty": which of the two masks is empty, one of "", "both", "prediction" and "truth".
    See `overlap`, `surface`, `volumes` and `lesion_detection` for the values that empty masks get.
    """
    row = overlap(prediction, truth)
    row |= surface(prediction, truth, spacing, tolerances)
    row |= volumes(prediction, truth, spacing)
    row |= lesion_detection(prediction, truth, lesion_iou)
    empty = {(True, True): "", (False, False): "both", (False, True): "prediction", (True, False): "truth"}
    row["empty"] = empty[bool(np.any(prediction)), bool(np.any(truth))]
    return row


# ---- overlap -----------------------------------------------------------------------------------------------------


def overlap(prediction, truth):
    """Overlap of two masks. TP are pixels in both, FP in the prediction alone, FN in the truth alone, TN in neither.

        dice         2 TP / (2 TP + FP + FN)
        iou          TP / (TP + FP + FN)
        sensitivity  TP / (TP + FN)
        specificity  TN / (TN + FP)
        precision    TP / (TP + FP)

    prediction, truth: bool arrays of equal shape, 2-D or 3-D.
    Returns a dict of floats in [0, 1], NaN where the denominator is 0. With both masks empty all but specificity are
    NaN. With only the prediction empty, dice, iou and sensitivity are 0 and precision is NaN. With only the truth
    empty, dice, iou and precision are 0 and sensitivity is NaN.
    Raises ValueError for arrays that are not bool, differ in shape or are neither 2-D nor 3-D.
    """
    prediction, truth = _as_masks(prediction, truth)
    tp = int(np.count_nonzero(prediction & truth))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    tn = truth.size - tp - fp - fn
    return {
        "dice": _ratio(2 * tp, 2 * tp + fp + fn),
        "iou": _ratio(tp, tp + fp + fn),
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "precision": _ratio(tp, tp + fp),
    }


def dice_from_counts(shared, prediction, truth):
    """Dice from the number of pixels that two masks share and that each has; NaN where both are empty."""
    return _ratio(2 * shared, prediction + truth)


# ---- surfaces ----------------------------------------------------------------------------------------------------


def surface(prediction, truth, spacing=None, tolerances=TOLERANCES):
    """Distances between the surfaces of two masks.

    A mask's surface is its pixels with a background neighbour across an edge (in 3-D, a face). Everything beyond the
    image is background. So every pixel of a single slice passed as a volume is surface: pass it as 2-D.
    Each surface pixel of either mask has a Euclidean distance to the nearest surface pixel of the other mask:

        hd95   the 95th percentile of the distances in each direction; the larger of the two
        assd   the mean of the distances of both directions together
        nsd_t  the share of the distances of both directions together that are at most the tolerance t

    prediction, truth: bool arrays of equal shape, 2-D or 3-D.
    spacing: the pixel size in mm along each axis, or None for distances in pixels.
    tolerances: in the unit of the distances; each gives a figure `nsd_name(t)`.
    Returns a dict of floats. With both masks empty all are NaN. With one empty, hd95 and assd are the image's
    diagonal, from corner to corner, and nsd_t is 0.
    Raises ValueError as `overlap` does, and for a spacing that is not one positive number per axis.
    """
    prediction, truth = _as_masks(prediction, truth)
    size = (1.0,) * truth.ndim if spacing is None else tuple(float(step) for step in spacing)
    if len(size) != truth.ndim or not all(0 < step < math.inf for step in size):
        raise ValueError(f"spacing must be {truth.ndim} positive numbers, not {spacing}")
    if not prediction.any() or not truth.any():
        both = not prediction.any() and not truth.any()
        diagonal = math.hypot(*(length * step for length, step in zip(truth.shape, size, strict=True)))
        distances = dict.fromkeys(("hd95", "assd"), math.nan if both else diagonal)
        return distances | {nsd_name(tolerance): math.nan if both else 0.0 for tolerance in tolerances}
    to_truth, to_prediction = _surface_distances(prediction, truth, size)
    pooled = np.concatenate([to_truth, to_prediction])
    return {
        "hd95": float(max(np.percentile(to_truth, 95), np.percentile(to_prediction, 95))),
        "assd": float(pooled.mean()),
        **{nsd_name(tolerance): float((pooled <= tolerance).mean()) for tolerance in tolerances},
    }


def _surface_distances(prediction, truth, spacing):
    """The distances from the prediction's surface to the truth's and back: two float64 [pixels]. No mask is empty."""
    box = bounding_box(prediction | truth)
    own, true = (mask[box] & ~binary_erosion(mask[box]) for mask in (prediction, truth))
    distances = (_distances(one, other, spacing) for one, other in ((own, true), (true, own)))
    # Rounded to float32, so that a distance of exactly the tolerance compares as equal to it.
    return [values.astype(np.float32).astype(np.float64) for values in distances]


def _distances(pixels, others, spacing):
    """The distance of each of `pixels` to the nearest of `others`, two bool arrays: float64 [pixels]."""
    # scipy's own distances are those of all pixels, and need a multiple of the memory.
    nearest = distance_transform_edt(~others, sampling=spacing, return_distances=False, return_indices=True)
    apart = (nearest[:, pixels] - np.array(np.nonzero(pixels))) * np.array(spacing)[:, None]
    return np.sqrt((apart * apart).sum(axis=0))


# ---- volumes -----------------------------------------------------------------------------------------------------


def volumes(prediction, truth, spacing=None):
    """The sizes of both masks and their difference.

        volume, truth_volume  in pixels; with a spacing in mm2 (2-D) or ml (3-D)
        volume_difference     (volume - truth_volume) / truth_volume, positive where too much is marked
        volume_error          its absolute value

    Returns a dict of floats; the differences are NaN where the truth is empty.
    """
    prediction, truth = _as_masks(prediction, truth)
    unit = pixel_volume(spacing)
    own, true = int(np.count_nonzero(prediction)), int(np.count_nonzero(truth))
    difference = _ratio(own - true, true)
    return {
        "volume": own * unit,
        "truth_volume": true * unit,
        "volume_difference": difference,
        "volume_error": abs(difference),
    }


def pixel_volume(spacing):
    """The size of a pixel in the unit of `volumes`."""
    if spacing is None:
        return 1.0
    return math.prod(float(step) for step in spacing) / (1000 if len(spacing) == 3 else 1)


def volume_unit(dimensions, in_millimetres):
    """The unit of `volumes` for masks with this number of dimensions."""
    return ("ml" if dimensions == 3 else "mm2") if in_millimetres else "pixels"


# ---- lesions: connected components of prediction and truth, matched one to one ------------------------------------


def lesion_detection(prediction, truth, least_iou):
    """How many lesions were found, missed and invented.

    Lesions are connected components of any size, connected over edges and corners (8 neighbours in 2-D, 26 in 3-D).
    Predicted and true lesions are matched one to one so that the sum of their IoUs is largest (Hungarian algorithm;
    IoUs below `least_iou` count as 0). A matched pair with an IoU of at least `least_iou` is a TP.

        lesion_f1           2 TP / (2 TP + FP + FN)
        lesion_sensitivity  TP / (TP + FN)           the share of true lesions that were found
        lesion_precision    TP / (TP + FP)           the share of predicted lesions that are true

    prediction, truth: bool arrays of equal shape, 2-D or 3-D. least_iou: above 0, at most 1.
    Returns a dict of `LESION_METRICS` in [0, 1], NaN where the denominator is 0, and the counts "lesions" (true ones),
    "lesions_predicted" and "lesions_found" (TP).
    """
    ious = component_ious(prediction, truth)
    rows, columns = matched_pairs(np.where(ious >= least_iou, ious, 0))
    found = int((ious[rows, columns] >= least_iou).sum())
    predicted, true = ious.shape
    return {
        "lesion_f1": _ratio(2 * found, predicted + true),
        "lesion_sensitivity": _ratio(found, true),
        "lesion_precision": _ratio(found, predicted),
        "lesions": true,
        "lesions_predicted": predicted,
        "lesions_found": found,
    }


def matched_pairs(scores):
    """The rows and columns of the one-to-one matching with the largest sum of `scores`, a matrix."""
    from scipy.optimize import linear_sum_assignment  # a third of a second to import, which no command begins with

    return linear_sum_assignment(scores, maximize=True)


def component_ious(prediction, truth):
    """IoU of each connected component of the prediction with each of the truth: float64 [predicted, true]."""
    marked = prediction | truth
    if marked.any():
        box = bounding_box(marked)
        prediction, truth, marked = prediction[box], truth[box], marked[box]
    own, predicted = components(prediction)
    true, count = components(truth)
    codes = own[marked].astype(np.int64) * (count + 1) + true[marked]
    pairs = np.bincount(codes, minlength=(predicted + 1) * (count + 1))
    both = pairs.reshape(predicted + 1, count + 1)  # pixels by their two labels, of which 0 is the background
    sizes = both.sum(axis=1)[1:, None] + both.sum(axis=0)[None, 1:]
    shared = both[1:, 1:]
    return shared / np.maximum(sizes - shared, 1)


def components(mask):
    """The connected components of a bool mask, over edges and corners: labels int32 (0: none) and their number."""
    return label(mask, np.ones((3,) * mask.ndim))


# ---- helpers -----------------------------------------------------------------------------------------------------


def bounding_box(mask, margins=None):
    """Slices that hold all pixels of a mask and a margin along each axis, one pixel by default. It may not be empty.

    With that margin every surface pixel keeps its neighbours.
    """
    box = []
    for axis, margin in enumerate(margins or (1,) * mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        inside = np.flatnonzero(mask.any(axis=others))
        box.append(slice(max(inside[0] - margin, 0), inside[-1] + 1 + margin))
    return tuple(box)


def _ratio(numerator, denominator):
    return numerator / denominator if denominator else math.nan


def _as_masks(prediction, truth):
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    for mask in (prediction, truth):
        if mask.dtype != bool:
            raise ValueError(f"masks must be bool, not {mask.dtype}; threshold soft masks first (consensus > 0.5)")
    if prediction.shape != truth.shape or truth.ndim not in (2, 3):
        raise ValueError(f"masks must be 2-D or 3-D and of equal shape, not {prediction.shape} and {truth.shape}")
    return prediction, truth
