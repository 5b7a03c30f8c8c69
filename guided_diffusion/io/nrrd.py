"""NRRD files, .nrrd and .nhdr, as 3D Slicer and others write them."""

import math
import re

import numpy as np

from ..runtime.errors import UserError
from .stored_values import (
    LPS_TO_RAS,
    LazyValues,
    StoredBytes,
    affine_of,
    as_nifti,
    damaged_header,
    file_beside,
    header_numbers,
)
from .texts import shown

NRRD_SUFFIXES = (".nrrd", ".nhdr")
LONGEST_NRRD_HEADER = 2**20  # bytes; programs keep names and colours of segments in it
TYPE_NAMES = {
    "i1": "signed char|int8|int8_t",
    "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}
NRRD_TYPES = {name: kind for kind, names in TYPE_NAMES.items() for name in names.split("|")}
ENCODINGS = {"raw": "", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
SPACES = {  # the signs that turn them to right, front and up
    **dict.fromkeys(("right-anterior-superior", "ras"), (1, 1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1, 1, 1)),
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1, -1, 1)),
}
VECTOR = re.compile(r"\(([^()]*)\)|none", re.IGNORECASE)
IN_SPACE = ("domain", "space")  # kinds of axes; all others hold the components of a voxel
PLAIN_KINDS = ("", "???", "none", *IN_SPACE)


def open_nrrd(path):
    """nibabel's image of an NRRD file, whose values are decoded when they are asked for.

    Its axes are those of the file, with the axis of components last, and its affine is RAS in mm. A file that names no
    space of a patient is read as ITK reads it: its first axes point to the left and to the back. Raises `UserError` for
    a damaged header, and for values as text or in several files.
    """
    fields, stored = _parsed_nrrd(path)
    sizes = tuple(header_numbers(path, "sizes", fields.get("sizes", ""), int))
    if (
        not sizes
        or min(sizes) < 1
        or [len(sizes)] != header_numbers(path, "dimension", fields.get("dimension", ""), int)
    ):
        raise damaged_header(path, f"dimension is {fields.get('dimension')} and sizes {fields.get('sizes')}")
    kind = NRRD_TYPES.get(fields.get("type", "").lower())
    if kind is None:
        raise damaged_header(path, f"its type is {shown(fields.get('type', ''))!r}")
    dtype = np.dtype(kind).newbyteorder(">" if fields.get("endian", "little").lower() == "big" else "<")
    affine, channel_axis = _place_in_space(path, fields, len(sizes))
    count = math.prod(sizes)
    stored.check_length(count * dtype.itemsize)
    spatial = [size for axis, size in enumerate(sizes) if axis != channel_axis]
    if not 2 <= len(spatial) <= 3:
        raise UserError(f"{path}: has {len(spatial)} axes in space and {len(sizes)} in all; save two or three")
    shape = tuple(spatial) if channel_axis is None else (*spatial, *(1,) * (3 - len(spatial)), sizes[channel_axis])

    def decode(_depth):
        values = np.frombuffer(stored.read(count * dtype.itemsize), dtype).reshape(sizes, order="F")
        return values if channel_axis is None else np.moveaxis(values, channel_axis, -1).reshape(shape)

    return as_nifti(LazyValues(shape, dtype, decode), affine)


def nrrd_data_file(path):
    """The file beside a .nhdr that holds its values, or None where the header's own file does."""
    return _parsed_nrrd(path)[1].file_beside_header


