"""Drawing an ensemble: its noise, and the loop over rows of members. An answer in one pass, without members."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..diffusion.losses import class_probabilities
from ..diffusion.smooth_fields import field_factor, smooth_uniform
from ..runtime.distributed import HostCopies, sent
from ..runtime.seeds import seeded_generator
from .published import fused_by_published
from .tiles import Tiled
from .tta import SYMMETRIES, each_turned, encoded


class Members(NamedTuple):
    """The masks of an ensemble, float32 [E, N, K, H, W] in [0, 1].

    soft: the probabilities at the last step. coarse: the last step's coarse masks, or None. drawn: of a sampler that
    draws masks, the masks of 0 and 1 drawn from `soft`, whose mean has the exact margins; else None: a member's mask
    is then `soft` cut (see `ensemble.member_masks`).
    """

    soft: torch.Tensor
    coarse: torch.Tensor | None
    drawn: torch.Tensor | None = None

    def cpu(self):
        """All on the CPU. The device is waited for once."""
        return Members(*HostCopies(self).read())


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
def draw_members(model, diffusion, plan, image, names, *, members, seed=0, label=None, watch=None, rows=None, first=0):
    """Draw `members` masks for each image; the image is encoded once. Returns `Members`.

    plan: a `SamplingPlan`; image: [N, C, H, W]; names: N names, which with `seed` decide the noise: of cases, or of the
    volume whose slices the images are, so that a member has the same noise in every slice; label: int [N] or None.
    first: the number of the first member, which decides its noise and symmetry: of several checkpoints each continues
    where the one before it ends.
    rows: how many masks pass the network at once; None: all E * N. Results do not depend on it, except for rounding.
    watch(x, x0): called at each step of each pass with x_t and x0, [rows, K, H, W]. The network is in evaluation mode
    meanwhile.
    """
    count = members * len(names)
    parts = []
    symmetries, scales = _views(model, plan, image)
    begin = first % len(symmetries)
    symmetries = symmetries[begin:] + symmetries[:begin]
    of_members = symmetries[:members]
    with _evaluating(model):
        condition = encoded(
            model,
            image,
            label,
            kept=len(of_members),
            symmetries=symmetries,
            scales=scales,
            rows=rows or count,
            exclusive=diffusion.exclusive,
        )
        for low in range(0, count, rows or count):
            part = _Rows(names, of_members, range(low, min(low + (rows or count), count)), first)
            parts.append(_draw_rows(model, diffusion, plan, condition, part, image, seed, watch))

    def ensemble_shape(values):
        if values[0] is None:
            return None
        return torch.cat(values).float().unflatten(0, (members, len(names)))  # [E * N, K, H, W] -> [E, N, K, H, W]

    x0, coarse, drawn = map(ensemble_shape, zip(*parts, strict=True))
    coarse = None if coarse is None else class_probabilities(coarse, diffusion.exclusive)
    soft = diffusion.to_mask(x0)
    if plan.published:
        low, high = diffusion.from_mask(0.0), diffusion.from_mask(1.0)
        sample = (x0 - low) / (high - low)  # as `to_mask`, but values beyond 0 and 1 count
        soft = fused_by_published(sample, coarse, plan.published, is_solver=plan.sampler == "dpm_solver")
    return Members(soft, coarse, None if drawn is None else diffusion.to_mask(drawn))


@torch.inference_mode()
def answer_in_one_pass(model, diffusion, plan, image, *, label=None, rows=None):
    """The condition model's probability, without the diffusion: `Members` of one soft mask, which is also `coarse`.

    plan: a `SamplingPlan`, of which test-time augmentation counts. Other arguments as of `draw_members`. The model is
    a V2 or `Tiled` around one.
    """
    symmetries, scales = _views(model, plan, image)
    with _evaluating(model):
        views = {"kept": 1, "symmetries": symmetries, "scales": scales, "rows": rows or len(image)}
        condition = encoded(model, image, label, exclusive=diffusion.exclusive, **views)
    if isinstance(model, Tiled):
        logits = condition.blended(condition.conditions.coarse)
    else:
        logits = condition.coarse
    probability = class_probabilities(logits, diffusion.exclusive).float()[None]
    return Members(probability, probability)


def _views(model, plan, image):
    """The symmetries and the further scales of the image that the plan asks for; tiled images have neither."""
    whole, is_square = not isinstance(model, Tiled), image.shape[-1] == image.shape[-2]
    symmetries = SYMMETRIES if plan.symmetric and is_square and whole else SYMMETRIES[:1]
    return symmetries, plan.scales if whole else ()


@dataclass(frozen=True)
class _Rows:
    """A range of all E * N rows: row e * N + n is member e of image n, which it sees in a symmetry of its own.

    first: the number by which the noise of the first member is known.
    """

    names: list
    symmetries: tuple
    part: range
    first: int = 0

    @property
    def members(self):
        """(case name, member) of each row."""
        return [(self.names[row % len(self.names)], row // len(self.names)) for row in self.part]

    @property
    def noise_keys(self):
        """(case name, number of the member) of each row, for its noise."""
        return [(name, self.first + member) for name, member in self.members]

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
    """The last step's x0, coarse logits or None, and drawn x_0 or None, of these `_Rows`: each [rows, K, H, W]."""
    condition = condition.rows(sent(torch.tensor(rows.conditions), image.device))
    denoiser = diffusion.denoiser(model, condition, clip=plan.clip, dynamic_threshold=plan.dynamic_threshold)
    noise = MemberNoise(seed, rows.noise_keys, (model.mask_channels, *image.shape[-2:]), image.device)
    side = model.size if isinstance(model, Tiled) else min(image.shape[-2:])
    channels, length = diffusion.uniform_channels(model.mask_channels), plan.smoothness * side
    last = {}

    def denoise(x, t):
        denoised = denoiser(x, t)
        last["coarse"] = denoised.coarse
        return denoised

    def draw(x0):
        return diffusion.draw(x0, noise.uniform(channels, length))

    def watch_turned(x, x0):
        watch(rows.turn(x, back=True), rows.turn(x0, back=True))

    x0 = plan.run(denoise, rows.turn(noise()), diffusion.schedule, noise, watch and watch_turned, draw)
    found = (x0, last["coarse"], draw(x0) if plan.draws else None)
    return tuple(None if x is None else rows.turn(x, back=True) for x in found)


