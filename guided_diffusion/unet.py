"""A door for the published name: the code is in guided_diffusion/models/unet.py."""

from .models.unet import UNetShape, build_decoder, build_encoder

__all__ = ["UNetShape", "build_decoder", "build_encoder"]
