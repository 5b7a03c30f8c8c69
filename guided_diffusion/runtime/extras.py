"""Libraries that only some commands need: the extras of pyproject.toml."""

import importlib

from .errors import UserError


class MissingLibraryError(UserError):
    """A library of an extra is not installed; the message names the command that installs it."""


def optional(module, extra, needed_for):
    """The module of this name, which belongs to an extra of the package.

    needed_for: what cannot work without it, the message's beginning, such as "gs:// and az:// paths". Raises
    `MissingLibraryError`.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        # A library that is there may lack one of its own; its name says which.
        missing = (error.name or module).partition(".")[0]
        raise MissingLibraryError(
            f"{needed_for}: needs {missing}, which is not installed; pip install 'guided_diffusion[{extra}]'"
        ) from error
