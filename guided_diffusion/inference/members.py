"""Drawing an ensemble: its noise, the loop over rows of members, and the coupling of members to the coarse mask."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..diffusion.losses import class_probabilities
from ..runtime.seeds import seeded_generator
from .tiles import Tiled
from .tta import SYMMETRIES, each_turned, encoded

LARGEST_LOGIT = 16.0  # float32 probabilities near 1 resolve no larger logits


class Members(NamedTuple):
    """The masks of an ensemble, [E, N, K, H, W] in [0, 1]: `soft`, and the last step's `coarse` masks or None."""

    soft: torch.Tensor
    coarse: torch.Tensor | None

    def cpu(self):
        """Both on the CPU."""
        return Members(*(None if x is None else x.cpu() for x in self))


# ---- drawing -------------------------------------------------------------------------------------------------------


@contextmanager
def _evaluating(model):
    """Within, the model is in evaluation mode (no dropout). Each module then returns to its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.inference_mode()
def draw_members(model, diffusion, plan, image, names, *, members, seed=0, label=None, watch=None, rows=None):
    """Draw `members` masks for each image; the image is encoded once. Returns `Members`.

    plan: a `SamplingPlan`; image: [N, C, H, W]; names: N case names, which with `seed` decide the noise; label: int
    [N] or None. rows: how many masks pass the network at once; None: all E * N. Results do not depend on it, except for
    rounding. watch(x, x0): called at each step of each pass with x_t and x0, [rows, K, H, W]. The network is in
    evaluation mode meanwhile.
    """
    count = members * len(names)
    soft, coarse = [], []
    whole = not isinstance(model, Tiled)
    is_square = image.shape[-1] == image.shape[-2]
    symmetries = SYMMETRIES if plan.symmetric and is_square and whole else SYMMETRIES[:1]
    of_members = symmetries[:members]
    with _evaluating(model):
        condition = encoded(
            model,
            image,
            label,
            kept=len(of_members),
            symmetries=symmetries,
            scales=plan.scales if whole else (),
            rows=rows or count,
            exclusive=diffusion.exclusive,
        )
        for low in range(0, count, rows or count):
            part = _Rows(names, of_members, range(low, min(low + (rows or count), count)))
            x0, logits = _draw_rows(model, diffusion, plan, condition, part, image, seed, watch)
            soft.append(diffusion.to_mask(x0.float()))
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
    """A range of all E * N rows: row e * N + n is member e of image n, which it sees in a symmetry of its own."""

    names: list
    symmetries: tuple
    part: range

    @property
    def members(self):
        """(case name, member) of each row."""
        return [(self.names[row % len(self.names)], row // len(self.names)) for row in self.part]

    @property
    def conditions(self):
        """The index of each row's condition (see `tta.encoded`)."""
        count = len(self.names)
        return [
            member % len(self.symmetries) * count + row % count
            for row, (_, member) in zip(self.part, self.members, strict=True)
        ]

    def turn(self, x, back=False):
        """Rows [rows, K, H, W], each turned (or turned back) by its member's symmetry."""
        return each_turned(x, [self.symmetries[member % len(self.symmetries)] for _, member in self.members], back)


def _draw_rows(model, diffusion, plan, condition, rows, image, seed, watch):
    """The last step's x0 and coarse logits (or None) of these `_Rows`, both [rows, K, H, W]."""
    condition = condition.rows(torch.tensor(rows.conditions, device=image.device))
    denoiser = diffusion.denoiser(model, condition, clip=plan.clip, dynamic_threshold=plan.dynamic_threshold)
    noise = MemberNoise(seed, rows.members, (model.mask_channels, *image.shape[-2:]), image.device)
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


# ---- noise ---------------------------------------------------------------------------------------------------------


def member_generator(seed, name, member):
    """The CPU generator of one member of one case. (seed, name, member) alone decide its noise."""
    return seeded_generator(seed, name, member)


class MemberNoise:
    """Standard noise for rows of members, each row from a generator of its own.

    Noise is drawn on the CPU, so it is the same for every device. members: (case name, member) of each row.
    """

    def __init__(self, seed, members, shape, device):
        self.generators = [member_generator(seed, name, member) for name, member in members]
        self.shape, self.device = shape, device

    def __call__(self):
        """Returns float32 [rows, K, H, W]."""
        rows = torch.stack([torch.randn(self.shape, generator=generator) for generator in self.generators])
        if torch.device(self.device).type == "cuda":  # pinned memory is copied without waiting
            return rows.pin_memory().to(self.device, non_blocking=True)
        return rows.to(self.device)


# ---- coupling ------------------------------------------------------------------------------------------------------


def coupled(soft, probability, sigma=0.0):
    """Members with the mean `probability` and, at each pixel, the order of the drawn members: ensemble copula coupling.

    At each pixel the E members are ranked by their logits. The first p E of them get 1, the others 0, and the one at
    the edge the fraction between. So the dependence between pixels is that of the drawn members, and the probability at
    each pixel is the given one (Schefzik et al., Statistical Science 28, 2013). Members that tie are ranked by their
    sums of logits.

    sigma: logits are smoothed first by a Gaussian of `sigma` pixels, as ranks of single pixels give ragged outlines.
    soft: [E, N, K, H, W] in [0, 1]; probability: [N, K, H, W] in [0, 1]. Returns float32 masks like `soft`; with one
    member the probability itself.
    """
    members = len(soft)
    logits = torch.logit(soft.float(), eps=1e-7).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    logits = smoothed(logits, sigma) if sigma else logits
    by_size = logits.sum(dim=(-2, -1)).argsort(dim=0, descending=True, stable=True)  # [E, N, K]
    order = by_size[..., None, None].expand_as(logits)
    ranked = logits.gather(0, order).argsort(dim=0, descending=True, stable=True)  # places in `order`, largest first
    rank = torch.empty_like(ranked).scatter_(0, order.gather(0, ranked), _counting(ranked))
    return (probability.float() * members - rank).clamp(0, 1)


def smoothed(x, sigma):
    """x [..., H, W] convolved with a Gaussian of `sigma` pixels, cut off at 3 sigma; borders are replicated."""
    reach = int(3 * sigma + 0.5)
    weights = torch.exp(-(torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype) ** 2) / (2 * sigma**2))
    weights = weights / weights.sum()
    padded = F.pad(x.reshape(-1, 1, *x.shape[-2:]), [reach] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights[None, None, :, None]), weights[None, None, None]).reshape(x.shape)


def _counting(x):
    """0, 1, 2, ... along the first dimension, int64 of the shape of x."""
    return torch.arange(len(x), device=x.device).reshape(-1, *[1] * (x.ndim - 1)).expand_as(x).contiguous()
