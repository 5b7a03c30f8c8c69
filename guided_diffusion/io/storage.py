"""Blob stores, gs:// and az://, through blobfile: inputs are fetched to a local cache, results are pushed.

The rest of the program works on local files.
"""

import errno
import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from tqdm import tqdm

from ..runtime.console import console, counted
from ..runtime.errors import UserError, reason_of
from ..runtime.extras import optional
from .files import atomic_path, check_writable, remove_temporaries
from .locks import folder_lock
from .texts import read_json_lines

SCHEMES = ("gs://", "az://")
LOCAL_FAULTS = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT)
NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
CREDENTIALS = {
    "gs://": "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or run: gcloud auth application-default login",
    "az://": "set AZURE_STORAGE_KEY, or run: az login",
}
PARALLEL_COPIES = 8


class StoreError(UserError):
    """A blob store cannot be read from or written to."""


# ---- paths -------------------------------------------------------------------------------------------------------


def is_remote(path):
    """Whether a path is in a blob store."""
    return str(path).startswith(SCHEMES)


def join(folder, *names):
    """The path of a file below a folder: a str below a remote folder, else a `Path`."""
    return "/".join([str(folder).rstrip("/"), *map(str, names)]) if is_remote(folder) else Path(folder, *names)


def folder_and_name(path):
    """The folder and the last part of a remote path, such as gs://bucket/run and model000500.pt."""
    folder, _, name = str(path).rstrip("/").rpartition("/")
    return folder, name


def absolute(path):
    """The path for configs and manifests, a str: a remote path unchanged, a local one absolute."""
    return str(path) if is_remote(path) else str(Path(path).absolute())


def is_same_folder(here, there):
    """Whether both paths, local or remote, name one folder."""
    if is_remote(here) or is_remote(there):
        return str(here).rstrip("/") == str(there).rstrip("/")
    return Path(here).resolve() == Path(there).resolve()


def folder_digest(folder):
    """SHA-256, in hexadecimal, of a folder's path, which `is_same_folder` as another has too: it names no folder."""
    path = str(folder).rstrip("/") if is_remote(folder) else str(Path(folder).resolve())
    return hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()


def check_path(flag, path):
    """Raise `UserError` for a remote path without bucket (gs://) or container (az://), or with `..`."""
    parts = str(path)[len(SCHEMES[0]) :].rstrip("/").split("/")
    if any(part in ("", ".", "..") for part in parts) or (path.startswith("az://") and len(parts) < 2):
        raise UserError(f"--{flag} {path}: write gs://BUCKET/FOLDER or az://ACCOUNT/CONTAINER/FOLDER")


def cache_root():
    """The cache's folder: $MEDSEGDIFF_CACHE, else .cache/medsegdiff in the home folder.

    It is made here, for its user alone: what is fetched and decoded there are patients' data. Raises `UserError` where
    the user has no home folder.
    """
    try:
        root = Path(os.environ.get("MEDSEGDIFF_CACHE") or Path.home() / ".cache" / "medsegdiff")
    except RuntimeError:  # a user number without a name, as containers have
        raise UserError("no home folder is known; set the environment variable MEDSEGDIFF_CACHE to a folder") from None
    with suppress(OSError):  # whoever writes to it says so
        root.mkdir(mode=0o700, parents=True)
    return root


def cached(path):
    """The local `Path` that a remote file or folder is fetched to; a local path itself.

    Raises `UserError` for a remote path with `..`, as a stranger's file may name it: it would lead out of the cache.
    """
    if not is_remote(path):
        return Path(path)
    if ".." in str(path).split("/"):
        raise UserError(f"{path}: leads out of its bucket by ..; write the folder's own path")
    return cache_root() / "fetched" / str(path).replace("://", "/").rstrip("/")


# ---- the store ---------------------------------------------------------------------------------------------------


@cache
def store():
    """The blobfile context for all stores, which retries a failed request four times."""
    blobfile = optional("blobfile", "cloud", "gs:// and az:// paths")
    return blobfile.create_context(retry_limit=4, connect_timeout=10, read_timeout=60, log_callback=lambda _: None)


@contextmanager
def _one_line(path, what):
    """Within, an error of the store becomes a `StoreError` with path, reason and remedy.

    Files not found and local faults, such as a full disk, pass. what: "read from", "written to" or "removed".
    """
    try:
        yield
    except Exception as error:  # of blobfile, HTTP, invalid JSON in tokens, ...
        not_found = isinstance(error, NOT_THERE) and what != "written to"  # when writing, the bucket is missing
        if not_found or isinstance(error, UserError) or getattr(error, "errno", None) in LOCAL_FAULTS:
            raise
        text = getattr(error, "message", None) or str(error) or type(error).__name__
        status = getattr(error, "response_status", 0)
        reason = " ".join(text.strip().splitlines()[0].split())[:200] + (f", status {status}" if status else "")
        refused = status in (401, 403) or any(word in str(error).lower() for word in ("credential", "anonymous"))
        remedy = CREDENTIALS[str(path)[:5]] if refused else "check the path, the network and your credentials"
        raise StoreError(f"{path}: cannot be {what} ({reason}); {remedy}") from error


