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

from guided_diffusion.metrics import METRICS, evaluate_mask, hd95, overlap, summarise

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


def brute_force_hd95(prediction, truth, spacing):
    """All distances between surface pixels; a surface is what an erosion takes away."""
    surfaces = [np.argwhere(mask & ~binary_erosion(mask)) * np.asarray(spacing) for mask in (prediction, truth)]
    distances = cdist(*surfaces)
    return max(np.percentile(distances.min(axis=1), 95), np.percentile(distances.min(axis=0), 95))


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
        {"dice": 6 / 9, "iou": 3 / 6, "sensitivity": 3 / 4, "precision": 3 / 5}
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
        "precision": compute_confusion_matrix_metric("precision", confusion).item(),
    }
    assert overlap(prediction, truth) == pytest.approx(expected, abs=1e-6)


def test_overlap_of_empty_masks():
    nan = math.nan
    both = {"dice": nan, "iou": nan, "sensitivity": nan, "precision": nan}
    assert overlap(EMPTY, EMPTY) == pytest.approx(both, nan_ok=True)
    no_prediction = {"dice": 0, "iou": 0, "sensitivity": 0, "precision": nan}
    assert overlap(EMPTY, FULL) == pytest.approx(no_prediction, nan_ok=True)
    no_truth = {"dice": 0, "iou": 0, "sensitivity": nan, "precision": 0}
    assert overlap(FULL, EMPTY) == pytest.approx(no_truth, nan_ok=True)


def test_exchanging_the_masks_exchanges_sensitivity_and_precision():
    prediction, truth = blob_pair(0, (32, 32))
    there, back = evaluate_mask(prediction, truth), evaluate_mask(truth, prediction)
    assert there["sensitivity"] == back["precision"] != back["sensitivity"]
    assert all(there[metric] == back[metric] for metric in ("dice", "iou", "hd95"))


# ---- HD95 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("in_mm", [False, True])
def test_hd95_agrees_with_brute_force(shape, seed, in_mm):
    prediction, truth = blob_pair(seed, shape)
    spacing = SPACINGS[len(shape)] if in_mm else None
    expected = brute_force_hd95(prediction, truth, spacing or (1,) * len(shape))
    assert expected > 0
    assert hd95(prediction, truth, spacing) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_cropping_changes_nothing(shape):
    """The same as MONAI on the whole image, at every place of the image, and whatever empty space lies around."""
    from monai.metrics import compute_hausdorff_distance

    for seed in range(3):
        prediction, truth = (np.pad(mask, [(0, 9)] * mask.ndim) for mask in blob_pair(seed, shape))
        spacing = SPACINGS[len(shape)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI's, of its own code
            whole = compute_hausdorff_distance(
                prediction[None, None], truth[None, None], include_background=True, percentile=95, spacing=spacing
            )
        found = hd95(prediction, truth, spacing)
        assert found == whole.item()
        moved = [np.roll(mask, 5, axis=tuple(range(mask.ndim))) for mask in (prediction, truth)]
        assert hd95(*moved, spacing) == found


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
    assert math.isnan(hd95(wide, wide)) and math.isnan(hd95(wide, wide, (1, 2)))
    assert hd95(mask, wide) == hd95(wide, mask) == 50
    assert hd95(mask, wide, (2.0, 1.0)) == pytest.approx(math.hypot(60, 40))
    assert hd95(wide[..., None], mask[..., None], (1, 1, 7.5)) == pytest.approx(math.hypot(30, 40, 7.5))


def test_a_single_slice_as_a_volume_is_all_surface():
    """Every voxel has background above and below, so a hole in the middle counts there and not in the 2-D image."""
    disc = square((4, 4), side=20)
    ring = disc & ~square((6, 6), side=16)
    assert hd95(disc, ring) == 1
    assert hd95(disc[..., None], ring[..., None]) > 5


# ---- one case ---------------------------------------------------------------------------------------------------


def test_evaluate_mask_holds_every_metric():
    prediction, truth = blob_pair(0, (32, 32))
    row = evaluate_mask(prediction, truth, (2.0, 2.0))
    assert set(row) == {*METRICS, "empty"} and row["empty"] == ""
    assert {metric: row[metric] for metric in METRICS[:4]} == overlap(prediction, truth)
    assert row["hd95"] == hd95(prediction, truth, (2.0, 2.0)) == pytest.approx(2 * hd95(prediction, truth))
    assert all(type(row[metric]) is float for metric in METRICS)


@pytest.mark.parametrize(
    ("prediction", "truth", "empty"),
    [(EMPTY, EMPTY, "both"), (EMPTY, FULL, "prediction"), (FULL, EMPTY, "truth"), (FULL, square((0, 0)), "")],
)
def test_evaluate_mask_says_which_is_empty(prediction, truth, empty):
    assert evaluate_mask(prediction, truth)["empty"] == empty


@pytest.mark.parametrize("function", [overlap, hd95, evaluate_mask])
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


# ---- many cases -------------------------------------------------------------------------------------------------


def test_summarise_by_hand():
    half = np.zeros((32, 32), bool)
    half[:16] = True
    rows = [
        evaluate_mask(*masks)
        for masks in [(FULL, FULL), (half, FULL), (EMPTY, FULL), (FULL, EMPTY), (EMPTY, EMPTY), (EMPTY, EMPTY)]
    ]
    summary = summarise(rows)
    counts = {"cases": 6, "both_empty": 2, "prediction_empty": 1, "truth_empty": 1}
    assert {key: summary[key] for key in counts} == counts
    assert set(summary) == {*METRICS, *counts}
    dice = np.array([1, 2 / 3, 0, 0])  # an empty mask against one that is not counts as 0; two empty ones are left out
    expected = {"mean": dice.mean(), "median": np.median(dice), "std": dice.std(), "n": 4}
    assert summary["dice"] == pytest.approx(expected)
    assert summary["sensitivity"] == pytest.approx({"mean": 0.5, "median": 0.5, "std": math.sqrt(1 / 6), "n": 3})
    assert summary["precision"]["n"] == 3 and summary["precision"]["mean"] == pytest.approx(2 / 3)
    assert summary["hd95"]["n"] == 4
    assert summary["hd95"]["mean"] == pytest.approx(np.mean([0, hd95(half, FULL), *[32 * math.sqrt(2)] * 2]))


@pytest.mark.parametrize("rows", [[], [evaluate_mask(EMPTY, EMPTY)]])
def test_the_mean_of_nothing_is_nan_and_silent(rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = summarise(rows)
    for metric in METRICS:
        assert summary[metric]["n"] == 0
        assert all(math.isnan(summary[metric][name]) for name in ("mean", "median", "std"))
    assert summary["cases"] == summary["both_empty"] == len(rows)


def test_importing_metrics_does_not_import_monai():
    code = "import sys, guided_diffusion.metrics; sys.exit('monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
