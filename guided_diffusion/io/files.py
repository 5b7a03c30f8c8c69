"""NumPy archives, writing and file names: a damaged file gives one line, and a write is whole or not at all."""

import errno
import json
import math
import os
import re
import secrets
import shutil
import stat
import time
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from ..runtime.errors import UserError
from .memory import LARGEST_RATIO, check_room
from .texts import has_control

# ---- names -------------------------------------------------------------------------------------------------------


def split_suffix(path):
    """(stem, suffix) of a file name. `.nii.gz` is one suffix; other dots belong to the stem."""
    name = os.path.basename(path)
    suffix = name[-len(".nii.gz") :] if name.lower().endswith(".nii.gz") else os.path.splitext(name)[1]
    suffix = "" if suffix == "." else suffix
    return name.removesuffix(suffix), suffix


def check_encodable(*names):
    """Raise `UserError` for a path or name that is not in UTF-8, as archives from other systems produce, or that holds
    a line break or another control character.

    Such a file can be opened, but its name can be neither written to a table nor hashed to a seed.
    """
    for name in map(str, names):
        if has_control(name):
            raise UserError(f"{name!r}: its name holds a line break or another control character; rename it")
        try:
            name.encode()
        except UnicodeEncodeError:
            printable = name.encode(errors="backslashreplace").decode().replace("\\udc", "\\x")  # the byte itself
            raise UserError(f"{printable}: its name is not in UTF-8; rename it") from None


# Files that come with data and are none, by their names in any case. Those of systems, of archives, of version control;
# licences and sums; ISIC's superpixels; the temporaries of `atomic_path` and the pictures of check_data.
RUBBISH = re.compile(
    r"\.ds_store|\._.*|\.nfs.*|\.git.*|\.dvc.*|\.lfsconfig|\.hgignore|\.directory|\.bids.*|\.ipynb_checkpoints|\.datalad.*|"
    r"\.\w*cache|\.trash.*|\.spotlight.*|\.fseventsd|\.appledouble|\.temporaryitems|\.snapshots?|\.svn|\.idea|\.vscode|"
    r"\..+\.\d+(\.\w+)*|\.lock|\.medsegdiff\.lock|\.writable|~\$.*|.*~|"
    r"__macosx|__pycache__|lost\+found|@eadir|#recycle|\$recycle\.bin|system volume information|(eh)?thumbs\.db|"
    r"desktop\.ini|icon\r|"
    r"(licen[cs]e|readme|citation|copying|notice|changelog|changes|authors|attribution)"
    r"([-_ ]?\w*)?\.(txt|md|rst|html?|pdf|rtf|cff|bib|docx?)|"
    r"licen[cs]e|readme|citation|copying|notice|changelog|authors|"
    r"(md5|sha1|sha256|sha512|b2)sums?(\.txt)?|checksums?(\.\w+)?|.*\.(md5|sha1|sha256|sha512)|"
    r".*_superpixels\.png|contact_sheet\.png",
    re.IGNORECASE,
)


def is_rubbish(name):
    """Whether a file or folder of this name is known to be no data (see `RUBBISH`)."""
    return RUBBISH.fullmatch(name) is not None


def is_hidden(name):
    """Whether the name is hidden or known rubbish, so that loaders do not look at it."""
    return name.startswith(".") or is_rubbish(name)


def list_files(folder, suffixes):
    """The files in a folder with one of these suffixes (any case), sorted by name, without hidden ones and rubbish.

    A link without a target is left out here, and named by `data.accounting`.
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_listed(entry, suffixes)]
    return [Path(folder, name) for name in sorted(names)]


def is_listed(entry, suffixes):
    """Whether a directory entry is a file that `list_files` lists."""
    name = entry.name
    return split_suffix(name)[1].lower() in suffixes and not is_hidden(name) and is_found(entry.is_file)


def folders_in(folder):
    """The folders in a folder, sorted by name; [] where it cannot be listed.

    Hidden ones, rubbish, and links to the folder itself or to one above it are left out.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        found = [entry for entry in entries if not is_hidden(entry.name) and is_found(entry.is_dir)]
        names = [entry.name for entry in found if not (entry.is_symlink() and _leads_up(entry.path, folder))]
        return [Path(folder, name) for name in sorted(names)]
    return []