def _parsed_nrrd(path):
    """({field: text} of a header, its `StoredBytes`). Names of fields are in lower case, "datafile" is "data file"."""
    with open(path, "rb") as file:
        head = file.read(LONGEST_NRRD_HEADER)
    if not head.startswith(b"NRRD000"):
        raise ValueError("it does not begin with NRRD")
    end = re.search(rb"\r?\n\r?\n", head)
    lines = head[: end.start() if end else len(head)].decode("latin-1").splitlines()[1:]
    fields = {}
    for line in lines:
        name, found, text = line.partition(": ")
        if not line.startswith("#") and found and ":=" not in name:
            fields[re.sub("^(data|line|byte)(file|skip)$", r"\1 \2", name.strip().lower())] = text.strip()
    text, encoding = fields.get("data file"), fields.get("encoding", "").lower()
    if end is None and text is None:
        raise ValueError("its header does not end")
    if encoding not in ENCODINGS:
        raise UserError(f"{path}: has its values in the encoding {shown(encoding)!r}; save it as raw or gzip")
    skip = {name: header_numbers(path, name, fields.get(f"{name} skip", "0"), int) for name in ("line", "byte")}
    if skip["line"] != [0] or len(skip["byte"]) != 1 or skip["byte"][0] < -1:
        raise UserError(f"{path}: skips lines before its values; save it anew, without them")
    skipped = skip["byte"][0]
    if text is None:
        return fields, StoredBytes(path, path, None if skipped == -1 else end.end() + skipped, ENCODINGS[encoding])
    if text.upper().startswith("LIST") or "%" in text:
        raise UserError(f"{path}: has its values in a file for each slice; save it as one .nrrd file")
    start = None if skipped == -1 else skipped
    return fields, StoredBytes(path, file_beside(path, text), start, ENCODINGS[encoding])


def _place_in_space(path, fields, axes):
    """(the affine [4, 4] in RAS, the axis of components or None) of a file with these axes."""
    space = fields.get("space", "").lower()
    if space.endswith("-time"):
        raise UserError(f"{path}: has an axis of time; save one point in time")
    signs = SPACES.get(space, (-1, -1, 1))
    kinds = fields.get("kinds", "").lower().split()
    if "space directions" in fields:
        vectors = _vectors(path, "space directions", fields["space directions"])
        if len(vectors) != axes:
            raise damaged_header(path, f"it has {len(vectors)} space directions for {axes} axes")
        others = [axis for axis, vector in enumerate(vectors) if vector is None]
        steps = [vector for vector in vectors if vector is not None]
        origin = _vectors(path, "space origin", fields.get("space origin", "(0,0,0)"))
        if not steps or len(origin) != 1 or origin[0] is None or len({len(v) for v in steps} - {2, 3}) > 0:
            raise damaged_header(path, "its space directions or its origin place no volume")
        origin = origin[0][: len(steps[0])] if "space origin" not in fields else origin[0]
        if any(len(vector) != len(origin) for vector in steps):
            raise damaged_header(path, "its space directions and its origin have different lengths")
        directions = np.array(steps).T
    else:
        others = [axis for axis, kind in enumerate(kinds) if kind not in PLAIN_KINDS]
        others = others or ([axes - 1] if axes == 4 else [])
        spacings = fields.get("spacings", " ".join(["1"] * axes)).lower().replace("nan", "1").split()
        sizes = header_numbers(path, "spacings", " ".join(spacings))
        if len(sizes) != axes:
            raise damaged_header(path, f"it has {len(sizes)} spacings for {axes} axes")
        sizes = [size for axis, size in enumerate(sizes) if axis not in others]
        directions, origin = np.diag(sizes), np.zeros(len(sizes))
    if len(others) > 1 or np.shape(directions)[1] > 3:
        raise UserError(f"{path}: has several axes beside those of space; save one of components at most")
    affine = affine_of(directions, origin)
    turned = np.diag([*signs, 1.0]) @ affine if space in SPACES else LPS_TO_RAS @ affine
    return turned, (others[0] if others else None)


def _vectors(path, what, text):
    """The vectors in "(1,0,0) none (0,1,0)": lists of numbers, None for "none"."""
    found = [match[1] for match in VECTOR.finditer(text)]
    return [None if inner is None else header_numbers(path, what, inner.replace(",", " ")) for inner in found]
