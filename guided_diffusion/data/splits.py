"""The splits of a data set: by the names of folders, or by a hash that holds out whole groups of cases."""

import dataclasses
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..config.options import fold_of
from ..config.settings import check_division, is_divided
from ..io.texts import shown
from ..runtime.console import counted
from ..runtime.errors import NoSplitError, UserError
from ..runtime.seeds import seed_of

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SPLIT_WORDS = "|".join(word for words in SPLIT_FOLDERS.values() for word in words)
SPLIT_WORD = re.compile(rf"({SPLIT_WORDS})(data)?")
SPLIT_SET = re.compile(rf"({SPLIT_WORDS})([_ -]?(data)?set)?")


@dataclass(frozen=True)
class HoldOut:
    """How undivided data are divided: `--val_fraction` or `--fold`, `--test_fraction`, `--split_seed`, `--group_key`.

    fraction, test_fraction: the shares of the groups to hold out for validation and for testing. The number held out is
    the nearest to the share, at least one for each share above 0, and at least one group is kept. group_key: see
    `group_of`. fold: (K, N) instead of a fraction: of the groups that are not for testing, the K-th of N parts is for
    validation.

    A hash of the seed and the group's name gives each group a place. The first places are test, the next validation;
    folds follow one another. So a group goes to one side as a whole, the test part does not depend on `fraction` or
    `fold`, and one more group moves at most one of the others over each border.
    """

    fraction: float
    seed: int = 0
    group_key: str = ""
    test_fraction: float = 0.0
    fold: tuple[int, int] | None = None

    @property
    def validates(self):
        """Whether a part is held out for validation."""
        return bool(self.fraction or self.fold)

    @property
    def validation_flag(self):
        """The name of the flag that holds cases out for validation."""
        return "--fold" if self.fold else "--val_fraction"

    @property
    def flags(self):
        """The parts as flags, "--val_fraction 0.2 --test_fraction 0.1"."""
        shares = {"val_fraction": self.fraction, "test_fraction": self.test_fraction}
        flags = [f"--{name} {share:g}" for name, share in shares.items() if share]
        return " ".join([*([f"--fold {self.fold[0]}/{self.fold[1]}"] if self.fold else []), *flags])

    def divide(self, cases):
        """{"train": kept, "val": held out, "test": held out}: lists of `Case`s, in their order.

        Raises `UserError` if there are too few groups, if the group key is not found in a name, and if the slices of a
        volume are of several groups.
        """
        groups = [group_of(case, self.group_key) for case in cases]
        of_volume = {}
        for case, group in zip(cases, groups, strict=True):
            other = of_volume.setdefault(case.volume or case.name, group)
            if other != group:
                remedy = "let --group_key find the patient" if self.group_key else "give its cases one group"
                raise UserError(
                    f"{self.flags}: slices of the volume {case.volume} are of the groups {other!r} and {group!r}, so "
                    f"that both parts would have some; {remedy}"
                )
        ordered = sorted(set(groups), key=lambda group: (self._place(group), group))
        tests, vals = (self._number(share, len(ordered)) for share in (self.test_fraction, self.fraction))
        if len(ordered) <= bool(tests) + bool(vals):
            few = (
                f"all {len(cases)} cases are of one group, {groups[0]!r}"
                if len(ordered) == 1
                else (f"the {counted(len(cases), 'case')} are of {len(ordered)} groups")
            )
            parts = "" if len(ordered) == 1 else f" into {1 + bool(tests) + bool(vals)} parts"
            raise UserError(
                f"{self.flags}: {few}, which cannot be divided{parts}; add cases of other groups, or change --group_key"
            )
        while tests + vals >= len(ordered):  # one group is kept; the larger part gives way
            tests, vals = (tests - 1, vals) if tests > vals else (tests, vals - 1)
        held_out = self._fold_of(ordered[tests:]) if self.fold else ordered[tests : tests + vals]
        sides = dict.fromkeys(ordered, "train") | dict.fromkeys(held_out, "val")
        sides |= dict.fromkeys(ordered[:tests], "test")
        parts = {"train": [], "val": [], "test": []}
        for case, group in zip(cases, groups, strict=True):
            parts[sides[group]].append(case)
        return parts

    def _fold_of(self, groups):
        """The groups of the fold, a run of these ordered ones. Raises `UserError` where there are too few."""
        fold, folds = self.fold
        if len(groups) < folds:
            raise UserError(
                f"{self.flags}: the cases to divide are of {counted(len(groups), 'group')}, fewer than folds; ask for "
                "fewer folds, or change --group_key"
            )
        low, high = ((2 * border * len(groups) + folds) // (2 * folds) for border in (fold - 1, fold))
        return groups[low:high]

    @staticmethod
    def _number(share, count):
        """The number of groups that is nearest to a share of `count`; halves go up."""
        return max(1, math.floor(share * count + 0.5)) if share else 0

    def _place(self, group):
        """A number that orders the groups, the hash of the seed and the group."""
        return seed_of("hold out", self.seed, group)


def group_of(case, group_key=""):
    """The group of a case, which stays on one side of a split: `known_group`, else the volume, else the name."""
    return known_group(case, group_key) or case.volume or case.name


def known_group(case, group_key=""):
    """The group that the group key finds in the case's name, or without a key the loader's `Case.group`; None if
    unknown.

    group_key: a regular expression that is searched in the name. Its first parenthesis, or the whole match, is the
    group. Raises `UserError` for a name in which it is not found, or finds nothing.
    Names and volumes do not count here: they may repeat from split to split, so they identify no patient.
    """
    if not group_key:
        return case.group
    found = re.search(group_key, case.name)
    if not found or not (found[1] if found.re.groups else found[0]):
        raise UserError(
            f"--group_key {shown(group_key)}: is not found in the case name {case.name!r}; write one that fits all "
            "names"
        )
    return found[1] if found.re.groups else found[0]


def hold_out_of(values):
    """The `HoldOut` of option values, a dict as in checkpoints and manifests; None if nothing is held out.

    Raises `UserError` for values of an earlier version, which held out other cases.
    """
    if not is_divided(values):
        return None
    check_division(values)
    return HoldOut(
        values.get("val_fraction", 0.0),
        values.get("split_seed", 0),
        values.get("group_key", ""),
        values.get("test_fraction", 0.0),
        fold_of(values.get("fold", "")),
    )


def loading_of(data):
    """The keyword arguments hold_out, ct_window, classes and ignore_label of `build_dataset` for a
    `config.options.DataOptions`."""
    ignored = {"ignore_label": data.ignored_values()} if data.ignore_label else {}
    return {
        "hold_out": hold_out_of(dataclasses.asdict(data)),
        "ct_window": data.window(),
        "classes": data.classes,
        **ignored,
    }


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


@lru_cache(maxsize=1024)  # the same few names stand above thousands of cases
def split_of(folder_name):
    """The split that a folder is of by its name (any case), None if the name does not say.

    It is a name in `SPLIT_FOLDERS`, or one such as TestSet, or has the word of one split beside "data", as
    MICCAI_TrainingData and training_data1_v2, or anywhere if it names BraTS, as BraTS-MEN-RT-Train-v2. A name with the
    words of two splits is of none, nor is that of a single case, as BraTS20_Training_001.
    """
    name = re.sub(r" *\(\d+\)$", "", folder_name)  # a second download
    whole = SPLIT_SET.fullmatch(name.lower())
    if whole:
        return _split_of_word(whole[1])
    parts = re.findall(r"[a-z]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    matches = [SPLIT_WORD.fullmatch(part) for part in parts]
    found = {_split_of_word(match[1]) for match in matches if match}
    if len(found) != 1:
        return None
    place = next(k for k, match in enumerate(matches) if match)
    is_case = place == len(parts) - 2 and len(parts[-1]) > 2 and parts[-1].isdecimal()
    beside = [matches[place][2], *parts[max(place - 1, 0) : place], *parts[place + 1 : place + 2]]
    return found.pop() if ("brats" in name.lower() or "data" in beside) and not is_case else None


def _split_of_word(word):
    return next(split for split, words in SPLIT_FOLDERS.items() if word in words)
