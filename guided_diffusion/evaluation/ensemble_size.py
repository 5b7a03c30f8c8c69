"""The figures of an ensemble by its number of members, and the number from which its Dice no longer grows."""

import math
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch

from ..inference.ensemble import fuse_patterns, vote_patterns
from ..runtime.seeds import seed_of
from .diversity import best_matching, ged_squared_unbiased, pair_iou, shared_pixels
from .metrics import dice_from_counts
from .proper_scores import log_losses
from .statistics import Resampling, describe_ratios, describe_values, mean_defined

DICE_SIZES = (*range(1, 9), 16, 32, 64, 128)  # and all members
SET_SIZES = (4, 8, 16, 32, 64, 128)  # and all members, of the figures of sets
OF_SIZE = ("ged2_unbiased", "matched_iou", "log_loss_per_area")
SUBSETS = 8  # of each size, at most
SUBSETS_OF_MANY = 2  # of more than 8 members, which differ little and take long by STAPLE
GAIN = 0.001  # the least gain of Dice that counts as growth


class EnsembleFigures(NamedTuple):
    """The figures of one case by ensemble size. dice: of `dice_by_size`. sets: of `sets_by_size` of each class. count:
    the number of members."""

    dice: np.ndarray
    sets: list
    count: int


def sizes_up_to(count, sizes):
    """Those of `sizes` that are at most `count`, and `count` itself: a list in ascending order."""
    return sorted({size for size in sizes if size <= count} | {count})


def dice_by_size(members, truth, method, exclusive, name):
    """The Dice of ensembles of each of `DICE_SIZES` up to E members: float64 [sizes, K], means over subsets, NaN where
    undefined.

    members: bool [E, K, ...]. truth: bool [K, ...]. method: one of `ensemble.FUSE_METHODS`; "mean" of binary masks is
    "vote". exclusive: whether a pixel has at most one class. name: of the case; it seeds the choice of subsets.
    """
    count, classes = members.shape[:2]
    flat = torch.from_numpy(np.ascontiguousarray(members.reshape(count * classes, 1, -1)))
    _, patterns, pixels, row = vote_patterns(flat)
    patterns, pixels, row = patterns.numpy(), pixels.numpy(), row.numpy()[0]
    patterns = patterns.reshape(len(patterns), count, classes)  # [rows, E, K]
    true = np.stack([np.bincount(row[mask.ravel()], minlength=len(pixels)) for mask in truth], axis=-1)  # [rows, K]
    dice = []
    for size in sizes_up_to(count, DICE_SIZES):
        scores = [
            _subset_dice(patterns[:, chosen], pixels, true, method, exclusive) for chosen in subsets(count, size, name)
        ]
        dice.append([mean_defined(column) for column in np.transpose(scores)])
    return np.array(dice)


def _subset_dice(votes, pixels, true, method, exclusive):
    """The Dice [K] of fused members. votes: bool [rows, n, K]. pixels: [rows]. true: [rows, K], of the row's pixels."""
    _, first, same = np.unique(
        np.packbits(votes.reshape(len(votes), -1), axis=1), axis=0, return_index=True, return_inverse=True
    )  # rows that only members outside the subset tell apart
    same = same.ravel()
    pixels = np.bincount(same, pixels).astype(np.int64)
    fused = fuse_patterns(votes[first][None], pixels, method, exclusive)[0]  # [rows, K]
    dice = []
    for k in range(true.shape[1]):
        own = np.bincount(same, true[:, k])
        dice.append(dice_from_counts(int(own[fused[:, k]].sum()), int(pixels[fused[:, k]].sum()), int(own.sum())))
    return dice


def sets_by_size(members, raters, name):
    """The figures of sets of each of `SET_SIZES` up to E members, means over the subsets of `subsets`.

        ged2_unbiased, matched_iou   against the raters, see `diversity`
        log_loss_sum    of the members' mean against the fraction of raters, summed over pixels; see `proper_scores`
        rater_pixels    the raters' mean number of pixels

    members: bool [E, ...] of one class, E > 1. raters: bool [R, ...]. name: of the case; it seeds the choice.
    Returns a dict of float64 [sizes].
    """
    count = len(members)
    iou = pair_iou(shared_pixels([*members, *raters]))
    somewhere = members.any(axis=0) | raters.any(axis=0)
    votes, fraction = members[:, somewhere].astype(np.float32), raters[:, somewhere].mean(axis=0, dtype=np.float64)
    elsewhere = float(log_losses(0.0, 0.0)) * (somewhere.size - np.count_nonzero(somewhere))
    found = {name: [] for name in ("ged2_unbiased", "matched_iou", "log_loss_sum")}
    for size in sizes_up_to(count, SET_SIZES):
        of_subsets = []
        for chosen in subsets(count, size, name):
            kept = np.concatenate([chosen, np.arange(count, len(iou))])
            own = iou[np.ix_(kept, kept)]
            mean = votes[chosen].mean(axis=0, dtype=np.float64)
            of_subsets.append(
                (
                    ged_squared_unbiased(own, size),
                    best_matching(own[:size, size:]),
                    float(log_losses(mean, fraction).sum()) + elsewhere,
                )
            )
        for figure, value in zip(found, np.mean(of_subsets, axis=0), strict=True):
            found[figure].append(float(value))
    area = np.count_nonzero(raters) / len(raters)
    return {key: np.array(values) for key, values in found.items()} | {
        "rater_pixels": np.full(len(found["matched_iou"]), area)
    }


