"""Validation while a model trains: a few fixed cases are sampled fast, scored and drawn."""

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

MEMBERS, STEPS = 5, 10  # of DPM-Solver++: enough to see what is learned, little beside the training between


TILE = 128  # pixels of a picture in the grid


TRIES = 16  # cases looked at for one that has something to segment


TILES_AT_ONCE = 8  # of an image larger than the network, beside a training


NEARLY_ALL = 0.95  # of an image's pixels: a mask beyond it is full


# What a validation gives, each a mean over cases (of K classes, of their mean); in the log as val_NAME.
FIGURES = ("dice", "member_dice", "coarse_dice", "agreement", "empty", "full")


def spread_cases(dataset, count):
    """The indices of `count` cases spread evenly over a data set, by preference such as have something to segment.

    They are the same for the same data. Of each of `count` equal parts of the data set the middle case is taken, or
    the nearest to it with a mask that is not empty, if one of the next few has one.
    """
    filled = ((_filled(dataset, part), part) for part in _equal_parts(dataset, count))
    return [_middle(part) if index is None else index for index, part in filled]


def marked_cases(dataset, count):
    """The cases with something marked that `spread_cases` would take; masks are read as cases are asked for."""
    for part in _equal_parts(dataset, count):
        index = _filled(dataset, part)
        if index is not None:
            yield dataset.cases[index]


def _equal_parts(dataset, count):
    """Ranges of indices."""
    bounds = np.linspace(0, len(dataset.cases), min(count, len(dataset.cases)) + 1).round().astype(int)
    return [range(low, high) for low, high in zip(bounds[:-1], bounds[1:], strict=True)]


