"""Clean-up of fused masks: holes are filled, then the largest component is kept, then small components are removed.

Each class of an image or of a whole volume by itself. Components are connected over edges and corners (8 neighbours, in
3-D 26), holes over edges (4 neighbours, in 3-D 6).
"""

from dataclasses import dataclass

import numpy as np

from ..config.values import BOOLEANS, numbers
from ..io.texts import shown
from ..runtime.errors import UserError

AS_FITTED = "auto"  # the value of a flag that takes what was fitted
CLEANING_FLAGS = ("fill_holes", "keep_largest", "min_size")


@dataclass(frozen=True)
class Cleanup:
    """The clean-up of one class. min_size: the least number of pixels, or voxels, of a component that stays."""

    fill_holes: bool = False
    keep_largest: bool = False
    min_size: int = 0

    def __bool__(self):
        return self.fill_holes or self.keep_largest or self.min_size > 1

    def __str__(self):
        """For messages, as "fill holes, keep the largest component"."""
        parts = ["fill holes"] if self.fill_holes else []
        parts += ["keep the largest component"] if self.keep_largest else []
        parts += [f"remove components below {self.min_size} pixels"] if self.min_size > 1 else []
        return ", ".join(parts) or "none"


# ---- the masks ---------------------------------------------------------------------------------------------------


def cleaned(masks, rules, classes):
    """Masks bool [K, H, W] or [K, X, Y, Z] after their clean-up.

    rules: a `Cleanup` for each class. classes: the `Classes`. Of classes that exclude one another a hole is only filled
    where no class is, and a component that is removed inside another class becomes that class. What a region loses its
    parts lose too, before their own components are found: a label map cannot hold them without it.
    """
    result = with_holes_filled(masks, [rule.fill_holes for rule in rules], classes.is_exclusive)
    values, lost_to_any = list(map(set, classes.values)) or [set()], np.zeros(masks.shape[1:], bool)
    for k in sorted(range(len(result)), key=lambda k: -len(values[k])):
        rule = rules[k]
        if rule.keep_largest or rule.min_size > 1:
            labels, sizes = components_of(result[k])
            kept = np.concatenate([[False], stays(sizes, rule)])[labels]
            lost = result[k] & ~kept
            result[k] = kept
            lost_to_any |= lost
            for other, smaller in enumerate(values):
                if smaller < values[k]:
                    result[other] &= ~lost
    if classes.is_exclusive and len(classes) > 1 and lost_to_any.any():
        holes = with_holes_filled(result, [True] * len(result), exclusive=True) & ~result
        result |= holes & lost_to_any
    return classes.as_written(result)


def with_holes_filled(masks, wanted, exclusive):
    """A copy of masks [K, ...] with the holes of the `wanted` classes, bool of each, filled."""
    from scipy.ndimage import binary_fill_holes

    result = masks.copy()
    filled = {k: binary_fill_holes(masks[k]) for k, is_wanted in enumerate(wanted) if is_wanted}
    for k in sorted(filled, key=lambda k: np.count_nonzero(filled[k])):  # a class inside another one's hole comes first
        holes = filled[k] & ~masks[k]
        result[k] |= holes & ~result.any(axis=0) if exclusive else holes
    return result


def components_of(mask):
    """The components of a mask: their labels, 1 and up, as an array of its shape, and the size of each."""
    from scipy.ndimage import label

    labels, count = label(mask, np.ones((3,) * mask.ndim))
    return labels, np.bincount(labels.ravel(), minlength=count + 1)[1:]


def stays(sizes, rule):
    """Which components of these sizes a `Cleanup` keeps, bool. Of two largest it is the first, in the array's order."""
    kept = sizes >= rule.min_size
    if rule.keep_largest and len(sizes):
        kept &= np.arange(len(sizes)) == np.argmax(sizes)
    return kept


# ---- the flags ---------------------------------------------------------------------------------------------------


def rules_of(sample, classes, fitted=None):
    """The `Cleanup` of each class by `SampleOptions`: a tuple; () where none cleans anything.

    classes: the `Classes` of the checkpoint. fitted: its `fitted.CleanupFit`, which flags that are "auto" take; None
    for none. Raises `UserError` for a class that the checkpoint lacks.
    """
    count = len(classes)
    values = {name: _of_each(name, getattr(sample, name), classes) for name in CLEANING_FLAGS}
    idle = {"fill_holes": [False] * count, "keep_largest": [False] * count, "min_size": [0] * count}
    chosen = {name: value or (fitted or idle)[name] for name, value in values.items()}
    rules = tuple(Cleanup(*one) for one in zip(*(chosen[name] for name in CLEANING_FLAGS), strict=True))
    return rules if any(rules) else ()


def _of_each(name, text, classes):
    """The value of each class of a flag's text; None for "auto"."""
    text, count = text.strip(), len(classes)
    if text == AS_FITTED:
        return None
    if name == "min_size":
        sizes = numbers(name, text, int, minimum=0)
        if len(sizes) not in (1, count):
            raise UserError(f"--{name} {shown(text)}: must be one number, or one for each of {count} classes")
        return list(sizes) * (count if len(sizes) == 1 else 1)
    if text.lower() in BOOLEANS:
        return [BOOLEANS[text.lower()]] * count
    names = [part.strip() for part in text.split(",")]
    unknown = [one for one in names if one not in classes.names]
    if unknown:
        raise UserError(
            f"--{name} {shown(text)}: must be auto, True, False or names of classes: {', '.join(classes.names)}"
        )
    return [one in names for one in classes.names]


def described_rules(rules, classes):
    """The rules of `rules_of` for a message; with several classes of each that has one."""
    if len(set(rules)) == 1:
        return str(rules[0])
    return "; ".join(f"{name}: {rule}" for name, rule in zip(classes.names, rules, strict=True) if rule)
