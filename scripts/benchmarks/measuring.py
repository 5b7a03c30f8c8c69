"""How the benchmarks measure: the machine, calls timed by turns, peak memory, and the peak of matrix products."""

import contextlib
import ctypes
import gc
import platform
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch.utils.benchmark import Timer

from guided_diffusion.runtime.distributed import AUTOCAST_DTYPES

ROUND_SECONDS = 0.2  # a call is repeated within a round until this much time has passed
MATMUL_SIZES = {"cpu": (512, 1024), "cuda": (4096, 8192)}  # sides of square matrices


def machine_kind(precision, device):
    """The kind of machine that times belong to: the GPU's name, or the processor, its threads and the precision."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads, {precision}"


def cpu_name():
    """The processor's model, family and model number (Linux), or what the platform module knows."""
    facts = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    if not facts:
        return platform.processor() or platform.machine()
    return f"{facts.get('model name', platform.machine())} (family {facts.get('cpu family')}, {facts.get('model')})"


@dataclass
class Timing:
    """One function. rounds: its median seconds in each round. memory: bytes its first call took, see `peak_memory`."""

    memory: int
    rounds: list[float] = field(default_factory=list)

    @property
    def seconds(self):
        """The median over the rounds."""
        return median(self.rounds)


def time_by_turns(calls, rounds, device):
    """Time functions A B A B ..., so that other work on the machine slows all of them alike.

    calls: dict of name -> function. The first call of each is a warm-up that also gives its peak memory. Returns a
    dict of name -> `Timing` with `rounds` values.
    """
    timings, timers = {}, {}
    for name, call in calls.items():
        timings[name] = Timing(peak_memory(call, device))
        timers[name] = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    for _ in range(rounds):
        for name, timer in timers.items():
            timings[name].rounds.append(timer.blocked_autorange(min_run_time=ROUND_SECONDS).median)
    return timings


def once(call):
    """The seconds of a single call that returns when its result is there. torch's timer would warm up with two more."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def ratio(slow, fast):
    """How many times faster the `Timing` `fast` is: (of the medians, least of a round, most of a round)."""
    each = [a / b for a, b in zip(slow.rounds, fast.rounds, strict=True)]
    return slow.seconds / fast.seconds, min(each), max(each)


def matmul_peak(precision, device):
    """The most FLOP/s that products of square matrices reach here in this precision.

    In fp32 they round to TF32 on a GPU if convolutions do; torch lets convolutions alone do so by default.
    """
    dtype, best = AUTOCAST_DTYPES.get(precision, torch.float32), 0.0
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    for size in MATMUL_SIZES[device.type]:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        timer = Timer("torch.mm(a, b)", globals={"torch": torch, "a": a, "b": b}, num_threads=torch.get_num_threads())
        best = max(best, 2 * size**3 / min(timer.blocked_autorange(min_run_time=ROUND_SECONDS).times))
    torch.backends.cuda.matmul.allow_tf32 = False
    return best


def peak_memory(call, device):
    """Call, and return the bytes it took at most.

    On CUDA the most that torch had allocated, weights included. On a CPU the growth of the process's peak resident
    size: what the call needs beside the weights.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    # Linux alone can hand freed memory back and reset the peak; elsewhere the growth may come out too small.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _peak_resident()
    call()
    return max(0, _peak_resident() - before)


def _peak_resident():
    """The process's peak resident size in bytes."""
    if Path("/proc/self/status").exists():  # Linux: `ru_maxrss` keeps the peak of a thread that has ended
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes except on macOS


def resident_size():
    """The process's resident size in bytes (Linux)."""
    return _status("VmRSS")


def _status(name):
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")
