"""Fusion of an ensemble's members by STAPLE, mean or vote, and measures of their disagreement.

Shapes: E members, N images, K classes, H x W pixels. Each class of each image is a binary problem of its own.
A consensus is soft, in [0, 1]; the mask is `consensus > 0.5`, so a tie (two votes of four) is background.
"""

from typing import NamedTuple

import numpy as np
import torch

FUSE_METHODS = ("staple", "mean", "vote")
EM_ITERATIONS = 10_000  # at most
EM_TOLERANCE = 1e-10


class StapleResult(NamedTuple):
    """The result of `staple`.

    consensus: float64 [N, K, H, W], the posterior probability that the pixel is foreground.
    sensitivity: float64 [E, N, K], each member's probability of marking a true foreground pixel.
    specificity: float64 [E, N, K], each member's probability of not marking a true background pixel.
    iterations: int64 [N, K], of EM; 0 where EM was bypassed, `max_iterations` where it was cut short.
    """

    consensus: torch.Tensor
    sensitivity: torch.Tensor
    specificity: torch.Tensor
    iterations: torch.Tensor


def fuse(soft, method):
    """The soft consensus of the members, float32 [N, K, H, W] in [0, 1].

    soft: [E, N, K, H, W] in [0, 1]. method: one of `FUSE_METHODS`; "staple" and "vote" take `soft > 0.5`.
    Raises ValueError for an unknown method, a wrong shape or values outside [0, 1].
    """
    if method not in FUSE_METHODS:
        raise ValueError(f"unknown fusion method {method!r}; choose from {', '.join(FUSE_METHODS)}")
    _check_soft(soft)
    if method == "mean":
        return mean_consensus(soft)
    votes = soft > 0.5
    # A single member is STAPLE's consensus too.
    return vote(votes) if method == "vote" or len(votes) == 1 else staple(votes).consensus.float()


def fuse_masks(soft, method, exclusive=False):
    """The members' fused masks, bool [N, K, H, W].

    soft: [E, N, K, H, W] in [0, 1]. method: see `fuse`. Each class is fused by itself and cut at 0.5.
    With `exclusive` and several classes a pixel has one class at most. The background, 1 minus the sum of the classes,
    is one class more. Each member votes for its class of highest value, each class is fused by itself, and the class of
    the highest consensus wins (`highest_class`).
    """
    if not exclusive or soft.shape[-3] == 1:
        return fuse(soft, method) > 0.5
    scores = with_background_probability(soft)
    return highest_class(fuse(scores if method == "mean" else one_hot(scores), method))


def member_masks(soft, exclusive=False):
    """Each member's own masks, by the rule of `fuse_masks`: soft [..., K, H, W] in [0, 1] -> bool [..., K, H, W]."""
    return highest_class(with_background_probability(soft)) if exclusive and soft.shape[-3] > 1 else soft > 0.5


def with_background_probability(soft):
    """Put the background, 1 minus the sum of the classes, first: [..., K, H, W] -> [..., K + 1, H, W], in [0, 1]."""
    return torch.cat([(1 - soft.sum(dim=-3, keepdim=True)).clamp(min=0), soft], dim=-3)


def one_hot(scores):
    """1 for the class of the highest score, the first in a tie, else 0: float32 of the shape [..., K + 1, H, W]."""
    # numpy takes the first of equal values, which torch does not promise.
    highest = torch.from_numpy(scores.cpu().numpy().argmax(axis=-3)).to(scores.device)
    return (torch.arange(scores.shape[-3], device=scores.device)[:, None, None] == highest.unsqueeze(-3)).float()


def highest_class(scores):
    """The class of the highest score, in a tie the background: [..., K + 1, H, W] -> bool [..., K, H, W]."""
    return one_hot(scores).bool().narrow(-3, 1, scores.shape[-3] - 1)


def mean_consensus(soft):
    """Mean of the members' soft predictions: [E, N, K, H, W] in [0, 1] -> float32 [N, K, H, W] in [0, 1]."""
    _check_soft(soft)
    # A sum in float64 makes the float32 result independent of the members' order.
    return soft.mean(dim=0, dtype=torch.float64).float()  # [N, K, H, W]


