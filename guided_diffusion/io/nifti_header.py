"""The start of a NIfTI file: whether the content is NIfTI at all, and where the header places the voxels."""

import gzip
import math
import os
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from ..runtime.errors import UserError
from .files import DAMAGE, decoding
from .memory import LARGEST_RATIO, check_room

# ---- what a file is, by its content ------------------------------------------------------------------------------

HEADER_BYTES = 560  # bytes, enough for either header and for the signatures below
EXTENSION_BYTES = 4  # between a header and the values
GZIP = b"\x1f\x8b"
OTHER_CONTENT = (
    (0, b"BZh", "is compressed by bzip2", "unpack it, and compress it by gzip or not at all"),
    (0, b"\xfd7zXZ\0", "is compressed by xz", "unpack it, and compress it by gzip or not at all"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed by Zstandard", "unpack it, and compress it by gzip or not at all"),
    (0, b"PK\3\4", "is a zip archive", "unpack it"),
    (0, b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive", "unpack it"),
    (257, b"ustar", "is a tar archive", "unpack it"),
    (0, GZIP, "is compressed twice by gzip", "unpack it once"),
    (0, b"version https://git-lfs", "is a placeholder of Git LFS, not the file itself", "fetch it by git lfs pull"),
    (128, b"DICM", "is a DICOM file", "name it .dcm"),
    (0, b"\x89PNG", "is a PNG picture", "name it .png"),
    (0, b"\xff\xd8\xff", "is a JPEG picture", "name it .jpg"),
    (0, b"II*\0", "is a TIFF picture", "name it .tif"),
    (0, b"MM\0*", "is a TIFF picture", "name it .tif"),
    (0, b"\x89HDF", "is an HDF5 or MINC file", "convert it to NIfTI"),
    (0, b"CDF", "is a MINC or NetCDF file", "convert it to NIfTI"),
    (0, b"NRRD", "is an NRRD file", "name it .nrrd"),
    (0, b"ObjectType", "is a MetaImage file", "name it .mha"),
    (0, b"\x93NUMPY", "is a NumPy array", "save it as NIfTI, with its affine"),
    (0, b"\0\0\0\1\0\0", "is an MGH file of FreeSurfer", "convert it by mri_convert to .nii.gz"),
)
WEB_PAGES = (b"<!doctype", b"<html", b"<?xml")


def open_nifti(path):
    """(nibabel's image, whether it is compressed) of a NIfTI file; its data are not read.

    The content decides, not the name: plain files named .nii.gz and compressed ones named .nii are read. Raises
    `UserError` for a missing file, one of another format, which the message names, one with a header that makes no
    sense, and colours or complex numbers.
    """
    import nibabel

    with decoding(path, "NIfTI file"):
        with open(path, "rb") as file:
            head = file.read(HEADER_BYTES)
        is_compressed = head.startswith(GZIP)
        if is_compressed:
            with gzip.open(path) as file:
                head = file.read(HEADER_BYTES)
    kind = _kind_of(path, head)
    _check_header(path, kind.header_class, head)
    _check_length(path, kind.header_class, head, is_compressed)
    with decoding(path, "NIfTI file"):
        # nibabel goes by the name, and stops before the checksum of a compressed file; see check_end
        is_named = str(path).lower().endswith(".gz")
        opened = gzip.open(path) if is_compressed else open(path, "rb") if is_named else None  # noqa: SIM115
        holder = nibabel.FileHolder(str(path), opened)
        with nibabel.imageglobals.LoggingOutputSuppressor():  # it prints what it mends, each time a header is read
            image = kind.from_file_map({"image": holder, "header": holder})
    return image, is_compressed


def _kind_of(path, head):
    """nibabel's class for a file that begins with these bytes, not compressed."""
    import nibabel

    size = {int.from_bytes(head[:4], order) for order in ("little", "big")}
    if 540 in size and head[4:8] == b"n+2\0":
        return nibabel.Nifti2Image
    if head[344:348] == b"n+1\0":
        return nibabel.Nifti1Image
    if (348 in size and head[344:348] == b"ni1\0") or (540 in size and head[4:8] == b"ni2\0"):
        raise UserError(f"{path}: is the header of a pair .hdr and .img; save the two as one file .nii.gz")
    if 348 in size and len(head) >= 348:
        raise UserError(
            f"{path}: is an Analyze header without the mark of NIfTI (n+1); save it as NIfTI, whose affine says which "
            "side is left"
        )
    for place, mark, what, remedy in OTHER_CONTENT:
        if head[place : place + len(mark)] == mark:
            raise UserError(f"{path}: {what}, no NIfTI file; {remedy}")
    if head.lstrip().lower().startswith(WEB_PAGES):
        raise UserError(f"{path}: is a web page, no NIfTI file; download the file itself")
    if not head:
        raise UserError(f"{path}: is truncated or damaged: it is empty; copy it again")
    with decoding(path, "NIfTI file"):
        raise ValueError("it does not begin with a header")


@contextmanager
def decoding_values(path):
    """Turn an exception of decoding the values of an opened NIfTI file, whose header is fine, into a `UserError`."""
    try:
        yield
    except Exception as error:  # decompression raises nearly anything
        if isinstance(error, UserError):
            raise
        if isinstance(error, MemoryError):
            message = f"{path}: does not fit into the free memory; make it smaller or use fewer --num_workers"
            raise UserError(message) from error
        if isinstance(error, OSError) and error.errno not in DAMAGE:
            error.filename = error.filename or str(path)
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: is truncated or damaged ({reason}); copy it again") from error


LONGEST_TAIL = 2**28  # bytes after the values; other programs write none
LARGEST_START = 2**28  # bytes before the values: the header and its extensions


def check_claim(path, image, value_bytes):
    """Raise `UserError` where an `open_nifti` image holds fewer values than its header claims, or more than fit into
    the free memory: before memory is taken for them.

    value_bytes: the bytes that each value takes when it is decoded.
    """
    size = math.prod(image.shape)
    check_room(path, f"{'x'.join(map(str, image.shape))} voxels", size * (value_bytes + image.dataobj.dtype.itemsize))
    if not isinstance(image.file_map["image"].fileobj, gzip.GzipFile):
        return  # `_check_length` compared it with the file
    needed = int(image.dataobj.offset) + size * image.dataobj.dtype.itemsize
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        written = int.from_bytes(file.read(4), "little")  # of the last stream in the file, modulo 4 GB
    if needed <= UNCHECKED or (needed < 2**32 and written >= needed):
        return
    with decoding_values(path), gzip.open(path) as file:  # several streams, or a wrong claim: count
        found = 0
        while found < needed and (part := file.read(2**20)):
            found += len(part)
        if found < needed:
            raise ValueError(f"its header claims {needed} bytes, it holds {found}")


UNCHECKED = 2**26  # bytes that may be claimed in vain: reading them costs little


def _check_length(path, kind, head, is_compressed):
    """Raise `UserError` for a header that claims more values than a file of this length can hold."""
    from nibabel.spatialimages import HeaderDataError

    header = kind(head[: kind.template_dtype.itemsize], _order_of(kind, head), check=False)
    dim = header["dim"].tolist()
    start = float(header["vox_offset"])
    if start > LARGEST_START:
        raise UserError(f"{path}: its header is damaged: it has the values begin at byte {start:.6g}; save it anew")
    try:
        value = header.get_data_dtype().itemsize
    except (HeaderDataError, KeyError):  # an unknown type, of which the message comes later
        value = 0
    claimed = int(start) + math.prod(dim[1 : dim[0] + 1]) * value
    length = os.path.getsize(path)
    if claimed > length * (LARGEST_RATIO if is_compressed else 1):
        voxels = "x".join(map(str, dim[1 : dim[0] + 1]))
        raise UserError(
            f"{path}: is truncated or damaged: its header claims {voxels} voxels, {claimed} bytes, and the file has "
            f"{length}{' compressed ones' if is_compressed else ''}; copy it again"
        )


def _order_of(kind, head):
    """The byte order of a header, "<" or ">"; None where its first field does not say."""
    length = kind.template_dtype.itemsize
    return {length.to_bytes(4, "little"): "<", length.to_bytes(4, "big"): ">"}.get(head[:4])


def check_end(image):
    """Read what follows the values of an `open_nifti` image in a compressed file, up to its checksum, which gzip
    verifies. Raises EOFError or gzip.BadGzipFile for a file that is cut short or damaged, and ValueError for one that
    goes on for more than `LONGEST_TAIL` bytes."""
    file = image.file_map["image"].fileobj
    if not isinstance(file, gzip.GzipFile):
        return
    tail = 0
    try:
        while part := file.read(2**20):
            tail += len(part)
            if tail > LONGEST_TAIL:
                raise ValueError(f"more than {LONGEST_TAIL // 2**20} MB follow its values")
    except gzip.BadGzipFile as error:
        if "Not a gzipped file" not in str(error):  # other bytes follow the end of a whole file
            raise


NO_NUMBERS = {
    1: ("single bits", "save it as uint8"),
    32: ("complex numbers", "save their magnitude"),
    1792: ("complex numbers", "save their magnitude"),
    2048: ("complex numbers", "save their magnitude"),
    128: ("colours (RGB24)", "save it in grey, or its channels as a fourth axis"),
    2304: ("colours (RGBA32)", "save it in grey, or its channels as a fourth axis"),
}


def _check_header(path, kind, head):
    """Raise `UserError` for a header with a shape that no volume has, or with values that are no real numbers."""
    length = kind.template_dtype.itemsize
    if len(head) < length:
        with decoding(path, "NIfTI file"):
            raise ValueError("its header is cut short")
    header = kind(head[:length], _order_of(kind, head), check=False)
    dim = header["dim"].tolist()
    shape = tuple(dim[1 : dim[0] + 1]) if 1 <= dim[0] <= 7 else ()
    if not shape or min(shape) < 1:
        raise UserError(
            f"{path}: its header is damaged: it gives {dim[0]} axes of lengths {', '.join(map(str, dim[1:]))}; "
            "copy it again or save it anew"
        )
    start = float(header["vox_offset"])
    if not start >= length + EXTENSION_BYTES:  # nibabel would read the header as voxels where it is 0
        raise UserError(
            f"{path}: its header is damaged: it has the values begin at byte {start:.6g}, within the header; save it "
            "anew"
        )
    if header["qform_code"] and not header["sform_code"] and _qform_of(header) is None:
        raise UserError(
            f"{path}: its qform places no volume in space (its quaternion is no rotation); save it with the right one"
        )
    what, remedy = NO_NUMBERS.get(int(header["datatype"]), ("", ""))
    if what:
        raise UserError(f"{path}: holds {what}, not a grey value for each voxel; {remedy}")


def _qform_of(header):
    """The affine [4, 4] of a header's qform, or None for a quaternion that is no rotation."""
    try:
        return header.get_qform()
    except ValueError:
        return None


# ---- where the header places the voxels --------------------------------------------------------------------------

MILLIMETRES = {1: 1000.0, 3: 0.001}  # the length of xyzt_units' codes for metres and micrometres
UNITS = {1: "metres", 3: "micrometres"}
FORMS = (
    *("qform_code", "sform_code", "xyzt_units", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


@dataclass(frozen=True, eq=False)
class Placement:
    """The fields of a NIfTI header that say where voxels lie: qform and sform with their codes, the sizes, the units.

    Programs differ in which form they use, so a result with all of these fields lies over its image in each of them.
    fields: {name: value} of `FORMS`. pixdim: the sign of the qform's third axis and the sizes along three axes.
    is_second: whether it is NIfTI-2.
    """

    fields: dict = field(default_factory=dict)
    pixdim: tuple[float, ...] = ()
    is_second: bool = False

    @classmethod
    def of_header(cls, header):
        """The `Placement` in nibabel's header."""
        fields = {name: header[name].tolist() for name in FORMS}
        return cls(fields, tuple(header["pixdim"][:4].tolist()), int(header["sizeof_hdr"]) == 540)

    def header(self):
        """A new header of nibabel's with these fields alone."""
        import nibabel

        header = (nibabel.Nifti2Header if self.is_second else nibabel.Nifti1Header)()
        for name, value in self.fields.items():
            header[name] = value
        header["pixdim"][:4] = self.pixdim
        return header


def length_unit(header):
    """(the length in mm of the header's unit, its name); (1, "") for mm and for an unknown unit."""
    code = int(header["xyzt_units"]) & 7
    return MILLIMETRES.get(code, 1.0), UNITS.get(code, "")


def forms_apart(header, shape):
    """The distance in mm between the corners of a volume by its sform and by its qform, 0.0 unless it has both;
    infinite for a qform that is no rotation.

    Readers that use the other form than this program, the sform, see the volume there.
    """
    if not (header["sform_code"] and header["qform_code"]):
        return 0.0
    corners = np.indices((2, 2, 2)).reshape(3, 8).T * (np.array((*shape, 1, 1)[:3]) - 1)
    qform = _qform_of(header)
    if qform is None:
        return math.inf
    apart = header.get_sform() - qform
    return length_unit(header)[0] * float(np.linalg.norm(corners @ apart[:3, :3].T + apart[:3, 3], axis=1).max())
