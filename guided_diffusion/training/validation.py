"""Validation during training: a few fixed cases are sampled in few steps, scored and pictured."""

import math
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from tqdm import tqdm

from ..config.sample_options import SampleOptions
from ..config.settings import members_as_trained, members_by_default
from ..data.batches import collate
from ..evaluation.diversity import compare_with_raters
from ..evaluation.metrics import overlap
from ..evaluation.proper_scores import log_losses
from ..evaluation.statistics import mean_defined
from ..inference.ensemble import fuse_masks, member_masks, pairwise_dice, uncertainty
from ..inference.members import Members, answer_in_one_pass, draw_members
from ..inference.plan import NO_STEPS, ONE_STEP, plan_sampling, with_members
from ..inference.tiles import Tiled, crop_members, in_tiles
from ..io.drawing import captions, displayed, heat, mosaic, radiological, resized, tinted
from ..models.outputs import ModelOutput
from ..runtime.distributed import Processes, autocast

MEMBERS, STEPS = 5, 10  # enough to show progress, and short beside the training between
TILE = 128  # pixels of a picture in the grid
TRIES = 16  # cases that are read to find one with a mask that is not empty
TILES_AT_ONCE = 8  # of an image larger than the network, whose memory training needs as well
NEARLY_ALL = 0.95  # of an image's pixels: a larger mask counts as full

# The figures of a validation, each a mean over cases of a mean over classes. The log has them as val_NAME.
FIGURES = (
    *("log_loss", "coarse_log_loss", "ged2", "dice", "member_dice", "coarse_dice", "agreement", "empty", "full"),
    *("health", "health_log_loss"),
)
# Sums over pixels and classes. The log has their ratios over the cases to that of "truth", the expected volume.
VOLUMES = {"volume_ratio": "expected", "coarse_volume_ratio": "coarse_expected"}


def spread_cases(dataset, count):
    """The indices of `count` cases spread evenly over a data set, with something to segment where possible.

    They are the same for the same data. The data set is divided into `count` equal parts. Each gives the case nearest
    to its middle whose mask is not empty; if `TRIES` cases have none, the middle one.
    """
    filled = ((_filled(dataset, part), part) for part in _equal_parts(dataset, count))
    return [_middle(part) if index is None else index for index, part in filled]


def marked_cases(dataset, count):
    """Yields the cases of `spread_cases` whose masks are not empty; reads masks as it goes."""
    for part in _equal_parts(dataset, count):
        index = _filled(dataset, part)
        if index is not None:
            yield dataset.cases[index]


def _equal_parts(dataset, count):
    """The indices of the cases as `count` ranges, fewer for fewer cases."""
    bounds = np.linspace(0, len(dataset.cases), min(count, len(dataset.cases)) + 1).round().astype(int)
    return [range(low, high) for low, high in zip(bounds[:-1], bounds[1:], strict=True)]


