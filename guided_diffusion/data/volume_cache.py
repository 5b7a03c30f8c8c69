"""Decoded volumes on disk: decompressed and normalised once for all runs and processes, then mapped slice by slice."""

import errno
import glob
import hashlib
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..io.files import atomic_path, check_writable, split_suffix
from ..io.storage import cache_root
from ..runtime.console import console, counted
from ..runtime.errors import UserError

OPEN_FILES = 128  # at once in each process; systems allow some 1000


SAMPLED = 8, 4096  # places in a file and bytes at each that tell its content


OLD_SECONDS = 24 * 3600  # nobody writes a volume for so long


class Entry(NamedTuple):
    """What is kept of a volume under one key, an array [Z, ...].

    volume: the volume's name, for people who look into the folder. files: what it is made from, by decode(files).
    settings: text that says all else on which the array depends.
    """

    volume: str
    files: tuple[Path, ...]
    decode: Callable
    settings: str


class CacheFull(UserError):
    """There is no room for another volume."""


def in_bytes(array):
    """The size of an array in a `VolumeCache` that is limited in bytes."""
    return array.nbytes


def one_each(_array):
    """The size of an array in a `VolumeCache` that is limited in number."""
    return 1


class VolumeCache:
    """Arrays by key, whose sizes add up to `limit` at most; the least recently used go first.

    The newest one always stays, so the slices of a volume larger than the limit are still decoded once.
    size(array): what counts of each.
    """

    def __init__(self, limit, size=in_bytes):
        self.limit, self.size, self.used = limit, size, 0
        self._arrays = OrderedDict()

    def get(self, key, decode):
        """Return the array of `key`, made by `decode(key)` unless it is still here."""
        if key in self._arrays:
            self._arrays.move_to_end(key)
            return self._arrays[key]
        array = decode(key)
        self._arrays[key] = array
        self.used += self.size(array)
        while self.used > self.limit and len(self._arrays) > 1:
            self.used -= self.size(self._arrays.popitem(last=False)[1])
        return array

    def __getstate__(self):
        return {"limit": self.limit, "size": self.size}  # a copy sent to another process starts empty

    def __setstate__(self, state):
        self.__init__(**state)


class VolumeStore:
    """Decoded volumes as .npy files in `folder`, mapped into memory; what is not there, or stale, is made on demand.

    A file NAME-PLACE-CONTENT.npy is named by the volume, a hash of where its files lie, and a hash of their content
    and of the settings: it is found only while both are as they were, and a newer one takes its place. It is written
    under another name and renamed, so several processes and runs may share a folder: at worst two make the same one.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self._maps = VolumeCache(OPEN_FILES, one_each)
        self._paths = {}  # of entries whose files have been looked at

    def get(self, entry):
        """The array of an `Entry`, read-only, in the system's memory for as long as that has room."""
        return self._maps.get(entry, self._open)

    def find(self, entry):
        """The file of an entry, or None where it has still to be made."""
        path = self._path(entry)
        return path if path.is_file() else None

    def make(self, entry):
        """Decode an entry and write its file; older ones of the same volume go."""
        path = self._path(entry)
        array = entry.decode(entry.files)
        try:
            with atomic_path(path) as temporary:
                np.save(temporary, array)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, None):  # NumPy tells of a short write without a number
                raise CacheFull(f"{self.folder}: is full; make room there or choose another --cache_dir") from error
            raise
        for other in self.folder.glob(f"{glob.escape(path.name.rpartition('-')[0])}-*.npy"):
            if other != path:
                with suppress(OSError):  # gone already, or in use where a file in use cannot be removed
                    other.unlink()

    def _open(self, entry):
        with suppress(OSError, ValueError, EOFError):  # not there, or damaged
            return np.load(self._path(entry), mmap_mode="r")
        self.make(entry)
        return np.load(self._path(entry), mmap_mode="r")

    def _path(self, entry):
        if entry not in self._paths:
            kind = getattr(entry.decode, "__name__", type(entry.decode).__name__)
            place = _digest(kind, *(str(path.absolute()) for path in entry.files))
            content = _digest(entry.settings, *(fingerprint(path) for path in entry.files))
            self._paths[entry] = self.folder / f"{entry.volume[:100]}-{place[:12]}-{content[:16]}.npy"
        return self._paths[entry]


