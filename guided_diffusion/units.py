"""Which cases are answered as one: a picture alone, or all slices of a volume."""

from dataclasses import dataclass

from .data import Case


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
