"""Reading and writing NIfTI files: volumes are turned to one orientation, and damage is told in one line."""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..runtime.errors import UserError
from .files import atomic_path, decoding, split_suffix

# ---- Volumes in one orientation: turned to right, front and up when they are read, and back when they are written ---


# The order of axes of a canonical volume by its thickest one: slices lie along the last. Axial ones are the rule.
AXES = {"R": "ASR", "A": "RSA", "S": "RAS"}
STILL = np.array([[0.0, 1], [1, 1], [2, 1]])  # the turn that leaves all as it is
THICK = 1.5  # times as thick as the second thickest is a voxel of slices acquired in that direction


def canonical_turn(affine, shape):
    """How a volume's axes are flipped and permuted to lie canonically: an array [3, 2] as `nibabel.orientations` has
    them, axis i of the file going to axis turn[i, 0] in the direction turn[i, 1].

    Canonical is: indices grow towards the patient's right, front (anterior) and up (superior), slices being axial
    [R, A, S]. Slices that were acquired in another plane, which much thicker voxels tell, stay in it: sagittal
    [A, S, R] or coronal [R, S, A]. A 2-D image (`shape` [X, Y] or [X, Y, 1]) stays as it is.
    """
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    if len(shape) < 3 or shape[2] == 1:
        return STILL
    lies = io_orientation(affine)
    if np.isnan(lies).any():  # an axis of zero length points nowhere
        return STILL
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    second, thickest = np.sort(sizes)[1:]
    slices = "RAS"[int(lies[sizes.argmax(), 0])] if thickest > THICK * second else "S"
    return ornt_transform(lies, axcodes2ornt(AXES[slices]))


def is_degenerate(affine):
    """Whether an affine [4, 4] places no volume in space: not finite, or with axes that point nowhere or alike."""
    from nibabel.orientations import io_orientation

    return not np.isfinite(affine).all() or bool(np.isnan(io_orientation(affine)).any())


def turn_onto(affine, other, other_turn):
    """The turn of a file with this affine that brings it to lie as another one with the affine `other` does when that
    is turned by `other_turn`."""
    from nibabel.orientations import io_orientation, ornt_transform

    lies, others = io_orientation(affine), io_orientation(other)
    if np.isnan(lies).any() or np.isnan(others).any() or (lies == others).all():
        return other_turn
    between = ornt_transform(lies, others)
    axes = other_turn[between[:, 0].astype(int)]
    return np.column_stack([axes[:, 0], between[:, 1] * axes[:, 1]])


def reoriented(array, turn):
    """An array [X, Y, Z, ...] with its axes flipped and permuted; further axes stay."""
    from nibabel.orientations import apply_orientation

    return array if is_still(turn) else apply_orientation(array, turn)


def turned_affine(affine, turn, shape):
    """The affine [4, 4] of a turned volume, whose `shape` [X, Y, Z] was that before."""
    from nibabel.orientations import inv_ornt_aff

    return affine if is_still(turn) else affine @ inv_ornt_aff(turn, shape)


def turned_shape(shape, turn):
    """The shape of a turned volume."""
    result = list(shape)
    for axis, (target, _) in enumerate(turn[: len(shape)]):
        result[int(target)] = shape[axis]
    return tuple(result)


def reoriented_back(array, turn):
    """What `reoriented` made of the last three axes of an array [..., X, Y, Z], undone."""
    first = array.ndim - 3
    array = array.transpose(*range(first), *(first + turn[:, 0].astype(int)))
    return np.flip(array, tuple(first + np.flatnonzero(turn[:, 1] < 0)))


def is_still(turn):
    """Whether a turn leaves everything as it is."""
    return bool((turn == STILL).all())


NIFTI_SUFFIXES = (".nii", ".nii.gz")
NEAR = 0.25  # of a voxel: how far apart corners of volumes may be that lie alike, since affines are rounded


def is_nifti(path):
    """Whether the file name is that of a NIfTI file."""
    return split_suffix(path)[1].lower() in NIFTI_SUFFIXES


