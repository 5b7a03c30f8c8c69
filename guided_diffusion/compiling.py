"""Networks compiled by torch.compile, and what is told where that fails."""

import copy
import warnings
from contextlib import contextmanager

import torch

from .runtime.errors import UserError, is_out_of_memory


def compiled(model):
    """The network with `encode` and `forward` compiled, which happens at their first call for each shape.

    A shallow copy: it shares the weights with `model`, which stays as it is.
    """
    warnings.filterwarnings("ignore", message="Torchinductor does not support code generation for complex operators")
    fast = copy.copy(model)
    fast.encode, fast.forward = (torch.compile(part, dynamic=False) for part in (model.encode, model.forward))
    return fast


@contextmanager
def compiler_errors(compile, what, remedy="leave it out"):
    """Within, where `compile` is on, turn whatever the compiler raises, of many kinds, into one line of `UserError`."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        if not compile or is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--compile True: {what} fails ({reason}); {remedy}") from error
