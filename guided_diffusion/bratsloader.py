"""A door for the published name: the code is in guided_diffusion/data/loaders/brats.py."""

from .data.loaders.brats import BraTSDataset

__all__ = ["BraTSDataset"]
