"""Which items an epoch of training has: all, only those with something marked, or as many with as without."""

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from .runtime.console import console, counted
from .runtime.errors import UserError


@dataclass(frozen=True)
class Selection:
    """The items of an epoch, by index: each of `whole` once and as many of `drawn`, chosen anew for each epoch."""

    whole: np.ndarray
    drawn: np.ndarray = ()

    @classmethod
    def of_all(cls, length):
        """All of so many items."""
        return cls(np.arange(length))

    def __len__(self):
        return len(self.whole) * (2 if len(self.drawn) else 1)

    def shuffled(self, rng):
        """The indices of an epoch in an order drawn by a NumPy generator."""
        chosen = self.whole
        if len(self.drawn):
            chosen = np.concatenate([chosen, rng.choice(self.drawn, len(chosen), replace=False)])
        return chosen[rng.permutation(len(chosen))]


def select_slices(dataset, slices, processes):
    """The `Selection` that `--slices` asks for of a data set with masks: all, nonempty or balanced.

    Whether an item has anything marked, by any rater and of any class, is looked up once, with a bar, by the first of
    the `dist_util.Processes`. Raises `UserError` where nothing is marked anywhere.
    """
    if slices == "all":
        return Selection.of_all(len(dataset))
    marked = np.array(processes.from_first(lambda: _look(dataset)))
    full, empty = np.flatnonzero(marked), np.flatnonzero(~marked)
    if not len(full):
        raise UserError(f"{dataset.data_dir}: nothing is marked in any mask; --slices {slices} would leave nothing")
    console().info(
        f"--slices {slices}: {len(full)} of {counted(len(marked), 'image')} with something marked, {len(empty)} without"
    )
    if slices == "nonempty" or not len(empty):
        return Selection(full)
    return Selection(*sorted((full, empty), key=len))


def _look(dataset):
    cases = tqdm(dataset.cases, desc="looking for marked slices", unit="image", dynamic_ncols=True)
    return [bool(dataset.load_mask(case).any()) for case in cases]
