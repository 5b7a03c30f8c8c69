"""Validation while a model trains: a few fixed cases are sampled fast, scored and drawn."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from .batches import collate
from .dist_util import Processes, autocast
from .ensemble import fuse, pairwise_dice, uncertainty
from .metrics import overlap, statistics
from .pictures import captions, displayed, grey, heat, mosaic, radiological, resized
from .plan import ONE_LOOK, plan_sampling
from .run_options import SampleOptions
from .sampling import draw_members

MEMBERS, STEPS = 5, 10  # of DPM-Solver++: enough to see what is learned, little beside the training between
TILE = 128  # pixels of a picture in the grid
TRIES = 16  # cases looked at for one that has something to segment
NEARLY_ALL = 0.95  # of an image's pixels: a mask beyond it is full

# What a validation gives, each a mean over cases (of K classes, of their mean); in the log as val_NAME.
FIGURES = ("dice", "member_dice", "coarse_dice", "agreement", "empty", "full")
LOGGED = tuple(f"val_{name}" for name in FIGURES)


def spread_cases(dataset, count):
    """The indices of `count` cases spread evenly over a data set, by preference such as have something to segment.

    They are the same for the same data. Of each of `count` equal parts of the data set the middle case is taken, or
    the nearest to it with a mask that is not empty, if one of the next few has one.
    """
    count = min(count, len(dataset.cases))
    bounds = np.linspace(0, len(dataset.cases), count + 1).round().astype(int)
    return [_filled(dataset, range(low, high)) for low, high in zip(bounds[:-1], bounds[1:], strict=True)]


def _filled(dataset, part):
    middle = part[len(part) // 2]
    for index in sorted(part, key=lambda index: (abs(index - middle), index))[:TRIES]:
        if dataset.load_mask(dataset.cases[index]).any():
            return index
    return middle


@dataclass
class Seen:
    """What one validation found. figures: the mean of each of `FIGURES` over the cases, NaN where undefined; picture:
    RGB uint8 [H, W, 3]; coarse_only: whether the diffusion was not asked; seconds: what it took."""

    figures: dict
    picture: np.ndarray
    coarse_only: bool
    seconds: float

    @property
    def dice(self):
        """The Dice by which checkpoints are compared: of the ensemble; NaN where it was not asked."""
        return self.figures["dice"]

    @property
    def shown_dice(self):
        """The Dice to show: that of the coarse mask where the diffusion was not asked."""
        return self.figures["coarse_dice" if self.coarse_only else "dice"]

    @property
    def logged(self):
        """The figures by their names in the log."""
        return {f"val_{name}": value for name, value in self.figures.items()}


@dataclass
class Validation:
    """The cases of `dataset` (a `SegmentationDataset` with masks) at these `indices`, and how they are sampled.

    source: what they are, in words. diffusion: a `GaussianDiffusion`. has_diffusion: False for the plain U-Net, which
    answers once. seed: of the noise, which is the same at each validation. processes: share the cases; all call `look`.
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
    _read: dict = field(default_factory=dict)

    def __post_init__(self):
        self.processes = self.processes or Processes(0, 1, self.device)
        options = SampleOptions(dpm_solver=True, diffusion_steps=min(STEPS, self.diffusion.num_timesteps))
        self.fuse = options.fuse
        self.plan = plan_sampling(options, {"dpm_solver", "diffusion_steps"}, self.diffusion)

    @property
    def names(self):
        """The names of the cases."""
        return [self.dataset.cases[index].name for index in self.indices]

    def look(self, model, *, coarse_only=False, stopped=lambda: False):
        """Sample the cases with the weights that `model` has, score and draw them.

        coarse_only: look at the condition branch's own mask alone. stopped(): asked in every process before each case
        whether to leave off; if any says so the result is None, in all of them. Every process runs the network equally
        often, as sharded weights need it. Returns a `Seen`, the same everywhere.
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
        figures = {name: statistics([answer["figures"][name] for answer in answers])["mean"] for name in FIGURES}
        return Seen(figures, picture_grid(answers), coarse_only, time.monotonic() - began)

    def _answer(self, model, index, coarse_only):
        """One case sampled: {"figures", "tiles"}, of plain types."""
        batch, show = self._case(index)
        one_look = coarse_only or not self.has_diffusion
        conditional = model.label_embedding is not None
        with autocast(self.precision, self.device):
            drawn = draw_members(
                model,
                self.diffusion,
                ONE_LOOK if one_look else self.plan,
                batch["image"].to(self.device),
                batch["name"],
                members=1 if one_look else MEMBERS,
                seed=self.seed,
                label=batch["label"].to(self.device) if conditional else None,
            ).cpu()
        soft = None if coarse_only else drawn.soft  # [E, 1, K, S, S]
        coarse = None if drawn.coarse is None else drawn.coarse.mean(dim=0)[0].numpy()  # [K, S, S]
        truth = batch["mask"][0].numpy().mean(axis=0) > 0.5  # [R, K, S, S] -> [K, S, S]
        fused = None if soft is None else fuse(soft, self.fuse)[0].numpy() > 0.5
        name = batch["name"][0]
        tiles = _tiles(name, show, soft, fused, coarse, truth)
        return {"figures": figures_of(soft, fused, coarse, truth), "tiles": tiles}

    def _case(self, index):
        """A case's batch of one and its `_Show`; it is read once."""
        if index not in self._read:
            self._read[index] = collate([self.dataset[index]]), _Show(self.dataset, self.dataset.cases[index])
        return self._read[index]


