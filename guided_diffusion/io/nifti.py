"""Reading volumes, turned to one orientation, from NIfTI and the other formats of `volume_formats`; writing NIfTI."""

import io
import itertools
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..runtime.errors import UserError
from .compression import write_gzip
from .files import atomic_path
from .masks import check_whole
from .nifti_header import Placement, check_claim, check_end, decoding_values, forms_apart, length_unit
from .orientation import NO_TURN, canonical_turn, is_degenerate, reoriented, turn_onto, turned_affine, turned_shape
from .volume_formats import open_volume

# ---- reading -----------------------------------------------------------------------------------------------------

MOST_LABEL = 2**31 - 1
COMPACT = (np.uint8, np.uint16)  # types of labels that need no check
EXACT = 2**24  # whole numbers up to it are exact in float32


def read_nifti(path, like=None):
    """Read a volume: (values float32 [X, Y] or [X, Y, Z], affine float64 [4, 4], spacing in mm per axis).

    A volume is turned by `canonical_turn`, with its affine and spacing; a 2-D image is not. Further axes of length 1
    are dropped.
    like: the path of another file of the case. If one of the two has lost its affine (see `Grid`), this file is taken
    to lie voxel for voxel over `like`, see `Grid.affine_beside`.
    Raises `UserError` for a missing or damaged file, for several channels, and for a degenerate affine.
    """
    opened = _single_channel(path, like)
    return opened.values()[..., 0], opened.affine, opened.spacing


def _single_channel(path, like=None, onto=None):
    """The `_Nifti` of a file, see `_open_nifti`. Raises `UserError` for several channels."""
    opened = _open_nifti(path, like, onto)
    if opened.channels > 1:
        raise UserError(f"{path}: has shape {opened.image.shape}; a 2-D or 3-D file is expected here")
    return opened


def read_nifti_channels(path, like=None):
    """Read the values of a volume's file with one or more channels as float32 [X, Y, C] or [X, Y, Z, C], turned as by
    `read_nifti`. Raises `UserError` for values that are not finite."""
    return _open_nifti(path, like).finite_values()


def read_nifti_labels(path, like=None, compact=False):
    """Read a label map as int32 [X, Y] or [X, Y, Z]; see `read_nifti` and `as_labels`.

    compact: whether a map that is stored as uint8 or uint16 keeps that type, which saves memory.
    """
    labels = as_labels(_single_channel(path, like).label_values(), path)
    return labels if compact else labels.astype(np.int32, copy=False)


def as_labels(values, path):
    """Values of a label map, which may be stored as floats, as int32; uint8 and uint16 as they are. path: the file, for
    messages.

    Raises `UserError` for values that are not finite, for negative labels, for labels beyond int32, and for fractions
    as interpolation makes them.
    """
    if values.dtype in COMPACT:
        return values
    if not np.isfinite(values).all():
        raise UserError(f"{path}: holds labels that are not finite; repair it or leave it out")
    check_whole(values, path)
    highest = values.max()
    if highest > MOST_LABEL:
        raise UserError(
            f"{path}: holds the label {highest:.10g}; labels up to {MOST_LABEL} are read: save it with smaller numbers"
        )
    return np.rint(values).astype(np.int32)


def read_nifti_header(path, like=None):
    """(shape, affine, spacing) of the volume that `read_nifti` would give, from the header alone.

    The shape of a 4-D file is that of one channel.
    """
    opened = _open_nifti(path, like)
    return opened.shape, opened.affine, opened.spacing


def nifti_channels(path):
    """The number of channels of a file, the length of its fourth axis, from its header."""
    return _open_nifti(path).channels


def nifti_geometry(path):
    """The fields of the `data.Geometry` of a file in their order, from the header alone."""
    opened = _open_nifti(path)
    placement = Placement.of_header(opened.image.header)
    own = (opened.file_affine, opened.turn, opened.grid.has_codes, placement)
    return (opened.affine, opened.spacing, opened.shape, *own)


def nifti_notes(path):
    """What users should know of a file's header, {kind: line}: a unit other than mm, an sform that is not the qform."""
    opened = _open_nifti(path)
    notes, (factor, unit) = {}, length_unit(opened.image.header)
    if unit:
        notes["unit"] = f"{path}: lengths are in {unit}; they become mm here (x {factor:g}), and volumes ml"
    apart = forms_apart(opened.image.header, opened.grid.shape)
    if apart > opened.grid.tolerance:
        how = f"its sform and its qform lie {apart:.1f} mm apart" if np.isfinite(apart) else "its qform is no rotation"
        notes["forms"] = (
            f"{path}: {how}: the sform counts here, other programs may go by the qform; masks are written with both"
        )
    return notes


