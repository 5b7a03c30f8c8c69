"""The values of volumes that nibabel does not read: decoded when asked for, and never beyond the header's claim."""

import bz2
import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np

from ..runtime.errors import UserError
from .folders import PLACED
from .memory import LARGEST_RATIO
from .orientation import is_degenerate
from .texts import shown

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
BZIP_RATIO = 50_000  # what one byte of bzip2 can stand for at most, roughly
AT_ONCE = 2**20  # bytes that are decompressed at once
LONGEST_AXIS = 2**15 - 1  # of NIfTI-1


class LazyValues:
    """What nibabel's images ask of their data: a shape, a type, and the values, decoded only now.

    decode: a function (depth) that returns the values, an array of `shape` and `dtype`; with a number for depth the
    part [:, :, :depth] suffices, with None all are needed.
    """

    is_proxy = True
    slope, inter, offset = 1.0, 0.0, 0

    def __init__(self, shape, dtype, decode):
        self.shape, self.dtype, self.ndim = tuple(shape), np.dtype(dtype), len(shape)
        self._decode = decode

    def __array__(self, dtype=None, copy=None):
        values = self._decode(None)
        return values if dtype is None else values.astype(dtype, copy=False)

    def __getitem__(self, place):
        third = place[2] if isinstance(place, tuple) and len(place) > 2 else None
        return self._decode(third.stop if isinstance(third, slice) and third.step is None else None)[place]


def as_nifti(values, affine):
    """nibabel's image of `LazyValues` with an affine [4, 4] in mm (RAS), as if a NIfTI file held both.

    The affine is its sform, and its qform where that can hold it, that is, without shear.
    """
    import nibabel

    is_long = max(values.shape) > LONGEST_AXIS
    kind = nibabel.Nifti2Image if is_long else nibabel.Nifti1Image
    header = kind.header_class()
    header.set_data_dtype(values.dtype)
    header.set_data_shape(values.shape)
    header.set_xyzt_units("mm")
    header.set_sform(affine, 1)
    if not is_degenerate(affine):
        header.set_qform(affine, 1)
        if not np.allclose(header.get_qform(), affine, atol=1e-3):
            header.set_qform(None, 0)
            header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    return kind(values, affine, header, dtype=values.dtype)


def affine_of(directions, origin):
    """The affine [4, 4] of voxels with these steps from an origin [D]: [D, n], in mm along D = 2 or 3 axes of space for
    n axes of the array. Axes that lack are the identity, or orthogonal to two given ones."""
    affine = np.eye(4)
    rows, columns = np.shape(directions)
    affine[:rows, :columns], affine[:rows, 3] = directions, origin
    if (rows, columns) == (3, 2):
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        length = np.linalg.norm(normal)
        affine[:3, 2] = normal / length if length else (0, 0, 1)
    return affine


# ---- headers ----------------------------------------------------------------------------------------------------


def header_numbers(path, what, text, kind=float):
    """The numbers in a header's text. Raises `UserError` for anything else, and for those that are not finite."""
    try:
        found = [kind(part) for part in text.split()]
        if not all(map(math.isfinite, found)):
            raise ValueError
    except (ValueError, OverflowError):
        raise damaged_header(path, f"{what} is {shown(text)!r}") from None
    return found


def damaged_header(path, why):
    """The `UserError` about a header that makes no sense."""
    return UserError(f"{path}: its header is damaged: {why}; copy it again or save it anew")


def file_beside(path, text):
    """The file that a header names for its values, in the header's folder or below it.

    Raises `UserError` for a path that leads elsewhere, since whoever wrote the header must not choose what is read, and
    for a file that is not there.
    """
    written = text.replace("\\", "/")
    if ".." in written.split("/") or PLACED.search(text):
        raise UserError(
            f"{path}: names {shown(text)} as the file of its values, which is not below its own folder; put it there"
        )
    file = Path(path).parent / written
    if not file.is_file():
        raise UserError(f"{path}: its values are in {shown(text)}, but there is no such file; copy it too")
    return file


# ---- bytes ------------------------------------------------------------------------------------------------------


class StoredBytes:
    """Where a header's values lie: a file, the byte at which they begin, and their compression: "", "zlib", "gzip" or
    "bzip2". start: None for values at the end of the file."""

    def __init__(self, header, file, start, compression=""):
        self.header, self.file, self.start, self.compression = header, file, start, compression

    @property
    def file_beside_header(self):
        """The file of the values, or None where they lie in the header's own."""
        return None if self.file == self.header else self.file

    def check_length(self, claimed):
        """Raise `UserError` where the file cannot hold as many bytes as the header claims."""
        length = os.path.getsize(self.file) - (self.start or 0)
        ratio = {"": 1, "bzip2": BZIP_RATIO}.get(self.compression, LARGEST_RATIO)
        if claimed > max(length, 0) * ratio:
            raise UserError(
                f"{self.header}: is truncated or damaged: its header claims {claimed} bytes of values, and "
                f"{'it' if self.file == self.header else Path(self.file).name} has {max(length, 0)}"
                f"{' compressed ones' if self.compression else ''}; copy it again"
            )

    def read(self, count):
        """The first `count` bytes of the values. Raises ValueError where there are fewer, and errors of decompression;
        the checksum of a compressed file is verified."""
        with open(self.file, "rb") as file:
            if self.start is None:
                file.seek(-count, os.SEEK_END)
            else:
                file.seek(self.start)
            if not self.compression:
                found = file.read(count)
            elif self.compression == "zlib":
                found = _inflated(file, count)
            else:
                with (gzip.open if self.compression == "gzip" else bz2.open)(file) as stream:
                    found = stream.read(count)
                    stream.read(1)  # at the end the checksum is verified
        if len(found) < count:
            raise ValueError(f"its header claims {count} bytes of values, it holds {len(found)}")
        return found


def _inflated(file, count):
    """Up to `count` bytes of a zlib stream. Raises zlib.error for a damaged stream, ValueError for one cut short."""
    stream, parts, left = zlib.decompressobj(), [], count
    rest = b""
    while not stream.eof:
        rest = rest or file.read(AT_ONCE)
        if not rest:
            raise ValueError("its compressed values are cut short")
        part = stream.decompress(rest, max(left, 1))
        rest, left = stream.unconsumed_tail, left - len(part)
        parts.append(part)
        if left < 0:  # more than the header claims, which `read` leaves out
            break
    return b"".join(parts)[:count]
