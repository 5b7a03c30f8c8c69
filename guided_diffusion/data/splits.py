"""The splits of a data set: by the names of folders, or by a hash that holds out whole groups of cases."""

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
    """How undivided data are divided: `--val_fraction`, `--split_seed` and `--group_key`.

    A hash of the seed and the group's name decides, so a group goes to one side as a whole, and cases added later do
    not move others. The held-out share is `fraction` of the groups on average; at least one group is held out and at
    least one kept. group_key: see `group_of`.
    """

    fraction: float
    seed: int = 0
    group_key: str = ""

    def divide(self, cases):
        """(kept, held out): two lists of `Case`s, in their order.

        Raises `UserError` if all cases are of one group, or if the group key is not found in a name.
        """
        groups = [group_of(case, self.group_key) for case in cases]
        places = {group: self._place(group) for group in groups}
        if len(places) < 2:
            raise UserError(
                f"--val_fraction {self.fraction:g}: all {len(cases)} cases are of one group, {groups[0]!r}, which "
                "cannot be divided; add cases of other groups, or change --group_key"
            )
        ordered = sorted(places, key=lambda group: (places[group], group))
        held = {group for group in ordered[1:-1] if places[group] < self.fraction} | {ordered[0]}
        sides = ([], [])
        for case, group in zip(cases, groups, strict=True):
            sides[group in held].append(case)
        return sides

    def _place(self, group):
        """A number in [0, 1), the hash of the seed and the group."""
        return (seed_of("hold out", self.seed, group) + 2**63) / 2**64


def group_of(case, group_key=""):
    """The group of a case, which stays on one side of a split: `known_group`, else the volume, else the name."""
    return known_group(case, group_key) or case.volume or case.name


def known_group(case, group_key=""):
    """The group that the group key finds in the case's name, or without a key the loader's `Case.group`; None if
    unknown.

    group_key: a regular expression that is searched in the name. Its first parenthesis, or the whole match, is the
    group. Raises `UserError` for a name in which it is not found.
    Names and volumes do not count here: they may repeat from split to split, so they identify no patient.
    """
    if not group_key:
        return case.group
    found = re.search(group_key, case.name)
    if not found:
        raise UserError(
            f"--group_key {group_key}: is not found in the case name {case.name!r}; write one that fits all names"
        )
    return found[1] if found.re.groups else found[0]


def hold_out_of(values):
    """The `HoldOut` of option values, a dict as in checkpoints and manifests; None if nothing is held out."""
    if not values.get("val_fraction"):
        return None
    return HoldOut(values["val_fraction"], values.get("split_seed", 0), values.get("group_key", ""))


def loading_of(data):
    """The keyword arguments hold_out, ct_window and classes of `build_dataset` for a `config.options.DataOptions`."""
    return {"hold_out": hold_out_of(dataclasses.asdict(data)), "ct_window": data.window(), "classes": data.classes}


def split_folders(data_dir, split):
    """Return the folders of a split: sub-folders of data_dir, or data_dir itself if it has no folder of any split.

    split: "train", "val", "test" or None (all). "test" stands for the validation folders if there is no test folder.
    "val" gives an empty list if there is no validation folder. Raises `NoSplitError` if there are only folders of other
    splits. See `split_of` for their names.
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
    """The `split` of a `SegmentationDataset` for the value of a flag or manifest: None for "all"."""
    return None if word == "all" else word


def split_of(folder_name):
    """The split of a folder by its name in any case: a name in `SPLIT_FOLDERS`, one such as TestSet or
    MICCAI_TrainingData, or None."""
    name = folder_name.lower()
    for split, names in SPLIT_FOLDERS.items():
        if name in names or re.fullmatch(rf"({'|'.join(names)})[_ -]?(data)?set", name):
            return split
    for split, names in SPLIT_FOLDERS.items():
        if re.fullmatch(rf"(.*[_-])?(({'|'.join(names)})_?data|data_({'|'.join(names)}))([_-].*)?", name):
            return split
    return None
