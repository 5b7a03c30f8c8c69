"""From a folder to a batch: cases, loaders, classes, splits, augmentation. Exports what a user's own loader needs."""

from .cases import Case, Geometry
from .dataset import SegmentationDataset
from .registry import build_dataset

__all__ = ["Case", "Geometry", "SegmentationDataset", "build_dataset"]
