"""Loaders of the training split alone, for choices that must not see the test split."""

import numpy as np

from guided_diffusion.data.loaders.folder import FolderDataset
from guided_diffusion.data.loaders.lidc import LIDCDataset


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


class TuningFOLDER(_Tuning, FolderDataset):
    """The tuning split of a folder of pairs."""


class TuningLIDC(_Tuning, LIDCDataset):
    """The tuning split of LIDC patches."""
