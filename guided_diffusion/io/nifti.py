"""Reading NIfTI files, turned to one orientation, and writing them."""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..runtime.errors import UserError
from .files import atomic_path, decoding, split_suffix
from .masks import check_whole

# ---- orientation: to right, front and up when a volume is read, and back when it is written ----------------------

# The canonical order of axes, by the direction of the slices, which lie along the last axis. Axial slices are the rule.
AXES = {"R": "ASR", "A": "RSA", "S": "RAS"}
NO_TURN = np.array([[0.0, 1], [1, 1], [2, 1]])  # the identity
THICK = 1.5  # slices were acquired along the longest side of a voxel if it is longer than the second by this factor


def canonical_turn(affine, shape):
    """The turn of a file's axes to canonical ones: an array [3, 2] as in `nibabel.orientations`. Axis i of the file
    becomes axis turn[i, 0], in the direction turn[i, 1] (1 or -1).

    Canonical indices grow towards the patient's right, front (anterior) and up (superior), with axial slices: [R, A,
    S]. Slices acquired in another plane, which much thicker voxels reveal, stay in that plane: sagittal [A, S, R] or
    coronal [R, S, A]. A 2-D image, of shape (X, Y) or (X, Y, 1), is not turned.
    """
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    if len(shape) < 3 or shape[2] == 1:
        return NO_TURN
    lies = io_orientation(affine)
    if np.isnan(lies).any():  # an axis of zero length points nowhere
        return NO_TURN
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    second, thickest = np.sort(sizes)[1:]
    slices = "RAS"[int(lies[sizes.argmax(), 0])] if thickest > THICK * second else "S"
    return ornt_transform(lies, axcodes2ornt(AXES[slices]))


def is_degenerate(affine):
    """Whether an affine [4, 4] is not finite, or has axes of zero length or of the same direction."""
    from nibabel.orientations import io_orientation

    return not np.isfinite(affine).all() or bool(np.isnan(io_orientation(affine)).any())


def turn_onto(affine, other, other_turn):
    """The turn that brings a file with this affine into the orientation of another file, with the affine `other`, after
    its turn `other_turn`."""
    from nibabel.orientations import io_orientation, ornt_transform

    lies, others = io_orientation(affine), io_orientation(other)
    if np.isnan(lies).any() or np.isnan(others).any() or (lies == others).all():
        return other_turn
    between = ornt_transform(lies, others)
    axes = other_turn[between[:, 0].astype(int)]
    return np.column_stack([axes[:, 0], between[:, 1] * axes[:, 1]])


def reoriented(array, turn):
    """An array [X, Y, Z, ...] with its first three axes flipped and permuted by a turn."""
    from nibabel.orientations import apply_orientation

    return array if is_no_turn(turn) else apply_orientation(array, turn)


def turned_affine(affine, turn, shape):
    """The affine [4, 4] of a volume after a turn. shape: (X, Y, Z) before it."""
    from nibabel.orientations import inv_ornt_aff

    return affine if is_no_turn(turn) else affine @ inv_ornt_aff(turn, shape)


def turned_shape(shape, turn):
    """The shape of a volume after a turn."""
    result = list(shape)
    for axis, (target, _) in enumerate(turn[: len(shape)]):
        result[int(target)] = shape[axis]
    return tuple(result)


def reoriented_back(array, turn):
    """The inverse of `reoriented`, for the last three axes of an array [..., X, Y, Z]."""
    first = array.ndim - 3
    array = array.transpose(*range(first), *(first + turn[:, 0].astype(int)))
    return np.flip(array, tuple(first + np.flatnonzero(turn[:, 1] < 0)))


def is_no_turn(turn):
    """Whether a turn is the identity."""
    return bool((turn == NO_TURN).all())


# ---- reading -----------------------------------------------------------------------------------------------------

NIFTI_SUFFIXES = (".nii", ".nii.gz")


def is_nifti(path):
    """Whether a file's name has the suffix of NIfTI."""
    return split_suffix(path)[1].lower() in NIFTI_SUFFIXES


