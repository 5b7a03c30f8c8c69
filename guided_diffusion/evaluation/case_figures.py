"""The figures of one class of one case: its prediction and truth on one grid, and each group of columns."""

import math
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import add

import numpy as np
import torch

from ..data.truth import majority, on_grid
from ..inference.ensemble import member_masks, staple
from ..runtime.errors import UserError
from .calibration import ReliabilityTable
from .controls import CONTROL_KINDS, control_figures
from .diversity import (
    LEVEL_SETS,
    compare_sets,
    compare_with_raters,
    dice_to_raters,
    level_sets,
    mean_over_pairs,
    pair_dice,
    reference_figures,
    shared_pixels,
    soft_dice,
)
from .metrics import evaluate_mask, overlap
from .proper_scores import area_figures, proper_scores
from .statistics import mean_defined
from .temperature_fit import ExclusiveLosses, LevelTable


@dataclass
class ClassPrediction:
    """The prediction of one class of one case, on the truth's grid: arrays [H, W] or [X, Y, Z].

    mask: bool. members: a list of bool arrays. probability, coarse: float in [0, 1], or None where not saved. single:
    whether the run gave one answer instead of a sample of masks.
    """

    mask: np.ndarray
    members: list
    probability: np.ndarray | None
    coarse: np.ndarray | None
    single: bool

    def within(self, known):
        """The prediction where the truth is known, a bool array, and empty elsewhere; None: all of it."""
        if known is None:
            return self
        soft = (self.probability, self.coarse)
        probability, coarse = (None if values is None else np.where(known, values, 0) for values in soft)
        return replace(
            self,
            mask=self.mask & known,
            members=[member & known for member in self.members],
            probability=probability,
            coarse=coarse,
        )

    @cached_property
    def soft_maps(self):
        """{"": the probability, "coarse_": the coarse mask} as far as they were saved."""
        maps = (("", self.probability), ("coarse_", self.coarse))
        return {name: values for name, values in maps if values is not None}


@dataclass
class ClassTruth:
    """The truth of one class of one case. raters: bool [R, H, W] or [R, X, Y, Z]. spacing: see `metrics.surface`.

    known: the pixels whose truth is known, or None for all. Elsewhere masks are empty, of raters and predictions alike,
    so that they count in no overlap, no volume and no lesion, and surfaces end at the border of the known pixels.
    """

    raters: np.ndarray
    spacing: tuple | None
    known: np.ndarray | None = None

    def at_known(self, values):
        """The values [..., P] of the P known pixels of an array [..., H, W] or [..., X, Y, Z]; without `known` the
        array itself. Figures that are means over pixels go over these."""
        return values if self.known is None else values[..., self.known]

    @cached_property
    def fraction(self):
        """The fraction of raters who marked each pixel, float32."""
        return self.raters.mean(axis=0, dtype=np.float32)

    @cached_property
    def mask(self):
        """The pixels that more than half of the raters marked, bool."""
        return majority(self.raters)


def read_prediction(predictions, unit, shape, k=0):
    """The `ClassPrediction` of class k of a predicted case, on a grid of this shape.

    A picture of another size is stretched, which `predictions.elsewhere` then says. Raises `UserError` for a volume of
    another shape: its place in space is unknown.
    """
    key = (unit.name, unit.is_volume, k)
    mask = predictions.mask(*key)
    if mask.shape != tuple(shape):
        sizes = ["x".join(map(str, size)) for size in (mask.shape, shape)]
        where = f"{predictions.masks}: the mask of {unit.name}"
        if unit.is_volume:
            raise UserError(
                f"{where} has {sizes[0]} voxels, its image {sizes[1]}, and the loader gives no geometry by which they "
                "could be compared; save it on its image's grid"
            )
        predictions.elsewhere.setdefault(unit.name, f"{where} has {sizes[0]} pixels, its image {sizes[1]}")
    members = [on_grid(member, shape) for member in predictions.members(*key)]
    probability, coarse = predictions.probability(*key), predictions.coarse(*key)
    return ClassPrediction(
        on_grid(mask, shape),
        members,
        None if probability is None else on_grid(probability, shape),
        None if coarse is None else on_grid(coarse, shape),
        single=len(members) == 1 or predictions.num_ensemble in (0, 1),
    )


# ---- the mask ----------------------------------------------------------------------------------------------------


def coarse_masks(answers, exclusive):
    """The coarse mask of each class of a case, bool of its shape or None, by the rule of `ensemble.member_masks`.

    answers: the `ClassPrediction` of each class. exclusive: whether a pixel has at most one class.
    """
    if any(answer.coarse is None for answer in answers):
        return [None] * len(answers)
    soft = torch.from_numpy(np.stack([answer.coarse for answer in answers]))  # [K, ...]
    return list(member_masks(soft.flatten(1)[:, None], exclusive).reshape(soft.shape).numpy())


