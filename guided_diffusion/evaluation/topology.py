"""Topology of a mask against its truth: clDice, Betti errors and variation of information of its segments.

Foreground pixels are connected over edges and corners (8 neighbours, in 3-D 26), background pixels over edges (4, in
3-D 6). Everything beyond the image is background.
"""

import math

import numpy as np
from scipy.ndimage import label

from .metrics import bounding_box, components
from .statistics import mean_defined

TOPOLOGY = ("cldice", "betti0_error", "betti1_error", "vi_foreground", "vi_background")
TOPOLOGY_FIGURES = tuple(f"{whose}_{figure}" for whose in ("mask", "sample") for figure in TOPOLOGY)
SCORED_MEMBERS = 8  # of a case, at most


def topology_figures(mask, members, truth, known=None):
    """The `TOPOLOGY_FIGURES` of one class of a case: those of the mask, and their means over up to 8 members.

    mask, truth: bool [H, W] or [X, Y, Z]. members: a list of such masks; of many, every n-th counts. known: the pixels
    whose truth is known, outside of which all masks are empty; None for all.
    """
    true = TrueTopology(truth, known)
    found = {f"mask_{name}": value for name, value in true.compare(mask).items()}
    chosen = np.unique(np.linspace(0, len(members) - 1, min(SCORED_MEMBERS, len(members))).round().astype(int))
    each = [true.compare(members[e]) for e in chosen]
    return found | {f"sample_{name}": mean_defined([one[name] for one in each]) for name in TOPOLOGY}


class TrueTopology:
    """A true mask, bool [H, W] or [X, Y, Z], with what every comparison with it needs."""

    def __init__(self, truth, known=None):
        self.truth, self.skeleton, self.betti = truth, skeleton(truth), betti_numbers(truth)
        self.known = np.ones(truth.shape, bool) if known is None else known
        self.segments = self._segments(truth)

    def _segments(self, mask):
        """The segments of a mask's foreground and of its background, as labels [P] of the known pixels."""
        return components(mask)[0][self.known], background_segments(mask | ~self.known)[self.known]

    def compare(self, mask):
        """The `TOPOLOGY` of a mask: a dict of floats.

        cldice         see `cl_dice`
        betti0_error   |difference of the numbers of connected components|
        betti1_error   |difference of the numbers of holes|, in 3-D of tunnels
        vi_foreground  `variation_of_information` of the connected components of the foreground
        vi_background  that of the background, the segments that membranes separate
        """
        betti = betti_numbers(mask)
        pairs = zip(self._segments(mask), self.segments, strict=True)
        foreground, background = (variation_of_information(*pair) for pair in pairs)
        return {
            "cldice": cl_dice(mask, skeleton(mask), self.truth, self.skeleton),
            "betti0_error": float(abs(betti[0] - self.betti[0])),
            "betti1_error": float(abs(betti[1] - self.betti[1])),
            "vi_foreground": foreground,
            "vi_background": background,
        }


def cl_dice(mask, mask_skeleton, truth, true_skeleton):
    """Centreline Dice (arXiv 2003.07311) in [0, 1]: the harmonic mean of the share of the mask's skeleton inside the
    truth and of the truth's skeleton inside the mask. Both masks empty: NaN; one empty: 0."""
    own, true = int(mask_skeleton.sum()), int(true_skeleton.sum())
    if not own or not true:
        return math.nan if own == true else 0.0
    precision, sensitivity = (mask_skeleton & truth).sum() / own, (true_skeleton & mask).sum() / true
    total = precision + sensitivity
    return float(2 * precision * sensitivity / total) if total else 0.0


def skeleton(mask):
    """The skeleton of a mask, bool of its shape."""
    from skimage.morphology import skeletonize  # takes long to import

    thin = np.zeros(mask.shape, bool)
    if mask.any():
        box = bounding_box(mask)
        thin[box] = skeletonize(mask[box]) > 0
    return thin


def betti_numbers(mask):
    """(b0, b1): the number of connected components, and of holes in 2-D or tunnels in 3-D.

    In 3-D b1 follows from Euler's number b0 - b1 + b2, with b2 the number of enclosed cavities.
    """
    padded = np.pad(mask[bounding_box(mask)], 1) if mask.any() else mask
    pieces, enclosed = components(padded)[1], max(label(~padded)[1] - 1, 0)
    if mask.ndim == 2:
        return pieces, enclosed
    from skimage.measure import euler_number

    return pieces, pieces + enclosed - int(euler_number(padded, connectivity=3))


def background_segments(mask):
    """The connected components of the background, over edges: int32 labels, 0 in the foreground."""
    return label(~mask)[0]


def variation_of_information(first, second):
    """H(first | second) + H(second | first) in bits, of two partitions of the pixels: int arrays of equal shape.

    Pixels of one label form a part, those of label 0 too. 0 for equal partitions.
    """
    first, second = first.ravel().astype(np.int64), second.ravel()
    both = np.unique(first * (int(second.max()) + 1) + second, return_counts=True)[1]
    joint = _bits(both)
    return float(max(2 * joint - _bits(np.bincount(first)) - _bits(np.bincount(second)), 0))


def _bits(counts):
    """The entropy of a partition in bits, from the number of pixels of each part."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())