def read_nifti(path, like=None, onto=None):
    """Read a NIfTI file: (values float32 [X, Y] or [X, Y, Z], affine float64 [4, 4], spacing in mm per axis).

    A volume is turned by `canonical_turn`, with its affine and spacing; a 2-D image is not. Further axes of length 1
    are dropped.
    like: the path of another file of the case. If one of the two has lost its affine (see `Grid`), this file is taken
    to lie voxel for voxel over `like`, see `Grid.affine_beside`.
    onto: a `Geometry` to whose orientation the volume is turned instead; it also replaces `like`.
    Raises `UserError` for a missing or damaged file, for several channels, and for a degenerate affine.
    """
    opened = _open_nifti(path, like, onto)
    if opened.channels > 1:
        raise UserError(f"{path}: has shape {opened.image.shape}; a 2-D or 3-D file is expected here")
    return opened.values()[..., 0], opened.affine, opened.spacing


def read_nifti_channels(path, like=None):
    """Read the values of a NIfTI file with one or more channels as float32 [X, Y, C] or [X, Y, Z, C], turned as by
    `read_nifti`."""
    return _open_nifti(path, like).values()


def read_nifti_labels(path, like=None, onto=None):
    """Read a NIfTI label map as int32 [X, Y] or [X, Y, Z]; see `read_nifti`. Labels may be stored as floats.

    Raises `UserError` also for negative labels, and for fractions as interpolation makes them.
    """
    values = read_nifti(path, like, onto)[0]
    if not np.isfinite(values).all():
        raise UserError(f"{path}: holds labels that are not finite; repair it or leave it out")
    check_whole(values, path)
    return np.rint(values).astype(np.int32)


def read_nifti_header(path, like=None):
    """(shape, affine, spacing) of the volume that `read_nifti` would give, from the header alone.

    The shape of a 4-D file is that of one channel.
    """
    opened = _open_nifti(path, like)
    return opened.shape, opened.affine, opened.spacing


def nifti_channels(path):
    """The number of channels of a NIfTI file, the length of its fourth axis, from its header."""
    return _open_nifti(path).channels


def nifti_grid(path):
    """(the file's own affine, the turn that `read_nifti` applies, whether the affine has codes: see `Grid`)."""
    opened = _open_nifti(path)
    return opened.file_affine, opened.turn, opened.grid.has_codes


def lies_elsewhere(path, other):
    """A text on where a volume lies in space if not over the volume in the file `other`; "" if it does, or if it has
    lost its affine and takes the other's."""
    one, two = _grid_of(path), _grid_of(other)
    distance = one.distance(two)
    is_alike = distance <= two.tolerance if two.has_codes else np.allclose(one.affine, two.affine)
    if one.is_lost or is_alike:
        return ""
    if two.is_lost:
        return f"{Path(other).name} has lost its affine, so that how the two lie is a guess"
    return f"its corner is {distance:.1f} mm from that of {Path(other).name}"


# ---- where a file's voxels lie -----------------------------------------------------------------------------------

TOLERANCE = 0.25  # of a voxel, between corners of volumes in the same place, since affines are rounded


@dataclass(frozen=True)
class Grid:
    """Where a file's voxels lie in space: its affine [4, 4] and the shape of a channel.

    A program that has lost the affine writes the identity, or neither an sform nor a qform code. has_codes: False in
    the second case; `affine` is then nibabel's guess from the size of the voxels.
    """

    affine: np.ndarray
    shape: tuple[int, ...]
    has_codes: bool = True

    @classmethod
    def of_file(cls, geometry):
        """The grid of the file of a `Geometry`."""
        affine, turn = geometry.in_file
        shape = tuple(geometry.shape[int(axis)] for axis in turn[: len(geometry.shape), 0])
        return cls(affine, shape, geometry.has_codes)

    @property
    def is_lost(self):
        """Whether the file seems to have lost its affine; but an identity may be its true affine."""
        return not self.has_codes or bool((self.affine == np.eye(4)).all())

    @property
    def tolerance(self):
        """The `distance` in mm up to which two grids lie in the same place."""
        return TOLERANCE * np.linalg.norm(self.affine[:3, :3], axis=0).min()

    def distance(self, other):
        """The Hausdorff distance in mm between the corners of two grids, whatever the order of their axes."""
        distances = np.linalg.norm(self._corners()[:, None] - other._corners(), axis=-1)
        return max(distances.min(axis=0).max(), distances.min(axis=1).max())

    def _corners(self):
        """The centres of the eight corner voxels in mm, [8, 3]."""
        ends = np.array((*self.shape, 1, 1)[:3]) - 1
        voxels = np.indices((2, 2, 2)).reshape(3, 8).T * ends
        return voxels @ self.affine[:3, :3].T + self.affine[:3, 3]

    def affine_beside(self, other):
        """The affine to read this file by, beside another file of the case: the other's if one of the two is lost, else
        its own.

        The two arrays then agree voxel for voxel, as in the program that lost the affine. Turning only one of them
        would mirror it.
        """
        if not (self.is_lost or other.is_lost):
            return self.affine
        if self.has_codes and other.has_codes and self.distance(other) <= other.tolerance:
            return self.affine  # the identity is true: the other grid is the same box with its axes in another order
        if not self.is_lost and self.shape != other.shape:
            return self.affine  # the other file was turned before it lost its affine
        return other.affine


