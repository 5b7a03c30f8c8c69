"""Cases: the files of one image or slice, and the units that are scored as one, an image or a volume."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..io.nifti import STILL, reoriented_back
from ..runtime.console import counted
from ..runtime.errors import UserError


@dataclass(frozen=True)
class Case:
    """One image to segment: its name, the files it is read from and, for a slice, its place in a volume.

    name: unique in the data set and safe as a file name.
    images: the image's files (one photograph, or one file per MRI modality).
    masks: one file per rater; empty when there is no truth.
    raters: a name for each mask, by which a rater is known in all cases; () where he is by the mask's position.
    label: the class for class-conditional models, or None.
    volume, slice_index: the volume's name and the index along its last axis, or None for a 2-D image.
    group: what must stay on one side of a split, such as the patient, or None.
    """

    name: str
    images: tuple[Path, ...]
    masks: tuple[Path, ...] = ()
    label: int | None = None
    volume: str | None = None
    slice_index: int | None = None
    group: str | None = None
    raters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Geometry:
    """Where a volume lies in space: `affine` [4, 4] (NIfTI, mm), `spacing` (mm per axis) and `shape` [X, Y, Z].

    If the volume is turned against its file (see `orientation`), `file_affine` is the file's own and `turn` leads from
    there to here. has_codes: False where the file has lost its affine and tells the size of its voxels alone.
    """

    affine: np.ndarray
    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    file_affine: np.ndarray | None = None
    turn: np.ndarray | None = None
    has_codes: bool = True

    @property
    def in_file(self):
        """(the file's affine, the turn from there to here, an array [3, 2])."""
        return (self.affine, STILL) if self.turn is None else (self.file_affine, self.turn)

    def as_in_file(self, array):
        """(an array [X, Y, Z] of this volume as its file would hold it, the file's affine)."""
        return (array, self.affine) if self.turn is None else (reoriented_back(array, self.turn), self.file_affine)


LISTED_SLICES = 5  # slices that a message names


@dataclass(frozen=True)
class Unit:
    """What is scored as one: a 2-D case, or all slices of a volume in order; `indices` are the cases' positions."""

    name: str
    cases: tuple[Case, ...]
    indices: tuple[int, ...]

    @property
    def is_volume(self):
        """Whether the cases are slices of a volume."""
        return self.cases[0].volume is not None


def group_cases(cases):
    """The `Unit`s of a list of cases, in the order in which they first appear."""
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
    """Raise a `UserError` for a volume that a loader, of the user's own, does not give whole: its masks would be
    written, or compared, with slices in the wrong place. to_write: whether it must also say where the volume lies."""
    for unit in units:
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
            told = ", ".join(map(str, indices[:LISTED_SLICES])) + (", ..." if len(indices) > LISTED_SLICES else "")
            raise UserError(
                f"{first.images[0]}: the volume {unit.name} has {counted(depth, 'slice')}, the cases are "
                f"{len(indices)} (slice_index {told}), so that its masks would not fit it; give a case for each slice, "
                "at least where need_masks is not set"
            )