def fingerprint(path):
    """Text that tells a file's content from any other's, without reading all of it.

    The size and bytes at some places; a change in a compressed file changes nearly all that follows. Of other files
    the time of the last change counts too. Raises `UserError` for a missing file.
    """
    path = Path(path)
    try:
        stat = path.stat()
        places, length = SAMPLED
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            for place in range(places):
                file.seek(max(0, stat.st_size - length) * place // (places - 1))
                digest.update(file.read(length))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    compressed = split_suffix(path)[1].lower().endswith(".gz")
    return f"{stat.st_size} {0 if compressed else stat.st_mtime_ns} {digest.hexdigest()}"


def _digest(*parts):
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


# ---- the pass over all volumes -----------------------------------------------------------------------------------


def chosen_folder(cache_dir, training):
    """The `Path` that `--cache_dir` stands for, or None for no cache."""
    if cache_dir == "none" or (cache_dir == "auto" and not training):
        return None
    return cache_root() / "volumes" if cache_dir == "auto" else Path(cache_dir)


def use_cache(dataset, folder, *, indices=None, workers=1, show=True, skip_damaged=False):
    """Let a data set read its volumes from the cache in `folder`, and make now what is not there, with a bar.

    indices: of the cases whose volumes are needed; None: all. workers: threads that decompress. show: whether to
    tell of it. skip_damaged: leave volumes that cannot be decoded to those who read them, to be told then. Data sets
    without volumes stay as they are. Raises `UserError` for a damaged file, and for a folder that cannot be written to
    or has not the room.
    """
    cases = dataset.cases if indices is None else [dataset.cases[index] for index in indices]
    volumes = {case.volume: case for case in cases if case.volume is not None}
    if dataset.volumes is None or not volumes:
        return
    store = VolumeStore(folder)
    entries = [entry for case in volumes.values() for entry in dataset.volumes.entries(case, dataset.need_masks)]
    missing = [entry for entry in entries if store.find(entry) is None]
    if missing:
        check_writable(store.folder, "--cache_dir")
        _remove_old_temporaries(store.folder)
        sizes = {entry: dataset.volumes.stored_bytes(entry) for entry in missing}
        _check_room(store.folder, sum(sizes.values()))
        if show:
            volumes_told = counted(len({entry.volume for entry in missing}), "volume")
            console().info(
                f"cache: {volumes_told} of {len(volumes)} to be decompressed, once, into {store.folder}: "
                f"{size_text(sum(sizes.values()))} (--cache_dir)"
            )
        _make_all(store, missing, sizes, workers, show, skip_damaged)
    if show:
        stored = sum(path.stat().st_size for path in map(store.find, entries) if path)
        console().info(f"cache: {counted(len(volumes), 'volume')}, {size_text(stored)} in {store.folder}")
    dataset.volumes.store = store


def _make_all(store, entries, sizes, workers, show, skip_damaged):
    def make(entry):
        try:
            if store.find(entry) is None:  # another run may have made it meanwhile
                store.make(entry)
        except UserError as error:
            if not skip_damaged or isinstance(error, CacheFull):
                raise
        return sizes[entry]

    words = {"desc": "caching", "unit": "B", "unit_scale": True, "dynamic_ncols": True, "disable": not show}
    with tqdm(total=sum(sizes.values()), **words) as bar, ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for size in pool.map(make, entries):
                bar.update(size)
        except BaseException:  # of what waits nothing is begun any more
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _check_room(folder, needed):
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: has {size_text(free)} free, the volumes need {size_text(needed)}; choose a --cache_dir on "
            "another disk, or none (each process then decompresses volumes anew and again)"
        )


def size_text(size):
    """A number of bytes in MB or GB."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.2g} MB"


def _remove_old_temporaries(folder):
    """Remove what killed processes left half-written; what is young may be another's at work."""
    for path in folder.glob(".*.npy"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > OLD_SECONDS:
                path.unlink()
