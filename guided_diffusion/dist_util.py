"""The device the network runs on, and the precision it computes in."""

import os
from contextlib import nullcontext

import torch

from .errors import UserError
from .logger import console

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(gpu_dev, explicit=False):
    """The torch device for `--gpu_dev`: that GPU where there is CUDA, else the CPU (told if the flag is `explicit`).

    Raises `UserError` for a GPU that is not there, and inside torchrun with several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("runs on one device so far: start it without torchrun")
    if gpu_dev == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if explicit:
            console().warning(f"warning: --gpu_dev {gpu_dev}: torch finds no GPU here; runs on the CPU")
        return torch.device("cpu")
    if int(gpu_dev) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        there = "is 1 GPU, number 0" if count == 1 else f"are {count} GPUs, numbered from 0"
        raise UserError(f"--gpu_dev {gpu_dev}: there {there}")
    return torch.device("cuda", int(gpu_dev))


def pick_precision(precision, device):
    """The precision for `--precision` on this device: "fp32", "bf16" or "fp16".

    auto is bf16 where the hardware multiplies in it, else fp32. fp16 on a CPU becomes bf16: few CPUs have fast fp16.
    """
    if precision == "fp16" and device.type == "cpu":
        return "bf16"
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _cpu_has_bf16() else "fp32"


def _cpu_has_bf16():
    # torch tells this through private functions only; a version without them computes in fp32.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def autocast(precision, device):
    """A context in which the network computes in `precision` (from `pick_precision`)."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, AUTOCAST_DTYPES[precision])
