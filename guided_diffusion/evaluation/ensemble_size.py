"""How the Dice of an ensemble grows with the number of its members, and from where on it no longer does."""

import math
from itertools import combinations

import numpy as np
import torch

from ..inference.ensemble import fuse_patterns, vote_patterns
from ..runtime.seeds import seed_of
from .metrics import dice_of
from .statistics import Resampling, describe

SUBSETS = 8  # of each size, at most


GAIN = 0.001  # of Dice, below which growth is none


def dice_by_size(members, truth, method, exclusive, name):
    """The Dice of ensembles of 1, 2, ... E of the members: float64 [E, K], means over subsets, NaN where undefined.

    members: bool [E, K, ...]; truth: bool [K, ...]. method: of `ensemble.FUSE_METHODS`; of masks that are cut, "mean"
    is "vote". exclusive: whether a pixel has one class at most. name: the case's, which decides the subsets.
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
                dice_of(int(true[mask[:, k], k].sum()), int(pixels[mask[:, k]].sum()), int(true[:, k].sum()))
                for mask in fused
            ]
            dice[size - 1, k] = describe(scores)["mean"]
    return dice


def subsets(count, size, name):
    """Up to `SUBSETS` subsets of so many of `count` members, each once: int64 [S, size]."""
    if math.comb(count, size) <= SUBSETS:
        return np.array(list(combinations(range(count), size)))
    rng, found = np.random.default_rng(abs(seed_of("subsets", name, size))), {}
    while len(found) < SUBSETS:
        found[tuple(sorted(rng.choice(count, size, replace=False).tolist()))] = None
    return np.array(list(found))


def size_summary(dice, groups, method):
    """The table over all cases: {"method", "sizes", "dice": a `describe` each, "enough"}, or None.

    dice: float64 [cases, E], NaN where a case has no such ensemble or its Dice is undefined; groups: a label for each
    case. "enough": the size from which on it grows no longer. None where no case has two members.
    """
    dice, groups = np.asarray(dice, dtype=np.float64), np.asarray(groups)
    there = ~np.isnan(dice).any(axis=1)
    if dice.shape[1] < 2 or not there.any():
        return None
    dice, resampling = dice[there], Resampling(groups[there])
    enough = next(n for n in range(1, dice.shape[1] + 1) if not _grows(dice, n, resampling))
    return {
        "method": method,
        "sizes": list(range(1, dice.shape[1] + 1)),
        "dice": [describe(column, resampling) for column in dice.T],
        "enough": enough,
    }


def _grows(dice, size, resampling):
    """Whether some larger ensemble gains more than `GAIN` of mean Dice over `size` members, with the 95 % interval of
    the paired difference above 0."""
    for larger in range(size, dice.shape[1]):
        gain = describe(dice[:, larger] - dice[:, size - 1], resampling)
        if gain["mean"] > GAIN and not gain["low"] <= 0:
            return True
    return False


def format_sizes(found):
    """The table for the console, with a bar for each size."""
    means = [one["mean"] for one in found["dice"]]
    low, high = min(means), max(means)
    how = f"members' masks, cut at 0.5, fused by {found['method']}"
    how += ": the run itself may take the mean of soft masks" if found["method"] == "vote" else ""
    lines = [how, f"{'members':>8}{'dice':>9}{'95 % interval':>20}"]
    for size, one in zip(found["sizes"], found["dice"], strict=True):
        interval = "" if math.isnan(one["low"]) else f"[{one['low']:.4f}, {one['high']:.4f}]"
        bar = "#" * round(1 + 29 * (one["mean"] - low) / ((high - low) or 1))
        lines.append(f"{size:8d}{one['mean']:9.4f}{interval:>20}  {bar}")
    last = found["enough"] == found["sizes"][-1]
    lines.append(
        f"it still grows at {found['enough']} members" if last else f"no longer grows from {found['enough']} members on"
    )
    return "\n".join(lines)
