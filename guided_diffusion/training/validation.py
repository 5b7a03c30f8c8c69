"""Validation during training: a few fixed cases are sampled in few steps, scored and pictured."""

import math
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from ..config.sample_options import SampleOptions
from ..config.settings import members_as_trained
from ..data.batches import collate
from ..evaluation.metrics import overlap
from ..evaluation.statistics import mean_defined
from ..inference.ensemble import fuse_masks, member_masks, pairwise_dice, uncertainty
from ..inference.members import draw_members
from ..inference.plan import ONE_STEP, plan_sampling
from ..inference.tiles import Tiled, crop_members, in_tiles
from ..io.drawing import captions, displayed, heat, mosaic, radiological, resized, tinted
from ..runtime.distributed import Processes, autocast

MEMBERS, STEPS = 5, 10  # of DPM-Solver++: enough to show progress, and short beside the training between
TILE = 128  # pixels of a picture in the grid
TRIES = 16  # cases that are read to find one with a mask that is not empty
TILES_AT_ONCE = 8  # of an image larger than the network, whose memory training needs as well
NEARLY_ALL = 0.95  # of an image's pixels: a larger mask counts as full

# The figures of a validation, each a mean over cases of a mean over classes. The log has them as val_NAME.
FIGURES = ("dice", "member_dice", "coarse_dice", "agreement", "empty", "full")


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

    figures: the mean of each of `FIGURES` over the cases, NaN where undefined. picture: RGB uint8 [H, W, 3].
    coarse_only: whether only the condition model was validated. seconds: the duration.
    """

    figures: dict
    picture: np.ndarray
    coarse_only: bool
    seconds: float

    @property
    def dice(self):
        """The ensemble's Dice, by which checkpoints are compared; NaN if the diffusion was not sampled."""
        return self.figures["dice"]

    @property
    def shown_dice(self):
        """The Dice to show: the ensemble's, or the coarse mask's if the diffusion was not sampled."""
        return self.figures["coarse_dice" if self.coarse_only else "dice"]

    @property
    def logged(self):
        """The figures by their names in the log."""
        return {f"val_{name}": value for name, value in self.figures.items()}


@dataclass
class Validation:
    """The cases of `dataset` (a `SegmentationDataset` with masks) at these `indices`, and how they are sampled.

    source: a noun for the cases in the singular. diffusion: a `GaussianDiffusion`. has_diffusion: False for the plain
    U-Net, which has one answer. seed: of the noise, the same at each validation. processes: they share the cases, and
    all call `validate`. rows: how many members pass the network at once; None: all of a case. train: the option values
    of the training, which decide how members are drawn (see `settings.members_as_trained`). Validation neither reads
    nor changes global random state.
    """

    dataset: object
    indices: list
    source: str
    diffusion: object
    device: torch.device
    precision: str
    has_diffusion: bool = True
    seed: int = 0
    processes: Processes | None = None
    rows: int | None = None
    train: dict = field(default_factory=dict)
    _read: dict = field(default_factory=dict)

    def __post_init__(self):
        self.processes = self.processes or Processes(0, 1, self.device)
        options = SampleOptions(dpm_solver=True, diffusion_steps=min(STEPS, self.diffusion.num_timesteps))
        options = members_as_trained(options, self.train, has_diffusion=self.has_diffusion)
        is_published = self.train.get("recipe") == "published"
        given = {"dpm_solver", "diffusion_steps"}
        self.plan = plan_sampling(options, given, self.diffusion, is_published=is_published)
        self.fuse = self.plan.fuse

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
        figures = {name: _mean(result["figures"][name] for result in results) for name in FIGURES}
        picture = picture_grid([result["tiles"] for result in results])
        return ValidationResult(figures, picture, coarse_only, time.monotonic() - began)

    def _sampled(self, model, index, coarse_only):
        """Sample one case. Returns {"figures": see `Drawn.figures`, "tiles": see `Drawn.tiles`}."""
        batch, pictures = self._case(index)
        one_pass = coarse_only or not self.has_diffusion
        conditional, size = model.label_embedding is not None, batch["size"][0]
        # Several processes must run the network equally often, so all tiles go in one pass.
        rows = TILES_AT_ONCE if self.processes.count == 1 else None
        model = in_tiles(model, batch["image"], self.dataset.image_size, SampleOptions.tile_overlap, rows)
        with autocast(self.precision, self.device):
            drawn = draw_members(
                model,
                self.diffusion,
                ONE_STEP if one_pass else self.plan,
                batch["image"].to(self.device),
                batch["name"],
                members=1 if one_pass else MEMBERS,
                seed=self.seed,
                label=batch["label"].to(self.device) if conditional else None,
                rows=self.rows,
            ).cpu()
        truth = batch["mask"][0].numpy().mean(axis=0) > 0.5  # [R, K, S, S] -> [K, S, S]
        if isinstance(model, Tiled):
            drawn, truth = crop_members(drawn, size), truth[:, : size[0], : size[1]]
        drawn = Drawn.of(
            None if coarse_only else drawn.soft, drawn.coarse, self.fuse, self.dataset.classes.is_exclusive
        )
        return {"figures": drawn.figures(truth), "tiles": drawn.tiles(batch["name"][0], pictures, truth)}

    def _case(self, index):
        """A case as a batch of one, and its `_CaseTiles`. Each case is read once."""
        if index not in self._read:
            pictures = _CaseTiles(self.dataset, self.dataset.cases[index])
            self._read[index] = collate([self.dataset.load_item(index)]), pictures
        return self._read[index]