def is_stored(path):
    """Whether a remote path is a file in the store."""
    return _entry(path) is not None


def _entry(path):
    """[size in bytes, time of the last change in s] of a remote file; None if it does not exist."""
    with suppress(*NOT_THERE), _one_line(path, "read from"):
        stat = store().stat(path)
        return [stat.size, int(stat.mtime)]


def _scan(folder):
    with suppress(*NOT_THERE), _one_line(folder, "read from"):
        return [entry for entry in store().scandir(folder) if entry.name not in ("", ".", "..")]  # not below it
    return []


def _entries(folder, below=""):
    """{path below a remote folder: its `_entry`} of all files; {} if there are none."""
    found = {}
    for entry in _scan(folder):
        name = below + entry.name.rstrip("/")
        if entry.is_dir:
            found |= _entries(join(folder, entry.name.rstrip("/")), f"{name}/")
        else:
            found[name] = [entry.stat.size, int(entry.stat.mtime)]
    return found


def list_folders(folder):
    """The sorted names of the folders in a remote folder."""
    return sorted(entry.name.rstrip("/") for entry in _scan(folder) if entry.is_dir)


def _local_files(folder):
    """{path below a local folder: `Path`} of all files but hidden ones, such as unfinished writes."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path for path in paths}


# ---- fetch -------------------------------------------------------------------------------------------------------


def fetch_file(path):
    """The local `Path` of a file: itself, or a copy of a remote one in the cache, fetched if new or changed."""
    if not is_remote(path):
        return Path(path)
    target, there = cached(path), _entry(path)
    if there is None:
        raise UserError(f"{path}: no such file; name a file in the store")
    _fetch(folder_and_name(path)[0], target.parent, {target.name: there})
    return target


def on_this_machine(path, fetch, processes):
    """The local path of a file or folder: itself, or its copy by `fetch(path)`, once for each machine, if it is remote.

    processes: the `Processes` that all need it, and that all call this.
    """
    return processes.by_machine(lambda: fetch(path)) if is_remote(path) else path


def fetch_folder(path, what="folder"):
    """The local `Path` of a folder: itself, or a copy of a remote one in the cache.

    New and changed files, by size or time, are fetched. Copies of files that the store no longer has are removed. what:
    a noun for the folder, for messages.
    """
    if not is_remote(path):
        return Path(path)
    target, there = cached(path), _entries(path)
    if not there:
        raise UserError(f"{path}: no such {what}, or it is empty")
    for name, here in _local_files(target).items():
        if name not in there:
            here.unlink(missing_ok=True)
    _fetch(path, target, there)
    return target


def fetch_data(path):
    """The local `Path` of a folder, or of a file: itself, or a copy of a remote one in the cache."""
    return fetch_file(path) if is_remote(path) and is_stored(path) else fetch_folder(path)


def _fetch(folder, target, entries):
    """Fetch those files {name: `_entry`} of a remote folder that `target` lacks, each whole or not at all."""
    changed = {name: entry for name, entry in entries.items() if not _is_fetched(target / name, entry)}
    if not changed:
        return
    size = sum(entry[0] for entry in changed.values())
    console().info(f"{folder}: fetching {counted(len(changed), 'file')} ({size / 1e6:.3g} MB) to {target}")

    def download(name):
        path, (bytes_, seconds) = join(folder, name), changed[name]
        with _one_line(path, "read from"), atomic_path(target / name) as temporary:
            store().copy(path, str(temporary), overwrite=True)
            if temporary.stat().st_size != bytes_:
                raise StoreError(f"{path}: was fetched incompletely; run the command again")
            os.utime(temporary, (seconds, seconds))
        return bytes_

    store()  # made here once, for all threads
    pool = ThreadPoolExecutor(PARALLEL_COPIES)
    try:
        with tqdm(total=size, desc="fetching", unit="B", unit_scale=True) as bar:
            for bytes_ in pool.map(download, changed):
                bar.update(bytes_)
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, wait only for copies under way


def _is_fetched(path, entry):
    return path.is_file() and [path.stat().st_size, int(path.stat().st_mtime)] == entry


# ---- push --------------------------------------------------------------------------------------------------------


class WorkFolder:
    """The folder that a run writes to. `path`: a local --out_dir itself; for a remote one its copy in the cache.

    purpose: a word that separates the copies of different scripts for one remote folder. A log beside the copy records
    the state of each file here and in the store when both were equal. After an interruption it shows which files are
    not pushed yet, and which were changed or removed in the store. For a local folder nothing is pushed or pulled.
    """

    def __init__(self, out_dir, purpose="run"):
        self.url = str(out_dir).rstrip("/") if is_remote(out_dir) else ""
        self.path, self.there = Path(out_dir), {}
        if self.url:
            key = hashlib.sha256(f"{purpose} {self.url}".encode()).hexdigest()[:12]
            name = f"{folder_and_name(self.url)[1]}-{purpose}-{key}"
            self.path = cache_root() / "unfinished" / name
            self.log = self.path.with_name(f"{name}.pushed.jsonl")

    def shown(self, *names):
        """The path of the folder, or of a file in it, that the user knows: in --out_dir, local or remote."""
        return str(join(self.url or self.path, *names))

    def check_writable(self, flag="--out_dir"):
        """Raise `UserError` if the folder, or its store, cannot be written to."""
        check_writable(self.path, "MEDSEGDIFF_CACHE (an environment variable)" if self.url else flag)
        if self.url:
            trial = self.path / f".writable.{os.getpid()}"
            trial.write_bytes(b"1")
            with _one_line(self.url, "written to"):
                store().copy(str(trial), self.shown(trial.name), overwrite=True)
                store().remove(self.shown(trial.name))
            trial.unlink()

    @contextmanager
    def held(self, flag="--out_dir"):
        """A context in which no other run writes to the folder (see `locks`); it can be written to.

        The temporaries of killed runs in it are removed.
        Of a remote folder it is the copy here: runs on other machines are not seen.
        """
        self.check_writable(flag)
        with folder_lock(self.path, flag, self.shown()):
            remove_temporaries(self.path)
            yield

    def begin(self):
        """List the store's files; call it before `names` and `pull`. Remove copies of files changed there."""
        if not self.url:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self.there, marks = _entries(self.url), self._marks()
        for name, path in _local_files(self.path).items():
            if self.there.get(name) != marks.get(name, (None, None))[1]:
                path.unlink(missing_ok=True)
        for name, there in self.there.items():
            if marks.get(name, (None, None))[1] != there:  # from now on, files written here are newer
                self._mark(name, None, there)
        for name in marks.keys() - self.there.keys():
            self._mark(name, None, None)

    def names(self):
        """The names of the files in a local folder, or of those below a remote one and its copy."""
        return {*self.there, *_local_files(self.path)} if self.url else {path.name for path in self.path.glob("*")}

    def pull(self, wanted=lambda name: True):
        """Fetch the files of the store that the copy lacks, if wanted(name)."""
        lacking = [name for name in self.there if wanted(name) and not (self.path / name).exists()]
        _fetch(self.url, self.path, {name: self.there[name] for name in lacking})
        for name in lacking:
            self._mark(name, _state(self.path / name), self.there[name])

    def push(self, paths=None):
        """Push these files, or all new and changed ones, in the order of writing. Raises `StoreError`."""
        if not self.url:
            return
        marks, files = {}, {path.relative_to(self.path).as_posix(): path for path in paths or ()}
        if paths is None:
            marks, files = self._marks(), _local_files(self.path)
        pushed = {name for name, path in files.items() if marks.get(name, (None,))[0] == _state(path)}
        twins = {files[name].stat().st_ino: self.shown(name) for name in pushed}
        for name, path in sorted(files.items(), key=lambda item: item[1].stat().st_mtime_ns):
            if name in pushed:
                continue
            here, inode, target = _state(path), path.stat().st_ino, self.shown(name)
            with _one_line(target, "written to"):  # a hard link, such as last.pt, is copied within the store
                store().copy(str(twins.get(inode, path)), target, overwrite=True)
            twins[inode], self.there[name] = target, _entry(target)
            self._mark(name, here, self.there[name])

    def try_push(self, paths=None):
        """Like `push`, but a failure is a warning and the next call tries again. Returns whether it succeeded."""
        try:
            self.push(paths)
        except StoreError as error:
            console().warning(f"warning: {error}. It is tried again later; until then the file is in {self.path}")
            return False
        return True

    def finish(self):
        """Push what the store lacks and remove the copy. Raises `UserError` with the copy's path if that fails."""
        try:
            self.push()
        except StoreError as error:
            raise UserError(
                f"{error}. Nothing is lost: the files are in {self.path}; run the same command again (training: with "
                "--resume_checkpoint auto) or copy them"
            ) from error
        if self.url:
            shutil.rmtree(self.path, ignore_errors=True)
            self.log.unlink(missing_ok=True)

    def try_remove(self, names):
        """Remove these files from the copy and the store; a failure is a warning."""
        for name in names:
            try:
                (self.path / name).unlink(missing_ok=True)
                if self.there.pop(name, None):
                    self._mark(name, None, None)
                    with suppress(*NOT_THERE), _one_line(self.shown(name), "removed"):
                        store().remove(self.shown(name))
            except (StoreError, OSError) as error:
                console().warning(f"warning: not removed: {reason_of(error)}")

    def _marks(self):
        """{name: (`_state` of the copy, `_entry` in the store)} of each file when both were last equal."""
        return {name: (here, there) for name, here, there in read_json_lines(self.log)}

    def _mark(self, name, here, there):
        with open(self.log, "a", encoding="utf-8") as file:  # one write per line, as processes share the log
            file.write(json.dumps([name, here, there]) + "\n")


def _state(path):
    return [path.stat().st_size, path.stat().st_mtime_ns]