def _leads_up(link, folder):
    """Whether a link leads to the folder or to one above it."""
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(link))


def is_found(test):
    """`entry.is_file()` or `entry.is_dir()` of a directory entry; False for a link to nowhere or in a circle."""
    try:
        return test()
    except OSError:
        return False


# ---- NumPy archives ----------------------------------------------------------------------------------------------


def read_npz_headers(path):
    """{name: (shape, dtype)} of the arrays in an .npz file, without decompressing them.

    Raises `UserError` for a missing or damaged file, and for an array that the file cannot hold.
    """
    with decoding(path, ".npz file"), zipfile.ZipFile(path) as archive:
        return {member.filename.removesuffix(".npy"): _npy_header(archive, member) for member in archive.infolist()}


def _npy_header(archive, member):
    """(shape, dtype) of an array of an archive. Raises ValueError where the member does not have its size."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        size = file.tell() + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or (not dtype.hasobject and size != member.file_size):
        raise ValueError(f"{member.filename} of the shape {list(shape)} has {member.file_size} bytes, not {size}")
    if member.file_size > LARGEST_RATIO * (member.compress_size + 1):
        raise ValueError(f"{member.filename} has {member.compress_size} bytes, too few for {member.file_size}")
    return shape, dtype


def read_npz(path, name):
    """Read one array of an .npz file.

    Raises `UserError` for a missing or damaged file, for an absent array, for an array of objects, which could run
    code, and for one that is larger than the free memory.
    """
    with decoding(path, ".npz file"), zipfile.ZipFile(path) as archive:
        member = next((one for one in archive.infolist() if one.filename.removesuffix(".npy") == name), None)
        if member is None:
            raise UserError(f"{path}: has no array {name}; save it with all arrays of its layout")
        shape, dtype = _npy_header(archive, member)
        if dtype.hasobject:
            raise UserError(f"{path}: {name} holds Python objects, which could run code; save plain numbers or text")
        check_room(path, f"an array {name} of the shape {list(shape)}", member.file_size)
        with archive.open(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False)


# ---- errors of decoders ------------------------------------------------------------------------------------------


# A decoder that lacks a feature says so; the file is whole.
REASON = 160  # characters of a decoder's reason
LACKING = re.compile(r"unsupported|not supported|not available|not implemented|no support|requires the", re.IGNORECASE)

# What other files begin with: (bytes, where, what such a file is, what to do).
SIGNATURES = (
    (b"version https://git-lfs", 0, "is a Git LFS pointer, not the file itself", "fetch it with git lfs pull"),
    (b"/annex/objects/", 0, "is a git-annex pointer, not the file itself", "fetch it with git annex get"),
    (b"<!doctype html", 0, "is an HTML page, such as a download's log-in or error page", "download the file again"),
    (b"<html", 0, "is an HTML page, such as a download's log-in or error page", "download the file again"),
    (b"<svg", 0, "is an SVG drawing", "save it as PNG"),
    (b"<?xml", 0, "is an XML text", "look into it: it may be a download's error message"),
    (b"{", 0, "is a JSON text", "look into it: it may be a download's error message"),
    (b"%PDF", 0, "is a PDF document", "save its picture as PNG"),
    (b"PK\3\4", 0, "is a ZIP archive", "unpack it"),
    (b"\x1f\x8b", 0, "is packed by gzip", "unpack it"),
    (b"Rar!", 0, "is a RAR archive", "unpack it"),
    (b"7z\xbc\xaf", 0, "is a 7z archive", "unpack it"),
    (b"\x89HDF", 0, "is an HDF5 file", "write a loader for it"),
    (b"\x93NUMPY", 0, "is a NumPy array", "save it as a picture, or write a loader for it"),
    (b"DICM", 128, "is a DICOM file", "give it the suffix .dcm"),
    (b"ftypheic", 4, "is a HEIC photograph", "save it as PNG or JPEG"),
    (b"ftypmif1", 4, "is a HEIC photograph", "save it as PNG or JPEG"),
    (b"\x89PNG", 0, "is a PNG picture", "give it its suffix"),
    (b"\xff\xd8\xff", 0, "is a JPEG picture", "give it its suffix"),
    (b"n+1\0", 344, "is a NIfTI file", "give it its suffix"),
    (b"NRRD", 0, "is an NRRD file", "give it the suffix .nrrd"),
    (b"ObjectType", 0, "is a MetaImage file", "give it the suffix .mha"),
    (b"NDims", 0, "is a MetaImage file", "give it the suffix .mha"),
)
OF_KIND = {
    "picture": ("PNG", "JPEG"),
    "NIfTI file": ("NIfTI", "gzip"),
    "NRRD file": ("NRRD",),
    "MetaImage file": ("MetaImage",),
    "DICOM file": ("DICOM",),
    ".npz file": ("ZIP",),
}  # are what they should be


# Of an `OSError` while a damaged file is decoded: a decoder's own error, and a place that is not in the file.
DAMAGE = (None, errno.EINVAL, errno.EOVERFLOW, errno.ESPIPE)


@contextmanager
def decoding(path, kind):
    """Turn any exception of a decoder into a `UserError` that names the file and the true reason.

    kind: such as "picture". A file is called damaged only where it is no other kind of file, and where the decoder
    lacks no feature.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: {_why_no_file(path)}")
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        if isinstance(error, OSError) and error.errno not in DAMAGE:
            error.filename = error.filename or str(path)
            raise  # no permission, a failing disk: the system's message is better
        reason = " ".join(str(error).split())[:REASON] or type(error).__name__
        other = content_of(path, kind)
        if other:
            message = f"{path}: {other}"
        elif isinstance(error, MemoryError):
            message = f"{path}: does not fit into the free memory; make it smaller or use fewer --num_workers"
        elif isinstance(error, NotImplementedError) or LACKING.search(reason):
            message = f"{path}: is a {kind} of a form that cannot be read here ({reason}); save it in a usual form"
        elif "MAX_TEXT" in reason or "Decompressed data too large" in reason:
            message = f"{path}: holds more text (metadata) than is read ({reason}); remove it, as by exiftool -all="
        else:
            message = f"{path}: is truncated or damaged, or is no {kind} ({reason}); copy it again"
        raise UserError(message) from error


