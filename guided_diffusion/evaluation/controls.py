"""Controls without a generative model: sets of masks from a probability map alone.

They show what a set of members owes to its probability. A sampler that says more about masks than its own probability
map scores better than both of them.

Level sets cut the probability at fixed thresholds. Members of a Gaussian copula are the pixels with Phi(z) < p for a
smooth Gaussian field z of unit variance, so each pixel is foreground with probability p, and neighbours agree within
the field's correlation length. A length of 0 draws each pixel by itself; an infinite one cuts at random thresholds.
"""

from functools import lru_cache

import numpy as np

from ..runtime.seeds import seed_of
from .diversity import LEVEL_SETS, compare_with_raters, level_dice, level_sets
from .metrics import bounding_box

CONTROL_KINDS = ("levels", "copula")
CONTROLS = tuple(
    f"{whose}_{kind}_{figure}"
    for kind in CONTROL_KINDS
    for whose in ("control", "beyond")
    for figure in ("ged2_unbiased", "matched_iou")
)
MEMBERS_DICE = ("control_levels_dice", "beyond_levels_dice")
LENGTHS = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # that are tried in a fit, in pixels


def control_figures(probability, raters, count, kinds, own, *, length=0.0, name="", spacing=None):
    """The `CONTROLS` of one class of a case: a dict of floats.

        control_*  unbiased GED squared and matched IoU of a control's set of masks
        beyond_*   those of the members minus the control's, case by case, so that their interval says which is better

    probability: [...] in [0, 1]. raters: a list of bool masks. count: masks in each control's set. kinds: of
    `CONTROL_KINDS`, those to compute. own: {"ged2_unbiased", "matched_iou"} of the members. length, name, spacing: see
    `copula_members`.
    """
    found = {}
    for kind in kinds:
        drawn = kind == "copula"
        members = copula_members(probability, count, length, name, spacing) if drawn else level_sets(probability, count)
        figures = compare_with_raters(members, raters, drawn)
        found |= {f"control_{kind}_{figure}": value for figure, value in figures.items()}
        found |= {f"beyond_{kind}_{figure}": own[figure] - value for figure, value in figures.items()}
    return found


def dice_beyond_levels(members_dice, probability, truth):
    """The `MEMBERS_DICE` of one class of a case: the `level_dice` of its probability, and the members' mean Dice minus
    that. Members far below it are worse than their own probability explains.
    """
    levels = level_dice(probability, truth)
    return dict(zip(MEMBERS_DICE, (levels, members_dice - levels), strict=True))


def copula_members(probability, count, length, name="", spacing=None):
    """`count` members of a Gaussian copula with these margins: bool arrays of the shape of `probability`.

    probability: [...] in [0, 1]. length: the field's correlation is exp(-r^2 / (2 length^2)) at a distance of r
    pixels, at r the smallest pixel size. name: of the case; it seeds the field. spacing: the pixel size along each
    axis, or None where all are equal.
    """
    from scipy.special import ndtri  # a tenth of a second to import

    if not probability.any():
        return [np.zeros(probability.shape, bool)] * count
    box = bounding_box(probability > 0)
    lengths = [length] * probability.ndim if spacing is None else [length * min(spacing) / step for step in spacing]
    factors = [
        _field_factor(size, one)[where] for size, one, where in zip(probability.shape, lengths, box, strict=True)
    ]
    threshold = ndtri(probability[box].astype(np.float64)).astype(np.float32)
    rng, members = np.random.default_rng(abs(seed_of("copula", name))), []
    for _ in range(count):
        field = rng.standard_normal([factor.shape[1] for factor in factors], dtype=np.float32)
        for factor in factors:  # each turn replaces the first axis and puts it last
            field = np.tensordot(field, factor, axes=(0, 1))
        member = np.zeros(probability.shape, bool)
        member[box] = field < threshold
        members.append(member)
    return members


@lru_cache(maxsize=64)
def _field_factor(size, length):
    """A matrix F float32 [size, n] with F F^T the correlation exp(-(i - j)^2 / (2 length^2)) of `size` pixels.

    A field of independent normal numbers, multiplied by such a matrix along each axis, has that correlation and unit
    variance everywhere, at the border of the image as well.
    """
    if length <= 0:
        return np.eye(size, dtype=np.float32)
    place = np.arange(size)
    values, vectors = np.linalg.eigh(np.exp(-(((place[:, None] - place) / length) ** 2) / 2))
    # The spectrum falls as exp(-2 (pi length f)^2): beyond f = 1.1 / length, 2.2 size / length vectors, it is rounding.
    kept = min(size, int(2.2 * size / length) + 10)
    factor = vectors[:, -kept:] * np.sqrt(np.maximum(values[-kept:], 0))
    factor *= np.where(factor[:1] < 0, -1, 1)  # the sign of an eigenvector is arbitrary
    return (factor / np.sqrt(np.square(factor).sum(axis=1, keepdims=True))).astype(np.float32)


def fit_copula_length(probabilities, raters, *, names=None, count=LEVEL_SETS, lengths=LENGTHS):
    """The length of `lengths`, in pixels, whose members have the least mean unbiased GED squared to the raters.

    Fit it on training cases: a length that was chosen on test cases makes this control too good there.
    probabilities: a list of [H, W] or [X, Y, Z] in [0, 1]. raters: for each of them a list of bool masks; with one
    mask the figure is the energy score. names: of the cases, which seed their fields; by default their numbers. count:
    members drawn for each case. Each length gets the same random numbers as far as its field needs them.
    Raises ValueError without cases.
    """
    if not len(probabilities):
        raise ValueError("no cases to fit a copula length to")
    names = range(len(probabilities)) if names is None else names
    cases = list(zip(names, probabilities, raters, strict=True))

    def score(length):
        figures = (compare_with_raters(copula_members(p, count, length, name), list(y)) for name, p, y in cases)
        return float(np.mean([figure["ged2_unbiased"] for figure in figures]))

    return min(lengths, key=score)
