"""Volumes in one orientation: turned to right, front and up when they are read, and back when they are written."""

import numpy as np

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
