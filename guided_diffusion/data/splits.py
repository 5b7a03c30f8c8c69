"""The splits of a data set: the folders that are called so, and whole groups of cases that are held out by a hash."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from ..runtime.errors import NoSplitError, UserError
from ..runtime.seeds import seed_of

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class HoldOut:
    """How training cases are divided where the data are not: `--val_fraction`, `--split_seed` and `--group_key`.

    A group goes to one side as a whole, and which one follows from the seed and the group's name alone: cases that are
    added later move no other. So the share is `fraction` of the groups on average only; at least one is held out and
    at least one kept. group_key: a regular expression, see `group_of`.
    """

    fraction: float
    seed: int = 0
    group_key: str = ""

    def divide(self, cases):
        """(kept, held out), two lists of the `data.Case`s in their order.

        Raises `UserError` where all are of one group, or where the group key fits none of the names.
        """
        groups = [group_of(case, self.group_key) for case in cases]
        places = {group: self._place(group) for group in groups}
        if len(places) < 2:
            raise UserError(
                f"--val_fraction {self.fraction:g}: all {len(cases)} cases are of one group, {groups[0]!r}, which "
                "cannot be divided; add cases of others, or change --group_key"
            )
        ordered = sorted(places, key=lambda group: (places[group], group))
        held = {group for group in ordered[1:-1] if places[group] < self.fraction} | {ordered[0]}
        sides = ([], [])
        for case, group in zip(cases, groups, strict=True):
            sides[group in held].append(case)
        return sides

    def _place(self, group):
        """A number in [0, 1) that the seed and the group decide."""
        return (seed_of("hold out", self.seed, group) + 2**63) / 2**64


def group_of(case, group_key=""):
    """What must stay on one side of a split: what the group key finds in the case's name, else the case's `group`,
    else its volume, else its name.

    group_key: a regular expression that is searched in the name; its first parenthesis, or all that it matches, is
    the group. Raises `UserError` for a name that it does not fit.
    """
    return known_group(case, group_key) or case.volume or case.name


def known_group(case, group_key=""):
    """A case's group by the group key or the loader, else None: see `group_of`, which then goes by names. Names may
    begin anew in each folder of a split, so they identify no patient."""
    if not group_key:
        return case.group
    found = re.search(group_key, case.name)
    if not found:
        raise UserError(
            f"--group_key {group_key}: is not found in the case name {case.name!r}; write one that fits all names"
        )
    return found[1] if found.re.groups else found[0]


def hold_out_of(values):
    """The `HoldOut` of option values, a dict as in checkpoints and manifests; None where nothing is held out."""
    if not values.get("val_fraction"):
        return None
    return HoldOut(values["val_fraction"], values.get("split_seed", 0), values.get("group_key", ""))


def loading_of(data):
    """The keyword arguments of `data.build_dataset` that follow from a `config.DataOptions`: "hold_out", "ct_window",
    "classes"."""
    return {"hold_out": hold_out_of(dataclasses.asdict(data)), "ct_window": data.window(), "classes": data.classes}


def split_folders(data_dir, split):
    """Return the folders to look for cases in: data_dir itself, or its sub-folders for training and for testing.

    If data_dir holds any folder of `SPLIT_FOLDERS` (any case), those of `split` are returned, or all of them for None;
    for "test" those of "val" where there are none for testing; for "val" none at all where there is none. Raises
    `NoSplitError` if only another split's is there, rather than give its cases instead.
    """
    folders = [folder for folder in sorted(Path(data_dir).iterdir()) if folder.is_dir()]
    found = {name: [f for f in folders if split_of(f.name) == name] for name in SPLIT_FOLDERS}
    if split == "val":
        return found["val"]
    if not any(found.values()):
        return [Path(data_dir)]
    if split is None:
        return [folder for part in found.values() for folder in part]
    if split == "test" and not found["test"]:
        found["test"] = found["val"]
    if not found[split]:
        other = next(part[0].name for part in found.values() if part)
        raise NoSplitError(
            f"{data_dir}: holds {other}/ but no {split}/ or {split}ing/; name the folder to use with --data_dir"
        )
    return found[split]


def given_split(word):
    """The split of a flag or manifest as data sets take it: None for "all"."""
    return None if word == "all" else word


def split_of(folder_name):
    """The split that a folder's name stands for, or None: one of `SPLIT_FOLDERS`, or a name such as TrainingData."""
    name = folder_name.lower()
    exact = (split for split, names in SPLIT_FOLDERS.items() if name in names)
    data = (
        split
        for split, names in SPLIT_FOLDERS.items()
        if re.fullmatch(rf"(.*[_-])?(({'|'.join(names)})_?data|data_({'|'.join(names)}))([_-].*)?", name)
    )
    return next(exact, None) or next(data, None)
