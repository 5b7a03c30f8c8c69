"""Losses of predicted masks, and what their logits stand for."""

import math

import torch
import torch.nn.functional as F


def class_probabilities(logits, exclusive=False):
    """Probabilities of K classes from their logits, [..., K, H, W]: each by itself, or, where they exclude one another,
    the softmax over them and the background, whose logit is 0. For K = 1 the two are the same."""
    return with_background(logits).softmax(dim=-3).narrow(-3, 1, logits.shape[-3]) if exclusive else logits.sigmoid()


def class_logits(probabilities, exclusive=False):
    """The inverse of `class_probabilities`; probabilities of 0 and 1 stay finite logits."""
    if not exclusive:
        return torch.logit(probabilities, eps=1e-6)
    background = (1 - probabilities.sum(dim=-3, keepdim=True)).clamp(min=1e-6)
    return probabilities.clamp(min=1e-6).log() - background.log()


def with_background(logits):
    """Logits of K classes and, before them, that of the background, 0: [..., K, H, W] -> [..., K + 1, H, W]."""
    return F.pad(logits, (0, 0, 0, 0, 1, 0))


def bce(logits, mask, exclusive=False, weights=None):
    """Cross-entropy per item [N], a mean over pixels: binary, and a mean over the K classes too, or with `exclusive`
    over K classes and the background (see `class_probabilities`). A proper score: its best answer is the probability
    itself, so what learns by it is calibrated. logits: [N, K, H, W]; mask: [N, K, H, W] in [0, 1]. weights: of the
    pixels in their mean, [N, 1, H, W], or None where all count alike."""
    if exclusive:
        loss = with_background(logits).logsumexp(dim=1, keepdim=True) - (logits * mask).sum(dim=1, keepdim=True)
    else:
        loss = F.binary_cross_entropy_with_logits(logits, mask, reduction="none").mean(dim=1, keepdim=True)
    return mean_flat(loss) if weights is None else mean_flat(loss * weights) / mean_flat(weights)


def near_borders(mask):
    """1 where a class's border is near, else 0: [N, K, H, W] in [0, 1] -> float [N, 1, H, W].

    Near is within r = max(1, round(0.03 sqrt(H W))) pixels along either axis, the reach of `calibration.boundary_band`:
    a square about the pixel, cut at the image's edges, holds both kinds. Where the mean of several raters is
    neither 0 nor 1 it is of both.
    """
    reach = max(1, round(0.03 * math.sqrt(mask.shape[-2] * mask.shape[-1])))
    window = {"kernel_size": 2 * reach + 1, "stride": 1, "padding": reach}
    both = (F.max_pool2d(mask, **window) > 0) & (F.max_pool2d(1 - mask, **window) > 0)
    return both.any(dim=1, keepdim=True).to(mask.dtype)


def bce_dice(logits, mask, ce_weight=1.0, exclusive=False):
    """`ce_weight` times cross-entropy (see `bce`) plus soft Dice loss, a mean over the K classes; per item [N].

    logits: [N, K, H, W]; mask: [N, K, H, W] in [0, 1]. The Dice term is smoothed by one pixel, so that an empty mask
    has a gradient.
    """
    probability = class_probabilities(logits, exclusive)
    both = (probability * mask).sum(dim=(2, 3))  # [N, K]
    size = probability.sum(dim=(2, 3)) + mask.sum(dim=(2, 3))
    return ce_weight * bce(logits, mask, exclusive) + (1 - (2 * both + 1) / (size + 1)).mean(dim=1)


CROSS_ENTROPIES = {"bce": bce, "bce_dice": bce_dice}


def mean_flat(x):
    """Mean over all dimensions but the first: [N, ...] -> [N]."""
    return x.flatten(1).mean(dim=1)
