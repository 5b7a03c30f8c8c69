"""How the benchmark measures: the machine and its peak, counted FLOPs, and calls timed by turns."""

import contextlib
import ctypes
import gc
import os
import platform
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from .dist_util import AUTOCAST_DTYPES
from .medsegdiff import build_model
from .plan import DEFAULT_STEPS as SAMPLER_STEPS

PLAIN, CACHED, FAST = "plain", "cached", "fast"
PLAIN_STEPS, DEFAULT_STEPS = 1000, SAMPLER_STEPS["dpm_solver"]  # of full DDPM and of the default sampler
MASK_CHANNELS, NUM_LABELS = 1, 2
TRAINING_FACTOR = 3  # forward, and backward at twice its cost: gradients of the features and of the weights

# What a device can do is tried out on these: sides of square matrices; images, channels and pixels of a side.
MATMUL_SIZES = {"cpu": (512, 1024), "cuda": (2048, 4096, 8192)}
CONVOLUTION_SIZES = {"cpu": ((1, 128, 64), (1, 512, 32)), "cuda": ((32, 256, 64), (32, 512, 64))}

# ---- the machine -------------------------------------------------------------------------------------------------


def describe_machine(device):
    """What the figures were measured on, as a dict: processor, cores, threads, load, torch, GPU (or None)."""
    on_gpu = device.type == "cuda"
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),  # processes at work in the last minute; above 0 before we began: others'
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "device": str(device),
    }


def _cpu_name():
    return cpu_facts().get("model name") or platform.processor() or platform.machine()


def cpu_facts():
    """What Linux tells of the first processor, in its words; {} on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    facts = {}
    for key, _, value in (line.partition(":") for line in lines):
        facts.setdefault(key.strip(), value.strip())
    return facts


def measured_peak(precision, device, repeats=3):
    """The most FLOP/s that this machine reaches in this precision, best of some sizes and repeats: a dict of "matmul"
    (products of square matrices) and "convolution" (3x3, of many channels).

    Both, because libraries differ: on some processors their fp32 convolutions are twice as fast as their products.
    """
    dtype = AUTOCAST_DTYPES.get(precision, torch.float32)
    best = {"matmul": 0.0, "convolution": 0.0}

    def try_out(kind, flops, call):
        call()
        best[kind] = max(best[kind], flops / min(seconds_of(call, device) for _ in range(repeats)))

    with torch.inference_mode():
        for size in MATMUL_SIZES[device.type]:
            a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
            try_out("matmul", 2 * size**3, lambda a=a, b=b: torch.mm(a, b))
        for images, channels, size in CONVOLUTION_SIZES[device.type]:
            x = torch.randn(images, channels, size, size, device=device, dtype=dtype)
            kernel = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
            flops = 2 * 9 * channels**2 * size**2 * images
            try_out("convolution", flops, lambda x=x, kernel=kernel: F.conv2d(x, kernel, padding=1))
    return best


# ---- counting ----------------------------------------------------------------------------------------------------


class Counts(NamedTuple):
    """A network's parameters, and the FLOPs (a multiplication and an addition are two) for one image of encoding it
    (`condition`, once) and of one denoising step of one member (`step`)."""

    parameters: int
    condition: int
    step: int

    @property
    def forward(self):
        """FLOPs of a whole forward pass of one image."""
        return self.condition + self.step


def count(options, image_channels):
    """The `Counts` of the network that `config.ModelOptions` name, from its shapes alone: nothing is computed.

    Convolutions, linear layers and attention's products count. Norms, activations, resampling and Fourier
    transforms do not; products of complex numbers count as those of real ones.
    """
    with torch.device("meta"), torch.no_grad():
        model = build_model(options, image_channels, MASK_CHANNELS, NUM_LABELS).eval()
        image = torch.empty(1, image_channels, options.image_size, options.image_size)
        x_t, t = torch.empty(1, MASK_CHANNELS, *image.shape[-2:]), torch.zeros(1)
        label = torch.zeros(1, dtype=torch.long) if options.class_cond else None
        with FlopCounterMode(display=False) as encoding:
            condition = model.encode(image, label)
        with FlopCounterMode(display=False) as denoising:
            model(x_t, t, condition)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Counts(parameters, encoding.get_total_flops(), denoising.get_total_flops())


# ---- timing ------------------------------------------------------------------------------------------------------


@dataclass
class Timing:
    """Measured calls of one function. times: seconds of each. warm_up: seconds of the calls before, which do not
    count. memory: bytes, see `peak_memory`. processor: the processor's seconds of each, of all threads together, which
    others on the machine lengthen far less; of calls timed by turns alone."""

    times: list[float]
    warm_up: float
    memory: int
    processor: list[float] = field(default_factory=list)

    @property
    def seconds(self):
        """The median."""
        return median(self.times)

    def as_dict(self):
        """For the JSON file."""
        return {
            "seconds": self.seconds,
            "min": min(self.times),
            "max": max(self.times),
            "times": self.times,
            "processor_seconds": median(self.processor) if self.processor else None,
            "warm_up_seconds": self.warm_up,
            "peak_memory_bytes": self.memory,
        }


def time_by_turns(calls, repeats, device, done=lambda: None):
    """Time functions A B A B ..., so that the drift of a machine that others use hits all of them.

    calls: dict of name -> function. Each is called once for its memory, on CUDA twice more (kernels are chosen then),
    and `repeats` times for its time; done() is called after each of these. Returns a dict of name -> `Timing`.
    """
    timings = {}
    for name, call in calls.items():
        began = time.perf_counter()
        memory = peak_memory(call, device)
        for _ in range(2 if device.type == "cuda" else 0):
            seconds_of(call, device)
        timings[name] = Timing([], time.perf_counter() - began, memory)
        done()
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.process_time()
            timings[name].times.append(seconds_of(call, device))
            timings[name].processor.append(time.process_time() - began)
            done()
    return timings


def compare(timings, slow=PLAIN, fast=FAST, scale=1.0):
    """How many times faster `fast` is: the ratio of the medians, and the least and the most of neighbouring pairs; and
    the ratio of the processor's seconds.

    scale: how many times as much a call of `fast` does.
    """
    pairs = [scale * a / b for a, b in zip(timings[slow].times, timings[fast].times, strict=True)]
    ratio = scale * timings[slow].seconds / timings[fast].seconds
    processor = scale * median(timings[slow].processor) / median(timings[fast].processor)
    return {"ratio": ratio, "ratio_min": min(pairs), "ratio_max": max(pairs), "processor_ratio": processor}


def seconds_of(call, device):
    """Seconds that one call takes until the device has finished all that it was given."""
    _wait(device)
    began = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - began


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_kind(device):
    """What `peak_memory` tells on this device, in words."""
    if device.type == "cuda":
        return "torch.cuda.max_memory_allocated: weights and all"
    return "growth of the process's peak RSS during the first call: beside the weights and what was loaded before"


def peak_memory(call, device):
    """Call, and return the bytes of memory it took at most (see `memory_kind`)."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        _wait(device)
        return torch.cuda.max_memory_allocated(device)
    # Where the system allows it: freed memory goes back, and the peak is set to what is in use.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _peak_rss()
    call()
    return _peak_rss() - before


def _peak_rss():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes but on macOS
