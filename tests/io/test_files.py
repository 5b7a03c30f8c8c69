"""Files: names, arrays, tables and text, each written whole or not at all."""

import ast
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from guided_diffusion.io import files
from guided_diffusion.io.files import (
    atomic_path,
    content_of,
    decoding,
    folders_in,
    is_rubbish,
    is_temporary,
    list_files,
    name_also,
    read_npz,
    read_npz_headers,
    remove_temporaries,
    split_suffix,
    temporary_name,
    write_json,
)
from guided_diffusion.runtime.errors import UserError, describe_os_error

RNG = np.random.default_rng(0)


# ---- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, expected",
    [
        ("a.png", ("a", ".png")),
        ("a.b.PNG", ("a.b", ".PNG")),
        ("x_t1.nii.gz", ("x_t1", ".nii.gz")),
        ("x.nii", ("x", ".nii")),
    ],
)
def test_split_suffix(name, expected):
    assert split_suffix(name) == expected


def test_list_files_leaves_out_hidden_files_folders_and_other_kinds(tmp_path):
    for name in ("b.PNG", "a.png", "._a.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_files(tmp_path, (".png",))] == ["a.png", "b.PNG"]


@pytest.mark.parametrize(
    "name",
    [
        *(".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX", "._a.png", ".nfs000001", ".git", ".gitattributes"),
        *("LICENSE", "LICENCE.txt", "README.md", "readme", "README_isic.txt", "CITATION.cff", "a.sha256", "MD5SUMS"),
        *("checksums.txt", ".ipynb_checkpoints", "ISIC_0000000_superpixels.png", ".a.1234.png", "@eaDir", "a.png~"),
        *("contact_sheet.png", "~$table.xlsx", "ehthumbs.db", ".Trash-1000", "System Volume Information"),
    ],
)
def test_known_rubbish(name):
    assert is_rubbish(name)


@pytest.mark.parametrize(
    "name",
    [
        "a.png",
        "license_plate.png",
        "readme.png",
        "notice.jpg",
        "superpixels.png",
        "checksum.nii.gz",
        "git.png",
        "images",
        "changes",  # a folder of lesions' changes
        "authors_1",
        "license_old",
    ],
)
def test_what_only_sounds_like_rubbish(name):
    assert not is_rubbish(name)


def test_folders_in_leaves_out_files_rubbish_and_links_that_lead_up(tmp_path):
    inner = tmp_path / "inner"
    for name in ("b", "a", ".git", "__MACOSX"):
        (inner / name).mkdir(parents=True)
    (inner / "file").touch()
    for name, target in (
        ("self", inner),
        ("up", tmp_path),
        ("gone", "nowhere"),
        ("round", "round"),
        ("link", inner / "a"),
    ):
        (inner / name).symlink_to(target)
    assert [path.name for path in folders_in(inner)] == ["a", "b", "link"]
    assert folders_in(tmp_path / "nowhere") == []
    assert list_files(inner, ("",)) == [inner / "file"]


# ---- tables ------------------------------------------------------------------------------------------------------


# ---- NumPy archives ----------------------------------------------------------------------------------------------


def test_npz_arrays_and_their_headers(tmp_path):
    arrays = {"a": RNG.random((3, 4)), "b.c": np.array(["x", "yz"]), "n": np.uint8(7)}
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    headers = read_npz_headers(tmp_path / "x.npz")
    assert headers == {name: (np.shape(value), np.asarray(value).dtype) for name, value in arrays.items()}
    for name, value in arrays.items():
        np.testing.assert_array_equal(read_npz(tmp_path / "x.npz", name), value)


def test_npz_files_that_cannot_be_read(tmp_path, truncate):
    path = tmp_path / "x.npz"
    for read in (read_npz_headers, lambda path: read_npz(path, "a")):
        path.unlink(missing_ok=True)
        with pytest.raises(UserError, match="x.npz: no such file"):
            read(path)
        path.write_bytes(b"PK\3\4 no archive")
        with pytest.raises(UserError, match="x.npz: is truncated or damaged, or is no .npz file"):
            read(path)
    np.savez(path, a=np.array([{"of": "objects"}], dtype=object))
    with pytest.raises(UserError, match="x.npz: a holds Python objects, which could run code; save plain numbers"):
        read_npz(path, "a")
    with pytest.raises(UserError, match="x.npz: has no array b; save it with all arrays"):
        read_npz(path, "b")


# ---- writing -----------------------------------------------------------------------------------------------------


def test_atomic_path_replaces_the_file_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "new" / "x_seg.nii.gz"
    for text in ("one", "two"):
        reader = target.open() if target.exists() else None
        with atomic_path(target) as temporary:
            assert temporary.parent == target.parent and temporary.name.startswith(".")
            assert temporary.name.endswith(".nii.gz") and is_temporary(temporary.name)
            temporary.write_text(text)
            assert not target.exists() or target.read_text() == "one"
    with reader:
        assert reader.read() == "one"  # who has the old file open keeps it: it was replaced, not written over
    assert target.read_text() == "two"
    assert os.listdir(target.parent) == [target.name]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_path_keeps_the_old_file_after_an_error(tmp_path, error):
    target = tmp_path / "x.png"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["x.png"]


def test_a_kill_leaves_the_old_file(tmp_path):
    target = tmp_path / "x.json"
    target.write_text("old")
    code = (
        "import os, sys; from guided_diffusion.io.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as p: p.write_text('half'); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, target], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == -9 and target.read_text() == "old"
    own = (".hidden.json", "y.12.json", "12.json", ".notes.2024.txt", ".notes.2024.md", ".mine.1")
    others = [tmp_path / name for name in own]
    for path in others:
        path.touch()
    for name in (".model000500.4321.pt", ".case.4321.nii.gz"):  # as versions before 0.4.0 named them
        (tmp_path / name).touch()
    others.append(tmp_path / ".mask.12345678901234567890.png")
    others[-1].symlink_to(target)
    assert len(list(tmp_path.iterdir())) == 11
    remove_temporaries(tmp_path, idle=100)  # it may be another run's
    assert len(list(tmp_path.iterdir())) == 11
    future = temporary_name(tmp_path / "future.csv")
    future.touch()
    os.utime(future, (time.time() + 500,) * 2)
    remove_temporaries(tmp_path, idle=100)
    assert not future.exists() and len(list(tmp_path.iterdir())) == 11
    remove_temporaries(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([target, *others])


def test_a_temporary_is_made_exclusively_and_follows_no_link(tmp_path, monkeypatch):
    target, prey = tmp_path / "x.json", tmp_path / "prey"
    prey.write_text("a user's file")
    planted = temporary_name(target)
    planted.symlink_to(prey)
    monkeypatch.setattr(files, "temporary_name", lambda path: planted)
    with pytest.raises(FileExistsError), atomic_path(target) as temporary:
        temporary.write_text("written over")
    assert prey.read_text() == "a user's file" and planted.is_symlink() and not target.exists()


@pytest.mark.parametrize("swap", ["link", "file", "pipe"])
def test_a_temporary_that_was_swapped_is_not_taken(tmp_path, swap):
    target, prey = tmp_path / "x.json", tmp_path / "prey"
    prey.write_text("a user's file")
    with pytest.raises(UserError, match="x.json: another program replaced"), atomic_path(target) as temporary:
        temporary.unlink()
        if swap == "link":
            temporary.symlink_to(prey)
        elif swap == "file":
            (tmp_path / "keeps the inode").touch()  # else the new file may get the number of the old one
            temporary.write_text("another's")
        else:
            os.mkfifo(temporary)
    assert prey.read_text() == "a user's file" and not target.exists()


NOISE = RNG.integers(0, 255, (90, 90, 3), dtype=np.uint8)
WRITERS = {
    "x.nii": lambda path: nibabel.save(nibabel.Nifti1Image(NOISE, np.eye(4)), path),
    "x.nii.gz": lambda path: nibabel.save(nibabel.Nifti1Image(NOISE, np.eye(4)), path),
    "x.npy": lambda path: np.save(path, NOISE),
    "x.npz": lambda path: np.savez_compressed(path, a=NOISE),
    "x.png": lambda path: Image.fromarray(NOISE).save(path),
    "x.gif": lambda path: Image.fromarray(NOISE).save(path),
    "x.json": lambda path: path.write_text("x" * 9000),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_names_the_file_and_leaves_what_was_there(tmp_path, full_disk, name):
    (tmp_path / name).write_text("old")
    with pytest.raises(OSError) as error, full_disk(), atomic_path(tmp_path / name) as temporary:
        WRITERS[name](temporary)
    reasons = [os.strerror(number) for number in (errno.EFBIG, errno.ENOSPC)]  # NumPy does not say which
    assert describe_os_error(error.value) in [f"{tmp_path / name}: {reason}" for reason in reasons]
    assert (tmp_path / name).read_text() == "old" and os.listdir(tmp_path) == [name]


def test_names_of_temporaries_differ_and_fit_the_longest_name(tmp_path):
    target = tmp_path / ("é" * 125 + ".png")
    assert temporary_name(target) != temporary_name(target)
    with atomic_path(target) as temporary:
        temporary.touch()
    assert is_rubbish(temporary_name(target).name) and is_rubbish(temporary_name("x.nii.gz").name)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_second_name_is_a_link_or_a_copy_and_leaves_nothing_else(tmp_path, monkeypatch):
    one, other = tmp_path / "model1.pt", tmp_path / "last.pt"
    one.write_text("1")
    for _ in range(2):
        name_also(one, other)
        assert os.path.samefile(one, other)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(95, "Operation not supported")))
    name_also(one, other)
    assert not os.path.samefile(one, other) and other.read_text() == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "model1.pt"]


def test_write_json_is_valid_json_for_what_metrics_hold(tmp_path):
    value = {"dice": float("nan"), "hd": np.float32(2.5), "n": np.int64(3), "path": Path("a/b"), "list": np.arange(2)}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "dice": None,
        "hd": 2.5,
        "n": 3,
        "path": "a/b",
        "list": [0, 1],
    }