def subsets(count, size, name):
    """Up to `SUBSETS` (of more than 8 members `SUBSETS_OF_MANY`) different subsets of `size` of the `count` members:
    int64 [S, size]."""
    most = SUBSETS if size <= 8 else SUBSETS_OF_MANY
    if math.comb(count, size) <= most:
        return np.array(list(combinations(range(count), size)))
    rng, found = np.random.default_rng(abs(seed_of("subsets", name, size))), {}
    while len(found) < most:
        found[tuple(sorted(rng.choice(count, size, replace=False).tolist()))] = None
    return np.array(list(found))


def size_summary(dice, groups, method, count=None, sets=None):
    """The figures by size over all cases: {"method", "sizes", "dice": for each size a `describe_values`, "enough"}.

    dice: float64 [cases, sizes], NaN where it is undefined, of `sizes_up_to(count, DICE_SIZES)`; count: by default the
    number of columns. groups: a label for each case. "enough": the size from which the Dice no longer grows. sets: for
    each case `sets_by_size`, means over classes; it adds "sets": {"sizes", and a list of statistics for each figure of
    `OF_SIZE`}, of which "log_loss_per_area" is a `describe_ratios`. Returns None where no case has two members.
    """
    dice, groups = np.asarray(dice, dtype=np.float64), np.asarray(groups)
    sizes = sizes_up_to(count or dice.shape[1], DICE_SIZES)
    defined = ~np.isnan(dice).any(axis=1)
    if dice.shape[1] < 2 or not defined.any():
        return None
    found = {"sets": _set_summary(sets, groups, sizes[-1])} if sets else {}
    dice, resampling = dice[defined], Resampling(groups[defined])
    enough = next(place for place in range(dice.shape[1]) if not _grows(dice, place, resampling))
    return {
        "method": method,
        "sizes": sizes,
        "dice": [describe_values(column, resampling) for column in dice.T],
        "enough": sizes[enough],
        **found,
    }


def _set_summary(sets, groups, count):
    resampling = Resampling(groups)
    columns = {key: np.array([one[key] for one in sets]).T for key in sets[0]}  # [sizes, cases]
    losses = zip(columns["log_loss_sum"], columns["rater_pixels"], strict=True)
    return {
        "sizes": sizes_up_to(count, SET_SIZES),
        **{key: [describe_values(one, resampling) for one in columns[key]] for key in OF_SIZE[:2]},
        "log_loss_per_area": [describe_ratios(*pair, resampling) for pair in losses],
    }


def _grows(dice, place, resampling):
    """Whether a larger ensemble gains more than `GAIN` of mean Dice, with a paired 95 % interval above 0."""
    for larger in range(place + 1, dice.shape[1]):
        gain = describe_values(dice[:, larger] - dice[:, place], resampling)
        if gain["mean"] > GAIN and not gain["low"] <= 0:
            return True
    return False


def format_sizes(sizes):
    """A `size_summary` as a table for the console, with a bar for each size."""
    means = [one["mean"] for one in sizes["dice"]]
    low, high = min(means), max(means)
    title = f"binary masks of the members, fused by {sizes['method']}"
    title += "; the run itself may use the mean of soft masks" if sizes["method"] == "vote" else ""
    lines = [title, f"{'members':>8}{'dice':>9}{'95 % interval':>20}"]
    for size, one in zip(sizes["sizes"], sizes["dice"], strict=True):
        interval = "" if math.isnan(one["low"]) else f"[{one['low']:.4f}, {one['high']:.4f}]"
        bar = "#" * round(1 + 29 * (one["mean"] - low) / ((high - low) or 1))
        lines.append(f"{size:8d}{one['mean']:9.4f}{interval:>20}  {bar}")
    enough = sizes["enough"]
    still_grows = enough == sizes["sizes"][-1]
    lines.append(f"still grows at {enough} members" if still_grows else f"no longer grows from {enough} members on")
    if "sets" in sizes:
        sets = sizes["sets"]
        lines.append(f"{'members':>8}{'GED² unbiased':>16}{'matched IoU':>14}{'log loss per lesion pixel':>28}")
        for place, size in enumerate(sets["sizes"]):
            ged, iou, loss = (sets[key][place]["mean"] for key in OF_SIZE)
            lines.append(f"{size:8d}{ged:16.4f}{iou:14.4f}{loss:28.4f}")
    return "\n".join(lines)
