"""The Dice of an ensemble by its number of members, and the number from which it no longer grows."""

import math
from itertools import combinations

import numpy as np
import torch

from ..inference.ensemble import fuse_patterns, vote_patterns
from ..runtime.seeds import seed_of
from .metrics import dice_from_counts
from .statistics import Resampling, describe_values, mean_defined

SUBSETS = 8  # of each size, at most
GAIN = 0.001  # the least gain of Dice that counts as growth


def dice_by_size(members, truth, method, exclusive, name):
    """The Dice of ensembles of 1, 2, ... E members: float64 [E, K], means over subsets, NaN where undefined.

    members: bool [E, K, ...]. truth: bool [K, ...]. method: one of `ensemble.FUSE_METHODS`; "mean" of binary masks is
    "vote". exclusive: whether a pixel has at most one class. name: of the case; it seeds the choice of subsets.
    """
    count, classes = members.shape[:2]
    flat = torch.from_numpy(np.ascontiguousarray(members.reshape(count * classes, 1, -1)))
    _, patterns, pixels, row = vote_patterns(flat)
    patterns, pixels, row = patterns.numpy(), pixels.numpy(), row.numpy()[0]
    patterns = patterns.reshape(len(patterns), count, classes)  # [rows, E, K]
    true = np.stack([np.bincount(row[mask.ravel()], minlength=len(pixels)) for mask in truth], axis=-1)  # [rows, K]
    dice = np.full((count, classes), math.nan)
    for size in range(1, count + 1):
        chosen = patterns[:, subsets(count, size, name)]  # [rows, S, n, K]
        fused = fuse_patterns(chosen.transpose(1, 0, 2, 3), pixels, method, exclusive)  # [S, rows, K]
        for k in range(classes):
            scores = [
                dice_from_counts(int(true[mask[:, k], k].sum()), int(pixels[mask[:, k]].sum()), int(true[:, k].sum()))
                for mask in fused
            ]
            dice[size - 1, k] = mean_defined(scores)
    return dice


def subsets(count, size, name):
    """Up to `SUBSETS` different subsets of `size` of the `count` members: int64 [S, size]."""
    if math.comb(count, size) <= SUBSETS:
        return np.array(list(combinations(range(count), size)))
    rng, found = np.random.default_rng(abs(seed_of("subsets", name, size))), {}
    while len(found) < SUBSETS:
        found[tuple(sorted(rng.choice(count, size, replace=False).tolist()))] = None
    return np.array(list(found))


def size_summary(dice, groups, method):
    """The Dice by size over all cases: {"method", "sizes", "dice": for each size a `describe_values`, "enough"}.

    dice: float64 [cases, E], NaN where it is undefined. groups: a label for each case. "enough": the size from which
    the Dice no longer grows. Returns None where no case has two members.
    """
    dice, groups = np.asarray(dice, dtype=np.float64), np.asarray(groups)
    defined = ~np.isnan(dice).any(axis=1)
    if dice.shape[1] < 2 or not defined.any():
        return None
    dice, resampling = dice[defined], Resampling(groups[defined])
    enough = next(n for n in range(1, dice.shape[1] + 1) if not _grows(dice, n, resampling))
    return {
        "method": method,
        "sizes": list(range(1, dice.shape[1] + 1)),
        "dice": [describe_values(column, resampling) for column in dice.T],
        "enough": enough,
    }


def _grows(dice, size, resampling):
    """Whether a larger ensemble gains more than `GAIN` of mean Dice, with a paired 95 % interval above 0."""
    for larger in range(size, dice.shape[1]):
        gain = describe_values(dice[:, larger] - dice[:, size - 1], resampling)
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
    return "\n".join(lines)