def content_of(path, kind):
    """What a file is that cannot be read as a `kind`, and what to do, by its first bytes; "" where they do not say."""
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "is empty (0 bytes): truncated or damaged; copy it again"
    if not any(head):
        return "begins with zeros alone, as a copy that did not end does; copy it again"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for begins, place, what, remedy in SIGNATURES:
        if (head[place:] if place else text)[: len(begins)].lower() == begins.lower():
            ours = any(word in what for word in OF_KIND.get(kind, ()))
            return "" if ours else f"{what}, no {kind}; {remedy}" if "not the" not in what else f"{what}; {remedy}"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        shown = " ".join(head.decode().split())[:40]
        return f"is a text that begins {shown!r}, no {kind}; copy or download the file again"
    return ""


def _why_no_file(path):
    """Why there is no file of this path: nothing, a folder, a pipe or device, or a link whose target is not there."""
    if os.path.islink(path) and not os.path.exists(path):
        target = os.readlink(path)
        remedy = "fetch it with git annex get" if "/annex/objects/" in target else "copy the file, not the link"
        return f"is a link to {target}, which is not there; {remedy}"
    if os.path.exists(path) and not os.path.isdir(path):
        return "is a pipe, socket or device, not a file; put a file there"
    return "is a folder, not a file" if Path(path).is_dir() else "no such file"


# ---- writing -----------------------------------------------------------------------------------------------------


LONGEST_STEM = 180  # bytes of a file's name that its temporary repeats: names may have 255 in all
TOKEN_DIGITS = 20
# Until version 0.3.0 the number was the process's. Users name hidden files so too, as .notes.2024.md: what is neither a
# picture nor a volume counts only with a name that this program writes.
OLD_TEMPORARY = re.compile(
    r"\.(.+\.\d{1,7}\.(png|gif|npz|npy|nii|nii\.gz)|(model\d+|best|last)\.\d{1,7}\.pt|writable\.\d{1,7}|"
    r"(manifest|summary|curves|demo)\.\d{1,7}\.json|log\.\d{1,7}\.jsonl|config\.\d{1,7}\.yaml|metrics\.\d{1,7}\.csv|"
    r"(report|training)\.\d{1,7}\.html|model_card\.\d{1,7}\.md)"
)


