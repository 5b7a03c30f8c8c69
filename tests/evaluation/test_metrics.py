"""Metrics against MONAI, against brute force and against cases worked by hand."""

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial.distance import cdist

from guided_diffusion.evaluation.metrics import (
    component_ious,
    evaluate_mask,
    lesion_detection,
    metric_names,
    overlap,
    surface,
    volumes,
)

SHAPES = [(48, 40), (20, 18, 14)]
SPACINGS = {2: (0.7, 2.5), 3: (1.5, 0.5, 3.0)}


def blob_pair(seed, shape):
    """Two overlapping masks, often of several parts and often touching the border."""
    rng = np.random.default_rng(seed)
    shared = gaussian_filter(rng.standard_normal(shape), 3)
    masks = []
    for background in (0.85, 0.75):
        field = shared + 0.5 * gaussian_filter(rng.standard_normal(shape), 3)
        masks.append(field > np.quantile(field, background))
    return masks


def hd95(prediction, truth, spacing=None):
    return surface(prediction, truth, spacing)["hd95"]


def brute_force(prediction, truth, spacing, tolerance):
    """All distances between surface pixels; a surface is what an erosion takes away."""
    surfaces = [np.argwhere(mask & ~binary_erosion(mask)) * np.asarray(spacing) for mask in (prediction, truth)]
    distances = cdist(*surfaces)
    there, back = distances.min(axis=1), distances.min(axis=0)
    near = (there <= tolerance).sum() + (back <= tolerance).sum()
    return {
        "hd95": max(np.percentile(there, 95), np.percentile(back, 95)),
        "assd": (there.sum() + back.sum()) / (len(there) + len(back)),
        f"nsd_{tolerance:g}": near / (len(there) + len(back)),
    }


def square(corner, side=8, size=32):
    mask = np.zeros((size, size), bool)
    mask[corner[0] : corner[0] + side, corner[1] : corner[1] + side] = True
    return mask


EMPTY, FULL = np.zeros((32, 32), bool), np.ones((32, 32), bool)


# ---- overlap ----------------------------------------------------------------------------------------------------


def test_overlap_by_hand():
    truth, prediction = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    truth[0, :] = True  # TP 3, FP 2, FN 1
    prediction[0, :3] = prediction[1, :2] = True
    assert overlap(prediction, truth) == pytest.approx(
        {"dice": 6 / 9, "iou": 3 / 6, "sensitivity": 3 / 4, "specificity": 2 / 4, "precision": 3 / 5}
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_overlap_agrees_with_monai(shape, seed):
    from monai.metrics import DiceMetric, MeanIoU, compute_confusion_matrix_metric, get_confusion_matrix

    prediction, truth = blob_pair(seed, shape)
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth)]  # [1, 1, ...]
    confusion = get_confusion_matrix(*pair, include_background=True)
    expected = {
        "dice": DiceMetric()(*pair).item(),
        "iou": MeanIoU()(*pair).item(),
        "sensitivity": compute_confusion_matrix_metric("sensitivity", confusion).item(),
        "specificity": compute_confusion_matrix_metric("specificity", confusion).item(),
        "precision": compute_confusion_matrix_metric("precision", confusion).item(),
    }
    assert overlap(prediction, truth) == pytest.approx(expected, abs=1e-6)


def test_overlap_of_empty_masks():
    nan = math.nan
    both = {"dice": nan, "iou": nan, "sensitivity": nan, "specificity": 1, "precision": nan}
    assert overlap(EMPTY, EMPTY) == pytest.approx(both, nan_ok=True)
    no_prediction = {"dice": 0, "iou": 0, "sensitivity": 0, "specificity": nan, "precision": nan}
    assert overlap(EMPTY, FULL) == pytest.approx(no_prediction, nan_ok=True)
    no_truth = {"dice": 0, "iou": 0, "sensitivity": nan, "specificity": 0, "precision": 0}
    assert overlap(FULL, EMPTY) == pytest.approx(no_truth, nan_ok=True)


def test_exchanging_the_masks_exchanges_sensitivity_and_precision():
    prediction, truth = blob_pair(0, (32, 32))
    there, back = evaluate_mask(prediction, truth), evaluate_mask(truth, prediction)
    assert there["sensitivity"] == back["precision"] != back["sensitivity"]
    assert all(there[metric] == back[metric] for metric in ("dice", "iou", "hd95", "assd", "nsd_2"))