def vote(votes):
    """Fraction of members that vote for foreground: bool or 0/1 [E, N, K, H, W] -> float32 [N, K, H, W] in [0, 1]."""
    return _as_bool(votes).float().mean(dim=0)  # [N, K, H, W]


def uncertainty(soft):
    """The members' standard deviation at each pixel: [E, N, K, H, W] in [0, 1] -> float32 [N, K, H, W] in [0, 0.5].

    It is the population's. A single soft mask p, such as the answer in one pass, has no members to spread: the result
    is then sqrt(p (1 - p)), the standard deviation of a mask drawn from p.
    """
    _check_soft(soft)
    if len(soft) == 1:
        p = soft[0].double()
        return (p * (1 - p)).sqrt().float()
    deviation = soft.double() - soft.mean(dim=0, dtype=torch.float64)
    return deviation.square().mean(dim=0).sqrt().float()  # [N, K, H, W]


class PixelUncertainty(NamedTuple):
    """The result of `pixel_uncertainty`, four arrays [...].

    mean: of the members' soft predictions p, in [0, 1]. variance: of p, in [0, 0.25]. entropy: H(mean), in [0, 1] bit.
    mutual_information: H(mean) - mean of H(p), in [0, 1] bit, the part of the entropy that is due to disagreement.
    """

    mean: np.ndarray
    variance: np.ndarray
    entropy: np.ndarray
    mutual_information: np.ndarray


def pixel_uncertainty(soft):
    """The `PixelUncertainty` of soft predictions [E, ...] in [0, 1], in float64."""
    soft = np.asarray(soft, dtype=np.float64)
    mean = soft.mean(axis=0)
    total = entropy(mean)
    own = entropy(soft).mean(axis=0)
    return PixelUncertainty(mean, soft.var(axis=0), total, np.maximum(total - own, 0))


