"""From a folder to a batch: cases, loaders, classes, splits, augmentation; below is what a loader of your own needs."""

from .cases import Case, Geometry
from .dataset import SegmentationDataset
from .registry import build_dataset

__all__ = ["Case", "Geometry", "SegmentationDataset", "build_dataset"]
