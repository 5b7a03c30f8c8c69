"""The reverse process: DDPM and DDIM, and the one entry point that draws an ensemble of masks with any sampler.

Every sampler is a function `sampler(denoise, x, timesteps, schedule, noise, watch) -> x0`, with settings of its own as
keywords: denoise(x, t) -> `Denoised`, for an int t; x: [B, K, H, W], pure noise; timesteps: falling ints, a subset of
the training schedule; noise(): fresh standard noise like x; watch(x, x0): called with each step's x_t and x0, for
pictures. The result is the mask's x0 prediction of the last step, in about [-1, 1].
"""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..diffusion.losses import class_probabilities
from ..runtime.seeds import seeded_generator
from .tiles import Tiled
from .tta import SYMMETRIES, each_turned, encoded

# ---- Members whose dependence is the diffusion's and whose mean is a given probability: the ensemble copula coupling


LARGEST_LOGIT = 16.0  # what a float32 soft mask can tell apart


def coupled(soft, probability, sigma=0.0):
    """Members whose mean is `probability`, in the order in which the drawn members stand at each pixel.

    At each pixel the drawn members are ranked by how sure they are of the foreground, and the first p E of E have it
    (the one on the edge in part): as ensemble copula coupling (Schefzik et al., Statistical Science 28, 2013) keeps a
    weather ensemble's dependence between places and takes the margins from what is calibrated at each. Members that
    are equally sure stand in the order of their whole size.

    How sure a member is, is told by the pixel's neighbourhood, a Gaussian of `sigma` pixels: a draw's doubt about the
    single pixel would leave outlines ragged that readers draw in one go.

    soft: [E, N, K, H, W] in [0, 1]; probability: [N, K, H, W] in [0, 1]. Returns soft masks, float32 like `soft`; of
    one member, the probability itself.
    """
    members = len(soft)
    sure = torch.logit(soft.float(), eps=1e-7).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    sure = smoothed(sure, sigma) if sigma else sure
    by_size = sure.sum(dim=(-2, -1)).argsort(dim=0, descending=True, stable=True)  # [E, N, K]
    order = by_size[..., None, None].expand_as(sure)
    ranked = sure.gather(0, order).argsort(dim=0, descending=True, stable=True)  # places in `order`, surest first
    rank = torch.empty_like(ranked).scatter_(0, order.gather(0, ranked), _counting(ranked))
    return (probability.float() * members - rank).clamp(0, 1)


def smoothed(x, sigma):
    """x: [..., H, W], convolved with a Gaussian of `sigma` pixels, cut off at three of them; beyond the borders is what
    lies on them."""
    reach = int(3 * sigma + 0.5)
    weights = torch.exp(-(torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype) ** 2) / (2 * sigma**2))
    weights = weights / weights.sum()
    padded = F.pad(x.reshape(-1, 1, *x.shape[-2:]), [reach] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights[None, None, :, None]), weights[None, None, None]).reshape(x.shape)


def _counting(x):
    """0, 1, 2, ... along the first dimension, int64 of the shape of x."""
    return torch.arange(len(x), device=x.device).reshape(-1, *[1] * (x.ndim - 1)).expand_as(x).contiguous()


def member_generator(seed, name, member):
    """The CPU generator of one ensemble member of one case: (seed, name, member) alone decide its noise."""
    return seeded_generator(seed, name, member)


class MemberNoise:
    """Standard noise for rows of ensemble members, each row from a generator of its own.

    Drawn on the CPU, so that a result is the same on every device. members: a (case name, member) for each row.
    """

    def __init__(self, seed, members, shape, device):
        self.generators = [member_generator(seed, name, member) for name, member in members]
        self.shape, self.device = shape, device

    def __call__(self):
        """Returns float32 [rows, K, H, W]."""
        rows = torch.stack([torch.randn(self.shape, generator=generator) for generator in self.generators])
        if torch.device(self.device).type == "cuda":  # from pinned memory it is copied without waiting for the GPU
            return rows.pin_memory().to(self.device, non_blocking=True)
        return rows.to(self.device)


class Members(NamedTuple):
    """An ensemble's masks in [0, 1]: soft [E, N, K, H, W], and the last step's coarse masks likewise (or None)."""

    soft: torch.Tensor
    coarse: torch.Tensor | None

    def cpu(self):
        """The same on the CPU."""
        return Members(*(None if x is None else x.cpu() for x in self))