def entropy(p):
    """H(p) = -p log2 p - (1 - p) log2(1 - p), in bits; 0 for p = 0 and 1. Float64 of p's shape."""
    p = np.asarray(p, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    return np.where((p > 0) & (p < 1), bits, 0.0)


def pairwise_dice(votes):
    """Mean Dice over all pairs of members: bool or 0/1 [E, N, K, H, W] -> float32 [N, K] in [0, 1]; NaN for E = 1.

    It measures agreement, so two empty members have Dice 1. (An empty mask against an empty truth is undefined.)
    """
    # In float64 counts are exact, and autocast does not touch them.
    masks = _as_bool(votes).flatten(3).permute(1, 2, 0, 3).double()  # [N, K, E, H*W]
    shared, size = masks @ masks.transpose(-1, -2), masks.sum(dim=-1)  # pixels: [N, K, E, E], [N, K, E]
    total = size[..., :, None] + size[..., None, :]
    dice = torch.where(total > 0, 2 * shared / total, 1.0)
    first, second = torch.triu_indices(len(votes), len(votes), offset=1, device=votes.device)
    return dice[..., first, second].mean(dim=-1).float()  # [N, K]


def staple(votes, *, max_iterations=EM_ITERATIONS, tolerance=EM_TOLERANCE):
    """STAPLE: the true mask and each member's sensitivity and specificity, estimated by expectation maximisation.

    Warfield, Zou and Wells, "Simultaneous truth and performance level estimation (STAPLE)", IEEE TMI 2004, for binary
    masks. Member j votes D_ij on pixel i. p_j is its sensitivity, q_j its specificity, g = f(T_i = 1) the prior and W_i
    the posterior probability that pixel i is foreground.

        prior    g = mean of D over all pixels and members, fixed
        start    W_i = mean_j D_ij
        M-step   p_j = sum_i W_i D_ij / sum_i W_i
                 q_j = sum_i (1 - W_i)(1 - D_ij) / sum_i (1 - W_i)
        E-step   a_i = g       prod_j p_j^D_ij (1 - p_j)^(1 - D_ij)
                 b_i = (1 - g) prod_j (1 - q_j)^D_ij q_j^(1 - D_ij)
                 W_i = a_i / (a_i + b_i)

    The start, the prior and the order of the steps are those of ITK's STAPLEImageFilter.

    votes: bool or 0/1 [E, N, K, H, W]; each image and class is solved by itself, so batches do not change results.
    tolerance: EM ends when no pixel's posterior moved by more than this in one iteration.
    Returns a `StapleResult` on the device of `votes`. A single member is the consensus. Where all members are empty, EM
    is bypassed: consensus 0, specificity 1, sensitivity NaN, which is undefined without foreground. Where all are full:
    consensus 1, sensitivity 1, specificity NaN.
    Raises ValueError for a wrong shape or votes other than 0 and 1.
    """
    votes = _as_bool(votes)
    members, images, classes, height, width = votes.shape
    item, pattern, count, row = vote_patterns(votes.reshape(members, images * classes, height * width))
    # Pixels with the same votes share their posterior, so EM works on a few rows per image and class. On the CPU it is
    # faster for so small a table, and every device gets the same float64 result.
    table = (item.cpu().numpy(), pattern.cpu().numpy(), count.cpu().numpy())
    posterior, *per_item = _expectation_maximisation(*table, max_iterations, tolerance)
    sensitivity, specificity, iterations = (torch.from_numpy(x).to(votes.device) for x in per_item)
    return StapleResult(
        torch.from_numpy(posterior).to(votes.device)[row].reshape(images, classes, height, width),
        sensitivity.T.reshape(members, images, classes),  # [E, N, K]
        specificity.T.reshape(members, images, classes),  # [E, N, K]
        iterations.reshape(images, classes),
    )


def fuse_patterns(patterns, count, method, exclusive=False):
    """The fused masks of S ensembles at once, on rows of pixels that share their votes: bool [S, rows, K].

    patterns: bool [S, rows, E, K], the members' votes; count: int64 [rows], the pixels of each row. method: one of
    `FUSE_METHODS`; "mean" is "vote" here. The result is that of `fuse_masks` on the whole image; exclusive: see there.
    """
    by_class = patterns.shape[-1] == 1 or not exclusive
    votes = patterns if by_class else np.concatenate([~patterns.any(axis=-1, keepdims=True), patterns], axis=-1)
    scores = np.stack([_fuse_class(votes[..., k], count, method) for k in range(votes.shape[-1])], axis=-1)
    return scores > 0.5 if by_class else scores.argmax(axis=-1)[..., None] == np.arange(1, scores.shape[-1])


def _fuse_class(votes, count, method):
    """The consensus float64 [S, rows] of votes bool [S, rows, E]."""
    ensembles, rows, members = votes.shape
    if method == "staple":
        item = np.arange(ensembles).repeat(rows)
        table = (item, votes.reshape(-1, members), np.tile(count, ensembles))
        return _expectation_maximisation(*table, EM_ITERATIONS, EM_TOLERANCE)[0].reshape(ensembles, -1)
    return votes.mean(axis=-1)


def vote_patterns(votes):
    """Group the pixels of each item, which is one class of one image, by their votes.

    votes: bool [E, items, pixels].
    Returns a table with a row for each item and pattern of votes in it, sorted by item: item int64 [rows], pattern
    bool [rows, E] and its number of pixels, count int64 [rows]. The fourth result is each pixel's row, int64
    [items, pixels].
    """
    members, items, pixels = votes.shape
    row = torch.arange(items, device=votes.device)[:, None].expand(items, pixels)  # [items, pixels]
    # A pixel's code is its item's number with one bit appended per member, so codes sort by item first. To number the
    # codes that occur, every 31 bits, keeps any number of members within int64.
    count = None
    for block in votes.split(31):
        codes = (items if count is None else len(count)) << len(block)
        for member in block:
            row = 2 * row + member
        row, count = _numbered(row, codes)
    pixel_of_row = torch.empty_like(count)
    pixel_of_row[row.flatten()] = torch.arange(items * pixels, device=votes.device)  # any one of the row's
    return pixel_of_row // pixels, votes.flatten(1)[:, pixel_of_row].T, count, row


def _numbered(codes, limit):
    """Number the codes that occur, int64 below `limit`, in their order: (each one's number, int64 [numbers] counts)."""
    if limit > codes.numel():
        _, numbers, count = codes.unique(return_inverse=True, return_counts=True)
        return numbers, count
    count = torch.bincount(codes.flatten(), minlength=limit)  # to sort the codes takes much longer
    occurs = count > 0
    return (occurs.cumsum(0) - 1)[codes], count[occurs]


def _expectation_maximisation(item, pattern, count, max_iterations, tolerance):
    """The EM of `staple` on a table of `vote_patterns` of M items; an item that has converged is frozen.

    Returns posterior [rows], sensitivity [M, E], specificity [M, E], iterations int64 [M]. The table is small and the
    iterations may be thousands, so each has as few operations as it can.
    """
    first_row = np.flatnonzero(np.diff(item, prepend=-1))  # [M]
    members = pattern.shape[1]
    votes = np.stack([pattern, ~pattern], axis=1).astype(np.float64)  # D and 1 - D, [rows, 2, E]
    # W and 1 - W are kept apart, so that 1 - W is exact near 0.
    weight = votes.mean(axis=2)  # [rows, 2]
    votes *= count[:, None, None]  # a row stands for so many pixels
    # Where each vote's evidence is in an array [M, 2, E] of what a vote for and a vote against would say.
    given = (2 * item[:, None] + ~pattern) * members + np.arange(members)

    def totals(values):
        """The sum over each item's rows: [M, ...]."""
        # reduceat adds up each item's rows in their own order, so other items cannot change even the rounding.
        return np.add.reduceat(values, first_row)

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # log 0 is meant; bypassed items give NaN
        marked, unmarked = totals(votes).sum(axis=2).T
        prior_log_odds = np.log(marked / unmarked)  # [M]
        iterations = np.zeros(len(first_row), dtype=np.int64)
        active = np.isfinite(prior_log_odds)  # all members empty or all full: nothing to estimate
        kept = np.full((len(first_row), 2, 2, members), np.nan)  # the counts of each item's last M-step
        prior_of_row, votes = prior_log_odds[item], votes.reshape(len(item), 1, -1)
        while active.any() and iterations.max() < max_iterations:
            everything = active.all()
            # M-step: ((tp, fn), (fp, tn)) of each member, [M, 2, 2, E]
            counts = totals(weight[:, :, None] * votes).reshape(kept.shape)
            kept = counts if everything else np.where(active[:, None, None, None], counts, kept)
            # E-step: log(a / b). A perfect member's vote weighs infinitely much. Opposite infinities cannot meet: a
            # pattern with W > 0 has put some of it into each factor of its `a`, one with W < 1 into each of its `b`.
            size = np.add.reduce(counts, axis=2)  # tp + fn and fp + tn, [M, 2, E]
            balance = np.log(size[:, 1] / size[:, 0])
            evidence = np.log(counts[:, 0] / counts[:, 1]) + balance[:, None]  # log p / (1 - q), log (1 - p) / q
            log_odds = prior_of_row + np.add.reduce(evidence.take(given), axis=1)
            updated = 1 / (1 + np.exp(np.stack([-log_odds, log_odds], axis=1)))
            moved = np.maximum.reduceat(np.abs(updated[:, 0] - weight[:, 0]), first_row)  # [M]
            weight = updated if everything else np.where(active[item][:, None], updated, weight)
            iterations += active
            active = active & (moved > tolerance)
        (tp, fn), (fp, tn) = kept[:, 0].swapaxes(0, 1), kept[:, 1].swapaxes(0, 1)
        sensitivity = np.where(prior_log_odds[:, None] == np.inf, 1.0, tp / (tp + fn))
        specificity = np.where(prior_log_odds[:, None] == -np.inf, 1.0, tn / (tn + fp))
    return weight[:, 0], sensitivity, specificity, iterations


def _as_bool(votes):
    """`votes` as bool. Raises ValueError for anything but 0 and 1, such as soft predictions."""
    _check_shape(votes)
    if votes.dtype != torch.bool and not ((votes == 0) | (votes == 1)).all():
        raise ValueError("votes must be 0 or 1; cut soft predictions first (soft > 0.5)")
    return votes.bool()


def _check_soft(soft):
    _check_shape(soft)
    low, high = torch.aminmax(soft)
    if not (low >= 0 and high <= 1):  # false for NaN as well
        raise ValueError("soft predictions must lie in [0, 1]; masks in [-1, 1] must be mapped back first")


def _check_shape(members):
    if members.ndim != 5 or 0 in members.shape:
        raise ValueError(f"members must have the shape [E, N, K, H, W] without a 0, not {list(members.shape)}")