# ---- text --------------------------------------------------------------------------------------------------------


ROOT = Path(__file__).resolve().parents[2]


def opened_by_locale(path):
    """The lines of a file of code that open text without an encoding, which is then the machine's."""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call) or any(word.arg == "encoding" for word in call.keywords):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        mode = [one.value for one in call.args[1:2] if isinstance(one, ast.Constant)]
        is_opener = isinstance(call.func, ast.Name) and name == "open"  # not os.open, Image.open
        if name in ("read_text", "write_text") or (is_opener and "b" not in "".join(mode)):
            yield f"{path.name}:{call.lineno}"


def test_text_is_utf_8_whatever_the_machine_s_encoding_is():
    code = [*(ROOT / "guided_diffusion").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    assert len(code) > 50 and [line for path in code for line in opened_by_locale(path)] == []


# ---- why a file cannot be read -----------------------------------------------------------------------------------


def reason(path, error, kind="NIfTI file"):
    with pytest.raises(UserError) as caught, decoding(path, kind):
        raise error
    return str(caught.value).removeprefix(f"{path}: ")


def test_a_pipe_or_device_is_called_so(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    for name in ("a.png", "b.png"):
        with (
            pytest.raises(UserError, match=f"{name}: is a pipe, socket or device"),
            decoding(tmp_path / name, "picture"),
        ):
            pass


def test_a_file_is_damaged_only_where_nothing_else_is_known(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(bytes(range(256)))
    assert (
        reason(path, ValueError("bad\nbytes"))
        == "is truncated or damaged, or is no NIfTI file (bad bytes); copy it again"
    )
    for error in (
        OSError("unsupported code 2048"),
        NotImplementedError("zstd"),
        ValueError("LZW requires the 'x' package"),
    ):
        assert reason(path, error).startswith("is a NIfTI file of a form that cannot be read here (")
    assert reason(path, MemoryError()).startswith("does not fit into the free memory")
    assert reason(path, UserError("its own")) == "its own"
    with pytest.raises(PermissionError), decoding(path, "picture"):
        raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    "content, kind, expected",
    [
        (b"<html>", "NIfTI file", "is an HTML page, such as a download's log-in or error page, no NIfTI file"),
        (
            b"version https://git-lfs.github.com/spec/v1",
            "NIfTI file",
            "is a Git LFS pointer, not the file itself",
        ),
        (b"\x89PNG\r\n", "NIfTI file", "is a PNG picture, no NIfTI file; give it its suffix"),
        (b"\x89PNG\r\n", "picture", ""),
        (b"\x1f\x8b\x08\0", "picture", "is packed by gzip, no picture; unpack it"),
        (b"\x1f\x8b\x08\0", "NIfTI file", ""),
        (b"\x93NUMPY", ".npz file", "is a NumPy array, no .npz file"),
        (b"\xef\xbb\xbf {", "picture", "is a JSON text, no picture"),
    ],
)
def test_what_a_file_is_by_its_first_bytes(tmp_path, content, kind, expected):
    (tmp_path / "a").write_bytes(content + b"\0\xff" * 200)
    found = content_of(tmp_path / "a", kind)
    assert found.startswith(expected) and bool(found) == bool(expected)
