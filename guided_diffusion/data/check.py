"""What is wrong, or may be wrong, with a data set before anyone trains on it."""

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import torch

from ..io.masks import differ, void_among
from ..runtime.console import counted, listed
from .cases import group_cases
from .intensities import zscore
from .mask_checks import mixed_advice

LISTED_PROBLEMS = 5  # messages about unreadable files; of the others only the cases are named
MOST_NAMED = 200  # cases that cannot be read
DOUBT = "warning: "  # how a data set's notes begin that name a doubt
DARK = 64  # of 255: 14 bits in a file of 16
MOST_SEEN = 20  # of the values that a network sees; z-scores stay below it
FLAT_RANGE = 1 / 20  # of an image's range: fewer hold nearly all pixels
LEAST_ROUND_TRIP = 0.95  # Dice of a mask's round trip through the network's grid, below which the grid is too coarse
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


def findings(parts, left_over=()):
    """The `Finding`s about inspected `inspection.Part`s, errors first. left_over: lines about files in no case, see
    `accounting.Account.error_lines`."""
    found = [_error(line) for line in left_over]
    for part in parts:
        found += [*_unreadable_files(part), *_masks(part), *_odd_masks(part), *_classes(part), *_images(part)]
        found += [*_places(part), *_intensities(part), *_round_trips(part)]
        doubts = [note.removeprefix(DOUBT) for note in part.dataset.notes if note.startswith(DOUBT)]
        found += [_warning(f"{part.name}: {doubt}") for doubt in doubts]
    found += [*_foregrounds(parts), *_duplicates(parts), *_shared_groups(parts), *_splits(parts)]
    return sorted(found, key=lambda finding: not finding.is_error)


def training_findings(part):
    """The `Finding`s that training prints of the few cases that it looks at first, a `Part` of them."""
    found = [*_unreadable_files(part), *_foregrounds([part]), *_odd_masks(part), *_label_values(part)]
    return [
        *found,
        *_full_masks(part, 0.5),
        *_raters_apart(part),
        *_places(part),
        *_intensities(part),
        *_round_trips(part),
    ]


# ---- one split ---------------------------------------------------------------------------------------------------


def _names(part, condition):
    """The names of the part's cases whose `Inspection` meets the condition."""
    return [one.name for one in part.inspections if condition(one)]


def _unreadable_files(part):
    problems = list(dict.fromkeys(problem for one in part.inspections for problem in one.problems))
    yield from (_error(f"{part.name}: {problem}") for problem in problems[:LISTED_PROBLEMS])
    if len(problems) > LISTED_PROBLEMS:
        names = _names(part, lambda one: one.problems)[LISTED_PROBLEMS:]
        more = len(problems) - LISTED_PROBLEMS
        yield _error(f"{part.name}: {more} more that cannot be read: {listed(names, MOST_NAMED)}")


def _masks(part):
    """Missing and empty masks, and missing raters."""
    without = _names(part, lambda one: not one.raters)
    is_unpublished = part.name == "val" and len(without) == len(part.inspections)
    if is_unpublished:
        yield _warning(f"val: no case has a mask ({counted(len(without), 'case')}): training will not validate on them")
    elif without and part.trains:
        yield _error(f"{part.name}: {counted(len(without), 'case')} without a mask: {listed(without)}")
    elif without:
        cases = counted(len(without), "case")
        yield _warning(f"{part.name}: {cases} without a mask, which cannot be scored: {listed(without)}")
    numbers = Counter(one.raters for one in part.inspections if one.raters)
    if len(numbers) > 1:
        usual = numbers.most_common(1)[0][0]
        odd = listed(_names(part, lambda one: one.raters not in (0, usual)))
        yield Finding(part.trains, f"{part.name}: not masked by {counted(usual, 'rater')} as the others: {odd}")
    yield from _other_raters(part, numbers)
    yield from _raters_apart(part)
    seen = [one for one in part.inspections if one.marked is not None]
    if seen and all(not one.marked.any() for one in seen) and part.trains:
        yield _error(f"{part.name}: all masks are empty: there is nothing to learn; are they the right files?")
    empty = [one.name for one in seen if one.empty == one.count]
    if empty and len(empty) < len(seen):
        yield _warning(f"{part.name}: {counted(len(empty), 'case')} with nothing marked: {listed(empty)}")
    yield from _full_masks(part)


