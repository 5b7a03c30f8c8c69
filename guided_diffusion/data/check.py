"""What is wrong, or may be wrong, with a data set before anyone trains on it."""

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from ..io.nifti import is_nifti
from ..runtime.console import counted, listed
from .intensities import zscore

LISTED_PROBLEMS = 5  # messages about unreadable files; of the others only the cases are named
MOST_NAMED = 200  # cases that cannot be read
DOUBT = "warning: "  # how a data set's notes begin that name a doubt
RARE_CLASS = 1e-3  # a class with a smaller share of the pixels is hard to learn


@dataclass(frozen=True)
class Finding:
    """A line about the data. is_error: training would fail on it, or its result would mean nothing."""

    is_error: bool
    text: str

    def __str__(self):
        return f"{'error' if self.is_error else 'warning'}: {self.text}"


def _error(text):
    return Finding(True, text)


def _warning(text):
    return Finding(False, text)


def findings(parts):
    """The `Finding`s about inspected `inspection.Part`s, errors first."""
    found = []
    for part in parts:
        found += [*_unreadable_files(part), *_masks(part), *_classes(part), *_images(part)]
        doubts = [note.removeprefix(DOUBT) for note in part.dataset.notes if note.startswith(DOUBT)]
        found += [_warning(f"{part.name}: {doubt}") for doubt in doubts]
    found += [*_duplicates(parts), *_shared_groups(parts), *_splits(parts)]
    return sorted(found, key=lambda finding: not finding.is_error)


# ---- one split ---------------------------------------------------------------------------------------------------


def _names(part, condition):
    """The names of the part's cases whose `Inspection` meets the condition."""
    return [one.name for one in part.inspections if condition(one)]


def _unreadable_files(part):
    problems = [problem for one in part.inspections for problem in one.problems]
    yield from (_error(f"{part.name}: {problem}") for problem in problems[:LISTED_PROBLEMS])
    if len(problems) > LISTED_PROBLEMS:
        names = _names(part, lambda one: one.problems)[LISTED_PROBLEMS:]
        more = len(problems) - LISTED_PROBLEMS
        yield _error(f"{part.name}: {more} more that cannot be read: {listed(names, MOST_NAMED)}")


def _masks(part):
    """Missing and empty masks, missing raters, and masks with greys."""
    without = _names(part, lambda one: not one.raters)
    if without and part.trains:
        yield _error(f"{part.name}: {counted(len(without), 'case')} without a mask: {listed(without)}")
    elif without:
        cases = counted(len(without), "case")
        yield _warning(f"{part.name}: {cases} without a mask, which cannot be scored: {listed(without)}")
    numbers = Counter(one.raters for one in part.inspections if one.raters)
    if len(numbers) > 1:
        usual = numbers.most_common(1)[0][0]
        odd = listed(_names(part, lambda one: one.raters not in (0, usual)))
        yield Finding(part.trains, f"{part.name}: not masked by {counted(usual, 'rater')} as the others: {odd}")
    seen = [one for one in part.inspections if one.marked is not None]
    if seen and all(not one.marked.any() for one in seen) and part.trains:
        yield _error(f"{part.name}: all masks are empty: there is nothing to learn; are they the right files?")
    empty = [one.name for one in seen if one.empty == one.count]
    if empty and len(empty) < len(seen):
        yield _warning(f"{part.name}: {counted(len(empty), 'case')} with nothing marked: {listed(empty)}")
    full = [one.name for one in seen if one.marked.max() > 0.98]
    if full:
        yield _warning(f"{part.name}: {counted(len(full), 'case')} marked all over: {listed(full)}")
    photographs = _names(part, lambda one: one.is_photograph)
    if photographs and part.dataset.classes.is_binary:
        yield _warning(
            f"{part.name}: {counted(len(photographs), 'mask')} with the many greys of a photograph: "
            f"{listed(photographs)}; are images/ and masks/ swapped, or these the wrong files?"
        )
    soft = _names(part, lambda one: one.is_soft and not one.is_photograph)
    if soft and part.dataset.classes.is_binary:
        yield _warning(
            f"{part.name}: {counted(len(soft), 'mask')} with greys between background and foreground, which are cut at "
            f"half: {listed(soft)}"
        )


def _classes(part):
    """Rare and absent classes, and label values of no class."""
    marked = [one.marked for one in part.inspections if one.marked is not None]
    shares = dict(zip(part.dataset.class_names, np.mean(marked, axis=0), strict=True)) if marked else {}
    for name, share in shares.items():
        if share == 0 and len(shares) > 1:
            yield Finding(part.trains, f"{part.name}: no pixel is {name}")
        elif 0 < share < RARE_CLASS:
            yield _warning(f"{part.name}: {name} is {100 * share:.2g} % of the pixels, which is hard to learn")
    if part.dataset.reads_labels and not part.dataset.classes.is_binary:
        known = {value for values in part.dataset.classes.values for value in values} | {0}
        others = sorted({value for one in part.inspections for value in one.values} - known)
        if others:
            text = ", ".join(f"{value:g}" for value in others)
            yield _warning(f"{part.name}: no class has the label value {text}: it counts as background")


