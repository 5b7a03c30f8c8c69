"""Walks through folders, which end whatever links lead where, and the bounds of a folder: what leads out of it."""

import os
import re
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..runtime.errors import UserError
from .files import TOKEN_DIGITS, flush_files, is_found, temporary_name
from .texts import shown

DRIVE = re.compile(r"[A-Za-z]:[\\/]|[A-Za-z][\w+.-]+://")  # how an absolute path of Windows or a URL begins
PLACED = re.compile(r"^[/\\]|[:\0]")  # what a path from a folder to a file below it lacks
STALE = 24 * 3600  # seconds after which a temporary folder is of a killed run
MAX_LINKS = 16  # on the way to a folder; Linux opens no path with more than 40


@dataclass
class WalkedFolder:
    """A folder that `walk_folders` visits.

    below: its path from the root, "" for the root itself. real: its path without links. entries: its `os.DirEntry`s,
    sorted by name; [] where it is closed, that is, cannot be opened. enter: the entries of folders to visit next, which
    the caller may change.
    """

    below: str
    real: str
    entries: list
    enter: list
    closed: bool = False


def walk_folders(root, depth=None, once=False):
    """Yield a `WalkedFolder` for the folder `root` and each folder below it, parents first, sorted by their paths.

    depth: how many levels of folders below the root are visited; None: all.
    Links are followed, except to a folder that holds them, however many links lie on the way. A folder that two links
    in a row lead to is visited once, so that links to each other cannot multiply the folders. once: every real folder
    is visited once, by a path with the fewest links; those that links lead to come last.
    """
    root = os.fspath(root)
    real = os.path.realpath(root)
    holders = frozenset(identity for above in _with_parents(real) if (identity := _identity_of(above)))
    entered, later = set(), []
    waiting = [("", real, holders - {_identity_of(real)}, 0, 0)]
    while waiting or later:
        waiting = waiting or [later.pop(0)]
        below, real, above, level, links = waiting.pop()
        identity = _identity_of(real)
        if identity is not None:
            if identity in above or ((once or links > 1) and identity in entered):
                continue
            if once or links > 1:
                entered.add(identity)
        folder = _listed_folder(root, below, real)
        yield folder
        if depth is not None and level == depth:
            continue
        above |= {identity}
        linked = []
        for entry in reversed(folder.enter):
            path = os.path.join(below, entry.name)
            is_link = entry.is_symlink()
            if links + is_link > MAX_LINKS:
                continue
            target = os.path.realpath(entry.path) if is_link else os.path.join(real, entry.name)
            (linked if once and is_link else waiting).append((path, target, above, level + 1, links + is_link))
        later += reversed(linked)


def _with_parents(real):
    return [real, *map(str, Path(real).parents)]


def _identity_of(path):
    """(device, inode) of a folder; None where it cannot be seen."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _listed_folder(root, below, real):
    try:
        with os.scandir(os.path.join(root, below)) as entries:
            entries = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return WalkedFolder(below, real, [], [], closed=True)
    return WalkedFolder(below, real, entries, [entry for entry in entries if is_found(entry.is_dir)])


# ---- what leads out of a folder ------------------------------------------------------------------------------------


def is_inside(real, root):
    """Whether a path without links is `root`, a path without links, or below it."""
    return real == root or real.startswith(root.rstrip(os.sep) + os.sep)


def check_listed(list_path, text, root):
    """Raise `UserError` for an entry of a list of files that leads out of `root`: whoever wrote the list must not
    choose what is read.

    list_path: the file that holds the list; the entry, `text`, is a path from its folder, or an absolute one.
    """
    if ".." not in text and not PLACED.search(text):
        return
    written = text.replace("\\", "/")
    path = os.path.abspath(os.path.join(os.path.dirname(list_path), written))
    if not DRIVE.match(text) and "\0" not in text and is_inside(path, os.path.abspath(root)):
        return
    raise UserError(
        f"{list_path}: names {shown(text)}, which is not below --data_dir; put the file, or a link to it, there"
    )


# ---- writing -------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_folder(path, flag="--out_dir"):
    """Yield an empty temporary folder beside `path`; on leaving, flush its files to disk and rename it to `path`.

    After an error, or a kill at any moment, `path` is unchanged. Raises `UserError` where `path` is a file or a folder
    that holds something. flag: the option that names it.
    """
    path = Path(os.path.abspath(path))
    if path.is_symlink() or (path.exists() and not path.is_dir()) or (path.is_dir() and any(path.iterdir())):
        raise UserError(f"{flag} {path}: is there already, and is no empty folder; name another, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.iterdir():
        is_ours = re.fullmatch(rf"\.{re.escape(path.stem)}\.\d{{{TOKEN_DIGITS}}}{re.escape(path.suffix)}", other.name)
        is_ours = is_ours and other.is_dir() and not other.is_symlink()
        if is_ours and time.time() - other.stat().st_mtime > STALE:
            shutil.rmtree(other, ignore_errors=True)
    temporary = temporary_name(path)
    temporary.mkdir()
    try:
        yield temporary
        flush_files(temporary)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
