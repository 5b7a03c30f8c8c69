"""MetaImage files, .mha and .mhd, as ITK and its programs write them."""

import math

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

METAIMAGE_SUFFIXES = (".mha", ".mhd")
LONGEST_HEADER = 2**16  # bytes
TYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4"},
    **{"MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8"},
    **{"MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
MATRIX = ("TransformMatrix", "Rotation", "Orientation")
ORIGIN = ("Offset", "Origin", "Position")


def open_metaimage(path):
    """nibabel's image of a MetaImage file, whose values are decoded when they are asked for.

    Its axes are those of the file, with channels last, and its affine is RAS in mm; a file without a direction lies
    along the axes of ITK, left and back. Raises `UserError` for a damaged header and for values in another form than
    numbers in one file.
    """
    fields, stored = _parsed(path)
    sizes = _sizes(path, fields)
    channels = _whole(path, fields, "ElementNumberOfChannels", 1)
    kind = TYPES.get(fields.get("ElementType", ""))
    if kind is None or channels < 1:
        raise damaged_header(path, f"ElementType is {fields.get('ElementType')!r} with {channels} channels")
    is_big = any(fields.get(name, "").lower() == "true" for name in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"))
    dtype = np.dtype(f"{'>' if is_big else '<'}{kind}")
    count = math.prod(sizes) * channels
    stored.check_length(count * dtype.itemsize)
    shape = sizes if channels == 1 else (*sizes, *(1,) * (3 - len(sizes)), channels)

    def decode(_depth):
        values = np.frombuffer(stored.read(count * dtype.itemsize), dtype)
        return np.moveaxis(values.reshape((channels, *sizes), order="F"), 0, -1).reshape(shape)

    if len(shape) > 4:
        raise UserError(f"{path}: has {len(sizes)} axes and {channels} channels; save one time or channel")
    return as_nifti(LazyValues(shape, dtype, decode), _affine(path, fields, len(sizes)))


def metaimage_data_file(path):
    """The file beside a .mhd that holds its values, or None where the header's own file does."""
    return _parsed(path)[1].file_beside_header


def _parsed(path):
    """({field: text} of a header, its `StoredBytes`)."""
    with open(path, "rb") as file:
        head = file.read(LONGEST_HEADER)
    fields, place = {}, 0
    while "ElementDataFile" not in fields:
        end = head.find(b"\n", place)
        name, found, text = head[place : end if end >= 0 else len(head)].decode("latin-1").partition("=")
        if not found or (end < 0 and name.strip() != "ElementDataFile"):
            raise ValueError("its header has no ElementDataFile")
        fields[name.strip()] = text.strip()
        place = end + 1 or len(head)
    if fields.get("BinaryData", "True").lower() == "false":
        raise UserError(f"{path}: has its values as text (BinaryData = False); save it in binary form")
    if header_numbers(path, "a slope", fields.get("ElementToIntensityFunctionSlope", "1")) != [1.0]:
        raise UserError(f"{path}: has an intensity function, which is not applied here; save it with the final values")
    is_compressed = fields.get("CompressedData", "False").lower() == "true"
    text = fields["ElementDataFile"]
    if text.upper() == "LOCAL":
        return fields, StoredBytes(path, path, place, "zlib" if is_compressed else "")
    if text.upper().startswith("LIST") or "%" in text or len(text.split()) == 4:
        raise UserError(f"{path}: has its values in a file for each slice; save it as one .mha file")
    skipped = _whole(path, fields, "HeaderSize", 0)
    start = None if skipped == -1 else max(skipped, 0)
    return fields, StoredBytes(path, file_beside(path, text), start, "zlib" if is_compressed else "")


def _whole(path, fields, name, default):
    found = header_numbers(path, name, fields.get(name, str(default)), int)
    if len(found) != 1:
        raise damaged_header(path, f"{name} is {fields[name]!r}")
    return found[0]


def _sizes(path, fields):
    sizes = tuple(header_numbers(path, "DimSize", fields.get("DimSize", ""), int))
    if len(sizes) not in (2, 3, 4) or len(sizes) != _whole(path, fields, "NDims", len(sizes)) or min(sizes) < 1:
        raise damaged_header(path, f"NDims is {fields.get('NDims')} and DimSize {fields.get('DimSize')}")
    return sizes


def _affine(path, fields, axes):
    """The affine (RAS) of a file with 2, 3 or 4 axes, the fourth of which is no axis of space."""

    def first(names, default):
        name = next((name for name in names if name in fields), names[0])
        return name, np.array(header_numbers(path, name, fields.get(name, " ".join(map(str, default)))))

    values = {
        "matrix": first(MATRIX, np.eye(axes).ravel()),
        "spacing": first(("ElementSpacing", "ElementSize"), np.ones(axes)),
        "origin": first(ORIGIN, np.zeros(axes)),
    }
    for what, (name, found) in values.items():
        if found.size != (axes * axes if what == "matrix" else axes):
            raise damaged_header(path, f"{name} has {found.size} numbers for {axes} axes")
    space = min(axes, 3)
    matrix = values["matrix"][1].reshape(axes, axes).T[:space, :space]  # a row for each axis of the array
    spacing, origin = values["spacing"][1][:space], values["origin"][1][:space]
    return LPS_TO_RAS @ affine_of(matrix * spacing, origin)
