"""Locks of folders: one run at a time, and none that a run which is gone could hold up."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from guided_diffusion.io import locks
from guided_diffusion.io.files import is_rubbish
from guided_diffusion.io.locks import LOCK, _this_process, folder_lock
from guided_diffusion.runtime.errors import UserError


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Short times instead of minutes."""
    monkeypatch.setattr(locks, "BEAT", 0.05)
    monkeypatch.setattr(locks, "SILENCE", 0.4)
    monkeypatch.setattr(locks, "UNSIGNED", 0.2)


@pytest.fixture
def gone():
    """The number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def leave(folder, **changes):
    """The lock that a run left behind, and its `Holder`."""
    holder = replace(_this_process(), **{"token": "another", **changes})
    (folder / LOCK).write_text(json.dumps(asdict(holder)))
    return holder


def refusal(folder, **options):
    with pytest.raises(UserError) as error, folder_lock(folder, **options):
        pytest.fail("the lock was given twice")
    return str(error.value)


def test_a_second_run_is_refused_with_the_name_of_the_first(tmp_path):
    with folder_lock(tmp_path):
        line = refusal(tmp_path, shown="gs://bucket/run")
        assert re.fullmatch(
            rf"gs://bucket/run: another run writes there: \S+ \(process {os.getpid()} on \S+, since "
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\); wait for its end or stop it, or choose another --out_dir",
            line,
        )
    assert not list(tmp_path.iterdir()) and is_rubbish(LOCK)
    with folder_lock(tmp_path):
        pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError, SystemExit])
def test_it_is_given_back_after_an_error(tmp_path, error):
    with pytest.raises(error), folder_lock(tmp_path):
        raise error
    assert not list(tmp_path.iterdir())


def test_a_killed_run_s_lock_is_taken_over_at_once(tmp_path, gone, capsys):
    leave(tmp_path, pid=gone, command="segmentation_train.py", since="2026-01-02 03:04:05")
    began = time.monotonic()
    with folder_lock(tmp_path):
        assert time.monotonic() - began < 0.2 and json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        refusal(tmp_path)
    assert "The run of segmentation_train.py (process" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_process_number_that_was_given_anew_is_no_holder(tmp_path):
    leave(tmp_path, pid=os.getpid(), started="12")
    with folder_lock(tmp_path):
        pass


def test_a_process_that_ended_and_was_not_waited_for_is_gone(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    leave(tmp_path, pid=child.pid, started=locks._start_time(child.pid))
    refusal(tmp_path)
    child.kill()
    while locks._start_time(child.pid) is not None:
        time.sleep(0.01)
    with folder_lock(tmp_path):
        pass
    child.wait()


def test_a_run_on_another_machine_is_at_work_if_it_gives_a_sign(tmp_path, capsys):
    holder = leave(tmp_path, host="node7", machine="node7 x", pid=5)
    ended = threading.Event()
    beating = threading.Thread(target=locks._beat, args=(tmp_path / LOCK, holder, ended, "there"))
    beating.start()
    line = refusal(tmp_path)
    ended.set()
    beating.join()
    assert "(process 5 on node7, since" in line and f"(if it has ended, remove {tmp_path / LOCK})" in line
    assert f"{tmp_path}: has the lock of" in capsys.readouterr().out


def test_a_silent_run_on_another_machine_is_gone(tmp_path, capsys):
    leave(tmp_path, host="node7", machine="node7 x")
    os.utime(tmp_path / LOCK, (2e10, 2e10))  # whatever the clocks say
    began = time.monotonic()
    with folder_lock(tmp_path):
        assert time.monotonic() - began > 0.4
    assert "this run takes over" in capsys.readouterr().out


def test_of_many_that_take_over_or_begin_one_gets_the_lock(tmp_path, gone):
    got, refused = [], []

    def attempt():
        try:
            with folder_lock(tmp_path):
                got.append(1)
                hold.wait(5)
        except UserError as error:
            refused.append(str(error))

    for stale in (True, False):
        got.clear(), refused.clear()
        hold = threading.Event()
        if stale:
            leave(tmp_path, pid=gone)
        threads = [threading.Thread(target=attempt) for _ in range(12)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 5
        while len(got) + len(refused) < 12 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(got) == 1 and len(refused) == 11
        hold.set()
        for thread in threads:
            thread.join()
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", bytes(200)], ids=["empty", "after a power cut"])
def test_an_empty_lock_is_of_a_run_that_was_killed_as_it_began(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content)
    with folder_lock(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["text", "types", "link", "folder", "pipe", "deep"])
def test_what_is_no_lock_is_neither_followed_nor_removed(tmp_path, kind):
    lock, prey = tmp_path / LOCK, tmp_path / "prey"
    prey.write_text("a user's file")
    if kind == "link":
        lock.symlink_to(prey)
    elif kind == "folder":
        lock.mkdir()
    elif kind == "pipe":
        os.mkfifo(lock)
    elif kind == "types":
        lock.write_text(json.dumps(asdict(_this_process()) | {"pid": "x"}))
    else:
        lock.write_text("[" * 3000 if kind == "deep" else "mine")
    assert refusal(tmp_path) == f"{lock}: is no lock of this program; remove it"
    assert prey.read_text() == "a user's file" and os.path.lexists(lock)


@pytest.mark.parametrize("refused", [os.O_RDONLY, os.O_RDWR], ids=["to read", "to write"])
def test_another_user_s_lock_that_may_not_be_opened_has_a_remedy(tmp_path, gone, monkeypatch, refused):
    leave(tmp_path, pid=gone)
    lock, opened = tmp_path / LOCK, os.open

    def open_as_another(path, flags, *rest):
        if path == lock and not flags & os.O_CREAT and flags & os.O_ACCMODE == refused:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", open_as_another)
    assert refusal(tmp_path) == f"{lock}: is the lock of another user's run; if that run has ended, remove it"
    lock.unlink()
    with folder_lock(tmp_path):
        pass


def test_who_loses_the_lock_is_warned_and_leaves_it_alone(tmp_path, capsys):
    with folder_lock(tmp_path):
        other = leave(tmp_path, host="node7")
        time.sleep(0.3)
    assert capsys.readouterr().out.count("took this run's lock") == 1
    assert json.loads((tmp_path / LOCK).read_text()) == asdict(other)


def test_a_folder_that_is_removed_meanwhile_does_no_harm(tmp_path):
    with folder_lock(tmp_path):
        (tmp_path / LOCK).unlink()
        time.sleep(0.1)