FAR = 2**25  # values


def nifti_sample(path, voxels):
    """The first values of each channel of a file, about as many as `voxels`: a list of float64 arrays, decoded alone.

    Values that are not finite are left out, and channels far into the file, which take seconds to reach.
    """
    opened = _open_nifti(path)
    shape = as_3d(opened.file_shape)
    depth = max(1, voxels // (shape[0] * shape[1]))
    place = (slice(None), slice(None), slice(depth))[: opened.image.ndim]
    samples = []
    for k in range(opened.channels):
        if k * int(np.prod(shape)) > FAR:
            break
        channel = ((k if opened.channels > 1 else 0),) if opened.image.ndim > 3 else ()
        rest = (0,) * (opened.image.ndim - len(place) - len(channel))
        with decoding_values(path):
            values = np.asarray(opened.image.dataobj[place + channel + rest], dtype=np.float64)
        samples.append(values[np.isfinite(values)])
    return samples


class OntoImage(NamedTuple):
    """The values of a file on the voxels of its image. resampled: how the grids differ, "" if they do not.
    assumed: the file's path if it or its image has lost its affine, so that its place is a guess, else ""."""

    values: np.ndarray
    resampled: str = ""
    assumed: str = ""


def read_nifti_onto(path, geometry, labels=False):
    """The values of a file on the voxels of a `Geometry`, as `OntoImage`. labels: see `_Nifti.label_values`.

    A file on the same grid, whatever the order and direction of its axes, is read as it is, and so is one of the same
    shape that has lost its affine. One on another grid of the same space, such as a crop or one of another resolution,
    is resampled by nearest neighbour, with 0 outside.
    Raises `UserError` where the grids differ and the file has lost its affine, the image has, or both lie apart.
    """
    opened = _single_channel(path, onto=geometry)
    values = opened.label_values() if labels else opened.values()[..., 0]
    if not geometry.shape:
        return OntoImage(values)
    own, image = opened.grid, Grid.of_file(geometry)
    is_alike = as_3d(opened.shape) == as_3d(geometry.shape)
    is_same = is_alike and own.distance(image) <= image.tolerance
    if is_same or (is_alike and (own.is_lost or image.is_lost)):
        is_guess = not is_same and own.is_lost != image.is_lost
        return OntoImage(values.reshape(geometry.shape), assumed=str(path) if is_guess else "")
    grids = f"{own}, its image {image}"
    if (own.affine == ITK_DEFAULT).all():
        raise UserError(
            f"{path}: has the affine that SimpleITK gives to an array without CopyInformation, so that its place is "
            f"unknown: it has {grids}; save it with the affine of its image"
        )
    if own.is_lost or is_degenerate(own.affine):
        raise UserError(
            f"{path}: has lost its affine, so that its place is unknown: it has {grids}; save it with its affine"
        )
    if not image.has_codes or is_degenerate(image.affine) or (image.is_lost and not own.is_inside(image)):
        raise UserError(
            f"{path}: has {grids}, which has lost its affine, so that the place of one in the other is unknown; save "
            "it on its image's grid"
        )
    resampled = _resampled(values.reshape(as_3d(opened.shape)), opened.affine, geometry)
    if resampled is None:
        raise UserError(
            f"{path}: lies beside its image and shares no voxel with it: it has {grids}; save it with the affine of "
            "its image"
        )
    return OntoImage(resampled.reshape(geometry.shape), resampled=f"{path} has {grids}")


def as_3d(shape):
    """The shape (X, Y) or (X, Y, Z) as (X, Y, Z)."""
    return (*shape, 1)[:3]


def _resampled(values, affine, geometry):
    """Values [X, Y, Z] with this affine on the voxels of a `Geometry` by nearest neighbour, 0 outside; None if no voxel
    lies inside."""
    shape = as_3d(geometry.shape)
    result, is_apart = np.zeros(shape, values.dtype), True
    step = np.linalg.inv(affine) @ geometry.affine
    plane = np.indices(shape[:2]).reshape(2, -1)
    for k in range(shape[2]):  # slice by slice, since the places of all voxels are large
        places = step[:3, :2] @ plane + (step[:3, 2] * k + step[:3, 3])[:, None]
        nearest = np.floor(places + 0.5 + 1e-6).astype(np.int64)
        inside = ((nearest >= 0) & (nearest < np.array(values.shape)[:, None])).all(axis=0)
        if inside.any():
            is_apart = False
            flat = np.zeros(inside.size, values.dtype)
            flat[inside] = values[tuple(nearest[:, inside])]
            result[..., k] = flat.reshape(shape[:2])
    return None if is_apart else result


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


def is_unplaced(path, other):
    """Whether a file has lost its affine, and the file `other`, over which it is taken to lie, has not."""
    return _grid_of(path).is_lost and not _grid_of(other).is_lost


# ---- where a file's voxels lie -----------------------------------------------------------------------------------

ITK_DEFAULT = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's identity, whose axes point to the left and to the back
MISPLACED = 2  # voxels, see Grid.largest_shift
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

    @property
    def largest_shift(self):
        """The `distance` in mm up to which a file in another order of axes is merely shifted against this one."""
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        return MISPLACED * sizes[np.array(as_3d(self.shape)) > 1].max(initial=0)

    def distance(self, other):
        """The Hausdorff distance in mm between the corners of two grids, whatever the order of their axes."""
        distances = np.linalg.norm(self._corners()[:, None] - other._corners(), axis=-1)
        return max(distances.min(axis=0).max(), distances.min(axis=1).max())

    def is_inside(self, other):
        """Whether the box of this grid lies within the other's, up to its tolerance."""
        own, others = self._corners(), other._corners()
        margin = other.tolerance
        return bool((own.min(0) >= others.min(0) - margin).all() and (own.max(0) <= others.max(0) + margin).all())

    def __str__(self):
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)[: len(self.shape)]
        return f"{'x'.join(map(str, self.shape))} voxels of {'x'.join(f'{size:.3g}' for size in sizes)} mm"

    def _corners(self):
        """The centres of the eight corner voxels in mm, [8, 3]."""
        ends = np.array((*self.shape, 1, 1)[:3]) - 1
        voxels = np.indices((2, 2, 2)).reshape(3, 8).T * ends
        return voxels @ self.affine[:3, :3].T + self.affine[:3, 3]

    def contradicts(self, other):
        """Whether this file, read by its own axes, would be turned otherwise than another file of the case, over which
        it does not lie: one of the two affines is wrong, so which voxel lies over which is unknown."""
        turns = [canonical_turn(grid.affine, grid.shape) for grid in (self, other)]
        shapes = {turned_shape(grid.shape, turn) for grid, turn in zip((self, other), turns, strict=True)}
        is_one_shape = len(shapes) == 1 or self.shape == other.shape
        if self.is_lost or other.is_lost or (turns[0] == turns[1]).all() or not is_one_shape:
            return False
        return self.distance(other) > other.largest_shift

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
    """An open volume. Its shape (of a channel), affine, spacing and values are those after `turn`.

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
        check_claim(self.path, self.image, 4)
        with decoding_values(self.path), np.errstate(over="ignore"):
            values = self.image.get_fdata(dtype=np.float32)
            check_end(self.image)
        values = values.reshape(*self.file_shape, self.channels)
        return reoriented(values, self.turn)

    def label_values(self):
        """The values of the only channel, [X, Y] or [X, Y, Z].

        They are uint8 or uint16 where the file has them, else float32, or float64 or integers where labels in the file
        may be too large for float32, as the numbers of structures in brain atlases.
        """
        stored = self.image.dataobj
        if stored.dtype in COMPACT and (stored.slope, stored.inter) == (1, 0):
            check_claim(self.path, self.image, 1)
            with decoding_values(self.path):
                values = np.array(np.asanyarray(stored))  # no map of the file, which may change
                check_end(self.image)
            return reoriented(
                values.astype(values.dtype.newbyteorder("="), copy=False).reshape(self.file_shape), self.turn
            )
        values = self.values()[..., 0]
        if np.abs(values).max() < EXACT:  # False for NaN
            return values
        with decoding_values(self.path):
            values = np.asanyarray(self.image.dataobj)
        return reoriented(values.reshape(self.file_shape), self.turn)

    def finite_values(self):
        """`values`. Raises `UserError` for NaN, infinite values, and those beyond the range of float32."""
        values = self.values()
        finite = np.isfinite(values.min()) and np.isfinite(values.max())  # either is NaN where a value is
        if finite:
            return values
        finite = np.isfinite(values)
        exact = np.asanyarray(self.image.dataobj, dtype=np.float64)
        if np.isfinite(exact).all():
            raise UserError(
                f"{self.path}: holds values up to {np.abs(exact).max():.3g}, which are beyond the range of float32; "
                "scale them"
            )
        raise UserError(
            f"{self.path}: holds values that are not finite (NaN or infinite in {100 * (1 - finite.mean()):.3g} % of "
            "its voxels); repair it or leave it out"
        )


def _open_nifti(path, like=None, onto=None):
    """The `_Nifti` of a file. like: see `read_nifti`. onto: a `Geometry` to whose orientation the volume is turned
    instead, and which replaces `like`."""
    image = open_volume(path)
    with decoding_values(path):
        affine = np.array(image.affine, dtype=np.float64)
        affine[:3] *= length_unit(image.header)[0]
        has_codes = bool(image.header["sform_code"] or image.header["qform_code"])
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    channels = shape[3] if len(shape) == 4 else 1
    if len(shape) not in (2, 3, 4):
        vector = len(shape) == 5 and shape[3] == 1  # NIfTI's place for the components of a vector
        remedy = f"its vectors along the fourth, as {(*shape[:3], shape[4])}" if vector else "one for channels"
        raise UserError(f"{path}: has shape {image.shape}; save it with two or three axes and {remedy}")
    other = Grid.of_file(onto) if onto else _grid_of(like) if like and like != path else None
    is_2d = other is not None and as_3d(other.shape)[2] == 1
    grid = Grid(affine, as_3d(shape) if onto or is_2d else shape[:3], has_codes)  # another's turn is of three axes
    is_placed = has_codes or other is None
    if len(grid.shape) == 3 and grid.shape[2] > 1 and is_placed and is_degenerate(affine):
        raise UserError(
            f"{path}: its affine places no volume in space (an axis has no length or the direction of another, or "
            "values are not finite); save it with the right one"
        )
    if like and other is not None and grid.contradicts(other):
        raise UserError(
            f"{path}: lies {grid.distance(other):.1f} mm from {Path(like).name}, and its axes point elsewhere, so that "
            f"which voxel lies over which is unknown; save it with the affine of {Path(like).name}"
        )
    if other is not None:
        affine = grid.affine_beside(other)
    if onto:
        turn = turn_onto(affine, *onto.in_file)
    elif is_2d and grid.distance(other) <= other.largest_shift:  # a 2-D image is not turned
        turn = turn_onto(affine, other.affine, NO_TURN)
    else:
        turn = canonical_turn(affine, grid.shape)
    return _Nifti(path, image, channels, grid, affine, turn)


def write_nifti(path, array, affine, placement=None):
    """Write uint8, uint16 or float32 [X, Y] or [X, Y, Z] as NIfTI, keeping the type.

    affine, placement: see `nifti_start`.
    """
    array = np.asarray(array)
    start = nifti_start(array.shape, array.dtype, affine, placement)
    parts = itertools.chain([start], _planes(array))
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        if str(path).lower().endswith(".gz"):
            write_gzip(file, parts)
        else:
            file.writelines(parts)


def _planes(array):
    """The values in the order of a file, plane by plane, so that no copy of the array is made."""
    for k in range(array.shape[-1] if array.ndim > 2 else 1):
        yield (array[..., k] if array.ndim > 2 else array).tobytes(order="F")


def nifti_start(shape, dtype, affine, placement=None):
    """The bytes of a NIfTI file before its values, which are uint8, uint16 or float32 [X, Y] or [X, Y, Z].

    placement: the `Placement` of the file that it shall lie over. None: by this affine [4, 4] in mm, as sform and
    qform, both with the code 2, "aligned"; a qform holds no shear.
    """
    import nibabel

    array = np.broadcast_to(np.zeros((), dtype), shape)
    if array.dtype not in (np.uint8, np.uint16, np.float32):
        raise ValueError(f"write_nifti takes uint8, uint16 or float32, not {array.dtype}")
    if placement is None:
        image = nibabel.Nifti1Image(array, affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, 2)
        if not is_degenerate(np.asarray(affine)):
            image.set_qform(affine, 2)
    else:
        header = placement.header()
        header.set_data_dtype(array.dtype)
        image = (nibabel.Nifti2Image if placement.is_second else nibabel.Nifti1Image)(array, None, header)
        image.header["pixdim"][:4] = placement.pixdim  # nibabel drops the thickness of a 2-D image
    image.update_header()
    image.header.set_slope_inter(1, 0)
    with io.BytesIO() as start:
        image.header.write_to(start)
        return start.getvalue().ljust(int(image.header["vox_offset"]), b"\0")
