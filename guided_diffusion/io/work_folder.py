"""Where a run writes: its --out_dir, or for one in a blob store a local folder whose finished files are pushed."""

import hashlib
import shutil
import time
from contextlib import suppress
from pathlib import Path

from ..runtime.console import console
from ..runtime.errors import UserError, describe_os_error
from . import storage
from .files import check_writable, name_also, read_json, write_json

FINAL_WAITS = (2, 10, 30, 60)  # seconds between the attempts to push what a run leaves


def work_folder(out_dir, purpose):
    """The `WorkFolder` of a local --out_dir, the `RemoteFolder` of one in a blob store.

    purpose: a word that keeps apart what different scripts write to the same remote folder.
    """
    return RemoteFolder(str(out_dir), purpose) if storage.is_remote(out_dir) else WorkFolder(out_dir)


class WorkFolder:
    """A local --out_dir: `path` is itself, and there is nothing to push."""

    def __init__(self, out_dir):
        self.path = Path(out_dir)

    def shown(self, *names):
        """What the user is told: the path of the folder or of a file in it."""
        return str(Path(self.path, *names))

    def check_writable(self, flag="--out_dir"):
        """Raise `UserError` where it cannot be written to."""
        check_writable(self.path, flag)

    def begin(self):
        """Look up what is there already; to be called before `names` and `pull`."""

    def names(self):
        """The names of the files there, of a local folder without those in folders below."""
        return {path.name for path in self.path.glob("*")}

    def pull(self, wanted=None):
        """Bring here what is there already, or only the names that `wanted(name)` is true of."""

    def push(self, paths=None):
        """Push all new and changed files, or only these. Raises `storage.StoreError`."""

    def try_push(self, paths=None):
        """The same, but a failure is only told: the next call tries again. Returns whether all of it is there."""
        return True

    def drop(self, paths):
        """Remove local copies of files that are in the store as they are."""

    def name_also(self, path, name):
        """Let the file `name` in the folder be the same as `path`, one of its files."""
        name_also(path, self.path / name)

    def try_remove(self, names):
        """Remove these files for good; one that cannot be is told."""
        for name in names:
            try:
                (self.path / name).unlink(missing_ok=True)
            except OSError as error:
                console().warning(f"warning: {describe_os_error(error)}; is not removed")

    def finish(self):
        """Push what is left, with patience, and remove the local copy. Raises `UserError` that says where it is."""