@contextmanager
def _evaluating(model):
    """The model in evaluation mode (no dropout), each of its modules afterwards in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.inference_mode()
def draw_members(
    model,
    diffusion,
    plan,
    image,
    names,
    *,
    members,
    seed=0,
    label=None,
    watch=None,
    rows=None,
):
    """Draw `members` masks for each image, which is encoded once; row e * N + n of the work is member e of image n.

    plan: a `SamplingPlan`; image: [N, C, H, W]; names: N case names, which with `seed` decide the noise; label: int
    [N] or None. rows: how many go through the network in one pass; None: all E * N. A result does not depend on it
    but for rounding. watch(x, x0): called at each step of each pass with x_t and its x0, [rows, K, H, W]. The network
    is in evaluation mode meanwhile, whatever mode it is in. Returns `Members`.
    """
    count = members * len(names)
    soft, coarse = [], []
    whole = not isinstance(model, Tiled)
    looks = SYMMETRIES if plan.symmetric and image.shape[-1] == image.shape[-2] and whole else SYMMETRIES[:1]
    symmetries = looks[:members]
    with _evaluating(model):
        condition = encoded(
            model,
            image,
            label,
            kept=len(symmetries),
            symmetries=looks,
            scales=plan.scales if whole else (),
            rows=rows or count,
            exclusive=diffusion.exclusive,
        )
        for low in range(0, count, rows or count):
            part = _Rows(names, symmetries, range(low, min(low + (rows or count), count)))
            x0, logits = _draw_rows(model, diffusion, plan, condition, part, image, seed, watch)
            soft.append((x0.float().clamp(-1, 1) + 1) / 2)
            coarse.append(logits)

    def ensemble_shape(parts):
        return torch.cat(parts).unflatten(0, (members, len(names)))  # [E * N, K, H, W] -> [E, N, K, H, W]

    soft = ensemble_shape(soft)
    if coarse[0] is None:
        return Members(soft, None)
    coarse = class_probabilities(ensemble_shape(coarse).float(), diffusion.exclusive)
    if plan.coupling_sigma is not None and members > 1:
        side = image.shape[-1] if whole else model.size
        soft = coupled(soft, coarse.mean(dim=0), plan.coupling_sigma * side)
    return Members(soft, coarse)


@dataclass(frozen=True)
class _Rows:
    """Whose the rows of the work are, member by member, and in which symmetry each member sees its image."""

    names: list
    symmetries: tuple
    part: range

    @property
    def who(self):
        """(case name, member) of each row."""
        return [(self.names[row % len(self.names)], row // len(self.names)) for row in self.part]

    @property
    def conditions(self):
        """Each row's among the conditions of all symmetries (see `looks.encoded`)."""
        count = len(self.names)
        return [
            member % len(self.symmetries) * count + row % count
            for row, (_, member) in zip(self.part, self.who, strict=True)
        ]

    def turn(self, x, back=False):
        """Rows [rows, K, H, W] as their members see them, or back."""
        return each_turned(x, [self.symmetries[member % len(self.symmetries)] for _, member in self.who], back)


def _draw_rows(model, diffusion, plan, condition, rows, image, seed, watch):
    """The last step's x0 [rows, K, H, W] and coarse logits (or None) of some `_Rows`."""
    condition = condition.rows(torch.tensor(rows.conditions, device=image.device))
    denoiser = diffusion.denoiser(model, condition, clip=plan.clip, dynamic_threshold=plan.dynamic_threshold)
    noise = MemberNoise(seed, rows.who, (model.mask_channels, *image.shape[-2:]), image.device)
    last = {}

    def denoise(x, t):
        denoised = denoiser(x, t)
        last["coarse"] = denoised.coarse
        return denoised

    def watch_turned(x, x0):
        watch(rows.turn(x, back=True), rows.turn(x0, back=True))

    x0 = plan.run(denoise, rows.turn(noise()), diffusion.schedule, noise, watch and watch_turned)
    coarse = last["coarse"]
    return rows.turn(x0, back=True), None if coarse is None else rows.turn(coarse, back=True)
