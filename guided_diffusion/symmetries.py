"""The symmetries of the square: members of an ensemble may each look at the image turned or mirrored another way.

A symmetry is (turns, mirrored): quarter turns, then a mirror of the last axis.
"""

import torch

IDENTITY = (0, False)
ALL = tuple((turns, mirrored) for mirrored in (False, True) for turns in range(4))


def plausible_symmetries(dataset):
    """Those in which such images may be shown, the identity first (see `data.SegmentationDataset`).

    An `orientation` "any" allows all eight, "upright" the mirror along the `left_right_axis` alone.
    """
    if dataset.orientation == "any":
        return ALL
    return IDENTITY, (0, True) if dataset.left_right_axis == -1 else (2, True)  # half a turn and this mirror: the other


def keeping(shape, symmetries):
    """Those that keep the shape (H, W): without quarter turns of what is not square."""
    return tuple(s for s in symmetries if shape[0] == shape[1] or s[0] % 2 == 0)


def turned(x, symmetry):
    """x: [..., H, W] turned and mirrored."""
    turns, mirrored = symmetry
    x = torch.rot90(x, turns, (-2, -1)) if turns else x
    return x.flip(-1) if mirrored else x


def turned_back(x, symmetry):
    """The inverse of `turned`."""
    turns, mirrored = symmetry
    x = x.flip(-1) if mirrored else x
    return torch.rot90(x, -turns, (-2, -1)) if turns else x


def each_turned(x, which, symmetries, back=False):
    """Rows [M, ..., H, W], row i turned (or turned back) by symmetries[which[i]]. which: M ints."""
    turn = turned_back if back else turned
    if all(symmetries[s] == IDENTITY for s in which):
        return x
    return torch.stack([turn(row, symmetries[s]) for row, s in zip(x, which, strict=True)])
