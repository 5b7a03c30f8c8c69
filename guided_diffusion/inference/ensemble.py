"""Fuses the members' soft predictions into one consensus and says where they disagree; it never sees a model.

Shapes: E members, N images, K classes, H x W pixels. Each class of each image is a binary problem of its own.
A consensus is soft, in [0, 1]; the mask is `consensus > 0.5`, so a tie (two votes of four) is background.
"""

from typing import NamedTuple

import numpy as np
import torch

FUSE_METHODS = ("staple", "mean", "vote")


class StapleResult(NamedTuple):
    """What `staple` finds.

    consensus: float64 [N, K, H, W], the posterior probability that the pixel is foreground.
    sensitivity: float64 [E, N, K], each member's estimated probability of marking a true foreground pixel.
    specificity: float64 [E, N, K], each member's estimated probability of sparing a true background pixel.
    iterations: int64 [N, K], EM iterations; 0 where EM was bypassed, `max_iterations` where it was cut short.
    """

    consensus: torch.Tensor
    sensitivity: torch.Tensor
    specificity: torch.Tensor
    iterations: torch.Tensor


def fuse(soft, method):
    """Fuse the members' soft predictions into a soft consensus.

    soft: [E, N, K, H, W] in [0, 1]. method: one of `FUSE_METHODS`. "staple" and "vote" cut the members at 0.5 first
    (foreground is > 0.5).
    Returns float32 [N, K, H, W] in [0, 1]; the mask is `consensus > 0.5`, so a tie is background.
    Raises ValueError for an unknown method, a wrong shape or values outside [0, 1].
    """
    if method not in FUSE_METHODS:
        raise ValueError(f"unknown fusion method {method!r}; choose from {', '.join(FUSE_METHODS)}")
    _check_soft(soft)
    if method == "mean":
        return mean_consensus(soft)
    votes = soft > 0.5
    return vote(votes) if method == "vote" else staple(votes).consensus.float()


def fuse_masks(soft, method, exclusive=False):
    """The members fused into one mask of each class: bool [N, K, H, W], from soft [E, N, K, H, W] in [0, 1].

    method: see `fuse`. Each class by itself: where its consensus is above 0.5. With `exclusive`, of several classes a
    pixel has one at most: the background, 1 minus the sum of the others, is a class more, each member votes for the
    class of its highest value, classes are fused one by one, and a pixel belongs to the class of the highest consensus
    (`one_of_many`). For a single class both say the same.
    """
    if not exclusive or soft.shape[-3] == 1:
        return fuse(soft, method) > 0.5
    scores = with_background_probability(soft)
    return one_of_many(fuse(scores if method == "mean" else one_hot(scores), method))


def member_masks(soft, exclusive=False):
    """Each member's own masks, by the same rule: soft [..., K, H, W] in [0, 1] -> bool [..., K, H, W]."""
    return one_of_many(with_background_probability(soft)) if exclusive and soft.shape[-3] > 1 else soft > 0.5


def with_background_probability(soft):
    """Soft masks of classes that exclude one another, and before them that of the background, what they leave of 1:
    [..., K, H, W] in [0, 1] -> [..., K + 1, H, W]."""
    return torch.cat([(1 - soft.sum(dim=-3, keepdim=True)).clamp(min=0), soft], dim=-3)


def one_hot(scores):
    """1 for the class of the highest score, of several the first, else 0: [..., K + 1, H, W] -> float32 likewise."""
    # numpy takes the first of equal values, which torch does not promise.
    highest = torch.from_numpy(scores.cpu().numpy().argmax(axis=-3)).to(scores.device)
    return (torch.arange(scores.shape[-3], device=scores.device)[:, None, None] == highest.unsqueeze(-3)).float()


def one_of_many(scores):
    """The class of the highest score, the background first of equals: [..., K + 1, H, W] -> bool [..., K, H, W]."""
    return one_hot(scores).bool().narrow(-3, 1, scores.shape[-3] - 1)


def mean_consensus(soft):
    """Mean of the members' soft predictions: [E, N, K, H, W] in [0, 1] -> float32 [N, K, H, W] in [0, 1]."""
    _check_soft(soft)
    # Summed in float64, so that neither the members' order nor their number shows in the float32 result.
    return soft.mean(dim=0, dtype=torch.float64).float()  # [N, K, H, W]


def vote(votes):
    """Fraction of members that say foreground: bool or 0/1 [E, N, K, H, W] -> float32 [N, K, H, W] in [0, 1]."""
    return _as_bool(votes).float().mean(dim=0)  # [N, K, H, W]


def uncertainty(soft):
    """Disagreement per pixel: the population standard deviation of the members' soft predictions.

    soft: [E, N, K, H, W] in [0, 1] -> float32 [N, K, H, W] in [0, 0.5]; 0 everywhere when E = 1.
    """
    _check_soft(soft)
    deviation = soft.double() - soft.mean(dim=0, dtype=torch.float64)
    return deviation.square().mean(dim=0).sqrt().float()  # [N, K, H, W]


