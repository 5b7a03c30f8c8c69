"""A door for the documented name: the code is in guided_diffusion/io/images.py."""

from .io.images import read_picture, read_picture_mask

__all__ = ["read_picture", "read_picture_mask"]