def _middle(part):
    return part[len(part) // 2]


def _filled(dataset, part):
    """The index nearest to the middle of a part whose mask is not empty, or None after `TRIES` cases."""
    nearest = sorted(part, key=lambda index: (abs(index - _middle(part)), index))[:TRIES]
    return next((index for index in nearest if dataset.load_mask(dataset.cases[index]).any()), None)


@dataclass
class ValidationResult:
    """The result of one validation.

    figures: the mean of each of `FIGURES` over the cases, and the ratios of `VOLUMES`; NaN where undefined. picture:
    RGB uint8 [H, W, 3]. coarse_only: whether only the condition model was validated. seconds: the duration.
    in_one_pass: whether the checkpoint answers in one pass, by the condition model, unless members are asked for.
    health_error: the standard error of figures["health"], see `Validation`; NaN unless at least two cases define it.
    class_dice: {class: the part of `shown_dice` that is its own}, NaN where undefined; {} with a single class.
    """

    figures: dict
    picture: np.ndarray
    coarse_only: bool
    seconds: float
    in_one_pass: bool = False
    health_error: float = math.nan
    class_dice: dict = field(default_factory=dict)

    @property
    def log_loss(self):
        """The log loss of what the checkpoint delivers, by which checkpoints are compared; lower is better.

        It is that of the members' mean. Where the default answer is the condition model's, it is the mean of both, as
        members can be asked for. NaN if the diffusion was not sampled: the checkpoint cannot draw members yet.
        """
        figures = self.figures
        return (figures["log_loss"] + figures["coarse_log_loss"]) / 2 if self.in_one_pass else figures["log_loss"]

    @property
    def is_healthy(self):
        """Whether the members are better than those of a zeroed head by more than the standard error, or None."""
        gain, error = self.figures["health"], self.health_error
        return None if math.isnan(gain) else gain > (0 if math.isnan(error) else error)

    @property
    def dice(self):
        """The ensemble's Dice; NaN if the diffusion was not sampled."""
        return self.figures["dice"]

    @property
    def shown_dice(self):
        """The Dice to show: the ensemble's, or the coarse mask's if the diffusion was not sampled."""
        return self.figures["coarse_dice" if self.coarse_only else "dice"]

    @property
    def logged(self):
        """The figures by their names in the log."""
        of_classes = {f"dice_{re.sub(r'[^0-9A-Za-z]+', '_', name)}": dice for name, dice in self.class_dice.items()}
        return {f"val_{name}": value for name, value in (self.figures | of_classes).items()}


@dataclass
class Validation:
    """The cases of `dataset` (a `SegmentationDataset` with masks) at these `indices`, and how they are sampled.

    source: a noun for the cases in the singular. diffusion: a `GaussianDiffusion`. version: of the network; the plain
    U-Net has one answer. seed: of the noise, the same at each validation. processes: they share the cases, and all call
    `validate`. rows: how many members pass the network at once; None: all of a case. train: the option values of the
    training, which decide how members are drawn: as by default in sampling, in `STEPS` steps at most. Validation
    neither reads nor changes global random state.

    Where the coarse mask's logits are part of a prediction (--logit_skip coarse or both), the figure "health" says what
    the diffusion adds: how much lower the members' unbiased GED squared is than that of members drawn with the
    denoiser's head set to zero, of the same cases and random numbers; "health_log_loss" likewise.
    """

    dataset: object
    indices: list
    source: str
    diffusion: object
    device: torch.device
    precision: str
    version: str = "v2"
    seed: int = 0
    processes: Processes | None = None
    rows: int | None = None
    train: dict = field(default_factory=dict)
    _read: dict = field(default_factory=dict)

    def __post_init__(self):
        self.processes = self.processes or Processes(0, 1, self.device)
        options = members_as_trained(SampleOptions(), self.train, has_diffusion=self.has_diffusion)
        is_published = self.train.get("recipe") == "published"
        plan = plan_sampling(options, set(), self.diffusion, is_published=is_published)
        if len(plan.timesteps) > STEPS:
            options, given = replace(options, dpm_solver=True, diffusion_steps=STEPS), {"dpm_solver", "diffusion_steps"}
            plan = plan_sampling(options, given, self.diffusion, is_published=is_published)
        self.plan = replace(plan, published=self.version if is_published else "")
        self.one_pass = with_members(NO_STEPS, options)
        self.in_one_pass = not members_by_default(0, self.version, self.train)

    @property
    def has_diffusion(self):
        """False for the plain U-Net."""
        return self.version != "unet"

    @property
    def checks_health(self):
        """Whether members of a zeroed head mean something: they then follow the coarse mask."""
        return self.has_diffusion and self.diffusion.logit_skip in ("coarse", "both")

    @property
    def names(self):
        """The names of the cases."""
        return [self.dataset.cases[index].name for index in self.indices]

    def validate(self, model, *, coarse_only=False, stopped=lambda: False):
        """Sample the cases with the current weights of `model`, score and picture them.

        coarse_only: sample only the coarse mask of the condition branch. stopped(): asked before each case; if it is
        true in one process, all return None. Returns the `ValidationResult`, the same in every process.
        """
        began, own = time.monotonic(), []
        each = -(-len(self.indices) // self.processes.count)
        with tqdm(desc="sampling", total=each, unit="case", leave=False, disable=not self.processes.is_first) as bar:
            for turn in range(each):
                if self.processes.largest({"stop": bool(stopped())})["stop"]:
                    return None
                place = turn * self.processes.count + self.processes.rank
                # Processes gather shards together, so all run the network equally often, past the last case too.
                result = self._sampled(model, self.indices[place % len(self.indices)], coarse_only)
                own += [result] if place < len(self.indices) else []
                bar.update()
        shares = self.processes.gather(own)
        results = [share[turn] for turn in range(each) for share in shares if turn < len(share)]  # in the cases' order
        cases = [result["figures"] for result in results]
        figures = {name: _mean(case[name] for case in cases) for name in FIGURES}
        volume = sum(case["truth"] for case in cases)
        for name, total in VOLUMES.items():
            figures[name] = sum(case[total] for case in cases) / volume if volume else math.nan
        picture = picture_grid([result["tiles"] for result in results])
        error = standard_error([case["health"] for case in cases])
        names = self.dataset.class_names
        class_dice = {
            name: _mean(case["class_dice"][k] for case in cases) for k, name in enumerate(names) if len(names) > 1
        }
        seconds = time.monotonic() - began
        return ValidationResult(figures, picture, coarse_only, seconds, self.in_one_pass, error, class_dice)

    def _sampled(self, model, index, coarse_only):
        """Sample one case. Returns {"figures": see `Drawn.figures`, "tiles": see `Drawn.tiles`}."""
        batch, pictures = self._case(index)
        size = batch["size"][0]
        # Several processes must run the network equally often, so all tiles go in one pass.
        rows = TILES_AT_ONCE if self.processes.count == 1 else None
        tiled = in_tiles(model, batch["image"], self.dataset.image_size, SampleOptions.tile_overlap, rows)
        label = batch["label"].to(self.device) if model.label_embedding is not None else None
        raters = batch["mask"][0].numpy()  # [R, K, S, S]
        known = batch["known"][0].numpy().all(axis=(0, 1)) if "known" in batch else None  # by every rater
        if isinstance(tiled, Tiled):
            raters = raters[..., : size[0], : size[1]]
            known = None if known is None else known[: size[0], : size[1]]

        def draw():
            members = self._members(tiled, batch, label, coarse_only)
            members = crop_members(members, size) if isinstance(tiled, Tiled) else members
            return replace(Drawn.of(members, self.plan.fuse, self.dataset.classes.is_exclusive), known=known)

        drawn = draw()
        figures = drawn.figures(raters)
        if self.checks_health and not coarse_only:
            with head_zeroed(model):
                zeroed = draw().figures(raters)
            figures["health"] = zeroed["ged2"] - figures["ged2"]
            figures["health_log_loss"] = zeroed["log_loss"] - figures["log_loss"]
        return {"figures": figures, "tiles": drawn.tiles(batch["name"][0], pictures, majority_of(raters))}

    def _members(self, model, batch, label, coarse_only):
        """The `Members` of one case on the CPU; with `coarse_only` without `soft`. model: perhaps `Tiled`."""
        image = batch["image"].to(self.device)
        with autocast(self.precision, self.device):
            if coarse_only:
                one = answer_in_one_pass(model, self.diffusion, self.one_pass, image, label=label, rows=self.rows)
                return Members(None, one.coarse).cpu()
            plan, count = (self.plan, MEMBERS) if self.has_diffusion else (ONE_STEP, 1)
            options = {"members": count, "seed": self.seed, "label": label, "rows": self.rows}
            return draw_members(model, self.diffusion, plan, image, batch["name"], **options).cpu()

    def _case(self, index):
        """A case as a batch of one, and its `_CaseTiles`. Each case is read once."""
        if index not in self._read:
            pictures = _CaseTiles(self.dataset, self.dataset.cases[index])
            self._read[index] = collate([self.dataset.load_item(index)]), pictures
        return self._read[index]


@dataclass
class Drawn:
    """The masks drawn for one case, with K classes.

    soft: the members' probabilities, float32 [E, K, H, W]. masks: the members' masks, bool [E, K, H, W]. fused: bool
    [K, H, W]. agreement: the mean Dice of pairs of members, or NaN. spread: the members' standard deviation [K, H, W]
    in [0, 0.5], None with one member. These are None if the diffusion was not sampled. coarse, coarse_mask: [K, H, W]
    in [0, 1] and bool, None without a condition branch. known: the pixels whose truth is known, bool [H, W], in which
    alone the masks are scored; None for all.
    """

    soft: np.ndarray | None = None
    masks: np.ndarray | None = None
    fused: np.ndarray | None = None
    agreement: float = math.nan
    spread: np.ndarray | None = None
    coarse: np.ndarray | None = None
    coarse_mask: np.ndarray | None = None
    known: np.ndarray | None = None

    @classmethod
    def of(cls, members, method, exclusive):
        """From the `Members` of one case, perhaps without `soft`. method, exclusive: see `ensemble.fuse_masks`."""
        drawn, soft, coarse = cls(), members.soft, members.coarse
        if coarse is not None:
            coarse = coarse.mean(dim=0)[0]
            drawn.coarse, drawn.coarse_mask = coarse.numpy(), member_masks(coarse, exclusive).numpy()
        if soft is not None:
            cut = soft if members.drawn is None else members.drawn
            masks = member_masks(cut, exclusive)
            drawn.soft, drawn.masks = soft[:, 0].numpy(), masks[:, 0].numpy()
            drawn.fused = fuse_masks(soft if method == "mean" else cut, method, exclusive)[0].numpy()
            if len(soft) > 1:
                drawn.agreement = _mean(pairwise_dice(masks)[0].tolist())
                drawn.spread = uncertainty(soft)[0].numpy()
        return drawn

    def figures(self, raters):
        """{name in `FIGURES`: value}; NaN where undefined or not sampled. raters: their masks [R, K, H, W] in [0, 1].

        Each figure is a mean over the classes for which it is defined. Dice is against the raters' majority; log loss,
        in nats a pixel, is of the mean probability against the raters' mean; ged2: unbiased GED squared of the members
        and the raters. empty, full: the share of members that are empty or full, over classes whose truth is not. Also
        the sums of `VOLUMES` and of the raters' mean, "truth", and "class_dice", the K Dice of the fused mask or, if
        the diffusion was not sampled, of the coarse mask.
        """
        if self.known is not None:  # no figure here depends on where a pixel lies
            arrays = ("soft", "masks", "fused", "coarse", "coarse_mask")
            parts = {name: values for name in arrays if (values := getattr(self, name)) is not None}
            parts = {name: values[..., self.known][..., None, :] for name, values in parts.items()}
            return replace(self, **parts, known=None).figures(raters[..., self.known][..., None, :])
        truth, fraction = majority_of(raters), raters.mean(axis=0)
        figures = dict.fromkeys((*FIGURES, *VOLUMES.values()), math.nan) | {"agreement": self.agreement}
        figures["truth"] = float(fraction.sum())
        shown = self.coarse_mask if self.soft is None else self.fused
        figures["class_dice"] = [overlap(one, other)["dice"] for one, other in zip(shown, truth, strict=True)]
        if self.coarse is not None:
            figures["coarse_dice"] = mean_dice(self.coarse_mask, truth)
            figures["coarse_log_loss"] = float(log_losses(self.coarse, fraction).mean())
            figures["coarse_expected"] = float(self.coarse.sum())
        if self.soft is None:
            return figures
        mean = self.soft.mean(axis=0)
        figures["log_loss"], figures["expected"] = float(log_losses(mean, fraction).mean()), float(mean.sum())
        figures["ged2"] = _mean(
            compare_with_raters(list(self.masks[:, k]), list(raters[:, k] > 0.5))["ged2_unbiased"]
            for k in range(len(truth))
        )
        figures["dice"] = mean_dice(self.fused, truth)
        if len(self.masks) > 1:
            figures["member_dice"] = _mean(mean_dice(mask, truth) for mask in self.masks)
        there, everywhere = truth.any(axis=(1, 2)), truth.mean(axis=(1, 2)) > NEARLY_ALL  # [K]
        if there.any():
            figures["empty"] = float((~self.masks.any(axis=(2, 3)))[:, there].mean())
        if not everywhere.all():
            figures["full"] = float((self.masks.mean(axis=(2, 3)) > NEARLY_ALL)[:, ~everywhere].mean())
        return figures

    def tiles(self, name, pictures, truth):
        """(caption, tile) of each picture in the grid, with the Dice of each mask. pictures: a `_CaseTiles`."""

        def scored(title, values, mask):
            scored_mask = mask if self.known is None else mask & self.known
            return f"{title}: {mean_dice(scored_mask, truth):.2f}", pictures.mask(values)

        tiles = [(name, pictures.image), ("truth", pictures.mask(truth))]
        if self.soft is not None and len(self.soft) > 1:
            pairs = zip(self.soft, self.masks, strict=True)
            tiles += [scored(f"member {n}", soft, mask) for n, (soft, mask) in enumerate(pairs, 1)]  # as in reports
            tiles += [scored("fused", self.fused, self.fused), ("uncertainty", pictures.uncertainty(self.spread))]
        elif self.soft is not None:
            tiles.append(scored("mask", self.soft[0], self.fused))
        if self.coarse is not None:
            tiles.append(scored("coarse", self.coarse, self.coarse_mask))
        return tiles


@contextmanager
def head_zeroed(model):
    """Within, the network's prediction is 0, as if all weights of the denoiser's last layer were; `coarse` stays."""

    def zero(_module, _inputs, output):
        variance = None if output.variance is None else torch.zeros_like(output.variance)
        return ModelOutput(torch.zeros_like(output.prediction), variance, output.coarse)

    hook = model.register_forward_hook(zero)
    try:
        yield
    finally:
        hook.remove()


def standard_error(values):
    """The standard error of the mean of the defined values; NaN for fewer than two."""
    found = [value for value in values if math.isfinite(value)]
    return float(np.std(found, ddof=1)) / len(found) ** 0.5 if len(found) > 1 else math.nan


def majority_of(raters):
    """bool [K, H, W]: the pixels of which more than half of the raters marked more than half; of [R, K, H, W]."""
    return (raters > 0.5).mean(axis=0) > 0.5


def mean_dice(mask, truth):
    """The mean Dice of two masks bool [K, H, W] over the classes for which it is defined; NaN if there are none."""
    return _mean(overlap(one, other)["dice"] for one, other in zip(mask, truth, strict=True))


def _mean(values):
    return mean_defined(list(values))


class _CaseTiles:
    """Makes the tiles of one case, RGB uint8, with the proportions and the orientation of its displayed image."""

    def __init__(self, dataset, case):
        geometry = dataset.load_geometry(case)
        self.affine = None if geometry is None else geometry.affine
        picture = radiological(displayed(dataset.load_image(case)), self.affine)
        self.proportions = picture.shape[:2]
        self.image = resized(picture, TILE)

    def _tile(self, picture):
        return resized(radiological(picture, self.affine), TILE, self.proportions)

    def mask(self, soft):
        """A mask [K, H, W] in [0, 1] or bool; several classes have their own colours."""
        return self._tile(tinted(soft.astype(np.float32)))

    def uncertainty(self, deviation):
        """The largest standard deviation over the classes of [K, H, W] in [0, 0.5]."""
        return self._tile(heat(2 * deviation.max(axis=0)))


def picture_grid(cases):
    """One row per case of its (caption, tile) pairs, captions above; RGB uint8 [H, W, 3]."""
    rows = []
    for tiles in cases:
        titles, pictures = zip(*tiles, strict=True)
        rows += [captions(titles, TILE), mosaic([pictures])]
    return np.concatenate(rows)
