"""How many cores this process may use, and how many threads torch computes in."""

import os
from contextlib import suppress

from .console import console, counted
from .control_groups import MOUNTED, OWN, numbers_in, own_groups

MAX_THREADS = 1024


def use_threads(threads):
    """Let torch compute in this many threads on the CPU, the value of `--threads`.

    0: as many as `OMP_NUM_THREADS` says (torchrun sets it to 1 for several processes), else torch's own number, at
    most `usable_cores`. Torch counts the cores of the machine. Where a container may use two of them, its threads wait
    for one another's turn: a warning names a `--threads` above `usable_cores`.
    """
    import torch  # which takes seconds, and other users of this module do without it

    if threads > usable_cores():
        cores = counted(usable_cores(), "core")
        console().warning(f"warning: --threads {threads}: a process here may use {cores}; more threads are much slower")
    if not threads and not os.environ.get("OMP_NUM_THREADS"):
        threads = min(torch.get_num_threads(), usable_cores())
    if threads:
        torch.set_num_threads(threads)


def usable_cores():
    """The cores that this process may use, 1 at least: by its affinity and the container's quota.

    The processes of a command on this machine, `LOCAL_WORLD_SIZE`, share them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(cores, cpu_quota() or cores)
    with suppress(ValueError):
        cores /= max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return max(1, int(cores))


def cpu_quota(mounted=MOUNTED, own=OWN):
    """The processors' time that the process's control groups allow it, in cores; None without a limit.

    mounted, own: see `control_groups.own_groups`.
    """
    return min(filter(None, map(_quota_of, own_groups("cpu", mounted, own))), default=None)


def _quota_of(group):
    """The quota in the folder of a control group, in cores; None without one."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        numbers = numbers_in(group, *names)
        if len(numbers) == 2 and min(numbers) > 0:  # -1 is no limit
            return numbers[0] / numbers[1]
    return None
