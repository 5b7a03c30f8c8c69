"""A threshold of the probability by which few lesion pixels are missed, on average over patients like those seen.

Conformal risk control (Angelopoulos, Bates, Fisch, Lei and Schuster, arXiv 2208.02814): with n exchangeable losses in
[0, 1] that fall as the threshold falls, the largest threshold with n/(n+1) R + 1/(n+1) <= alpha, R their mean at that
threshold, has an expected loss of at most alpha for the next one. The loss here is a patient's share of missed lesion
pixels.
"""

import math
from dataclasses import dataclass

import numpy as np

from ..inference.mask_rules import DECISIVE, holds_every_union
from ..inference.results import IMPLIED
from ..inference.temperature import apply_temperature
from ..runtime.console import counted
from ..runtime.errors import UserError
from .fits import check_origin, shown_split, split_of_results, split_warning, store_fit
from .statistics import Resampling, describe_values
from .temperature_fit import PROBABILITY_LEVELS

EPSILON = 1e-12  # of sums in double precision


@dataclass(frozen=True)
class LesionLevels:
    """The probability of a lesion's pixels: levels uint16 [L], in 65535ths and rising; shares of the pixels [L]."""

    levels: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, probability, truth):
        """probability: in [0, 1]. truth: bool of its shape. None for a case without a lesion."""
        if not truth.any():
            return None
        level = np.rint(np.asarray(probability, dtype=np.float64)[truth] * PROBABILITY_LEVELS).astype(np.uint16)
        levels, counts = np.unique(level, return_counts=True)
        return cls(levels, counts / counts.sum())


@dataclass(frozen=True)
class ThresholdChoice:
    """The threshold of a class. threshold: of the probability as saved. risk: the mean share missed by it on the
    groups that decided, whose number is `groups`. without: cases without a lesion, which are left out."""

    name: str
    threshold: float
    risk: float
    groups: int
    without: int


def missed_shares(lesions, groups):
    """The mean over groups of the share of lesion pixels below each level: float64 [65537], and the number of groups.

    lesions: the `LesionLevels` of each case, or None; those are left out. groups: a label for each case; a group's
    share is the mean over its cases.
    """
    present = [(one, group) for one, group in zip(lesions, groups, strict=True) if one is not None]
    labels = sorted({group for _, group in present})
    cases_of = {label: sum(group == label for _, group in present) for label in labels}
    drop = np.zeros(PROBABILITY_LEVELS + 2)
    for one, group in present:
        drop[one.levels.astype(np.int64) + 1] += one.shares / (cases_of[group] * len(labels))
    return np.cumsum(drop), len(labels)


def controlled_level(risk, groups, alpha):
    """The highest level whose threshold is admissible: pixels of this level and above are foreground.

    risk: of `missed_shares`. Raises `UserError` for too few groups, and where only level 0 would be low enough.
    """
    needed = math.ceil(1 / alpha - 1 - EPSILON)
    if groups < needed:
        raise UserError(
            f"--max_misses {alpha:g}: needs {needed} patients or cases with a lesion at least, and has {groups}; take "
            "more validation cases, or allow more misses"
        )
    bound = groups / (groups + 1) * risk + 1 / (groups + 1)
    level = int(np.flatnonzero(bound <= alpha + EPSILON)[-1])  # the bound rises with the level and begins below alpha
    if level == 0:
        raise UserError(
            f"--max_misses {alpha:g}: no threshold above 0 misses that few, since too many lesion pixels have the "
            "probability 0; allow more misses, or train longer"
        )
    return level


def choose_thresholds(lesions, class_names, groups, alpha):
    """The `ThresholdChoice` of each class. lesions: for each case those of each class, see `missed_shares`."""
    choices = []
    for k, name in enumerate(class_names):
        own = [case[k] for case in lesions]
        risk, count = missed_shares(own, groups)
        try:
            level = controlled_level(risk, count, alpha)
        except UserError as error:
            raise UserError(f"{error} (class {name})" if len(class_names) > 1 else str(error)) from None
        # Between two levels: pixels of this level are above it, however their probability is rounded.
        choices.append(ThresholdChoice(name, (level - 0.5) / PROBABILITY_LEVELS, risk[level], count, own.count(None)))
    return choices


def fit_threshold(path, manifest, lesions, classes, groups, alpha):
    """Find the thresholds and write them into the checkpoint at `path`; returns the `ThresholdChoice`s.

    manifest: of the results. classes: their `Classes`. Other arguments as of `choose_thresholds`. Stored are thresholds
    of the probability before the temperature, so that another temperature does not change them. Raises `UserError` for
    results of another checkpoint, without a probability, and for classes whose label map cannot hold every mask.
    """
    checkpoint, _ = check_origin(path, manifest, "fit_threshold")
    if not holds_every_union(classes):
        raise UserError(
            f"--fit_threshold {path}: a pixel has one of these classes at most, so each cannot have a threshold of its "
            "own; it needs one class, or regions within one another"
        )
    if not lesions:
        raise UserError(f"--fit_threshold {path}: the results hold no probabilities; sample again")
    choices = choose_thresholds(lesions, classes.names, groups, alpha)
    settings = manifest.get("settings", {})
    values = np.array([choice.threshold for choice in choices])
    fitted = {
        "values": [float(value) for value in apply_temperature(values, 1 / settings.get("temperature", 1.0))],
        "max_misses": alpha,
        "groups": [choice.groups for choice in choices],
        "split": split_of_results(manifest),
        "settings": {name: value for name, value in (IMPLIED | settings).items() if name in DECISIVE},
    }
    store_fit(checkpoint, path, manifest, threshold=fitted)
    return choices


def format_thresholds(choices, path, manifest, alpha):
    """The choices as lines for the console."""
    lines = []
    for one in choices:
        name = f"{one.name}: " if len(choices) > 1 else ""
        without = f" ({counted(one.without, 'case')} without a lesion left out)" if one.without else ""
        lines.append(
            f"{name}threshold {one.threshold:.5f} misses {one.risk:.2%} of the lesion pixels on average over "
            f"{counted(one.groups, 'group')}{without}"
        )
    split = split_of_results(manifest)
    lines.append(
        f"fitted on {shown_split(split)}cases for at most {alpha:.3g} on average and written to {path}; sampling "
        "takes it by --threshold guaranteed"
    )
    return "\n".join(filter(None, [*lines, split_warning(split)]))


def achieved_misses(rows, groups):
    """The share of lesion pixels that masks missed: `describe_values` of the groups' means of 1 - sensitivity.

    rows: of one class, a dict for each case with its "sensitivity", NaN without a lesion. groups: a label for each.
    """
    misses = {}
    for row, group in zip(rows, groups, strict=True):
        if not math.isnan(row.get("sensitivity", math.nan)):
            misses.setdefault(group, []).append(1 - row["sensitivity"])
    means = [float(np.mean(values)) for values in misses.values()]
    return describe_values(means, Resampling(list(misses)) if means else None)
