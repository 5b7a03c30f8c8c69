"""One run to a folder: a lock file names the run that writes there, and is recognised when that run is gone.

The file is made exclusively, so two runs never both have it. A run on the same machine is gone when its process is, or
when the process of its number began at another time. Of a run elsewhere nothing can be asked, so each run touches its
lock every `BEAT` seconds, and one that is silent for `SILENCE` seconds is taken for gone.
"""

import errno
import json
import os
import secrets
import shlex
import socket
import stat
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..runtime.console import console
from ..runtime.errors import UserError
from ..runtime.program import own_name
from .files import NO_LINKS

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".medsegdiff.lock"
BEAT, SILENCE = 20.0, 120.0  # seconds; network drives may show a change a minute late
UNSIGNED = 5.0  # seconds after which a lock without content is one of a run that was killed as it made it
LARGEST = 4096  # bytes of a lock file


@dataclass(frozen=True)
class Holder:
    """The run that has a lock. machine: what its process numbers belong to. started: the process's start time there."""

    host: str
    machine: str
    pid: int
    started: str
    command: str
    since: str
    token: str

    def __str__(self):
        return f"{self.command} (process {self.pid} on {self.host}, since {self.since})"


class _Retry(Exception):
    """The lock changed while it was looked at."""


@contextmanager
def folder_lock(folder, flag="--out_dir", shown=""):
    """A context in which no other run writes to a folder, which exists.

    flag: the flag that names the folder, and shown: the folder, both for messages; "": the path. Raises `UserError`
    that names the run at work there. A line says where the lock of a run that is gone is taken over.
    """
    path, own = Path(folder) / LOCK, _this_process()
    _take(path, own, flag, shown or str(folder))
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, own, ended, shown or str(folder)), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        if os.getpid() == own.pid:  # a forked process has the context too
            with suppress(OSError, UserError, _Retry):
                if _read(path)[0] == own:
                    path.unlink()


def _this_process():
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    pid = os.getpid()
    return Holder(socket.gethostname(), _machine(), pid, _start_time(pid), own_name(), since, secrets.token_hex(8))


def _machine():
    """What the numbers of processes belong to: a machine since it was started, and a container on it."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _start_time(pid):
    """The start time of a process in ticks since the machine's, as text; "" where the system does not say.

    None for a process that does not exist, or that has ended and was not waited for.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        if os.path.isdir("/proc/self"):
            return None
        return "" if _responds(pid) else None
    after_name = text.rpartition(")")[2].split()  # a name may hold blanks and brackets
    return None if after_name[0] in "ZX" else after_name[19]


def _responds(pid):
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM  # another user's
    return True


# ---- taking ------------------------------------------------------------------------------------------------------


def _take(path, own, flag, shown):
    """Make the lock ours. Raises `UserError` where another run has it."""
    seen = None  # (holder, when its lock was touched), and since when: of a run on another machine
    watched = time.monotonic()
    while True:
        if _make(path, own):
            return
        with suppress(_Retry):
            holder, touched = _read(path)
            gone = _is_gone(holder)
            if gone is False:
                raise _in_use(path, holder, flag, shown, is_elsewhere=False)
            if (holder, touched) != seen:
                if seen is not None and holder is not None and seen[0] == holder:
                    raise _in_use(path, holder, flag, shown, is_elsewhere=True)
                if gone is None and holder is not None:
                    console().warning(
                        f"{shown}: has the lock of {holder}; waiting up to {SILENCE:g} s for a sign of it (if it has "
                        f"ended, remove {shlex.quote(str(path))})"
                    )
                seen, watched = (holder, touched), time.monotonic()
            silent = time.monotonic() - watched
            if gone or silent > (UNSIGNED if holder is None else SILENCE):
                _take_over(path, holder, own)
                whose = f"The run of {holder}" if holder else "A run"
                console().warning(f"{shown}: {whose} ended without removing its lock; this run takes over")
                return
        time.sleep(0.05 if seen is None or seen[0] is None else min(1.0, BEAT / 10))


def _make(path, own):
    """Make the lock file, whole. Returns False where there is one."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINKS, 0o666)
    except FileExistsError:
        return False
    try:
        _write(descriptor, own)
    except BaseException as error:
        with suppress(OSError):
            path.unlink()
        if isinstance(error, OSError):  # a full disk names no file
            error.filename = str(path)
        raise
    finally:
        os.close(descriptor)
    return True


def _write(descriptor, own):
    os.write(descriptor, json.dumps(asdict(own)).encode())


def _is_gone(holder):
    """Whether a run has ended; None where that cannot be known: it is on another machine, or has not signed yet."""
    if holder is None or holder.machine != _machine():
        return None
    return _start_time(holder.pid) != holder.started


def _in_use(path, holder, flag, shown, is_elsewhere):
    unless = f" (if it has ended, remove {shlex.quote(str(path))})" if is_elsewhere else ""
    return UserError(
        f"{shown}: another run writes there: {holder}; wait for its end or stop it{unless}, or choose another {flag}"
    )


@contextmanager
def _opened(path, mode):
    """A descriptor of the lock file. Raises `UserError` for anything else in its place."""
    foreign = UserError(f"{path}: is no lock of this program; remove it")
    try:
        descriptor = os.open(path, mode | NO_LINKS | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise _Retry from None  # its run has just ended
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EMLINK):
            raise foreign from None
        if isinstance(error, PermissionError):
            raise UserError(f"{path}: is the lock of another user's run; if that run has ended, remove it") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise foreign
        yield descriptor
    finally:
        os.close(descriptor)


def _read(path):
    """(the `Holder` of a lock file, or None for one without content; when it was touched)."""
    with _opened(path, os.O_RDONLY) as descriptor:
        text, touched = os.read(descriptor, LARGEST), os.fstat(descriptor).st_mtime_ns
    return _holder(path, text), touched


def _holder(path, text):
    if not text.strip(b"\0"):  # zeros are what a power cut leaves
        return None
    try:
        values = json.loads(text)
        holder = Holder(**{item.name: values[item.name] for item in fields(Holder)})
        if any(not isinstance(getattr(holder, item.name), item.type) for item in fields(Holder)):
            raise TypeError
        if not str(holder).isprintable():
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{path}: is no lock of this program; remove it") from None
    return holder


def _take_over(path, holder, own):
    """Write our name into the lock of a run that is gone. Raises `_Retry` where another run was faster."""
    with _opened(path, os.O_RDWR) as descriptor:
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of several that take over, one goes first
            except BlockingIOError:
                time.sleep(0.05)
                raise _Retry from None
            except OSError:  # a file system without such locks
                pass
        here, there = os.fstat(descriptor), _status(path)
        if there is None or (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            raise _Retry
        if _holder(path, os.read(descriptor, LARGEST)) != holder:
            raise _Retry
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.ftruncate(descriptor, 0)
        _write(descriptor, own)


def _status(path):
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


# ---- holding -----------------------------------------------------------------------------------------------------


def _beat(path, own, ended, shown):
    """Touch the lock until `ended`; warn once if another run has taken it."""
    while not ended.wait(BEAT):
        try:
            holder, _ = _read(path)
            if holder == own:
                os.utime(path)
            elif holder is not None:
                console().warning(
                    f"warning: {shown}: {holder} took this run's lock, as if it had ended; stop one of the two, since "
                    "they write over each other's files"
                )
                return
        except (OSError, UserError, _Retry):  # a network drive may come back; the folder may have been removed
            continue
