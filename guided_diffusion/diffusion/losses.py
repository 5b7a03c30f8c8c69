"""Losses of predicted masks and of Gaussians, and the probabilities that logits stand for."""

import torch
import torch.nn.functional as F


def class_probabilities(logits, exclusive=False):
    """Probabilities of K classes, in [0, 1], from their logits; both [..., K, H, W].

    Each class is a sigmoid by itself. With `exclusive` the result is the softmax over the classes and the background,
    whose logit is 0. For K = 1 the two are equal. Logits of half precision give float32.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return with_background(logits).softmax(dim=-3).narrow(-3, 1, logits.shape[-3]) if exclusive else logits.sigmoid()


def class_logits(probabilities, exclusive=False):
    """The inverse of `class_probabilities`; probabilities of 0 and 1 give finite logits."""
    if not exclusive:
        return torch.logit(probabilities, eps=1e-6)
    background = (1 - probabilities.sum(dim=-3, keepdim=True)).clamp(min=1e-6)
    return probabilities.clamp(min=1e-6).log() - background.log()


def with_background(logits):
    """Put the background's logit, 0, before those of the K classes: [..., K, H, W] -> [..., K + 1, H, W]."""
    return F.pad(logits, (0, 0, 0, 0, 1, 0))


def bce(logits, mask, exclusive=False, known=None):
    """Cross-entropy per item [N], the mean over pixels.

    It is binary and averaged over the K classes, or, with `exclusive`, categorical over the classes and the background
    (see `class_probabilities`). Cross-entropy is a proper score: the true probability minimises it.

    logits: [N, K, H, W]; mask: [N, K, H, W] in [0, 1]. known: see `mean_flat`.
    """
    if exclusive:
        loss = with_background(logits).logsumexp(dim=1, keepdim=True) - (logits * mask).sum(dim=1, keepdim=True)
    else:
        loss = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    return mean_flat(loss, known)


def bce_dice(logits, mask, ce_weight=1.0, exclusive=False, known=None):
    """`ce_weight` times cross-entropy (see `bce`) plus the soft Dice loss, averaged over the K classes; per item [N].

    logits: [N, K, H, W]; mask: [N, K, H, W] in [0, 1]. The Dice term is smoothed by one pixel, so that an empty mask
    has a gradient. known: see `mean_flat`; pixels without truth count in neither term.
    """
    probability = class_probabilities(logits, exclusive)
    if known is not None:
        probability, mask = probability.where(known, 0), mask.where(known, 0)
    both = (probability * mask).sum(dim=(2, 3))  # [N, K]
    size = probability.sum(dim=(2, 3)) + mask.sum(dim=(2, 3))
    return ce_weight * bce(logits, mask, exclusive, known) + (1 - (2 * both + 1) / (size + 1)).mean(dim=1)


CROSS_ENTROPIES = {"bce": bce, "bce_dice": bce_dice}


def normal_kl(mean1, log_variance1, mean2, log_variance2):
    """KL(N(mean1, variance1) || N(mean2, variance2)), elementwise, in nats."""
    return 0.5 * (
        log_variance2
        - log_variance1
        - 1
        + torch.exp(log_variance1 - log_variance2)
        + (mean1 - mean2) ** 2 * torch.exp(-log_variance2)
    )


def discretised_gaussian_log_likelihood(x, mean, log_scale):
    """log of the mass of N(mean, exp(log_scale)^2) in the bin of x, elementwise, in nats (DDPM eq. 13).

    The bins divide [-1, 1] into 256 levels. The outermost ones, which hold the masks' own values -1 and 1, reach to
    infinity.
    """
    inverse = torch.exp(-log_scale)
    upper, lower = (x - mean + 1 / 255) * inverse, (x - mean - 1 / 255) * inverse
    inside = torch.log((torch.special.ndtr(upper) - torch.special.ndtr(lower)).clamp(min=1e-12))
    # `log_ndtr`, because the tail itself and its gradient underflow a few deviations out.
    above = torch.where(x > 0.999, torch.special.log_ndtr(-lower), inside)
    return torch.where(x < -0.999, torch.special.log_ndtr(upper), above)


def mean_flat(x, known=None):
    """Mean over all dimensions but the first: [N, ...] -> [N].

    known: bool [N, 1, H, W], the pixels with truth, over which alone the mean of [N, K, H, W] goes; 0 for an item
    without any. None: all.
    """
    if known is None:
        return x.flatten(1).mean(dim=1)
    count = known.flatten(1).sum(dim=1) * x.shape[1]
    return x.where(known, 0).flatten(1).sum(dim=1) / count.clamp(min=1)