def _images(part):
    """Blank and nearly black images, and files that do not lie over their image."""
    blank = _names(part, lambda one: one.digest is None and one.sizes and not one.problems)
    if blank:
        yield _warning(f"{part.name}: {counted(len(blank), 'image')} of one value alone: {listed(blank)}")
    flat = [one.name for one in part.inspections if _is_flat(part, one)]
    if flat:
        yield _warning(
            f"{part.name}: {counted(len(flat), 'volume')} nearly flat as z-scores, since a few values lie far from all "
            f"others: {listed(flat)}; clip these values or leave the volumes out"
        )
    one_value = _names(part, lambda one: one.digest and (one.low == one.high).any())
    if one_value:
        images = counted(len(one_value), "image")
        yield _warning(f"{part.name}: {images} with a channel of one value alone: {listed(one_value)}")
    elsewhere = [one.elsewhere for one in part.inspections if one.elsewhere]
    if elsewhere:
        more = f" and {len(elsewhere) - 1} more" if len(elsewhere) > 1 else ""
        yield _warning(f"{part.name}: a file lies elsewhere in space than its image: {elsewhere[0]}{more}")
    unplaced = [one.unplaced for one in part.inspections if one.unplaced]
    if unplaced:
        more = f" and {len(unplaced) - 1} more" if len(unplaced) > 1 else ""
        yield _warning(
            f"{part.name}: a file has lost its affine and is taken voxel for voxel over its image: {unplaced[0]}{more}"
        )
    if not part.is_volumes and not is_nifti(part.dataset.cases[0].images[0]):
        dark = _names(part, lambda one: one.digest and 0 < one.high.max() <= 1)
        if dark:
            yield _warning(f"{part.name}: nearly black, with values from 0 to 1: {listed(dark)}; save them as 0-255")


FLAT_SCORES = 0.3  # z-scores have a standard deviation of 1, or a little less since they are clipped


def _is_flat(part, one):
    """Whether the z-scores of a channel of an `Inspection` hardly differ."""
    reader = part.dataset.volumes
    if one.spread is None:
        return False
    steps = reader.normalise if isinstance(reader.normalise, tuple) else (reader.normalise,) * len(one.spread)
    return any(step is zscore and spread < FLAT_SCORES for step, spread in zip(steps, one.spread, strict=True))


# ---- all splits --------------------------------------------------------------------------------------------------


def _duplicates(parts):
    """The same image, by its pixels, in two splits or twice in one."""
    places = defaultdict(list)
    for part in parts:
        for one in part.inspections:
            if one.digest:
                places[one.digest].append((part.name, one.name))
    across, within = [], []
    for found in places.values():
        if len(found) > 1:
            text = " = ".join(f"{name} ({part})" for part, name in found)
            (across if len({part for part, _ in found}) > 1 else within).append(text)
    if across:
        why = "in two splits, so that what is trained on is also tested on"
        yield _error(f"{counted(len(across), 'image')} {why}: {listed(across)}; keep each in one")
    if within:
        yield _warning(f"{counted(len(within), 'image')} more than once in a split: {listed(within)}")


def _shared_groups(parts):
    """A patient in two splits; and, where the patients are unknown, a name in two splits."""
    groups, names = defaultdict(set), defaultdict(set)
    for part in parts:
        for one in part.inspections:
            if one.group:
                groups[one.group].add(part.name)
            else:
                names[one.name].add(one.digest)
    both = sorted(group for group, sides in groups.items() if len(sides) > 1)
    if both:
        yield _error(
            f"{counted(len(both), 'patient')} (or other group) in two splits, so that what is trained on is also "
            f"tested on: {listed(both)}; keep each in one"
        )
    same = sorted(name for name, digests in names.items() if len(digests) > 1)  # one digest: a duplicate, see above
    if same:
        yield _warning(
            f"{counted(len(same), 'name')} in two splits, of different images: {listed(same)}; if that is one patient, "
            "keep each in one"
        )


def _splits(parts):
    """Splits that do not fit each other, and data without splits."""
    channels = {part.dataset.image_channels for part in parts}
    if len(channels) > 1:
        text = ", ".join(f"{part.name} {part.dataset.image_channels}" for part in parts)
        yield _error(f"the splits differ in their number of channels: {text}; they must agree")
    if [part.name for part in parts] == ["all"]:
        yield _warning("the data are not divided: all are trained on and sampled; hold some out, as --val_fraction 0.2")
