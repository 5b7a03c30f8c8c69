"""A door for the published name: the code is in guided_diffusion/diffusion/gaussian_diffusion.py."""

from .diffusion.gaussian_diffusion import GaussianDiffusion, build_diffusion

__all__ = ["GaussianDiffusion", "build_diffusion"]
