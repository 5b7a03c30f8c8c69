"""Cases (the files of one image or slice), units (an image or a whole volume), and where a volume lies in space."""

from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np

from ..io.nifti_header import Placement
from ..io.orientation import NO_TURN, reoriented_back
from ..runtime.console import counted
from ..runtime.errors import UserError


@dataclass(frozen=True)
class Case:
    """One image to segment: its name, its files and, for a slice, its place in a volume.

    name: unique in the data set and safe as a file name.
    images: the image's files (one photograph, or one file per MRI modality).
    masks: one file per rater; empty without truth.
    raters: the rater's name for each mask, the same in all cases; () where the position in `masks` identifies a rater.
    label: the class for class-conditional models, or None.
    volume, slice_index: the volume's name and the index along its last axis; None for a 2-D image.
    group: cases of one group, such as a patient, stay on one side of a split; None: the group is unknown.
    """

    name: str
    images: tuple[Path, ...]
    masks: tuple[Path, ...] = ()
    label: int | None = None
    volume: str | None = None
    slice_index: int | None = None
    group: str | None = None
    raters: tuple[str, ...] = ()

    def __post_init__(self):
        """Make lists tuples, texts paths, and numbers and paths that are names texts.

        Raises `TypeError` for one path, or name, in place of a tuple, and for a label or index that is no whole number.
        """
        for name, kind in (("images", Path), ("masks", Path), ("raters", str)):
            given = getattr(self, name)
            if isinstance(given, (str, Path)):
                raise TypeError(f"{name} must be a tuple, not {given!r} alone: write {name}=(..., ), with the comma")
            object.__setattr__(self, name, tuple(map(kind, given)))
        for name in ("name", "volume", "group"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, str(getattr(self, name)))
        for name, what in (("label", ", the place of the class in label_names"), ("slice_index", "")):
            given = getattr(self, name)
            if given is not None and (not isinstance(given, Real) or given != int(given)):
                raise TypeError(f"{name} must be a whole number{what}, not {given!r}")
            object.__setattr__(self, name, None if given is None else int(given))


@dataclass(frozen=True)
class Geometry:
    """Where a volume lies in space: `affine` [4, 4] (NIfTI, mm), `spacing` (mm per axis) and `shape` (X, Y, Z).

    Of a 2-D NIfTI image (see `volumes.image_geometry`) `shape` is (X, Y) or (X, Y, 1).

    file_affine, turn: the file's own affine and the turn from the file to this volume, see
    `orientation.canonical_turn`; None where the two agree. has_codes: False if the file has lost its affine and knows
    only the size of its voxels.
    placement: the file's `nifti_header.Placement`, by which masks are written; None where no NIfTI file holds the
    volume: masks then have `affine`.
    """

    affine: np.ndarray
    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    file_affine: np.ndarray | None = None
    turn: np.ndarray | None = None
    has_codes: bool = True
    placement: Placement | None = None

    def __post_init__(self):
        object.__setattr__(self, "affine", np.asarray(self.affine, dtype=np.float64))  # users' loaders may give lists

    @property
    def in_file(self):
        """(the file's affine [4, 4], the turn [3, 2] from the file to this volume)."""
        return (self.affine, NO_TURN) if self.turn is None else (self.file_affine, self.turn)

    def as_in_file(self, array):
        """An array [X, Y, Z] of this volume in the file's orientation and number of axes, and the file's affine."""
        affine, turn = self.in_file
        back = reoriented_back(array, turn)
        return back[..., 0] if len(self.shape) == 2 else back, affine


def spread_indices(length, count):
    """The indices of up to `count` of `length` items, evenly spaced from the first to the last: int [count]."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int))


def same_cases(cases, others):
    """Whether two lists have the same `Case`s, in any order: a loader may list a folder in the order of the disk."""
    return cases == others or (len(cases) == len(others) and set(cases) == set(others))


LISTED_SLICES = 5  # slices that a message names


@dataclass(frozen=True)
class Unit:
    """What is scored as one: a 2-D case, or all slices of a volume in order. indices: the cases' places in the list."""

    name: str
    cases: tuple[Case, ...]
    indices: tuple[int, ...]

    @property
    def is_volume(self):
        """Whether the cases are slices of a volume."""
        return self.cases[0].volume is not None


def group_cases(cases):
    """The `Unit`s of a list of cases, in the order of their first cases."""
    groups = {}
    for index, case in enumerate(cases):
        key = (case.volume is not None, case.volume or case.name)
        groups.setdefault(key, []).append((case.slice_index or 0, index, case))
    units = []
    for (_, name), members in groups.items():
        _, indices, grouped = zip(*sorted(members, key=lambda member: member[:2]), strict=True)
        units.append(Unit(name, grouped, indices))
    return units


def check_volumes(dataset, units, *, to_write=False):
    """Raise `UserError` for a volume of which a user's own loader does not give every slice.

    Its masks would be written, or compared, with slices in the wrong place.
    to_write: whether masks are written, so that the loader must also give a geometry.
    Returns the units without the volumes whose header cannot be read: each of these fails by itself when it is read.
    """
    unreadable = {} if dataset.volumes is None else dataset.volumes.unreadable
    readable = [unit for unit in units if unit.name not in unreadable]
    for unit in readable:
        if not unit.is_volume:
            continue
        first = unit.cases[0]
        geometry = dataset.load_geometry(first)
        if geometry is None and to_write:
            raise UserError(
                f"{first.images[0]}: {type(dataset).__name__} gives no geometry of the volume {unit.name}, without "
                "which its masks cannot be written; define geometry(case)"
            )
        indices = [case.slice_index for case in unit.cases]
        depth = len(indices) if geometry is None else geometry.shape[-1]
        if indices != list(range(depth)):
            given = ", ".join(map(str, indices[:LISTED_SLICES])) + (", ..." if len(indices) > LISTED_SLICES else "")
            raise UserError(
                f"{first.images[0]}: the volume {unit.name} has {counted(depth, 'slice')}, the cases are "
                f"{len(indices)} (slice_index {given}), so that its masks would not fit it; give a case for each "
                "slice, at least where need_masks is not set"
            )
    return readable


def check_shape(unit, geometry, shape):
    """Raise `UserError` for the geometry of a user's own loader that has another shape than the volume's slices."""
    if geometry is not None and len(geometry.shape) and tuple(geometry.shape) != tuple(shape):
        given, there = ("x".join(map(str, size)) for size in (geometry.shape, shape))
        raise UserError(
            f"{unit.cases[0].images[0]}: the geometry of the volume {unit.name} has the shape {given}, its slices make "
            f"{there}; correct geometry(case) of the loader"
        )