def temporary_name(path):
    """A new path beside `path`: hidden, with the same suffix, and with a random number that nobody can foresee."""
    stem, suffix = split_suffix(path)
    stem = stem.encode(errors="surrogateescape")[:LONGEST_STEM].decode(errors="ignore")
    return Path(path).with_name(f".{stem}.{secrets.randbelow(10**TOKEN_DIGITS):0{TOKEN_DIGITS}d}{suffix}")


def is_temporary(name):
    """Whether a file of this name is a temporary of `atomic_path`, of this version or an earlier one."""
    is_new = re.fullmatch(rf"\..*\.\d{{{TOKEN_DIGITS}}}", split_suffix(name)[0])
    return bool(is_new or OLD_TEMPORARY.fullmatch(name))


@contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path`; on leaving, flush it to disk and rename it to `path`.

    After an error, or a kill at any moment, `path` is unchanged. The temporary file is hidden and has the same suffix,
    which some writers depend on. It is made here, exclusively and never through a link; a file that took its place
    meanwhile is refused with `UserError`. The parent folder is made. A link at `path` is replaced, not followed.
    """
    path = Path(path)
    temporary, made = temporary_name(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = _made_file(temporary)
        yield temporary
        _flush(temporary, made, path)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:  # NumPy reports a short write so
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if error.filename in (None, str(temporary)):  # a full disk names no file, and users do not know the temporary
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        if made is not None:
            with suppress(OSError):  # the error above says more than one of the cleaning
                temporary.unlink(missing_ok=True)


@contextmanager
def naming(path):
    """A context in which an OSError that names no file, such as that of a full disk, names this one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def _made_file(path):
    """Make an empty file that did not exist. Returns its (device, inode)."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINKS, 0o666)
    try:
        return _file_identity(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def _flush(temporary, made, path):
    """Flush the temporary file of `path` to disk. Raises `UserError` unless it is the one that was `made`."""
    replaced = UserError(f"{path}: another program replaced its temporary file while it was written; run it again")
    if not stat.S_ISREG(os.lstat(temporary).st_mode):  # a pipe would wait
        raise replaced
    descriptor = os.open(temporary, os.O_RDWR | NO_LINKS)
    try:
        if _file_identity(os.fstat(descriptor)) != made:
            raise replaced
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_files(folder):
    """Flush each file in a folder to disk."""
    for path in Path(folder).iterdir():
        descriptor = os.open(path, os.O_RDWR | NO_LINKS)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _file_identity(status):
    return status.st_dev, status.st_ino


def name_also(path, other):
    """Make `other` a hard link to `path`, or a copy where the disk has no links; whole or not at all."""
    temporary = temporary_name(other)
    try:
        os.link(path, temporary)  # exclusive by itself
    except OSError:  # FAT, some network drives
        with atomic_path(other) as temporary:
            shutil.copyfile(path, temporary)
        return
    try:
        os.replace(temporary, other)
    finally:
        temporary.unlink(missing_ok=True)  # it stays where `other` was the same file already


def remove_temporaries(folder, idle=0):
    """Remove the temporary files of `atomic_path` that a killed process left in a folder; links are left alone.

    idle: seconds without a write after which a file is removed. Use it for a folder that other runs may be writing to,
    perhaps on other machines; 0 removes the files of a run at work too. A file dated further than that in the future
    is removed as well: a clock was wrong.
    """
    for path in Path(folder).glob(".*"):
        if not is_temporary(path.name):
            continue
        with suppress(OSError):  # renamed or removed by another run, or another user's
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and (not idle or abs(time.time() - status.st_mtime) > idle):
                path.unlink()


def write_json(path, value):
    """Write `value` as indented JSON, after `json_ready`."""
    text = json.dumps(json_ready(value), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def json_ready(value):
    """The value in JSON's types: keys and paths become text, arrays, tensors and tuples lists, NumPy scalars plain
    numbers, and numbers that are not finite None."""
    if isinstance(value, dict):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if hasattr(value, "tolist"):  # of NumPy or torch
        return json_ready(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def check_writable(folder, flag="--out_dir"):
    """Make the folder and write a byte to it. Raises `UserError` with the folder, the reason and the flag."""
    folder = Path(folder)
    trial = temporary_name(folder / "writable")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _made_file(trial)
        try:
            trial.write_bytes(b"1")
        finally:
            trial.unlink()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror or error}); choose another {flag}") from error
