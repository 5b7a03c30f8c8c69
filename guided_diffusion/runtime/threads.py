"""How many cores this process may use, and how many threads torch computes in."""

import os
from contextlib import suppress
from pathlib import Path

MAX_THREADS = 1024


def use_threads(threads):
    """Let torch compute in this many threads on the CPU, the value of `--threads`.

    0: as many as `OMP_NUM_THREADS` says (torchrun sets it to 1 for several processes), else torch's own number, at
    most `usable_cores`. Torch counts the cores of the machine. Where a container may use two of them, its threads wait
    for one another's turn.
    """
    import torch  # which takes seconds, and other users of this module do without it

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


def cpu_quota(mounted=Path("/sys/fs/cgroup"), own=Path("/proc/self/cgroup")):
    """The processors' time that the process's control groups allow it, in cores; None without a limit.

    Both versions of control groups are read, in the group itself and in those around it. mounted: the folder of the
    control groups. own: the file that names the process's.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = (mounted / controllers, mounted / "cpu") if controllers else (mounted,)
        for mount in mounts:
            group = mount / path.lstrip("/")
            if ".." in Path(path).parts:  # outside this container, which sees its own group as the topmost
                group = mount
            around = [group, *group.parents]
            quotas += filter(None, map(_quota_of, around[: around.index(mount) + 1]))
    return min(quotas, default=None)


def _quota_of(group):
    """The quota in the folder of a control group, in cores; None without one."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with suppress(OSError, ValueError):
            numbers = " ".join((group / name).read_text(encoding="utf-8") for name in names).split()
            quota, period = map(int, numbers)  # "max" for no limit, or -1
            return quota / period if quota > 0 and period > 0 else None
    return None
