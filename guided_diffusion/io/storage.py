"""Paths in blob stores, gs:// and az://, by blobfile: what is read is fetched to this machine, what is written pushed.

Everything else in the program works on local files. A folder of data, predictions or a checkpoint is fetched to a
cache (`fetch_folder`, `fetch_file`); a run writes to a local working folder, whose files are pushed: see `work_folder`.
"""

import errno
import os
import tempfile
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from tqdm import tqdm

from ..runtime.console import console, counted
from ..runtime.errors import UserError
from .files import atomic_path

SCHEMES = ("gs://", "az://")


OF_THIS_MACHINE = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT)


CREDENTIALS = {
    "gs://": "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or run: gcloud auth application-default login",
    "az://": "set AZURE_STORAGE_KEY, or run: az login",
}


class StoreError(UserError):
    """A blob store that cannot be read from or written to."""


# ---- paths -------------------------------------------------------------------------------------------------------


def is_remote(path):
    """Whether a path lies in a blob store."""
    return str(path).startswith(SCHEMES)


def join(folder, *names):
    """The path of a file below a remote or local folder; text if remote, else a `Path`."""
    if not is_remote(folder):
        return Path(folder, *names)
    return "/".join([str(folder).rstrip("/"), *map(str, names)])


def folder_and_name(path):
    """A remote path's folder and its last part: gs://bucket/run, model000500.pt."""
    folder, _, name = str(path).rstrip("/").rpartition("/")
    return folder, name


def absolute(path):
    """The text of a remote path as it is, of a local one made absolute: what configs and manifests record."""
    return str(path) if is_remote(path) else str(Path(path).absolute())


def is_same_folder(here, there):
    """Whether both paths, local or remote, name one folder."""
    if is_remote(here) or is_remote(there):
        return str(here).rstrip("/") == str(there).rstrip("/")
    return Path(here).resolve() == Path(there).resolve()


def check_path(flag, path):
    """Raise `UserError` for a remote path that names no bucket (gs://) or container (az://), or climbs by `..`."""
    parts = str(path)[len(SCHEMES[0]) :].rstrip("/").split("/")
    if any(part in ("", ".", "..") for part in parts) or (path.startswith("az://") and len(parts) < 2):
        raise UserError(f"--{flag} {path}: write gs://BUCKET/FOLDER or az://ACCOUNT/CONTAINER/FOLDER")


def cache_root():
    """Where this machine keeps what it fetched: $MEDSEGDIFF_CACHE, else .cache/medsegdiff in the home folder."""
    return Path(os.environ.get("MEDSEGDIFF_CACHE") or Path.home() / ".cache" / "medsegdiff")


def cached(path):
    """Where a remote path lies on this machine once it is fetched; a local path as it is."""
    if not is_remote(path):
        return Path(path)
    return cache_root() / "fetched" / str(path).replace("://", "/").rstrip("/")


# ---- the store ---------------------------------------------------------------------------------------------------


@cache
def store():
    """What speaks with the stores: a context of blobfile, which gives up after some attempts rather than never."""
    try:
        import blobfile
    except ImportError as error:
        raise UserError("gs:// and az:// paths need blobfile: pip install blobfile") from error
    return blobfile.create_context(retry_limit=4, connect_timeout=10, read_timeout=60, log_callback=lambda _: None)


@contextmanager
def _asking(path, what):
    """Turn whatever the store raises into one line that names the path; what is not there stays FileNotFoundError."""
    try:
        yield
    except Exception as error:  # blobfile's own errors, those of HTTP, of tokens that are no JSON, ...
        if isinstance(error, UserError) or (isinstance(error, OSError) and error.errno in OF_THIS_MACHINE):
            raise
        if isinstance(error, FileNotFoundError) and what != "written to":
            raise
        raise StoreError(f"{path}: cannot be {what} ({_reason(error)}); {_remedy(path, error)}") from error


def _reason(error):
    text = getattr(error, "message", None) or str(error) or type(error).__name__
    status = getattr(error, "response_status", 0)
    line = " ".join(text.strip().splitlines()[0].split())
    return (line if len(line) <= 200 else line[:200] + "...") + (f", status {status}" if status else "")


def _remedy(path, error):
    words = str(error).lower()
    if getattr(error, "response_status", 0) in (401, 403) or "credential" in words or "anonymous" in words:
        return CREDENTIALS[str(path)[: len(SCHEMES[0])]]
    return "check the path, the network and your credentials"


