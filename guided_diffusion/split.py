"""Which cases are held out of training: whole groups, such as patients, each decided by a hash of (seed, group)."""

import re
from dataclasses import dataclass

from .errors import UserError
from .seeds import seed_of


@dataclass(frozen=True)
class HoldOut:
    """How training cases are divided where the data are not: `--val_fraction`, `--split_seed` and `--group_key`.

    A group goes to one side as a whole, and which one follows from the seed and the group's name alone: cases that are
    added later move no other. So the share is `fraction` of the groups on average only; at least one is held out and
    at least one kept. group_key: a regular expression, see `group_of`.
    """

    fraction: float
    seed: int = 0
    group_key: str = ""

    def divide(self, cases):
        """(kept, held out), two lists of the `data.Case`s in their order.

        Raises `UserError` where all are of one group, or where the group key fits none of the names.
        """
        groups = [group_of(case, self.group_key) for case in cases]
        places = {group: self._place(group) for group in groups}
        if len(places) < 2:
            raise UserError(
                f"--val_fraction {self.fraction:g}: all {len(cases)} cases are of one group, {groups[0]!r}, which "
                "cannot be divided; add cases of others, or change --group_key"
            )
        ordered = sorted(places, key=lambda group: (places[group], group))
        held = {group for group in ordered[1:-1] if places[group] < self.fraction} | {ordered[0]}
        sides = ([], [])
        for case, group in zip(cases, groups, strict=True):
            sides[group in held].append(case)
        return sides

    def _place(self, group):
        """A number in [0, 1) that the seed and the group decide."""
        return (seed_of("hold out", self.seed, group) + 2**63) / 2**64


def group_of(case, group_key=""):
    """What must stay on one side of a split: what the group key finds in the case's name, else the case's `group`,
    else its volume, else its name.

    group_key: a regular expression that is searched in the name; its first parenthesis, or all that it matches, is
    the group. Raises `UserError` for a name that it does not fit.
    """
    if not group_key:
        return case.group or case.volume or case.name
    found = re.search(group_key, case.name)
    if not found:
        raise UserError(
            f"--group_key {group_key}: is not found in the case name {case.name!r}; write one that fits all names"
        )
    return found[1] if found.re.groups else found[0]


def hold_out_of(values):
    """The `HoldOut` of option values, a dict as in checkpoints and manifests; None where nothing is held out."""
    if not values.get("val_fraction"):
        return None
    return HoldOut(values["val_fraction"], values.get("split_seed", 0), values.get("group_key", ""))
