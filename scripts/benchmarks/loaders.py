"""Loaders for the benchmarks: items stay in memory, and the tuning split never sees the test split."""

import numpy as np

from guided_diffusion.data.loaders.folder import FolderDataset
from guided_diffusion.data.loaders.lidc import LIDCDataset


class _InMemory:
    """Each item is read and resized once, so that the seconds of a training step are the network's."""

    _items = None

    def __getitem__(self, index):
        self._items = {} if self._items is None else self._items
        if index not in self._items:
            self._items[index] = super().__getitem__(index)
        return {key: value.clone() if hasattr(value, "clone") else value for key, value in self._items[index].items()}


class BenchmarkFolder(_InMemory, FolderDataset):
    """A folder of pairs."""


class BenchmarkLIDC(_InMemory, LIDCDataset):
    """LIDC patches."""


class _Tuning:
    """Of the training split's groups (patients, or cases), one in four is for testing."""

    finds_validation = False

    def find_cases(self):
        asked, self.split = self.split, "train"
        cases = super().find_cases()
        self.split = asked
        groups = sorted({case.group or case.name for case in cases})
        held_out = set(np.random.default_rng(0).permutation(groups)[: len(groups) // 4].tolist())
        return [case for case in cases if ((case.group or case.name) in held_out) == (asked == "test")]


class TuningFolder(_Tuning, BenchmarkFolder):
    """The tuning split of a folder of pairs."""


class TuningLIDC(_Tuning, BenchmarkLIDC):
    """The tuning split of LIDC patches."""
