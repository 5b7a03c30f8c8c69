"""The control groups of this process, in which a container or a batch system limits its cores and memory."""

from contextlib import suppress
from pathlib import Path

MOUNTED, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def own_groups(controller, mounted=MOUNTED, own=OWN):
    """The folders of the groups that this process is in, each followed by those around it; [] where there are none.

    Both versions of control groups count. controller: "cpu" or "memory". mounted: the folder of the control groups.
    own: the file that names the process's.
    """
    lines = []
    with suppress(OSError, ValueError):  # not Linux
        lines = own.read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines:
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers and controller not in controllers.split(","):
            continue
        mounts = (mounted / controllers, mounted / controller) if controllers else (mounted,)
        for mount in mounts:
            group = mount / path.lstrip("/")
            if ".." in Path(path).parts:  # outside this container, which sees its own group as the topmost
                group = mount
            around = [group, *group.parents]
            found += around[: around.index(mount) + 1]
    return found


def text_in(group, name):
    """The text of a file of a group; "" where there is none."""
    with suppress(OSError, ValueError):
        return (group / name).read_text(encoding="utf-8")
    return ""


def numbers_in(group, *names):
    """The whole numbers in files of a group, one after the other; [] where there are none, or a word, as "max" for no
    limit."""
    with suppress(ValueError):
        return [int(word) for name in names for word in text_in(group, name).split()]
    return []