def joined_members(parts):
    """The `Members` of several checkpoints as one, in their order."""
    if len(parts) == 1:
        return parts[0]
    return Members(
        *(None if any(x is None for x in values) else torch.cat(values) for values in zip(*parts, strict=True))
    )


# ---- noise ---------------------------------------------------------------------------------------------------------


class MemberNoise:
    """Random numbers for rows of members, from a generator for each (seed, name, member).

    They are drawn on the CPU, so they are the same for every device. members: (name, member) of each row; rows of the
    same key, which are the slices of a volume, get the same numbers.
    """

    def __init__(self, seed, members, shape, device):
        self.generators = {key: seeded_generator(seed, *key) for key in members}
        self.members, self.shape, self.device = members, shape, torch.device(device)
        self._factors = {}  # {length: the factors of rows and columns, on the device before a step waits for them}

    def __call__(self):
        """Standard noise, float32 [rows, K, H, W]."""
        return self._rows(torch.randn, self.shape)

    def uniform(self, channels=1, length=0.0):
        """Numbers from [0, 1), float32 [rows, channels, H, W], of the correlation `length` in pixels; 0: independent.

        See `smooth_uniform`. All rows of a volume's member get the same numbers.
        """
        size = self.shape[-2:]
        if not length:
            return self._rows(torch.rand, (channels, *size))
        if length not in self._factors:
            self._factors[length] = [sent(field_factor(side, length), self.device) for side in size]
        factors = self._factors[length]
        grid = [factor.shape[1] for factor in factors]
        return smooth_uniform(self._rows(torch.randn, (channels, *grid)), *factors)

    def _rows(self, function, shape):
        numbers = {key: function(shape, generator=generator) for key, generator in self.generators.items()}
        return sent(torch.stack([numbers[key] for key in self.members]), self.device)
