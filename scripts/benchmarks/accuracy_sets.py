"""The data sets of the accuracy protocol: four that it knows, and any folder that `--data_name AUTO` reads."""

import re
from pathlib import Path
from typing import NamedTuple

from guided_diffusion.data.division import part_of
from guided_diffusion.data.registry import AUTO, build_dataset, recognised
from guided_diffusion.data.splits import HoldOut
from guided_diffusion.runtime.errors import NoSplitError, UserError

LOADERS = Path(__file__).resolve().with_name("loaders.py")
KINDS = {"FOLDER": "Folder", "LIDC": "LIDC"}  # the classes in loaders.py, by what they read
SCALED, TILED = "--symmetries all --scales 0.9,1.1", "--tile True"
CROPS = "--orientation any --image_size 64 --patch_size 2 --crop True"


class DataSet(NamedTuple):
    """name: in the record. data_dir: its folder. kind: the class in loaders.py, "" for a layout that has none there.

    training, sampling, evaluation: flags of the contenders of a fixed size. In sampling all of them have the same
    test-time augmentation; images in tiles have none. test_fraction: the share of the groups that is held out for
    testing, 0 where the data have test cases of their own.
    """

    name: str
    data_dir: str
    kind: str
    training: str = ""
    sampling: str = ""
    evaluation: str = ""
    test_fraction: float = 0.0

    def loader(self, split):
        """--data_name of the loader that keeps items in memory. split: "test" or "tuning", see --split."""
        return f"{LOADERS}:{'Benchmark' if split == 'test' else 'Tuning'}{self.kind}"

    def held_out(self):
        """The flags that hold out the test cases, a list of words; empty where the data have their own."""
        return ["--test_fraction", str(self.test_fraction)] if self.test_fraction else []

    def as_user(self, split):
        """How a user names the data, a list of words. The tuning split needs a loader of its own."""
        return ["--data_dir", self.data_dir, *([] if split == "test" else ["--data_name", self.loader(split)])]

    def build(self, part, image_size=1, *, split="test", kept=False, need_masks=False):
        """The data set's "train" or "test" part. kept: whether items stay in memory."""
        name = self.loader(split) if kept or split != "test" else AUTO
        hold_out = HoldOut(0.0, test_fraction=self.test_fraction) if self.test_fraction else None
        return build_dataset(name, self.data_dir, image_size, split=part, need_masks=need_masks, hold_out=hold_out)


KNOWN = {
    "ph2": DataSet("ph2", "", "Folder", "--orientation any", SCALED),
    "lidc4": DataSet("lidc4", "", "LIDC", "--orientation any", SCALED),
    "drive": DataSet("drive", "", "Folder", CROPS, TILED, "--topology True"),
    "em": DataSet("em", "", "Folder", CROPS, TILED, "--topology True"),
}


def chosen_sets(text, folders, test_fraction, *, look=True):
    """The `DataSet`s of --sets, a list.

    text: names in `KNOWN`, paths and NAME=PATH, separated by commas. folders: {name in `KNOWN`: its folder}. look:
    whether folders are read, which finds out what a new one holds.
    Raises `UserError` for what is none of these, for a name that stands twice, and for data that cannot be read.
    """
    found = []
    for word in (word.strip() for word in text.split(",")):
        name, is_named, path = word.partition("=")
        if word in KNOWN:
            found.append(KNOWN[word]._replace(data_dir=folders[word]))
        elif name in KNOWN:
            raise UserError(f"--sets {word}: {name} is a set with flags of its own; name its folder by --{name}_dir")
        elif is_named or Path(word).is_dir():
            name = name if is_named else Path(word).resolve().name
            path = path if is_named else word
            if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
                raise UserError(f"--sets {word}: {name!r} must be of letters, digits, _, - and .; write NAME={path}")
            found.append(_look_at(name, path, test_fraction) if look else DataSet(name, path, ""))
        else:
            raise UserError(
                f"--sets {text}: {word!r} is none of {', '.join(KNOWN)}, and no folder; write a folder or NAME=FOLDER"
            )
    names = [data.name for data in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"--sets {text}: {twice[0]} is named twice; give one another name by NAME=FOLDER")
    return found


def _look_at(name, path, test_fraction):
    """The `DataSet` of a folder. Raises `UserError` where its cases, or their masks, are not found."""
    kind = KINDS.get(recognised(AUTO, path), "")
    fraction = 0.0 if _has_tests(path) else test_fraction
    # A picture may have a top, so nobody turns it.
    data = DataSet(name, path, kind, "", "--symmetries none --scales 0.9,1.1", "", fraction)
    for part in ("train", "test"):  # before anything is trained
        data.build(part, need_masks=part == "train")
    if not any(case.masks for case in data.build("test").cases):
        raise UserError(f"{path}: its test cases have no masks; name data with masks for --sets")
    return data


def _has_tests(path):
    """Whether a folder has test cases with masks of its own. Validation cases are none: they select best.pt."""
    try:
        dataset = build_dataset(AUTO, path, 1, split="test")
    except NoSplitError:
        return False
    return part_of(dataset) == "test" and any(case.masks for case in dataset.cases)