def _other_raters(part, numbers):
    """Cases whose raters are as many as those of others, and not the same. numbers: of raters, without 0."""
    units = [unit for unit in group_cases(part.dataset.cases) if unit.cases[0].raters]
    every = set().union(*(unit.cases[0].raters for unit in units))
    odd = [unit.name for unit in units if set(unit.cases[0].raters) != every]
    if odd and len(numbers) == 1:
        names = listed(sorted(every))
        yield Finding(
            part.trains, f"{part.name}: {counted(len(odd), 'case')} not masked by each of {names}: {listed(odd)}"
        )


def _raters_apart(part):
    """Raters who never mark a pixel in common, as folders of classes do."""
    compared, apart = (sum(getattr(one, name) for one in part.inspections) for name in ("compared", "apart"))
    if compared > 1 and apart == compared:
        names = sorted(set().union(*(case.raters for case in part.dataset.cases)))
        who = f" ({listed(names)})" if names else ""
        yield _warning(
            f"{part.name}: the raters{who} mark no pixel in common in any of {compared} images: are they classes? save "
            "those as one label map, a value for each, and name them by --classes"
        )


def _full_masks(part, least=0.0):
    """Masks marked all over, if they are more than the share `least` of all."""
    seen = [one for one in part.inspections if one.marked is not None]
    full = [one.name for one in seen if one.marked.max() > 0.98]
    if len(full) > least * len(seen):
        yield _warning(f"{part.name}: {counted(len(full), 'case')} marked all over: {listed(full)}")


def _odd_masks(part):
    """Masks of one class with greys, or inside out."""
    if not part.dataset.classes.is_binary:
        return
    soft = _names(part, lambda one: one.is_soft)
    if soft:
        yield _warning(
            f"{part.name}: {counted(len(soft), 'mask')} with greys between background and foreground, which are cut at "
            f"half: {listed(soft)}"
        )
    seen = [one for one in part.inspections if one.marked is not None]
    turned = _names(part, lambda one: one.is_inside_out)
    if turned and 2 * len(turned) > len(seen):
        yield _warning(
            f"{part.name}: {counted(len(turned), 'mask')} with the foreground all along the border: {listed(turned)}; "
            "are background and foreground exchanged?"
        )


def _classes(part):
    """Rare and absent classes, and label values of no class."""
    marked = [one.marked for one in part.inspections if one.marked is not None]
    shares = dict(zip(part.dataset.class_names, np.mean(marked, axis=0), strict=True)) if marked else {}
    for name, share in shares.items():
        if share == 0 and len(shares) > 1:
            yield Finding(part.trains, f"{part.name}: no pixel is {name}")
    rare = {name: share for name, share in shares.items() if 0 < share < RARE_CLASS}
    if rare:
        text = listed([f"{name} is {100 * share:.2g} %" for name, share in rare.items()])
        yield _warning(f"{part.name}: {text} of the pixels, which is hard to learn")
    yield from _label_values(part)


def round_trips(part):
    """float64 [K]: the mean over the part's cases of `Inspection.round_trip`; NaN for a class that is nowhere,
    and [0] where no case has one."""
    dice = np.array([one.round_trip for one in part.inspections if one.round_trip is not None])
    defined = np.isfinite(dice).sum(axis=0)
    return np.where(defined, np.nansum(dice, axis=0) / np.maximum(defined, 1), np.nan) if len(dice) else dice


def _round_trips(part):
    """Classes whose masks the network's grid cannot hold, where images shrink."""
    if part.name not in ("train", "all") or not any(one.shrinks for one in part.inspections):
        return
    dice = dict(zip(part.dataset.class_names, round_trips(part), strict=False))
    coarse = listed([f"{value:.2f} ({name})" for name, value in dice.items() if value < LEAST_ROUND_TRIP])
    if coarse:
        yield _warning(
            f"{part.name}: --image_size {part.dataset.image_size} is coarse for these masks: shrunk to it and enlarged "
            f"again, they reach a Dice of {coarse} with themselves, and a network can hardly do better; train on crops "
            "(--crop True) or at a larger --image_size"
        )


