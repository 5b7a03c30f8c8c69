"""Reading and writing pictures, arrays and tables: damage is told in one line, every write is whole or not at all."""

import csv
import json
import math
import os
import re
import shutil
import time
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .runtime.errors import UserError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


# ---- names -------------------------------------------------------------------------------------------------------


def split_suffix(path):
    """Return (stem, suffix) of a file name, with `.nii.gz` as one suffix; dots elsewhere belong to the stem."""
    path = Path(path)
    suffix = path.name[-len(".nii.gz") :] if path.name.lower().endswith(".nii.gz") else path.suffix
    return path.name.removesuffix(suffix), suffix


def check_encodable(*names):
    """Raise a `UserError` for a path or name whose bytes are no UTF-8, as archives from other systems leave them: it
    can be opened, but neither written to a table nor turned into a seed."""
    for name in map(str, names):
        try:
            name.encode()
        except UnicodeEncodeError:
            printable = name.encode(errors="backslashreplace").decode().replace("\\udc", "\\x")  # the byte itself
            raise UserError(f"{printable}: its name is not in UTF-8; rename it") from None


def list_files(folder, suffixes):
    """Return the folder's own files with one of these suffixes (any case) by name; hidden files are left out."""
    return sorted(
        path
        for path in Path(folder).iterdir()
        if split_suffix(path)[1].lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


# ---- pictures ----------------------------------------------------------------------------------------------------


def read_picture(path):
    """Read a PNG, JPEG, TIFF or BMP as float32 [C, H, W] in 0..255: C = 1 for grey pictures, 3 for all others.

    16-bit grey is scaled to 0..255, 1-bit is 0/255, palettes and other colour spaces become RGB, an alpha channel is
    dropped, and the EXIF orientation is applied. Raises `UserError` for a missing, damaged or unsupported file.
    """
    picture = _open_picture(path)
    if _is_wide(picture):
        return _wide_values(path, picture)[None] / np.float32(257)
    mode = "L" if picture.mode in ("1", "L", "LA") else "RGB"
    with decoding(path, "picture"):
        values = np.asarray(picture.convert(mode), dtype=np.float32)
    return values[None] if mode == "L" else np.ascontiguousarray(values.transpose(2, 0, 1))


def read_picture_mask(path):
    """Read a binary mask as bool [H, W]; True is foreground.

    0/255 (and 16-bit 0/65535) masks are cut at half of that range, so grey edges from JPEG or resizing fall on one
    side. A file whose maximum is 1 is taken as 0/1. Colours are judged by their brightness; a palette picture by its
    index (0 is background), unless its colours are black and white alone. A file whose maximum lies strictly between
    1 and half of the range holds something else, such as class numbers: a `UserError`, as is a damaged file.
    """
    picture = _open_picture(path)
    if _is_wide(picture):
        values = _wide_values(path, picture)
        return _cut_mask(path, values, 255 if values.max() <= 255 else 65535)
    with decoding(path, "picture"):
        grey = np.asarray(picture.convert("L"))
        if picture.mode == "P" and not np.isin(grey, (0, 255)).all():
            return np.asarray(picture) > 0
    return _cut_mask(path, grey, 255)


def read_picture_labels(path):
    """Read a label map, a picture whose values are class numbers, as int32 [H, W]; of a palette its indices.

    Raises `UserError` for a missing or damaged file, for colours and for JPEG, which changes values.
    """
    picture = _open_picture(path)
    if split_suffix(path)[1].lower() in (".jpg", ".jpeg"):
        raise UserError(f"{path}: is a JPEG, whose values are not those that were saved; save label maps as PNG")
    with decoding(path, "picture"):
        if _is_wide(picture):
            values = _wide_values(path, picture)
        else:
            values = np.asarray(picture)
    if values.ndim == 3:
        if values.shape[2] >= 3 and (values[..., :1] != values[..., :3]).any():
            raise UserError(f"{path}: is in colour; save label maps in grey or with a palette, a value for each class")
        values = values[..., 0]
    return values.astype(np.int32)


def _cut_mask(path, values, full):
    top = values.max()
    if 1 < top <= full / 2:
        raise UserError(
            f"{path}: its values reach from 0 to {top:g}, which is neither a 0/1 nor a 0/{full} mask; "
            f"save the mask with 0 for background and {full} for foreground"
        )
    return values > (0 if top <= 1 else full / 2)


def _open_picture(path):
    with decoding(path, "picture"), Image.open(path) as picture:
        pages = getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1
        picture.load()
        picture = ImageOps.exif_transpose(picture)
    if pages > 1:
        raise UserError(f"{path}: holds {pages} pages; save each as a file of its own")
    return picture


def _is_wide(picture):
    return picture.mode == "F" or picture.mode.startswith("I")


def _wide_values(path, picture):
    """The values of a grey picture of more than 8 bits, as float32 [H, W] in 0..65535."""
    values = np.asarray(picture, dtype=np.float32)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise UserError(f"{path}: is a 32-bit picture; save it with 8 or 16 bits per pixel")
    return values


def stacked(paths, arrays):
    """Arrays as one, with them along the first axis. Raises `UserError` that names the file whose size differs."""
    for path, array in zip(paths, arrays, strict=True):
        if array.shape != arrays[0].shape:
            sizes = ["x".join(map(str, shape)) for shape in (array.shape, arrays[0].shape)]
            raise UserError(f"{path}: has {sizes[0]} pixels, but {paths[0]} has {sizes[1]}; they must agree")
    return np.stack(arrays)


# ---- NumPy archives ----------------------------------------------------------------------------------------------


def read_npz_headers(path):
    """Return {name: (shape, dtype)} of the arrays in an .npz file, without decompressing them.

    Raises `UserError` for a missing or damaged file.
    """
    headers = {}
    with decoding(path, ".npz file"), zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
                headers[member.removesuffix(".npy")] = (shape, dtype)
    return headers


def read_npz(path, name):
    """Read one array of an .npz file; arrays of objects, which could run code, are refused.

    Raises `UserError` for a missing or damaged file and for an array that it does not hold.
    """
    with decoding(path, ".npz file"), np.load(path, allow_pickle=False) as archive:
        return archive[name]


# ---- what every decoder shares -----------------------------------------------------------------------------------


@contextmanager
def decoding(path, kind):
    """Turn whatever a decoder raises into one line that names the file."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        yield
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        if isinstance(error, OSError) and error.errno is not None:
            raise  # no permission, a failing disk: the system's own words say it best
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: is truncated or damaged, or is no {kind} ({reason}); copy it again") from error


# ---- tables ------------------------------------------------------------------------------------------------------


def read_json(path):
    """Read a JSON file; `UserError` with the line if it is not valid."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path}: is no valid JSON ({error}); correct it") from error


