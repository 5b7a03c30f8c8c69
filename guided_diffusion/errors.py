"""A door for the documented name: the code is in guided_diffusion/runtime/errors.py."""

from .runtime.errors import UserError

__all__ = ["UserError"]