def _middle(part):
    return part[len(part) // 2]


def _filled(dataset, part):
    """The index nearest to the middle of a part, of the next few, whose mask is not empty, or None."""
    nearest = sorted(part, key=lambda index: (abs(index - _middle(part)), index))[:TRIES]
    return next((index for index in nearest if dataset.load_mask(dataset.cases[index]).any()), None)


@dataclass
class ValidationResult:
    """What one validation found. figures: the mean of each of `FIGURES` over the cases, NaN where undefined; picture:
    RGB uint8 [H, W, 3]; coarse_only: whether the condition model alone was validated; seconds: what it took."""

    figures: dict
    picture: np.ndarray
    coarse_only: bool
    seconds: float

    @property
    def dice(self):
        """The Dice by which checkpoints are compared: the ensemble's; NaN where the diffusion was not sampled."""
        return self.figures["dice"]

    @property
    def shown_dice(self):
        """The Dice to show: the coarse mask's where the diffusion was not sampled."""
        return self.figures["coarse_dice" if self.coarse_only else "dice"]

    @property
    def logged(self):
        """The figures by their names in the log."""
        return {f"val_{name}": value for name, value in self.figures.items()}


@dataclass
class Validation:
    """The cases of `dataset` (a `SegmentationDataset` with masks) at these `indices`, and how they are sampled.

    source: a noun for them in the singular. diffusion: a `GaussianDiffusion`. has_diffusion: False for the plain U-Net,
    which has one answer. seed: of the noise, the same at each validation. processes: share the cases; all call
    `validate`.
    rows: how many members go through the network at once, where memory is scarce; None: all of a case.
    train: the options of the training, which decide how members are drawn (see `settings.members_as_trained`).
    No global random state is read or changed.
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
        exclusive = self.diffusion.exclusive
        options = members_as_trained(options, self.train, exclusive=exclusive, has_diffusion=self.has_diffusion)
        is_published = self.train.get("recipe") == "published"
        given = {"dpm_solver", "diffusion_steps"}
        self.plan = plan_sampling(options, given, self.diffusion, is_published=is_published)
        self.fuse = options.fuse

    @property
    def names(self):
        """The names of the cases."""
        return [self.dataset.cases[index].name for index in self.indices]

    def validate(self, model, *, coarse_only=False, stopped=lambda: False):
        """Sample the cases with the weights that `model` has, score and draw them.

        coarse_only: sample the condition branch's own mask alone. stopped(): every process asks it before each case;
        where one is to stop, all return None. Every process runs the network equally often, as sharded weights need
        it. Returns a `ValidationResult`, the same everywhere.
        """
        began, own = time.monotonic(), []
        each = -(-len(self.indices) // self.processes.count)
        with tqdm(desc="sampling", total=each, unit="case", leave=False, disable=not self.processes.is_first) as bar:
            for turn in range(each):
                if self.processes.largest({"stop": bool(stopped())})["stop"]:
                    return None
                place = turn * self.processes.count + self.processes.rank
                answer = self._answer(model, self.indices[place % len(self.indices)], coarse_only)
                own += [answer] if place < len(self.indices) else []
                bar.update()
        shares = self.processes.gather(own)
        answers = [share[turn] for turn in range(each) for share in shares if turn < len(share)]  # in their order
        figures = {name: _mean(answer["figures"][name] for answer in answers) for name in FIGURES}
        return ValidationResult(figures, picture_grid(answers), coarse_only, time.monotonic() - began)

    def _answer(self, model, index, coarse_only):
        """One case sampled: {"figures", "tiles"}, of plain types."""
        batch, show = self._case(index)
        one_look = coarse_only or not self.has_diffusion
        conditional, size = model.label_embedding is not None, batch["size"][0]
        # Several processes run the network equally often: all tiles in one pass, however many they are.
        rows = TILES_AT_ONCE if self.processes.count == 1 else None
        model = in_tiles(model, batch["image"], self.dataset.image_size, SampleOptions.tile_overlap, rows)
        with autocast(self.precision, self.device):
            drawn = draw_members(
                model,
                self.diffusion,
                ONE_STEP if one_look else self.plan,
                batch["image"].to(self.device),
                batch["name"],
                members=1 if one_look else MEMBERS,
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
        return {"figures": drawn.figures(truth), "tiles": drawn.tiles(batch["name"][0], show, truth)}

    def _case(self, index):
        """A case's batch of one and its `_Show`; it is read once."""
        if index not in self._read:
            self._read[index] = collate([self.dataset.load_item(index)]), _Show(self.dataset, self.dataset.cases[index])
        return self._read[index]


@dataclass
class Drawn:
    """What was drawn of one case, by K classes. soft: the members, float32 [E, K, H, W] in [0, 1]; masks: each
    member's own, bool [E, K, H, W]; fused: bool [K, H, W]; all None where the diffusion was not sampled. agreement: the
    mean Dice of pairs of members. coarse, coarse_mask: [K, H, W] in [0, 1] and bool, None without such a branch."""

    soft: np.ndarray | None = None
    masks: np.ndarray | None = None
    fused: np.ndarray | None = None
    agreement: float = math.nan
    spread: np.ndarray | None = None
    coarse: np.ndarray | None = None
    coarse_mask: np.ndarray | None = None

    @classmethod
    def of(cls, soft, coarse, method, exclusive):
        """From the soft members and coarse masks [E, 1, K, H, W], either may be None; method, exclusive: see
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
        """{name of `FIGURES`: value}, against a truth bool [K, H, W]; NaN where undefined or not sampled.

        empty, full: the share of members that are so and should not be. Classes are averaged where they are defined.
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

    def tiles(self, name, show, truth):
        """What the grid shows: a list of (caption, tile), with the Dice of each mask. show: a `_Show`."""

        def scored(title, values, mask):
            return f"{title}: {mean_dice(mask, truth):.2f}", show.mask(values)

        tiles = [(name[:20], show.image), ("truth", show.mask(truth))]
        if self.soft is not None and len(self.soft) > 1:
            pairs = zip(self.soft, self.masks, strict=True)
            tiles += [scored(f"member {n}", soft, mask) for n, (soft, mask) in enumerate(pairs)]
            tiles += [scored("fused", self.fused, self.fused), ("uncertainty", show.uncertainty(self.spread))]
        elif self.soft is not None:
            tiles.append(scored("mask", self.soft[0], self.fused))
        if self.coarse is not None:
            tiles.append(scored("coarse", self.coarse, self.coarse_mask))
        return tiles


def mean_dice(mask, truth):
    """The mean of the Dice of K classes, bool [K, H, W], where it is defined; NaN where none is."""
    return _mean(overlap(one, other)["dice"] for one, other in zip(mask, truth, strict=True))


def _mean(values):
    return mean_defined(list(values))


class _Show:
    """Tiles of one case, in the proportions and the orientation in which its image is shown."""

    def __init__(self, dataset, case):
        geometry = dataset.load_geometry(case)
        self.affine = None if geometry is None else geometry.affine
        picture = radiological(displayed(dataset.load_image(case)), self.affine)
        self.proportions = picture.shape[:2]
        self.image = resized(picture, TILE)

    def _tile(self, picture):
        return resized(radiological(picture, self.affine), TILE, self.proportions)

    def mask(self, soft):
        """[K, H, W] in [0, 1], or bool; several classes in their colours."""
        return self._tile(tinted(soft.astype(np.float32)))

    def uncertainty(self, deviation):
        """[K, H, W] in [0, 0.5]: of several classes the largest."""
        return self._tile(heat(2 * deviation.max(axis=0)))


def picture_grid(answers):
    """A row of tiles for each answer, below their captions; RGB uint8 [H, W, 3]."""
    rows = []
    for answer in answers:
        titles, pictures = zip(*answer["tiles"], strict=True)
        rows += [captions(titles, TILE), mosaic([pictures])]
    return np.concatenate(rows)