@dataclass
class Drawn:
    """The masks drawn for one case, with K classes.

    soft: the members, float32 [E, K, H, W] in [0, 1]. masks: the members' masks, bool [E, K, H, W]. fused: bool
    [K, H, W]. agreement: the mean Dice of pairs of members, or NaN. spread: the members' standard deviation [K, H, W]
    in [0, 0.5], None with one member. These are None if the diffusion was not sampled. coarse, coarse_mask: [K, H, W]
    in [0, 1] and bool, None without a condition branch.
    """

    soft: np.ndarray | None = None
    masks: np.ndarray | None = None
    fused: np.ndarray | None = None
    agreement: float = math.nan
    spread: np.ndarray | None = None
    coarse: np.ndarray | None = None
    coarse_mask: np.ndarray | None = None

    @classmethod
    def of(cls, soft, coarse, method, exclusive):
        """From soft members and coarse masks, both [E, 1, K, H, W] or None. method, exclusive: see
        `ensemble.fuse_masks`."""
        drawn = cls()
        if coarse is not None:
            coarse = coarse.mean(dim=0)[0]
            drawn.coarse, drawn.coarse_mask = coarse.numpy(), member_masks(coarse, exclusive).numpy()
        if soft is not None:
            masks = member_masks(soft, exclusive)
            drawn.soft, drawn.masks = soft[:, 0].numpy(), masks[:, 0].numpy()
            drawn.fused = fuse_masks(soft, method, exclusive)[0].numpy()
            if len(soft) > 1:
                drawn.agreement = _mean(pairwise_dice(masks)[0].tolist())
                drawn.spread = uncertainty(soft)[0].numpy()
        return drawn

    def figures(self, truth):
        """{name in `FIGURES`: value} against a truth bool [K, H, W]; NaN where undefined or not sampled.

        Each figure is a mean over the classes for which it is defined. empty, full: the share of members that are empty
        or full, over classes whose truth is not.
        """
        figures = dict.fromkeys(FIGURES, math.nan) | {"agreement": self.agreement}
        if self.coarse is not None:
            figures["coarse_dice"] = mean_dice(self.coarse_mask, truth)
        if self.soft is None:
            return figures
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
            return f"{title}: {mean_dice(mask, truth):.2f}", pictures.mask(values)

        tiles = [(name[:20], pictures.image), ("truth", pictures.mask(truth))]
        if self.soft is not None and len(self.soft) > 1:
            pairs = zip(self.soft, self.masks, strict=True)
            tiles += [scored(f"member {n}", soft, mask) for n, (soft, mask) in enumerate(pairs)]
            tiles += [scored("fused", self.fused, self.fused), ("uncertainty", pictures.uncertainty(self.spread))]
        elif self.soft is not None:
            tiles.append(scored("mask", self.soft[0], self.fused))
        if self.coarse is not None:
            tiles.append(scored("coarse", self.coarse, self.coarse_mask))
        return tiles


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
