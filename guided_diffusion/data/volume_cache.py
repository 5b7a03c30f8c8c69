"""Decoded volumes on disk: decompressed and normalised once for all runs and processes, then memory-mapped."""

import errno
import glob
import hashlib
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..io.files import atomic_path, check_writable, remove_temporaries, split_suffix
from ..io.storage import cache_root
from ..io.volume_formats import data_files
from ..runtime.console import console, counted
from ..runtime.errors import UserError

OPEN_FILES = 128  # in each process; systems allow about 1000
FINGERPRINT = 8, 4096  # places in a file, and bytes read at each
IDLE_SECONDS = 24 * 3600  # a half-written file that nobody has written to for so long is a killed process's


class Entry(NamedTuple):
    """An array [Z, ...] in a cache: `decode(files)`.

    volume: the volume's name, which begins the file's name. files: the files that are decoded.
    settings: text with everything else that the array depends on.
    """

    volume: str
    files: tuple[Path, ...]
    decode: Callable
    settings: str


class CacheFull(UserError):
    """The disk has no room for another volume."""


def in_bytes(array):
    """The size of an array for a `VolumeCache` with a limit in bytes."""
    return array.nbytes


def one_each(_array):
    """The size of an array for a `VolumeCache` with a limit on the number of arrays."""
    return 1


class VolumeCache:
    """Arrays by key in memory, up to a total size of `limit`; the least recently used go first.

    The newest array always stays, so that a volume larger than the limit is still decoded once for all its slices.
    size: the function array -> size.
    """

    def __init__(self, limit, size=in_bytes):
        self.limit, self.size, self.used = limit, size, 0
        self._arrays = OrderedDict()

    def get(self, key, decode):
        """Return the array of `key`, from memory or from `decode(key)`."""
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
        return {"limit": self.limit, "size": self.size}  # a copy in another process starts empty

    def __setstate__(self, state):
        self.__init__(**state)


class VolumeStore:
    """Decoded volumes as memory-mapped .npy files in `folder`. Missing and stale ones are made on demand.

    A file's name is NAME-PLACE-CONTENT.npy: the volume, a hash of the files' paths, and a hash of their content and of
    the settings. So a changed file or setting never finds an old array, and the new array replaces it. Files are
    written whole or not at all, so processes and runs may share a folder; at worst two of them make the same file.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self._maps = VolumeCache(OPEN_FILES, one_each)
        self._paths = {}  # by entry, so that its files are hashed once

    def get(self, entry):
        """The array of an `Entry`, read-only and memory-mapped."""
        return self._maps.get(entry, self._open)

    def find(self, entry):
        """The file of an entry, or None if it has not been made."""
        path = self._path(entry)
        return path if path.is_file() else None

    def make(self, entry):
        """Decode an entry, write its file and remove older files of the same volume. Raises `CacheFull`."""
        write_array(self._path(entry), entry.decode(entry.files))

    def _open(self, entry):
        found = read_array(self._path(entry))
        if found is not None:
            return found
        self.make(entry)
        return np.load(self._path(entry), mmap_mode="r")

    def _path(self, entry):
        if entry not in self._paths:
            kind = getattr(entry.decode, "__name__", type(entry.decode).__name__)
            name = array_name(entry.volume, entry.files, kind, entry.settings)
            self._paths[entry] = self.folder / name
        return self._paths[entry]


def array_name(name, files, kind, settings):
    """The name of the file of an array, NAME-PLACE-CONTENT.npy.

    PLACE is a hash of `kind` and of the paths of `files`, CONTENT one of their content and of `settings`. Of one NAME
    and PLACE only the newest is kept.
    """
    place = _digest(kind, *(str(path.absolute()) for path in files))
    content = _digest(settings, *(fingerprint(path) for path in files))
    name = name.encode()[:100].decode(errors="ignore")  # a file's name has 255 bytes at most
    return f"{name}-{place[:12]}-{content[:16]}.npy"


def write_array(path, array):
    """Write an array to a file named by `array_name`, whole or not at all, and remove the older one of its place.

    Raises `CacheFull`.
    """
    try:
        with atomic_path(path) as temporary:
            np.save(temporary, array)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, None):  # NumPy reports a short write without errno
            raise CacheFull(f"{path.parent}: is full; make room there or choose another --cache_dir") from error
        raise
    for other in path.parent.glob(f"{glob.escape(path.name.rpartition('-')[0])}-*.npy"):
        if other != path:
            with suppress(OSError):  # removed by another process, or on Windows still in use
                other.unlink()


def read_array(path):
    """The array in a file of a cache, read-only and memory-mapped; None where it is missing, damaged or no array.

    It may be anybody's, in a shared folder: objects, which could run code, are not read.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception:  # a damaged header raises nearly anything
        return None


def fingerprint(path):
    """Text that changes with a file's content: its size and a hash of the bytes at a few places.

    That suffices for a compressed file, in which a change alters nearly all that follows. For others the time of the
    last change counts too. Of a folder of slices the names, sizes and times of its files count. Raises `UserError` for
    a missing file.
    """
    path = Path(path)
    if path.is_dir():
        with os.scandir(path) as entries:
            return " ".join(sorted(f"{e.name}/{e.stat().st_size}/{e.stat().st_mtime_ns}" for e in entries))
    own = _own_fingerprint(path)
    return " ".join([own, *map(_own_fingerprint, data_files(path))])


def _own_fingerprint(path):
    try:
        stat = path.stat()
        places, length = FINGERPRINT
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


# ---- filling the cache -------------------------------------------------------------------------------------------


def chosen_folder(cache_dir, training, kind="volumes"):
    """The folder of `--cache_dir`, a `Path`, or None for no cache. "auto" caches in training only, in a folder of this
    kind."""
    if cache_dir == "none" or (cache_dir == "auto" and not training):
        return None
    return cache_root() / kind if cache_dir == "auto" else Path(cache_dir)


def use_cache(dataset, folder, *, indices=None, workers=1, show=True, skip_damaged=False):
    """Let a data set read its volumes from the cache in `folder`, and fill the cache now, with a progress bar.

    A data set without volumes stays unchanged.
    indices: the cases whose volumes are needed; None: all. workers: number of decompressing threads. show: whether to
    print. skip_damaged: skip volumes that cannot be decoded; reading them later gives the message.
    Raises `UserError` for a damaged file, and for a folder that is not writable or has too little room.
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
        remove_temporaries(store.folder, idle=IDLE_SECONDS)
        sizes = {entry: dataset.volumes.stored_bytes(entry) for entry in missing}
        _check_room(store.folder, sum(sizes.values()))
        if show:
            number = counted(len({entry.volume for entry in missing}), "volume")
            console().info(
                f"cache: {number} of {len(volumes)} to be decompressed, once, into {store.folder}: "
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

    style = {"desc": "caching", "unit": "B", "unit_scale": True, "dynamic_ncols": True, "disable": not show}
    with tqdm(total=sum(sizes.values()), **style) as bar, ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for size in pool.map(make, entries):
                bar.update(size)
        except BaseException:  # begin none of the waiting volumes
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _check_room(folder, needed):
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: has {size_text(free)} free, the volumes need {size_text(needed)}; choose a --cache_dir on "
            "another disk, or none (each process then decompresses the volumes again)"
        )


def size_text(size):
    """A number of bytes in MB or GB."""
    if size >= 999.5e6:
        return f"{size / 1e9:.3g} GB"
    return f"{size / 1e6:.0f} MB" if size >= 10e6 else f"{size / 1e6:.2g} MB"