class RemoteFolder(WorkFolder):
    """A --out_dir in a blob store. `path` is a local folder in the cache, of its own for every such --out_dir.

    Beside it a mark is kept for each file that has been pushed or pulled: its size and time here and there. So
    after an interruption it is known what has still to be pushed, and what was changed or removed there since.
    """

    def __init__(self, url, purpose):
        self.url = url.rstrip("/")
        key = hashlib.sha256(f"{purpose} {self.url}".encode()).hexdigest()[:12]
        name = f"{storage.folder_and_name(self.url)[1]}-{purpose}-{key}"
        self.path = storage.cache_root() / "unfinished" / name
        self.marks = storage.cache_root() / "unfinished" / f"{name}.pushed"
        self.there = {}
        self.also = {}  # name: path, of which the store is to make a copy of its own

    def shown(self, *names):
        """What the user is told: the remote path."""
        return storage.join(self.url, *names)

    def check_writable(self, flag="--out_dir"):
        """Raise `UserError` where the store or the local folder cannot be written to."""
        check_writable(self.path, "MEDSEGDIFF_CACHE (an environment variable)")
        storage.check_store(self.url, flag)

    def begin(self):
        """Look up what is there. Where a file was changed or removed there since it was pushed, that counts."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.there = storage.list_files(self.url)
        here = storage.local_files(self.path)
        for name, path in here.items():
            mark = self._mark(name)
            known = mark["there"] if mark else None
            if self.there.get(name) != known:
                path.unlink(missing_ok=True)
                self._mark_path(name).unlink(missing_ok=True)
        waiting = sum(self._changed(name, path) for name, path in storage.local_files(self.path).items())
        if waiting:
            console().info(f"{self.url}: files of an earlier run wait to be written there: {waiting}, in {self.path}")

    def names(self):
        """The names of all files, there and here."""
        return {*self.there, *storage.local_files(self.path)}

    def pull(self, wanted=None):
        """Bring here what is there already, or only the names that `wanted(name)` is true of."""
        missing = {
            name: entry
            for name, entry in self.there.items()
            if not (self.path / name).exists() and (wanted is None or wanted(name))
        }
        storage.fetch_files(self.url, self.path, missing, lambda name: self._set_mark(name, self.there[name]))

    def push(self, paths=None):
        """Push all new and changed files, or only these, in the order in which they were written."""
        names = storage.local_files(self.path) if paths is None else {self._name(path): Path(path) for path in paths}
        changed = {name: path for name, path in names.items() if self._changed(name, path)}
        for name, path in sorted(changed.items(), key=lambda item: item[1].stat().st_mtime_ns):
            here = _state(path)  # before: what is written meanwhile is pushed the next time
            storage.upload(path, self.shown(name))
            self.there[name] = storage.find_file(self.shown(name))
            self._set_mark(name, self.there[name], here)
        for name, path in list(self.also.items()):
            storage.duplicate(self.shown(self._name(path)), self.shown(name))
            self.there[name] = storage.find_file(self.shown(name))
            del self.also[name]

    def try_push(self, paths=None):
        """The same, but a failure is only told: the next call tries again. Returns whether all of it is there."""
        try:
            self.push(paths)
        except storage.StoreError as error:
            console().warning(f"warning: {error}. Goes on and tries again later; until then it is in {self.path}")
            return False
        return True

    def name_also(self, path, name):
        """Let the file `name` be the same as `path`, from the next push on: the store itself copies what it has."""
        (self.path / name).unlink(missing_ok=True)
        self._mark_path(name).unlink(missing_ok=True)
        self.also[name] = Path(path)

    def try_remove(self, names):
        """Remove these files for good, there and here; one that cannot be is told."""
        super().try_remove(names)
        for name in names:
            self._mark_path(name).unlink(missing_ok=True)
            try:
                storage.remove(self.shown(name))
                self.there.pop(name, None)
            except storage.StoreError as error:
                console().warning(f"warning: {error}; is not removed")

    def finish(self):
        """Push what is left, with patience, and remove the local copy. Raises `UserError` that says where it is."""
        for wait in (*FINAL_WAITS, None):
            try:
                self.push()
                break
            except storage.StoreError as error:
                if wait is None:
                    raise UserError(
                        f"{error}. Nothing is lost: what is not there is in {self.path}; run the same command again "
                        "(training: with --resume_checkpoint auto) or copy it"
                    ) from error
                console().warning(f"warning: {error}; tries again in {wait} s")
                time.sleep(wait)
        self.discard()

    def discard(self):
        """Remove the local copy."""
        for folder in (self.path, self.marks):
            shutil.rmtree(folder, ignore_errors=True)

    def drop(self, paths):
        """Remove local copies of files that are in the store as they are."""
        for path in paths:
            if not self._changed(self._name(path), path):
                with suppress(OSError):  # Windows keeps files that are in use, such as the checkpoint gone on from
                    path.unlink()

    def _name(self, path):
        return Path(path).relative_to(self.path).as_posix()

    def _changed(self, name, path):
        mark = self._mark(name)
        return mark is None or mark["here"] != _state(path)

    def _mark_path(self, name):
        return self.marks / f"{name}.json"

    def _mark(self, name):
        path = self._mark_path(name)
        return read_json(path) if path.exists() else None

    def _set_mark(self, name, there, here=None):
        write_json(self._mark_path(name), {"here": here or _state(self.path / name), "there": there})


def _state(path):
    return [path.stat().st_size, path.stat().st_mtime_ns]
