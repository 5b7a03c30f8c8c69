"""Reading and writing NIfTI files: volumes are turned to one orientation, and damage is told in one line."""

from dataclasses import dataclass

import numpy as np

from . import orientation
from .errors import UserError
from .files import atomic_path, decoding, split_suffix

NIFTI_SUFFIXES = (".nii", ".nii.gz")


def is_nifti(path):
    """Whether the file name is that of a NIfTI file."""
    return split_suffix(path)[1].lower() in NIFTI_SUFFIXES


def read_nifti(path, like=None, onto=None):
    """Read a NIfTI file: (values float32 [X, Y] or [X, Y, Z], affine float64 [4, 4], spacing in mm per axis).

    A volume is turned to the orientation of `orientation.canonical_turn`, and the affine and spacing with it; a 2-D
    image is as in the file. Further axes of length 1 are dropped. A file whose affine is the identity, as programs
    write that have lost it, is taken to lie voxel for voxel as the file `like` (a path or None) does.
    onto: a `data.Geometry`, as whose array a volume is turned instead; one without an affine lies as that one's file.
    Raises `UserError` for a missing or damaged file and for 4-D data.
    """
    opened = _open_nifti(path, like, onto)
    if opened.channels > 1:
        raise UserError(f"{path}: has shape {opened.image.shape}; a 2-D or 3-D file is expected here")
    return opened.values()[..., 0], opened.affine, opened.spacing


def read_nifti_channels(path, like=None):
    """Read the values of a NIfTI file of one or more channels as float32 [X, Y, C] or [X, Y, Z, C], else as
    `read_nifti` does."""
    return _open_nifti(path, like).values()


def read_nifti_labels(path, like=None, onto=None):
    """Read a NIfTI label map, as `read_nifti` does, as int32 [X, Y] or [X, Y, Z]; labels stored as floats are
    rounded."""
    values = read_nifti(path, like, onto)[0]
    if not np.isfinite(values).all():
        raise UserError(f"{path}: holds labels that are not finite; repair it or leave it out")
    return np.rint(values).astype(np.int32)


def read_nifti_header(path, like=None):
    """Return (shape, affine, spacing) as `read_nifti` would, from the header alone: the data are not decompressed.

    Of a 4-D file the shape is that of one channel.
    """
    opened = _open_nifti(path, like)
    return opened.shape, opened.affine, opened.spacing


def nifti_channels(path):
    """The number of channels of a NIfTI file (the length of its fourth axis), from its header."""
    return _open_nifti(path).channels


def nifti_grid(path):
    """How a NIfTI file lies: (its own affine, the turn from it to what `read_nifti` gives; see `orientation`)."""
    opened = _open_nifti(path)
    return opened.file_affine, opened.turn


@dataclass(frozen=True)
class _Nifti:
    """An open NIfTI file: its shape (of a channel), affine and spacing as they are given out, turned by `turn`."""

    path: object
    image: object
    channels: int
    file_shape: tuple
    file_affine: np.ndarray
    turn: np.ndarray

    @property
    def shape(self):
        return orientation.turned_shape(self.file_shape, self.turn)

    @property
    def affine(self):
        volume = (*self.file_shape, 1, 1)[:3]
        return orientation.turned_affine(self.file_affine, self.turn, volume)

    @property
    def spacing(self):
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(size) for size in sizes[: len(self.file_shape)])

    def values(self):
        """float32 [X, Y, C] or [X, Y, Z, C]."""
        with decoding(self.path, "NIfTI file"):
            values = self.image.get_fdata(dtype=np.float32)
        values = values.reshape(*self.file_shape, self.channels)
        return orientation.turned(values, self.turn)


def _open_nifti(path, like=None, onto=None):
    import nibabel

    with decoding(path, "NIfTI file"):
        image = nibabel.load(path)
        affine = np.array(image.affine, dtype=np.float64)
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    channels = shape[3] if len(shape) == 4 else 1
    if len(shape) not in (2, 3, 4):
        raise UserError(f"{path}: has shape {image.shape}; save it with two or three axes and one for channels")
    shape = shape[:3]
    if (like or onto) and (affine == np.eye(4)).all():
        affine = onto.in_file[0] if onto else _open_nifti(like).file_affine
    turn = orientation.turn_onto(affine, *onto.in_file) if onto else orientation.canonical_turn(affine, shape)
    return _Nifti(path, image, channels, shape, affine, turn)


def write_nifti(path, array, affine):
    """Write uint8, uint16 or float32 [X, Y] or [X, Y, Z] as NIfTI with this affine [4, 4] in mm; the dtype is kept."""
    import nibabel

    array = np.asarray(array)
    if array.dtype not in (np.uint8, np.uint16, np.float32):
        raise ValueError(f"write_nifti takes uint8, uint16 or float32, not {array.dtype}")
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)
