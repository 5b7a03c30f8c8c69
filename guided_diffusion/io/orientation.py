"""The orientation of volumes: turned to right, front and up when they are read, and back when they are written."""

import numpy as np

# The canonical order of axes, by the direction of the slices, which lie along the last axis. Axial slices are the rule.
AXES = {"R": "ASR", "A": "RSA", "S": "RAS"}
NO_TURN = np.array([[0.0, 1], [1, 1], [2, 1]])  # the identity
THICK = 1.5  # slices were acquired along the longest side of a voxel if it is longer than the second by this factor


def canonical_turn(affine, shape):
    """The turn of a file's axes to canonical ones: an array [3, 2] as in `nibabel.orientations`. Axis i of the file
    becomes axis turn[i, 0], in the direction turn[i, 1] (1 or -1).

    Canonical indices grow towards the patient's right, front (anterior) and up (superior), with axial slices: [R, A,
    S]. Slices acquired in another plane, which a single slice or much thicker voxels reveal, stay in that plane:
    sagittal [A, S, R] or coronal [R, S, A]. A 2-D image, of shape (X, Y) or (X, Y, 1), is not turned.
    """
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    if len(shape) < 3 or shape[2] == 1:
        return NO_TURN
    lies = io_orientation(affine)
    if np.isnan(lies).any():  # an axis of zero length points nowhere
        return NO_TURN
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    second, thickest = np.sort(sizes)[1:]
    single = np.flatnonzero(np.array(shape[:3]) == 1)
    along = single[0] if len(single) == 1 else sizes.argmax() if thickest > THICK * second else None
    slices = "S" if along is None else "RAS"[int(lies[along, 0])]
    return ornt_transform(lies, axcodes2ornt(AXES[slices]))


def is_degenerate(affine):
    """Whether an affine [4, 4] is not finite, or has axes of zero length or of the same direction."""
    from nibabel.orientations import io_orientation

    return not np.isfinite(affine).all() or bool(np.isnan(io_orientation(affine)).any())


def turn_onto(affine, other, other_turn):
    """The turn that brings a file with this affine into the orientation of another file, with the affine `other`, after
    its turn `other_turn`."""
    from nibabel.orientations import io_orientation, ornt_transform

    lies, others = io_orientation(affine), io_orientation(other)
    if np.isnan(lies).any() or np.isnan(others).any() or (lies == others).all():
        return other_turn
    between = ornt_transform(lies, others)
    axes = other_turn[between[:, 0].astype(int)]
    return np.column_stack([axes[:, 0], between[:, 1] * axes[:, 1]])


def reoriented(array, turn):
    """An array [X, Y, Z, ...] with its first three axes flipped and permuted by a turn."""
    from nibabel.orientations import apply_orientation

    return array if is_no_turn(turn) else apply_orientation(array, turn)


def turned_affine(affine, turn, shape):
    """The affine [4, 4] of a volume after a turn. shape: (X, Y, Z) before it."""
    from nibabel.orientations import inv_ornt_aff

    return affine if is_no_turn(turn) else affine @ inv_ornt_aff(turn, shape)


def turned_shape(shape, turn):
    """The shape of a volume after a turn."""
    result = list(shape)
    for axis, (target, _) in enumerate(turn[: len(shape)]):
        result[int(target)] = shape[axis]
    return tuple(result)


def reoriented_back(array, turn):
    """The inverse of `reoriented`, for the last three axes of an array [..., X, Y, Z]."""
    first = array.ndim - 3
    array = array.transpose(*range(first), *(first + turn[:, 0].astype(int)))
    return np.flip(array, tuple(first + np.flatnonzero(turn[:, 1] < 0)))


def is_no_turn(turn):
    """Whether a turn is the identity."""
    return bool((turn == NO_TURN).all())
