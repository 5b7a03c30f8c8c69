"""Which cases are answered as one: a picture alone, or all slices of a volume."""

from dataclasses import dataclass

from .data import Case
from .runtime.console import counted
from .runtime.errors import UserError

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