def _label_values(part):
    """Label values that no class has, or that the layout does not declare."""
    dataset, found = part.dataset, sorted({value for one in part.inspections for value in one.values})
    if not dataset.reads_labels:
        return
    looked_for = part.trains and dataset.ignore_label and not dataset.has_reserved
    if looked_for and not any(one.ignored for one in part.inspections):
        flag = f"--ignore_label {','.join(map(str, dataset.ignore_label))}"
        yield _warning(f"{part.name}: {flag}: no pixel has this value; leave it out, or name the value that is meant")
    if not dataset.classes.is_binary:
        known = {value for values in dataset.classes.values for value in values} | {0}
        others = [value for value in found if value not in known and value not in dataset.ignore_label]
        if others:
            void = void_among([*known - {0}, *others])
            void = f" (usually void: not annotated; --ignore_label {void[0]:g} leaves it out)" if void else ""
            text = listed([f"{value:g}" for value in others])
            yield _warning(f"{part.name}: no class has the label value {text}{void}: it counts as background")
    elif dataset.declared_labels:
        others = [value for value in found if value not in {0, *dataset.declared_labels, *dataset.ignore_label}]
        if others:
            text, known = (", ".join(f"{value:g}" for value in values) for values in (others, dataset.declared_labels))
            yield _warning(
                f"{part.name}: the label value {text} is none of those declared ({known}): it counts as foreground"
            )


def _images(part):
    """Blank and flat images."""
    blank = _names(part, lambda one: one.digest is None and one.sizes and not one.problems)
    if blank:
        yield _warning(f"{part.name}: {counted(len(blank), 'image')} of one value alone: {listed(blank)}")
    flat = [one.name for one in part.inspections if _has_flat_scores(part, one)]
    if flat:
        yield _warning(
            f"{part.name}: {counted(len(flat), 'volume')} nearly flat as z-scores, since a few values lie far from all "
            f"others: {listed(flat)}; clip these values or leave the volumes out"
        )
    one_value = _names(part, lambda one: one.digest and (one.low == one.high).any())
    if one_value:
        images = counted(len(one_value), "image")
        yield _warning(f"{part.name}: {images} with a channel of one value alone: {listed(one_value)}")


def _places(part):
    """Files that do not lie over their image."""
    elsewhere = list(dict.fromkeys(one.elsewhere for one in part.inspections if one.elsewhere))
    if elsewhere:
        more = f" and {len(elsewhere) - 1} more" if len(elsewhere) > 1 else ""
        yield _warning(f"{part.name}: a file lies elsewhere in space than its image: {elsewhere[0]}{more}")
    unwritable = [one.unwritable for one in part.inspections if one.unwritable]
    if unwritable:
        number = counted(len(unwritable), "volume")
        yield _warning(f"{part.name}: {number} cannot be sampled, only trained on: {unwritable[0]}")
    unplaced = list(dict.fromkeys(one.unplaced for one in part.inspections if one.unplaced))
    if unplaced:
        more = f" and {len(unplaced) - 1} more" if len(unplaced) > 1 else ""
        yield _warning(
            f"{part.name}: a file has lost its affine and is taken voxel for voxel over its image: {unplaced[0]}{more}"
        )


