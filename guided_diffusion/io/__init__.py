"""Files in and out, whole or not at all. Exports the readers that a loader needs."""

from .images import read_picture, read_picture_labels, read_picture_mask
from .nifti import read_nifti

__all__ = ["read_nifti", "read_picture", "read_picture_labels", "read_picture_mask"]
