"""Chooses the clean-up of each class on results of validation cases, and keeps it only where it raises the Dice."""

import math
from dataclasses import dataclass

import numpy as np

from ..inference.cleanup import CLEANING_FLAGS, Cleanup, components_of, stays, with_holes_filled
from ..runtime.console import text_table
from ..runtime.errors import UserError
from .comparison import paired_difference
from .fits import check_origin, shown_split, split_of_results, split_warning, store_fit

SIZES = (0, 10, 30, 100, 300, 1000)
# Every combination, the simplest first: of equal ones the first is chosen.
GRID = sorted(
    (Cleanup(fill, keep, size) for fill in (False, True) for keep in (False, True) for size in SIZES),
    key=lambda rule: (rule.fill_holes + rule.keep_largest + bool(rule.min_size), rule.min_size),
)


@dataclass(frozen=True)
class CleanupChoice:
    """The best clean-up of a class. before, after: the mean Dice without and with it. difference, low, high: see
    `comparison.paired_difference`. kept: whether the interval lies above 0, so that the class gets it."""

    name: str
    rule: Cleanup
    before: float
    after: float
    difference: float
    low: float
    high: float

    @property
    def kept(self):
        """Whether the gain is shown."""
        return bool(self.rule) and self.low > 0


def cleanup_dice(masks, truths, exclusive, known=None):
    """The Dice of a case's masks after each clean-up of `GRID`: float64 [K, len(GRID)].

    masks, truths: bool [K, ...]. known: the pixels with truth, bool [...], which alone count in the Dice; a clean-up
    sees the whole masks, as in sampling. None: all. Two empty masks agree: their Dice is 1 here, so that the removal of
    a false lesion from a case without one counts as the gain that it is.
    """
    found = np.empty((len(masks), len(GRID)))
    for fill, sources in ((False, masks), (True, with_holes_filled(masks, [True] * len(masks), exclusive))):
        for k, (mask, truth) in enumerate(zip(sources, truths, strict=True)):
            labels, sizes = components_of(mask)
            hits = np.bincount(labels[truth], minlength=len(sizes) + 1)[1:]
            counted = sizes if known is None else np.bincount(labels[known], minlength=len(sizes) + 1)[1:]
            true = np.count_nonzero(truth)
            for column, rule in enumerate(GRID):
                if rule.fill_holes == fill:
                    kept = stays(sizes, rule)
                    total = counted[kept].sum() + true
                    found[k, column] = 2 * hits[kept].sum() / total if total else 1.0
    return found


def choose_cleanup(dice, class_names, groups):
    """The `CleanupChoice` of each class.

    dice: float64 [cases, K, len(GRID)], of `cleanup_dice`. groups: a label for each case, usually its patient.
    """
    choices = []
    for k, name in enumerate(class_names):
        means = dice[:, k].mean(axis=0)
        best = int(np.argmax(means > means.max() - 1e-12))
        found = paired_difference(dice[:, k, best], dice[:, k, 0], groups)
        interval = (found["difference"], found["low"], found["high"])
        choices.append(CleanupChoice(name, GRID[best], means[0], means[best], *interval))
    return choices


def fit_cleanup(path, manifest, dice, class_names, groups):
    """Choose the clean-up and write it into the checkpoint at `path`; returns the `CleanupChoice`s.

    manifest: of the results. Other arguments as of `choose_cleanup`. Where no class gains, the checkpoint has none.
    Raises `UserError` for results that were cleaned already, and those of another checkpoint.
    """
    checkpoint, _ = check_origin(path, manifest, "fit_cleanup")
    settings = manifest.get("settings", {})
    if any(np.any(settings.get(name, 0)) for name in CLEANING_FLAGS):
        raise UserError(
            f"--fit_cleanup {path}: the results are cleaned already; sample with --fill_holes False --keep_largest "
            "False --min_size 0"
        )
    choices = choose_cleanup(dice, class_names, groups)
    rules = [choice.rule if choice.kept else Cleanup() for choice in choices]
    fitted = {name: [getattr(rule, name) for rule in rules] for name in CLEANING_FLAGS}
    fitted |= {"cases": len(dice), "split": split_of_results(manifest)}
    if any(rules) or "cleanup" in checkpoint.config.get("masks", {}):  # else the file stays as it is
        store_fit(checkpoint, path, manifest, cleanup=fitted if any(rules) else None)
    return choices


def format_cleanup(choices, path, manifest, cases):
    """The choices as a table for the console. cases: their number."""
    rows = []
    for one in choices:
        interval = "" if math.isnan(one.low) else f"[{one.low:+.4f}, {one.high:+.4f}]"
        verdict = "kept" if one.kept else "not kept"
        figures = [f"{one.before:.4f}", f"{one.after:.4f}", f"{one.difference:+.4f}", interval, verdict]
        rows.append([one.name, *figures, str(one.rule)])
    split = split_of_results(manifest)
    kept = sum(one.kept for one in choices)
    lines = [text_table(["clean-up of", "dice", "with it", "gain", "95 % interval", "", ""], rows)]
    if kept:
        lines.append(
            f"chosen on {cases} {shown_split(split)}cases and written to {path}; sampling applies it from now on"
        )
    else:
        lines.append(f"no clean-up shows a gain on {cases} {shown_split(split)}cases: {path} has none")
    return "\n".join(filter(None, [*lines, split_warning(split)]))
