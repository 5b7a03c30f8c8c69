"""Proper scores of a foreground probability, over all pixels and per pixel of lesion, and its volume.

A score is proper if the true probability has the best expected value. Log loss and Brier score are, over a set of
pixels that does not depend on the truth.
"""

import math

import numpy as np

CLIPPED = 0.5 / 65535  # half a step of a 16-bit picture: a probability of 0 or 1 is taken as this far from it
PROPER_SCORES = ("log_loss", "brier")
AREA_SUMS = {  # figure per pixel of lesion: the sum that is divided by the raters' mean number of pixels
    "log_loss_per_area": "log_loss_sum",
    "brier_per_area": "brier_sum",
    "expected_volume_ratio": "expected_pixels",
    "coarse_log_loss_per_area": "coarse_log_loss_sum",
    "coarse_brier_per_area": "coarse_brier_sum",
    "coarse_volume_ratio": "coarse_expected_pixels",
    "mask_volume_ratio": "mask_pixels",
    "sample_volume_ratio": "sample_pixels",
}


def proper_scores(probability, truth):
    """The scores of one case's probability p against the truth y, a dict of floats.

        log_loss         the mean of -y log p - (1 - y) log(1 - p) over all pixels, in nats, p clipped by `CLIPPED`
        brier            the mean of (p - y)^2 over all pixels
        log_loss_sum, brier_sum   the sums over pixels
        expected_pixels  the sum of p

    probability, truth: [H, W] or [X, Y, Z] in [0, 1]; with several raters the truth is the fraction who marked a pixel.
    """
    log_loss = brier = expected = 0.0
    # Slice by slice, so that a volume needs no copies in float64.
    slices = [(probability, truth)] if truth.ndim < 3 else zip(probability.T, truth.T, strict=True)
    for values, marked in slices:
        p, y = values.astype(np.float64), marked.astype(np.float64)
        brier += float(np.square(p - y).sum())
        expected += float(p.sum())
        log_loss += float(log_losses(p, y).sum())
    return {
        "log_loss": log_loss / truth.size,
        "brier": brier / truth.size,
        "log_loss_sum": log_loss,
        "brier_sum": brier,
        "expected_pixels": expected,
    }


def log_losses(p, y):
    """-y log p - (1 - y) log(1 - p) with p clipped by `CLIPPED`, in nats: float64 of the shape of p and y."""
    p = np.clip(p, CLIPPED, 1 - CLIPPED)
    return -y * np.log(p) - (1 - y) * np.log1p(-p)


def area_figures(row):
    """The `AREA_SUMS` of a case: each sum in `row` divided by row["rater_pixels"]; NaN where no rater marked any."""
    area = row["rater_pixels"]
    return {name: row[total] / area if area else math.nan for name, total in AREA_SUMS.items() if total in row}
