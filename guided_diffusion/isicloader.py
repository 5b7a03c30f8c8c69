"""A door for the published name: the code is in guided_diffusion/data/loaders/isic.py."""

from .data.loaders.isic import ISICDataset

__all__ = ["ISICDataset"]
