"""The memory that computations take on a device, found by following them on tensors without values."""

import weakref
from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .console import console
from .errors import UserError

USABLE = 0.95  # of the free memory: an estimate is a few percent off

# What is taken beside the tensors, by factor and bytes: measured on a CPU, with 32 and 64 channels at 64 and 128
# pixels; a guess for GPUs. On a CPU it is the holes between blocks in glibc's heap, and the code of convolutions. On a
# GPU it is the holes in torch's blocks, which are rounded, and the context with the workspaces of cuDNN and cuBLAS.
HOLES = {"cpu": 1.22, "cuda": 1.1, "mps": 1.22}
HOLES_RECOMPUTING = {"cpu": 1.4, "cuda": 1.15, "mps": 1.4}  # with activation checkpointing: sizes alternate more
CODE = {"cpu": 50 * 2**20, "cuda": 600 * 2**20, "mps": 50 * 2**20}


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of tensors on a device: `now`, and at most so far, `peak`.

    Views share the memory of their base, which counts until the last of them is gone.
    """

    def __init__(self, device):
        super().__init__()
        self.device, self.sizes, self.now, self.peak = device, {}, 0, 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.device.type == self.device.type:
                self._count(value.untyped_storage())
        return result

    def _count(self, storage):
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += self.sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key):
        self.now -= self.sizes.pop(key)


@contextmanager
def without_values(device):
    """A context in which tensors of this device have shapes but no values or memory; gives their `LiveMemory`.

    Computations follow the device's own rules, such as those of its autocast. Tensors that exist already keep their
    values, and are not counted.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # which takes half a second that most commands save

    pinned = mock.patch.object(torch.Tensor, "is_pinned", lambda _: True)  # there are no pages to pin
    with pinned, FakeTensorMode(allow_non_fake_inputs=True), LiveMemory(device) as memory:
        yield memory


@contextmanager
def estimating(device):
    """A context for an estimate. On a GPU, where none was ever tried, an error becomes a warning and stops no run."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if device.type == "cpu":
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        console().warning(f"warning: the memory is not estimated ({reason[:200]})")


def followed_on(device):
    """The device whose rules `without_values` follows for this one: mps has the CPU's, as torch follows no other."""
    return torch.device("cpu") if device.type == "mps" else device


def with_overhead(tensors, device, recomputes=False):
    """The bytes that a process takes on a device for `tensors` bytes of tensors at most.

    recomputes: whether the backward pass computes activations again (--use_checkpoint).
    """
    holes = HOLES_RECOMPUTING if recomputes else HOLES
    return round(tensors * holes[device.type]) + CODE[device.type]


def gigabytes(count):
    """Bytes for messages, as "1.2 GB"."""
    return f"{count / 2**30:.3g} GB"
