"""The eight symmetries of the square, in which the members of an ensemble may see an image by turns.

A symmetry is (turns, mirrored): quarter turns, then a mirror of the last axis.
"""

import torch

IDENTITY = (0, False)


SYMMETRIES = tuple((turns, mirrored) for mirrored in (False, True) for turns in range(4))  # the identity first


def turned(x, symmetry):
    """x: [..., S, S] turned and mirrored."""
    turns, mirrored = symmetry
    x = torch.rot90(x, turns, (-2, -1)) if turns else x
    return x.flip(-1) if mirrored else x


def turned_back(x, symmetry):
    """The inverse of `turned`."""
    turns, mirrored = symmetry
    x = x.flip(-1) if mirrored else x
    return torch.rot90(x, -turns, (-2, -1)) if turns else x


def each_turned(x, which, back=False):
    """Rows [M, ..., S, S], row i turned (or turned back) by the symmetry which[i]."""
    if all(symmetry == IDENTITY for symmetry in which):
        return x
    turn = turned_back if back else turned
    return torch.stack([turn(row, symmetry) for row, symmetry in zip(x, which, strict=True)])
