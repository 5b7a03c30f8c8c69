"""A door for the published name: the code is in guided_diffusion/diffusion/dpm_solver.py."""

from .diffusion.dpm_solver import sample_dpm_solver

__all__ = ["sample_dpm_solver"]
