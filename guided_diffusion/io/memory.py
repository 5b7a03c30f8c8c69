"""The memory that decoding a file takes, checked against the free memory before anything is decoded."""

import math
import re
from pathlib import Path

from ..runtime.control_groups import numbers_in, own_groups, text_in
from ..runtime.errors import UserError

NEGLIGIBLE = 2**28  # bytes that are not worth a check
LARGEST_RATIO = 1032  # of the deflate format: the bytes that one compressed byte can stand for


def check_room(path, what, needed):
    """Raise `UserError` where decoding a file needs more bytes than are free. what: what it holds, "12x9 pixels"."""
    free = free_memory() if needed > NEGLIGIBLE else None
    if free is not None and needed > free:
        raise UserError(
            f"{path}: has {what}, which need {needed / 2**30:.1f} GB of memory, and {free / 2**30:.1f} GB are free; "
            "make it smaller or use fewer --num_workers"
        )


def free_memory():
    """The free memory in bytes, of the machine or of this container; None where the system does not say."""
    found = []
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    found += [free for free in map(_free_in, own_groups("memory")) if free is not None]
    return min(found, default=None)


def _free_in(group):
    """The bytes that a control group may still take, of either version of them; None without a limit."""
    for limit, used, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        numbers = numbers_in(group, limit, used)
        if len(numbers) == 2:
            # Pages of files count as used, but are given up where memory is needed.
            pages = re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", text_in(group, "memory.stat"), re.MULTILINE)
            return max(0, numbers[0] - numbers[1] + sum(map(int, pages)))
    return None


def free_memory_on(device, sharing=1):
    """The free memory of a torch device in bytes, for one of `sharing` processes of this machine; infinite where the
    system does not say. A GPU is not shared by our processes; mps and the CPU have the machine's memory."""
    if device.type == "cuda":
        import torch  # not at the top: readers of files do without it, and so does --help

        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for what comes next
        return torch.cuda.mem_get_info(device)[0] + held
    free = free_memory()
    return math.inf if free is None else free // sharing