class PixelUncertainty(NamedTuple):
    """What `pixel_uncertainty` finds, each of one shape [...].

    mean: of the members' soft predictions p, in [0, 1]. variance: of p, in [0, 0.25]. entropy: H(mean), in [0, 1] bit.
    mutual_information: H(mean) - mean of H(p), in [0, 1] bit: the part of the entropy that comes from the members'
    disagreement; the rest is the mean entropy of the members themselves.
    """

    mean: np.ndarray
    variance: np.ndarray
    entropy: np.ndarray
    mutual_information: np.ndarray


def pixel_uncertainty(soft):
    """The `PixelUncertainty` of the members' soft predictions [E, ...] in [0, 1], each of [...] as float64."""
    soft = np.asarray(soft, dtype=np.float64)
    mean = soft.mean(axis=0)
    total = entropy(mean)
    own = entropy(soft).mean(axis=0)
    return PixelUncertainty(mean, soft.var(axis=0), total, np.maximum(total - own, 0))


def entropy(p):
    """H(p) = -p log2 p - (1 - p) log2 (1 - p), in bits, 0 for 0 and 1."""
    p = np.asarray(p, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    return np.where((p > 0) & (p < 1), bits, 0.0)


def pairwise_dice(votes):
    """Mean Dice over all pairs of members: bool or 0/1 [E, N, K, H, W] -> float32 [N, K] in [0, 1].

    It measures agreement, not quality: two empty members are identical, so their Dice counts as 1 here (unlike an
    empty mask against an empty truth, which metrics.py leaves undefined). NaN when E = 1, as there is no pair.
    """
    # Counts in float64 are exact, and autocast leaves them alone.
    masks = _as_bool(votes).flatten(3).permute(1, 2, 0, 3).double()  # [N, K, E, H*W]
    shared, size = masks @ masks.transpose(-1, -2), masks.sum(dim=-1)  # pixels: [N, K, E, E], [N, K, E]
    total = size[..., :, None] + size[..., None, :]
    dice = torch.where(total > 0, 2 * shared / total, 1.0)
    first, second = torch.triu_indices(len(votes), len(votes), offset=1, device=votes.device)
    return dice[..., first, second].mean(dim=-1).float()  # [N, K]


def staple(votes, *, max_iterations=10_000, tolerance=1e-10):
    """STAPLE: the hidden true mask and each member's quality, estimated together by expectation maximisation.

    Warfield, Zou and Wells, "Simultaneous truth and performance level estimation (STAPLE)", IEEE TMI 2004, for
    binary masks. Member j votes D_ij on pixel i; p_j is its sensitivity, q_j its specificity, f(T_i = 1) = g the
    prior, W_i the posterior probability that pixel i is foreground.

        prior    g = mean of D over all pixels and members, fixed
        start    W_i = mean_j D_ij
        M-step   p_j = sum_i W_i D_ij / sum_i W_i
                 q_j = sum_i (1 - W_i)(1 - D_ij) / sum_i (1 - W_i)
        E-step   a_i = g       prod_j p_j^D_ij (1 - p_j)^(1 - D_ij)
                 b_i = (1 - g) prod_j (1 - q_j)^D_ij q_j^(1 - D_ij)
                 W_i = a_i / (a_i + b_i)

    The start, the prior and the order of the steps are those of ITK's STAPLEImageFilter.

    votes: bool or 0/1 [E, N, K, H, W]; every image and class is solved on its own, whatever else is in the batch.
    tolerance: EM ends when no pixel's posterior moved by more than this in one iteration.
    Returns a `StapleResult` on the device of `votes`. One member is returned as it is. Where all members are empty
    EM is bypassed: consensus 0, specificity 1, and sensitivity NaN (undefined without foreground). Where all are
    full: consensus 1, sensitivity 1, specificity NaN.
    Raises ValueError for a wrong shape or votes other than 0 and 1.
    """
    votes = _as_bool(votes)
    members, images, classes, height, width = votes.shape
    item, pattern, count, row = vote_patterns(votes.reshape(members, images * classes, height * width))
    # Pixels with the same votes share their posterior, so EM works on a few rows per image and class. It runs on the
    # CPU: the table is too small to be worth a kernel launch, and every device gets the same float64 result.
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
    """The masks of several ensembles over the same pixels, these given by the votes they got and how many got them.

    patterns: bool [S, rows, E, K], the votes of each ensemble's members; count: int64 [rows]. method: of
    `FUSE_METHODS`, where "mean" is "vote". Returns bool [S, rows, K], what `fuse_masks` says of the whole image;
    exclusive: as there.
    """
    alone = patterns.shape[-1] == 1 or not exclusive
    votes = patterns if alone else np.concatenate([~patterns.any(axis=-1, keepdims=True), patterns], axis=-1)
    scores = np.stack([_fuse_class(votes[..., k], count, method) for k in range(votes.shape[-1])], axis=-1)
    return scores > 0.5 if alone else scores.argmax(axis=-1)[..., None] == np.arange(1, scores.shape[-1])


def _fuse_class(votes, count, method):
    """The consensus float64 [S, rows] of votes bool [S, rows, E]."""
    ensembles, rows, members = votes.shape
    if method == "staple":
        item = np.arange(ensembles).repeat(rows)
        flat = votes.reshape(-1, members)
        return _expectation_maximisation(item, flat, np.tile(count, ensembles), 10_000, 1e-10)[0].reshape(ensembles, -1)
    return votes.mean(axis=-1)


def vote_patterns(votes):
    """Group the pixels of every item (one class of one image) by the votes they got.

    votes: bool [E, items, pixels].
    Returns a table with one row per item and pattern of votes found in it, sorted by item: item int64 [rows],
    pattern bool [rows, E] and count int64 [rows] of its pixels; and each pixel's row, int64 [items, pixels].
    """
    members, items, pixels = votes.shape
    row = torch.arange(items, device=votes.device)[:, None].expand(items, pixels)  # [items, pixels]
    # A pixel's code is its item's number with one bit appended per member. Numbering the codes that occur makes them
    # short again; done every 31 bits, it keeps any number of members within int64. Codes sort by item first.
    for block in votes.split(31):
        for member in block:
            row = 2 * row + member
        _, row, count = row.unique(return_inverse=True, return_counts=True)
    pixel_of_row = torch.empty_like(count)
    pixel_of_row[row.flatten()] = torch.arange(items * pixels, device=votes.device)  # any pixel of the row will do
    return pixel_of_row // pixels, votes.flatten(1)[:, pixel_of_row].T, count, row


def _expectation_maximisation(item, pattern, count, max_iterations, tolerance):
    """The EM of `staple` on a table of vote patterns (see `vote_patterns`); M items, each frozen once it converged.

    Returns posterior [rows], sensitivity [M, E], specificity [M, E], iterations int64 [M].
    """
    first_row = np.flatnonzero(np.diff(item, prepend=-1))  # [M]
    said, silent = pattern.astype(np.float64), (~pattern).astype(np.float64)  # D and 1 - D, [rows, E]
    foreground, background = said.mean(axis=1), silent.mean(axis=1)  # W and 1 - W, apart to keep 1 - W exact near 0

    def share(weight, marked):
        """Per item and member, how much of the weight of all pixels lies on those `marked`: [M, E]."""
        # reduceat adds up each item's rows in their own order, so other items cannot change even the rounding.
        return np.add.reduceat((count * weight)[:, None] * marked, first_row)

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # log 0 is meant; bypassed items give NaN
        prior_log_odds = np.log(share(1, said).sum(axis=1) / share(1, silent).sum(axis=1))  # [M]
        sensitivity = np.where(prior_log_odds > -np.inf, 1.0, np.nan)[:, None].repeat(pattern.shape[1], axis=1)
        specificity = np.where(prior_log_odds < np.inf, 1.0, np.nan)[:, None].repeat(pattern.shape[1], axis=1)
        iterations = np.zeros(len(first_row), dtype=np.int64)
        active = np.isfinite(prior_log_odds)  # all members empty or all full: nothing to estimate
        while active.any() and iterations.max() < max_iterations:
            # M-step
            hits, misses = share(foreground, said), share(foreground, silent)
            rejections, alarms = share(background, silent), share(background, said)
            sensitivity[active] = (hits / (hits + misses))[active]
            specificity[active] = (rejections / (rejections + alarms))[active]
            # E-step: log(a / b). A perfect member's vote weighs infinitely much. Opposite infinities cannot meet: a
            # pattern with W > 0 has put some of it into each factor of its `a`, one with W < 1 into each of its `b`.
            balance = np.log((rejections + alarms) / (hits + misses))
            if_said = np.log(hits / alarms) + balance  # log p / (1 - q)
            if_silent = np.log(misses / rejections) + balance  # log (1 - p) / q
            log_odds = prior_log_odds[item] + np.where(pattern, if_said[item], if_silent[item]).sum(axis=1)  # [rows]
            updated = 1 / (1 + np.exp(-log_odds))
            moved = np.maximum.reduceat(np.abs(updated - foreground), first_row)  # [M]
            background = np.where(active[item], 1 / (1 + np.exp(log_odds)), background)
            foreground = np.where(active[item], updated, foreground)
            iterations += active
            active &= moved > tolerance
    return foreground, sensitivity, specificity, iterations


def _as_bool(votes):
    """Return `votes` as bool, after a check that soft predictions have not been passed by mistake."""
    _check_shape(votes)
    if votes.dtype != torch.bool and not ((votes == 0) | (votes == 1)).all():
        raise ValueError("votes must be 0 or 1; cut soft predictions first (soft > 0.5)")
    return votes.bool()


def _check_soft(soft):
    _check_shape(soft)
    if not ((soft >= 0) & (soft <= 1)).all():  # false for NaN as well
        raise ValueError("soft predictions must lie in [0, 1]; masks in [-1, 1] must be mapped back first")


def _check_shape(members):
    if members.ndim != 5 or 0 in members.shape:
        raise ValueError(f"members must have the shape [E, N, K, H, W], none of them 0, not {list(members.shape)}")