def read_json_lines(path):
    """The values of a file of one JSON text a line, in their order; [] where there is no file. A line that is torn, as
    the last one of a killed run may be, is left out."""
    values = []
    for line in Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else ():
        with suppress(json.JSONDecodeError):
            values.append(json.loads(line))
    return values


def read_yaml(path):
    """Read a YAML file; `UserError` with the place if it is not valid."""
    import yaml

    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())  # it is told over several lines
        raise UserError(f"{path}: is no valid YAML ({reason}); correct it") from error


def read_csv(path):
    """Read a CSV file as a list of (line number, list of stripped fields), without its empty lines."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, [field.strip() for field in row]) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no valid CSV file in UTF-8 ({error}); correct it") from error
    return [(number, fields) for number, fields in rows if any(fields)]


# ---- writing -----------------------------------------------------------------------------------------------------


@contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path`; on leaving, flush it to disk and rename it onto `path`.

    The temporary is hidden and keeps the suffix, which writers look at. After an error, or a kill at any moment,
    `path` is what it was before. The parent folder is made.
    """
    path = Path(path)
    stem, suffix = split_suffix(path)
    temporary = path.with_name(f".{stem}.{os.getpid()}{suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # a full disk names no file, and the temporary means nothing
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def name_also(path, other):
    """Let `other` be the same file as `path`, whole or not at all: a hard link where the disk has them, else a copy."""
    with atomic_path(other) as temporary:
        try:
            os.link(path, temporary)
        except OSError:  # FAT, some network drives
            shutil.copyfile(path, temporary)


def remove_temporaries(folder, idle=0):
    """Remove what `atomic_path` left in a folder, as it does when the process is killed meanwhile.

    idle: only what nobody has written to for so many seconds, for folders that another run may be writing to, perhaps
    on another machine, where the number of its process says nothing. With 0 those of a run at work are gone too.
    """
    for path in Path(folder).glob(".*"):
        if re.fullmatch(r"\..+\.\d+", split_suffix(path)[0]) and path.is_file():
            with suppress(FileNotFoundError):  # it has been renamed, or another run removes it too
                if not idle or time.time() - path.stat().st_mtime > idle:
                    path.unlink()


def write_png(path, array):
    """Write uint8 [H, W] (grey) or [H, W, 3] (RGB), or uint16 [H, W] (16-bit grey), as a PNG."""
    array = np.asarray(array)
    form = (array.dtype.name, array.ndim)
    if form not in (("uint8", 2), ("uint8", 3), ("uint16", 2)) or array.shape[2:] not in ((), (3,)):
        raise ValueError(f"write_png takes uint8 [H, W] or [H, W, 3] or uint16 [H, W], not {form[0]} {array.shape}")
    with atomic_path(path) as temporary:
        Image.fromarray(array).save(temporary, format="PNG")


def write_label_png(path, labels, colours):
    """Write a label map, uint8 or uint16 [H, W], as a PNG: with a palette, so that it can be looked at, where the
    values fit into bytes, else as 16-bit grey.

    colours: {value: (red, green, blue)}; others are black.
    """
    labels = np.asarray(labels)
    if labels.dtype != np.uint8:
        return write_png(path, labels)
    palette = np.zeros((256, 3), np.uint8)
    for value, colour in colours.items():
        palette[value] = colour
    picture = Image.fromarray(labels)
    picture.putpalette(palette.tobytes())
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def write_json(path, value):
    """Write `value` as indented JSON; NaN and infinities, which JSON has no word for, become null.

    NumPy scalars and arrays and paths are written as plain numbers, lists and strings.
    """
    text = json.dumps(json_ready(value), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def json_ready(value):
    """The value in types that JSON has: keys as text, arrays and tuples as lists, paths as text, and None for numbers
    that are not finite."""
    if isinstance(value, dict):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return json_ready(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def check_writable(folder, flag="--out_dir"):
    """Make the folder and write a byte in it; `UserError` names it, the reason and the flag when that fails."""
    folder = Path(folder)
    try:
        with atomic_path(folder / ".writable") as temporary:
            temporary.write_bytes(b"1")
        (folder / ".writable").unlink(missing_ok=True)  # another run may try the same folder
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror or error}); choose another {flag}") from error
