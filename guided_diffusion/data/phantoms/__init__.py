"""Synthetic data sets with known truth ("phantoms"), written in the layouts of ISIC 2016, BraTS, LIDC and FOLDER.

They look like dermoscopy, MRI, CT and ultrasound pictures. A network learns them in minutes, but no grey value solves
them: light, shadows and decoys outweigh the lesion's own contrast, and each MRI modality alone misleads. (seed, index)
and the size alone determine case `index`, whatever the number of cases.
"""

from .brats import brats_case, write_brats, write_brats_slices
from .cardiac import cardiac_case, write_cardiac
from .common import TEST_START, best_threshold_dice
from .isic import isic_case, write_isic
from .lidc import READERS, lidc_case, write_lidc
from .ultrasound import ultrasound_case, write_ultrasound

__all__ = [
    "READERS",
    "TEST_START",
    "best_threshold_dice",
    "brats_case",
    "cardiac_case",
    "isic_case",
    "lidc_case",
    "ultrasound_case",
    "write_brats",
    "write_brats_slices",
    "write_cardiac",
    "write_isic",
    "write_lidc",
    "write_ultrasound",
]