def mask_figures(answer, truth, coarse, settings):
    """The metrics of a mask, and the Dice and IoU of the coarse mask where it was saved.

    coarse: of `coarse_masks`. settings: an `evaluate.EvaluationSettings`.
    """
    row = evaluate_mask(answer.mask, truth.mask, truth.spacing, settings.tolerances, settings.lesion_iou)
    if truth.known is not None:  # specificity counts background
        row |= overlap(truth.at_known(answer.mask)[None], truth.at_known(truth.mask)[None])
    if coarse is not None:
        figures = overlap(coarse, truth.mask)
        row |= {"coarse_dice": figures["dice"], "coarse_iou": figures["iou"]}
    return row


def member_figures(members, truth):
    """The `summary.MEMBER_FIGURES` of each member: float64 [E, 3], NaN where undefined.

    These are STAPLE's estimates of sensitivity and specificity, which need no truth and more than one member, and the
    Dice with the truth.
    """
    figures = np.full((len(members), 3), math.nan)
    if len(members) > 1:
        fused = staple(torch.from_numpy(np.stack(members)).reshape(len(members), 1, 1, 1, -1))
        figures[:, 0], figures[:, 1] = fused.sensitivity[:, 0, 0], fused.specificity[:, 0, 0]
    for e, member in enumerate(members):
        figures[e, 2] = overlap(member, truth)["dice"]
    return figures


# ---- the probability ---------------------------------------------------------------------------------------------


def probability_figures(answer, truth):
    """The `summary.PROBABILITY` figures of a case, with the sums that `proper_scores.AREA_SUMS` names.

    "rater_pixels" is the raters' mean number of pixels, by which the sums are divided.
    """
    row = {"rater_pixels": np.count_nonzero(truth.raters) / len(truth.raters)}
    fraction = truth.at_known(truth.fraction)
    for name, soft in answer.soft_maps.items():
        row |= {f"{name}{figure}": value for figure, value in proper_scores(truth.at_known(soft), fraction).items()}
    row["mask_pixels"] = np.count_nonzero(answer.mask)
    if answer.members:
        row["sample_pixels"] = float(np.mean([np.count_nonzero(member) for member in answer.members]))
    return row | area_figures(row)


def level_tables(answers, truths, exclusive):
    """What a temperature is fitted by: the `LevelTable` of all classes of a case, or the `ExclusiveLosses` of several
    that exclude one another. None where the probability was not saved.

    answers, truths: of each class.
    """
    if any(answer.probability is None for answer in answers):
        return None
    pairs = zip(answers, truths, strict=True)
    p, y = zip(
        *((truth.at_known(one.probability), truth.at_known(truth.fraction)) for one, truth in pairs), strict=True
    )
    return ExclusiveLosses.of(p, y) if exclusive and len(p) > 1 else reduce(add, map(LevelTable.of, p, y))


def reliability_tables(answer, truth):
    """{map: `ReliabilityTable`} of all pixels, map "" for the probability, "coarse_" for the coarse mask."""
    y = truth.at_known(truth.fraction)
    return {name: ReliabilityTable.of(truth.at_known(soft), y) for name, soft in answer.soft_maps.items()}


# ---- several raters, several members -----------------------------------------------------------------------------


def rater_figures(mask, raters, names, all_names):
    """The Dice of a mask with each rater, where the data set has several raters, and the references beside it.

    raters: the masks of this case's raters, whose names are `names`. all_names: the names of the data set's raters, or
    () where raters have numbers. Each of them has a Dice in the row, NaN where this case lacks that rater.
    """
    if not all_names:
        names = all_names = [str(number) for number in range(1, len(raters) + 1)]
    dice = dict(zip(names, dice_to_raters(mask, raters), strict=True))
    row = {f"rater_{name}_dice": dice.get(name, math.nan) for name in all_names}
    row["rater_dice"] = mean_defined(list(dice.values()))
    if len(raters) > 1:
        row["raters_agreement"] = mean_over_pairs(pair_dice(shared_pixels(raters)))
        row |= reference_figures(raters)
    return row


def set_figures(answer, truth, name, copula_length):
    """The figures of the predicted set of masks: `diversity.SET_FIGURES`, `dice_soft` and `controls.CONTROLS`.

    The set is the members, or the level sets of a single answer's probability, which stands for a set of masks. With
    one rater there are no figures but the unbiased GED squared, here an energy score, and the matched IoU.
    name: of the case. copula_length: see `controls.control_figures`; 0 leaves the copula out.
    """
    raters, row = list(truth.raters), {}
    levels_stand_for_it = answer.single and answer.probability is not None
    samples = level_sets(answer.probability) if levels_stand_for_it else answer.members
    if len(raters) > 1:
        row |= {} if answer.probability is None else {"dice_soft": soft_dice(answer.probability, truth.fraction)}
        row |= compare_sets(samples, raters, not levels_stand_for_it) if samples else {}
    elif len(samples) > 1:
        row |= compare_with_raters(samples, raters, not levels_stand_for_it)
    if answer.probability is None or len(samples) < 2:
        return row
    kinds = [kind for kind in CONTROL_KINDS if kind != "copula" or copula_length]
    kinds = [kind for kind in kinds if kind != "levels" or not levels_stand_for_it]  # they are the answer's own set
    count = LEVEL_SETS if levels_stand_for_it else len(samples)
    return row | control_figures(
        answer.probability, raters, count, kinds, row, length=copula_length, name=name, spacing=truth.spacing
    )