# ---- surfaces ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("in_mm", [False, True])
def test_surfaces_agree_with_brute_force(shape, seed, in_mm):
    prediction, truth = blob_pair(seed, shape)
    spacing = SPACINGS[len(shape)] if in_mm else None
    expected = brute_force(prediction, truth, spacing or (1,) * len(shape), 1.6)
    assert expected["hd95"] > 0 and 0 < expected["nsd_1.6"] < 1
    assert surface(prediction, truth, spacing, (1.6,)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_cropping_changes_nothing(shape):
    """The same as MONAI on the whole image, at every place of the image, and whatever empty space lies around."""
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    for seed in range(3):
        prediction, truth = (np.pad(mask, [(0, 9)] * mask.ndim) for mask in blob_pair(seed, shape))
        pair = [torch.from_numpy(mask[None, None]) for mask in (prediction, truth)]
        spacing = SPACINGS[len(shape)]
        how = {"include_background": True, "spacing": spacing}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI's, of its own code
            expected = {
                "hd95": compute_hausdorff_distance(*pair, percentile=95, **how).item(),
                "assd": compute_average_surface_distance(*pair, symmetric=True, **how).item(),
                "nsd_2": compute_surface_dice(*pair, class_thresholds=[2.0], **how).item(),
            }
        found = surface(prediction, truth, spacing, (2.0,))
        assert found == pytest.approx(expected, rel=1e-6)
        moved = [np.roll(mask, 5, axis=tuple(range(mask.ndim))) for mask in (prediction, truth)]
        assert surface(*moved, spacing, (2.0,)) == found


def test_hd95_by_hand():
    moved = hd95(square((4, 4)), square((4, 9)))  # 8x8 squares moved by 5: the far side is 5 away
    assert moved == 5
    assert hd95(square((4, 4)), square((4, 9)), (1.0, 0.4)) == pytest.approx(2.0)
    assert hd95(square((4, 4)), square((4, 4))) == 0
    assert hd95(FULL, FULL) == 0
    # The image's border is a surface of a full mask, 12 away from a square in the middle, and 12 * sqrt(2) at corners.
    assert 12 < hd95(FULL, square((12, 12))) < 12 * math.sqrt(2)


def test_hd95_ignores_a_twentieth_of_the_surface():
    truth = square((4, 4), side=20)
    prediction = truth.copy()
    prediction[30, 30] = True  # 1 of 77 surface pixels
    assert hd95(prediction, truth) == 0


def test_hd95_takes_the_larger_direction():
    """All of the small mask lies on the large one's surface, but most of the large one is far from the small."""
    large, small = np.zeros((32, 32), bool), np.zeros((32, 32), bool)
    large[8, :], small[8, :4] = True, True
    assert hd95(small, large) == hd95(large, small) > 20


def test_hd95_of_empty_masks():
    wide = np.zeros((30, 40), bool)
    mask = wide.copy()
    mask[3:9, 5:9] = True
    assert all(math.isnan(value) for value in surface(wide, wide, (1, 2)).values())
    assert surface(mask, wide) == {"hd95": 50, "assd": 50, "nsd_1": 0, "nsd_2": 0}
    assert hd95(mask, wide) == hd95(wide, mask) == 50
    assert hd95(mask, wide, (2.0, 1.0)) == pytest.approx(math.hypot(60, 40))
    assert hd95(wide[..., None], mask[..., None], (1, 1, 7.5)) == pytest.approx(math.hypot(30, 40, 7.5))


def test_a_single_slice_as_a_volume_is_all_surface():
    """Every voxel has background above and below, so a hole in the middle counts there and not in the 2-D image."""
    disc = square((4, 4), side=20)
    ring = disc & ~square((6, 6), side=16)
    assert hd95(disc, ring) == 1
    assert hd95(disc[..., None], ring[..., None]) > 5


# ---- volumes and lesions ----------------------------------------------------------------------------------------


def test_volumes_by_hand():
    prediction, truth = square((0, 0), side=6), square((0, 0), side=4)
    sizes = {"volume": 36, "truth_volume": 16, "volume_difference": 1.25, "volume_error": 1.25}
    assert volumes(prediction, truth) == sizes
    assert volumes(truth, prediction)["volume_difference"] == pytest.approx(-20 / 36)
    assert volumes(prediction, truth, (0.5, 2.0))["volume"] == 36  # mm2
    assert volumes(prediction[..., None], truth[..., None], (0.5, 2, 3.0))["truth_volume"] == pytest.approx(0.048)  # ml
    assert math.isnan(volumes(prediction, EMPTY)["volume_error"])


def lesion_pair():
    """True lesions A, B, C. The prediction finds A, B in two pieces, not C, and invents one."""
    truth, prediction = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    truth[0:4, 0:4] = truth[8:12, 0:8] = truth[16:18, 16:18] = True
    truth[4, 4] = True  # joined to A by a corner
    prediction[0:4, 0:5] = True  # A: 16 of 21 pixels
    prediction[8:12, 0:3] = prediction[8:12, 5:8] = True  # B: each piece 12 of 32
    prediction[0:2, 16:18] = True
    return prediction, truth


def test_lesions_by_hand():
    prediction, truth = lesion_pair()
    ious = component_ious(prediction, truth)
    assert np.allclose(sorted(ious[ious > 0]), [12 / 32, 12 / 32, 16 / 21]) and ious.shape == (4, 3)
    counts = {"lesions": 3, "lesions_predicted": 4, "lesions_found": 2}
    figures = {"lesion_f1": 4 / 7, "lesion_sensitivity": 2 / 3, "lesion_precision": 2 / 4}
    assert lesion_detection(prediction, truth, 0.1) == pytest.approx(figures | counts)
    assert lesion_detection(prediction, truth, 0.5)["lesions_found"] == 1  # B's pieces are too small each
    assert lesion_detection(truth, truth, 1.0)["lesion_f1"] == 1


def test_lesions_of_empty_masks():
    assert math.isnan(lesion_detection(EMPTY, EMPTY, 0.1)["lesion_f1"])
    assert lesion_detection(EMPTY, FULL, 0.1)["lesion_f1"] == lesion_detection(FULL, EMPTY, 0.1)["lesion_f1"] == 0
    assert math.isnan(lesion_detection(FULL, EMPTY, 0.1)["lesion_sensitivity"])


# ---- one case ---------------------------------------------------------------------------------------------------


def test_evaluate_mask_holds_every_metric():
    prediction, truth = blob_pair(0, (32, 32))
    row = evaluate_mask(prediction, truth, (2.0, 2.0), (0.5, 3.0))
    names = metric_names((0.5, 3.0))
    counts = {"volume", "truth_volume", "lesions", "lesions_predicted", "lesions_found", "empty"}
    assert set(row) == {*names, *counts} and row["empty"] == "" and {"nsd_0.5", "nsd_3"} < set(names)
    assert {metric: row[metric] for metric in names[:5]} == overlap(prediction, truth)
    assert row["hd95"] == hd95(prediction, truth, (2.0, 2.0)) == pytest.approx(2 * hd95(prediction, truth))
    assert all(type(row[metric]) is float for metric in names)


@pytest.mark.parametrize(
    ("prediction", "truth", "empty"),
    [(EMPTY, EMPTY, "both"), (EMPTY, FULL, "prediction"), (FULL, EMPTY, "truth"), (FULL, square((0, 0)), "")],
)
def test_evaluate_mask_says_which_is_empty(prediction, truth, empty):
    assert evaluate_mask(prediction, truth)["empty"] == empty


@pytest.mark.parametrize("function", [overlap, surface, volumes, evaluate_mask])
def test_masks_that_cannot_be_compared_are_refused(function):
    with pytest.raises(ValueError, match="equal shape"):
        function(EMPTY, EMPTY[:, :16])
    with pytest.raises(ValueError, match="equal shape"):
        function(EMPTY[0], EMPTY[0])
    with pytest.raises(ValueError, match="bool, not float64"):
        function(EMPTY * 0.3, EMPTY)
    with pytest.raises(ValueError, match="bool, not uint8"):
        function(EMPTY, EMPTY.astype(np.uint8))


@pytest.mark.parametrize("spacing", [(1.0,), (1.0, 1.0, 1.0), (1.0, 0.0), (1.0, -1.0), (1.0, math.nan)])
def test_bad_spacing_is_refused(spacing):
    for prediction in (EMPTY, FULL):
        with pytest.raises(ValueError, match="2 positive numbers"):
            hd95(prediction, FULL, spacing)


def test_surfaces_and_tiles_do_without_monai():
    """It takes seconds to import, and is a requirement of the tests alone."""
    code = (
        "import sys, numpy as np, guided_diffusion.evaluation.metrics as m, guided_diffusion.inference.tiles as t; "
        "mask = np.eye(8) > 0; "
        "m.surface(mask, ~mask); t.windows_of((9, 9), 8, 0); t.window_weights(8); sys.exit('monai' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