def figures_of(soft, fused, coarse, truth):
    """{name of `FIGURES`: value} of one case; NaN where undefined or where what it is of is None.

    soft: the members [E, 1, K, H, W] in [0, 1]; fused: bool [K, H, W]; coarse: [K, H, W] in [0, 1]; truth: bool
    [K, H, W]. agreement: mean Dice of pairs of members; empty, full: the share of members that are so, and should not
    be. Classes are averaged where they are defined.
    """

    figures = dict.fromkeys(FIGURES, float("nan"))
    if coarse is not None:
        figures["coarse_dice"] = mean_dice(coarse > 0.5, truth)
    if soft is not None:
        votes = soft > 0.5
        members = votes[:, 0].numpy()  # [E, K, H, W]
        figures["dice"] = mean_dice(fused, truth)
        if len(members) > 1:
            figures["member_dice"] = _mean(mean_dice(member, truth) for member in members)
            figures["agreement"] = _mean(pairwise_dice(votes)[0].tolist())
        there, most = truth.any(axis=(1, 2)), truth.mean(axis=(1, 2)) > NEARLY_ALL  # [K]
        if there.any():
            figures["empty"] = float((~members.any(axis=(2, 3)))[:, there].mean())
        if not most.all():
            figures["full"] = float((members.mean(axis=(2, 3)) > NEARLY_ALL)[:, ~most].mean())
    return figures


def mean_dice(mask, truth):
    """The mean of the Dice of K classes, bool [K, H, W], where it is defined; NaN where none is."""
    return _mean(overlap(one, other)["dice"] for one, other in zip(mask, truth, strict=True))


def _mean(values):
    return statistics(list(values))["mean"]


class _Show:
    """Tiles of one case, in the proportions and the orientation in which its image is shown."""

    def __init__(self, dataset, case):
        geometry = dataset.geometry(case)
        self.affine = None if geometry is None else geometry.affine
        picture = self._upright(displayed(dataset.load_image(case)))
        self.proportions = picture.shape[:2]
        self.image = resized(picture, TILE)

    def _upright(self, picture):
        return picture if self.affine is None else radiological(picture, self.affine)

    def _tile(self, picture):
        return resized(self._upright(picture), TILE, self.proportions)

    def mask(self, soft):
        """[K, H, W] in [0, 1]: of several classes the strongest at each pixel, in a grey of its own."""
        levels = (np.arange(len(soft)) + 1)[:, None, None] / len(soft)
        return self._tile(grey((soft * levels).max(axis=0)))

    def uncertainty(self, deviation):
        """[K, H, W] in [0, 0.5]: of several classes the largest."""
        return self._tile(heat(2 * deviation.max(axis=0)))


def _tiles(name, show, soft, fused, coarse, truth):
    """What the grid shows of a case: a list of (caption, tile), with the Dice of each mask."""

    def scored(title, mask, cut):
        return f"{title}: {mean_dice(cut, truth):.2f}", show.mask(mask)

    tiles = [(name[:20], show.image), ("truth", show.mask(truth))]
    if soft is not None and len(soft) > 1:
        members = soft[:, 0].numpy()  # [E, K, S, S]
        tiles += [scored(f"member {n}", member, member > 0.5) for n, member in enumerate(members)]
        tiles += [scored("fused", fused, fused), ("uncertainty", show.uncertainty(uncertainty(soft)[0].numpy()))]
    elif soft is not None:
        tiles.append(scored("mask", soft[0, 0].numpy(), fused))
    if coarse is not None:
        tiles.append(scored("coarse", coarse, coarse > 0.5))
    return tiles


def picture_grid(answers):
    """A row of tiles for each answer, below their captions; RGB uint8 [H, W, 3]."""
    rows = []
    for answer in answers:
        titles, pictures = zip(*answer["tiles"], strict=True)
        rows += [captions(titles, TILE), mosaic([pictures])]
    return np.concatenate(rows)