def read_nifti(path, like=None, onto=None):
    """Read a NIfTI file: (values float32 [X, Y] or [X, Y, Z], affine float64 [4, 4], spacing in mm per axis).

    A volume is turned to the orientation of `orientation.canonical_turn`, and the affine and spacing with it; a 2-D
    image is as in the file. Further axes of length 1 are dropped. A file that has lost its affine (see `Grid`) is taken
    to lie voxel for voxel as the file `like` (a path or None) does, and so is any of that shape where `like` has.
    onto: a `data.Geometry`, as whose array a volume is turned instead, and which stands for `like` as well.
    Raises `UserError` for a missing or damaged file, for 4-D data and for an affine that places nothing.
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
    """How a NIfTI file lies: (its own affine, the turn from it to what `read_nifti` gives, see `orientation`, whether
    the file says that it is its affine, see `Grid`)."""
    opened = _open_nifti(path)
    return opened.file_affine, opened.turn, opened.grid.has_codes


def lies_elsewhere(path, other):
    """In words, how a volume lies elsewhere in space than that in the file `other`: "" where it lies alike, or takes
    its place from there since it has lost its own."""
    one, two = _grid_of(path), _grid_of(other)
    apart = one.apart(two)
    is_alike = apart <= two.near if two.has_codes else np.allclose(one.affine, two.affine)
    if one.is_lost or is_alike:
        return ""
    if two.is_lost:
        return f"{Path(other).name} has lost its affine, so that how the two lie is a guess"
    return f"its corner is {apart:.1f} mm from that of {Path(other).name}"


# ---- how files lie -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """How a file's voxels lie in space: its affine [4, 4] and shape (of a channel).

    Programs that have lost the affine write the identity, or no codes: then `affine` is what nibabel makes up from the
    size of the voxels. has_codes: whether there is one.
    """

    affine: np.ndarray
    shape: tuple[int, ...]
    has_codes: bool = True

    @classmethod
    def of_file_of(cls, geometry):
        """That of the file of a `data.Geometry`."""
        affine, turn = geometry.in_file
        shape = tuple(geometry.shape[int(axis)] for axis in turn[: len(geometry.shape), 0])
        return cls(affine, shape, geometry.has_codes)

    @property
    def is_lost(self):
        """Whether the affine says nothing of where the file lies; an identity may still be meant."""
        return not self.has_codes or bool((self.affine == np.eye(4)).all())

    @property
    def near(self):
        """The distance in mm up to which corners count as one."""
        return NEAR * np.linalg.norm(self.affine[:3, :3], axis=0).min()

    def apart(self, other):
        """How many mm a corner of either box lies at most from the nearest one of the other's, whatever the order and
        direction of the axes."""
        distances = np.linalg.norm(self._corners()[:, None] - other._corners(), axis=-1)
        return max(distances.min(axis=0).max(), distances.min(axis=1).max())

    def _corners(self):
        """In mm, [8, 3]."""
        ends = np.array((*self.shape, 1, 1)[:3]) - 1
        voxels = np.indices((2, 2, 2)).reshape(3, 8).T * ends
        return voxels @ self.affine[:3, :3].T + self.affine[:3, 3]

    def affine_beside(self, other):
        """The affine by which the file is read beside another one: its own, or the other's where one of them is lost.

        Both arrays are then as one program held them, so that turning but one of them would mirror it.
        """
        if not (self.is_lost or other.is_lost):
            return self.affine
        if self.has_codes and other.has_codes and self.apart(other) <= other.near:
            return self.affine  # an identity that is meant: the other one is the same box, stored in another order
        if not self.is_lost and self.shape != other.shape:
            return self.affine  # the other one was turned before it lost its affine
        return other.affine


@lru_cache(maxsize=64)  # a case's files are all compared with its first
def _known_grid(path, _size, _time):
    return _open_nifti(path).grid


def _grid_of(path):
    """The `Grid` of a file."""
    try:
        stat = os.stat(path)
    except OSError:
        return _open_nifti(path).grid  # says what is wrong
    return _known_grid(path, stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True)
class _Nifti:
    """An open NIfTI file: its shape (of a channel), affine and spacing as they are given out, turned by `turn`.

    grid: its own. file_affine: the affine by which it is read, its own or another file's.
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
        """float32 [X, Y, C] or [X, Y, Z, C]."""
        with decoding(self.path, "NIfTI file"):
            values = self.image.get_fdata(dtype=np.float32)
        values = values.reshape(*self.file_shape, self.channels)
        return reoriented(values, self.turn)


def _open_nifti(path, like=None, onto=None):
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
    other = Grid.of_file_of(onto) if onto else _grid_of(like) if like and like != path else None
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
    """Write uint8, uint16 or float32 [X, Y] or [X, Y, Z] as NIfTI with this affine [4, 4] in mm; the dtype is kept."""
    import nibabel

    array = np.asarray(array)
    if array.dtype not in (np.uint8, np.uint16, np.float32):
        raise ValueError(f"write_nifti takes uint8, uint16 or float32, not {array.dtype}")
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)