def find_file(path):
    """(bytes, seconds of last change) of a remote file, or None where there is none."""
    try:
        with _asking(path, "read from"):
            stat = store().stat(path)
    except (FileNotFoundError, IsADirectoryError):
        return None
    return [stat.size, int(stat.mtime)]


def list_files(folder):
    """{name with slashes: as `find_file`} of all files below a remote folder; {} if there are none."""
    found, waiting = {}, [""]
    while waiting:
        prefix = waiting.pop()
        try:
            with _asking(folder, "read from"):
                entries = list(store().scandir(join(folder, *filter(None, [prefix]))))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            name = f"{prefix}/{entry.name}".strip("/")
            if entry.name in ("", ".", ".."):  # they would lead out of the folder here
                continue
            if entry.is_dir:
                waiting.append(name)
            elif entry.is_file:
                found[name] = [entry.stat.size, int(entry.stat.mtime)]
    return found


def list_folders(folder):
    """The names of the folders in a remote folder, sorted."""
    try:
        with _asking(folder, "read from"):
            return sorted(entry.name.rstrip("/") for entry in store().scandir(folder) if entry.is_dir)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _download(path, target, size, seconds):
    """Fetch one file, whole or not at all, with the time of its last change, by which it is known later."""
    with _asking(path, "read from"), atomic_path(target) as temporary:
        store().copy(path, str(temporary), overwrite=True)
        if temporary.stat().st_size != size:
            raise StoreError(f"{path}: came incomplete; run the command again")
        os.utime(temporary, (seconds, seconds))


def upload(source, path):
    """Push one file; a store shows it once all of it is there."""
    with _asking(path, "written to"):
        store().copy(str(source), path, overwrite=True)


def duplicate(path, other):
    """Copy one remote file to another path of the same store, which does it by itself."""
    with _asking(other, "written to"):
        store().copy(path, other, overwrite=True)


def remove(path):
    """Remove one remote file; that it is not there is no error."""
    with suppress(FileNotFoundError), _asking(path, "removed"):
        store().remove(path)


def check_store(folder, flag):
    """Write a byte below a remote folder and remove it; `UserError` where that fails."""
    trial = join(folder, f".writable.{os.getpid()}")
    with tempfile.TemporaryDirectory() as local, _asking(folder, "written to"):
        source = Path(local) / "trial"
        source.write_bytes(b"1")
        try:
            store().copy(str(source), trial, overwrite=True)
            store().remove(trial)
        except FileNotFoundError as error:
            raise UserError(f"{folder}: there is no such bucket or container; choose another {flag}") from error


# ---- what is read ------------------------------------------------------------------------------------------------


def _is_fetched(path, size, seconds):
    return path.is_file() and [path.stat().st_size, int(path.stat().st_mtime)] == [size, seconds]


def fetch_file(path):
    """The local `Path` of a file: itself, or of a remote one a copy in the cache, fetched if it is new or changed."""
    if not is_remote(path):
        return Path(path)
    there, target = find_file(path), cached(path)
    if there is None:
        raise UserError(f"{path}: no such file; name a file in the store")
    if not _is_fetched(target, *there):
        console().info(f"fetching {path} ({there[0] / 1e6:.3g} MB) to {target}")
        _download(path, target, *there)
    return target


def fetch_folder(path, what="folder"):
    """The local `Path` of a folder: itself, or of a remote one a copy in the cache that is brought up to date.

    Files that are new or changed (by size or time) are fetched, with a bar; those that have gone there go here too.
    """
    if not is_remote(path):
        return Path(path)
    there, target = list_files(path), cached(path)
    if not there:
        raise UserError(f"{path}: no such {what}, or it is empty")
    for name in local_files(target):
        if name not in there:
            (target / name).unlink(missing_ok=True)
    missing = {name: entry for name, entry in there.items() if not _is_fetched(target / name, *entry)}
    if missing:
        console().info(f"{path}: fetching {counted(len(missing), 'file')} to {target}")
    fetch_files(path, target, missing)
    return target


def fetch_files(path, target, entries, done=lambda name: None):
    """Fetch the files {name: as `find_file`} below a remote folder to a local one; done(name) is called after each."""
    size = sum(entry[0] for entry in entries.values())
    with tqdm(total=size, desc="fetching", unit="B", unit_scale=True, disable=not entries) as bar:
        for name, entry in entries.items():
            _download(join(path, name), target / name, *entry)
            done(name)
            bar.update(entry[0])


def local_files(folder):
    """{name with slashes: path} of the files below a local folder, without hidden ones such as unfinished writes."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path for path in paths}