def _intensities(part):
    """Images whose values fill a small part of their range, so that the network would see them as black or flat."""
    seen = [one for one in part.inspections if one.digest]
    high = max((max(abs(one.network_low), abs(one.network_high)) for one in seen), default=0)
    if high > MOST_SEEN:
        low, high = min(one.network_low for one in seen), max(one.network_high for one in seen)
        yield _warning(
            f"{part.name}: the network sees values from {low:.3g} to {high:.3g}, and learns well from about -1 to 1; "
            f"let normalise of {type(part.dataset).__name__} map them there, or to zero mean and unit variance"
        )
    if takes_photographs(part.dataset):
        black = _names(part, lambda one: one.digest and 0 < one.high.max() <= 1)
        if black:
            what = _brighter(part, "save them as 0-255")
            yield _warning(f"{part.name}: nearly black, with values from 0 to 1: {listed(black)}; {what}")
        dark = [one for one in seen if one.high.max() > 1 and 0 <= one.typical[1] <= DARK]
        if 2 * len(dark) < len(seen):  # a few pictures may be dark; of more than 8 bits they are of fewer than 16
            dark = [one for one in dark if one.is_fine and one.high.max() <= DARK]
        if dark:
            top = max(one.typical[1] for one in dark)
            what = _brighter(part, "save them with white as 255, or as 65535 in 16 bits")
            yield _warning(
                f"{part.name}: {counted(len(dark), 'image')} nearly black: 99 % of pixels are below {top:.3g} of 255, "
                f"as with 12 bits in a file of 16; {what}: {listed([one.name for one in dark])}"
            )
            seen = [one for one in seen if one not in dark]
    flat = [one for one in seen if one.typical[1] - one.typical[0] < FLAT_RANGE * (one.high.max() - one.low.min())]
    flat = [one for one in flat if one.count > 1 or not part.is_volumes]  # a volume's last slices are nearly empty
    flat = [one for one in flat if one.high.max() > 1 or not takes_photographs(part.dataset)]
    flat = [one for one in flat if not _has_flat_scores(part, one)]  # `_images` names these
    if flat:
        one = flat[0]
        low, high = one.low.min(), one.high.max()
        yield _warning(
            f"{part.name}: {counted(len(flat), 'image')} with a few outliers, which leave little contrast to the rest "
            f"({one.name}: 99 % lie in {one.typical[0]:.3g} to {one.typical[1]:.3g} of {low:.3g} to {high:.3g}): "
            f"{listed([one.name for one in flat])}"
        )


def _brighter(part, saved):
    """What to do about dark images: `saved`, how to save them, or in a user's own loader how to map them."""
    loader = type(part.dataset)
    if loader.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return saved
    return f"let read_image of {loader.__name__} give 0 to 255, or define normalise, which maps them to -1 to 1"


def takes_photographs(dataset):
    """Whether the data set's `normalise` is that of pictures, 0..255 to -1..1."""
    probe = torch.tensor([0.0, 255.0]).expand(dataset.image_channels, 1, 2)
    try:
        return torch.allclose(torch.as_tensor(dataset.normalise(probe.clone())).float(), 2 * probe / 255 - 1)
    except Exception:  # a user's own may take images of another form alone
        return False


FLAT_SCORES = 0.3  # z-scores have a standard deviation of 1, or a little less since they are clipped


def _has_flat_scores(part, one):
    """Whether the z-scores of a channel of an `Inspection` hardly differ."""
    reader = part.dataset.volumes
    if one.spread is None:
        return False
    steps = reader.normalise if isinstance(reader.normalise, tuple) else (reader.normalise,) * len(one.spread)
    return any(step is zscore and spread < FLAT_SCORES for step, spread in zip(steps, one.spread, strict=True))


# ---- all splits --------------------------------------------------------------------------------------------------


def _foregrounds(parts):
    """Masks of one class whose foreground has another value from file to file."""
    files, count = {}, Counter()
    for part in parts:
        if len(part.dataset.class_names) > 1 or not part.dataset.classes.is_binary:
            return
        for one in part.inspections:
            for foreground, path in one.foregrounds.items():
                files.setdefault(foreground, path)
                count[foreground] += 1
    usual = [foreground for foreground, _ in count.most_common()]
    text = ", ".join(f"{each} in {counted(count[each], 'case')} (as {files[each]})" for each in usual[:LISTED_PROBLEMS])
    text += f" and {len(usual) - LISTED_PROBLEMS} more" if len(usual) > LISTED_PROBLEMS else ""
    if any(differ(one, other) for one in usual for other in usual):
        yield _error(f"the foreground of masks is {text}; {mixed_advice(usual)}")
    elif len(usual) > 1 and any(not one.startswith("#") for one in usual):
        yield _warning(f"the foreground of masks is {text}; all are read as foreground")


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
    if [part.name for part in parts] == ["train"]:
        yield _warning("there is only a training part: nothing to sample; hold some out, as --val_fraction 0.2")
    if [part.name for part in parts] == ["all"]:
        yield _warning("the data are not divided: all are trained on and sampled; hold some out, as --val_fraction 0.2")