@lru_cache(maxsize=64)  # all files of a case are compared with its first
def _cached_grid(path, _size, _time):
    return _open_nifti(path).grid


def _grid_of(path):
    """The `Grid` of a file."""
    try:
        stat = os.stat(path)
    except OSError:
        return _open_nifti(path).grid  # raises the message for users
    return _cached_grid(path, stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True)
class _Nifti:
    """An open NIfTI file. Its shape (of a channel), affine, spacing and values are those after `turn`.

    image: nibabel's. grid: the file's own. file_affine: the affine to read it by, its own or another file's.
    """

    path: object
    image: object
    channels: int
    grid: Grid
    file_affine: np.ndarray
    turn: np.ndarray

    @property
    def file_shape(self):
        return self.grid.shape

    @property
    def shape(self):
        return turned_shape(self.file_shape, self.turn)

    @property
    def affine(self):
        volume = (*self.file_shape, 1, 1)[:3]
        return turned_affine(self.file_affine, self.turn, volume)

    @property
    def spacing(self):
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(size) for size in sizes[: len(self.file_shape)])

    def values(self):
        """The values, float32 [X, Y, C] or [X, Y, Z, C]."""
        with decoding(self.path, "NIfTI file"):
            values = self.image.get_fdata(dtype=np.float32)
        values = values.reshape(*self.file_shape, self.channels)
        return reoriented(values, self.turn)


def _open_nifti(path, like=None, onto=None):
    """The `_Nifti` of a file; see `read_nifti`."""
    import nibabel

    with decoding(path, "NIfTI file"):
        image = nibabel.load(path)
        affine = np.array(image.affine, dtype=np.float64)
        has_codes = bool(image.header["sform_code"] or image.header["qform_code"])
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    channels = shape[3] if len(shape) == 4 else 1
    if len(shape) not in (2, 3, 4):
        raise UserError(f"{path}: has shape {image.shape}; save it with two or three axes and one for channels")
    grid = Grid(affine, shape[:3], has_codes)
    other = Grid.of_file(onto) if onto else _grid_of(like) if like and like != path else None
    is_placed = has_codes or other is None
    if len(grid.shape) == 3 and grid.shape[2] > 1 and is_placed and is_degenerate(affine):
        raise UserError(
            f"{path}: its affine places no volume in space (an axis has no length or the direction of another, or "
            "values are not finite); save it with the right one"
        )
    if other is not None:
        affine = grid.affine_beside(other)
    turn = turn_onto(affine, *onto.in_file) if onto else canonical_turn(affine, grid.shape)
    return _Nifti(path, image, channels, grid, affine, turn)


def write_nifti(path, array, affine):
    """Write uint8, uint16 or float32 [X, Y] or [X, Y, Z] as NIfTI with this affine [4, 4] in mm, keeping the type."""
    import nibabel

    array = np.asarray(array)
    if array.dtype not in (np.uint8, np.uint16, np.float32):
        raise ValueError(f"write_nifti takes uint8, uint16 or float32, not {array.dtype}")
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)
