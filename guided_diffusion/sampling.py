"""The reverse process: DDPM and DDIM, and the one entry point that draws an ensemble of masks with any sampler.

Every sampler is a function `sampler(denoise, x, timesteps, schedule, noise, watch) -> x0`, with settings of its own as
keywords: denoise(x, t) -> `Denoised`, for an int t; x: pure noise [B, K, H, W]; timesteps: falling ints, a subset of
the training schedule; noise(): fresh standard noise like x; watch(x, x0): called with each step's x_t and x0, for
pictures. The result is the mask's x0 prediction of the last step, in about [-1, 1].
"""

import dataclasses
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .dpm_solver import sample_dpm_solver
from .gaussian_diffusion import class_probabilities
from .seeds import seeded_generator
from .unipc import sample_unipc


def sample_ddpm(denoise, x, timesteps, schedule, noise, watch=None):
    """Ancestral sampling (DDPM algorithm 2), over all T steps or a subset: x_s ~ N(mean, variance) of q(x_s|x_t,x_0).

    The variance is the learned one where the network gives it, else the posterior's.
    """
    for t, s in _steps(timesteps):
        denoised = denoise(x, t)
        if watch is not None:
            watch(x, denoised.x0)
        of_x0, of_xt, variance, _ = (float(value) for value in schedule.posterior(t, s))
        if s < 0:
            break
        deviation = variance**0.5
        if denoised.variance_fraction is not None:
            smallest, largest = (float(value) for value in schedule.log_variances(t, s))
            fraction = denoised.variance_fraction
            deviation = torch.exp(0.5 * (fraction * largest + (1 - fraction) * smallest))
        x = of_x0 * denoised.x0 + of_xt * x + deviation * noise()
    return denoised.x0


def sample_ddim(denoise, x, timesteps, schedule, noise=None, watch=None):
    """Deterministic DDIM (arXiv 2010.02502 eq. 12 with eta = 0): x_s = sqrt(abar_s) x_0 + sqrt(1 - abar_s) eps."""
    for t, s in _steps(timesteps):
        denoised = denoise(x, t)
        if watch is not None:
            watch(x, denoised.x0)
        abar = float(schedule.alpha_bar(s))
        x = abar**0.5 * denoised.x0 + (1 - abar) ** 0.5 * denoised.eps
    return x


SAMPLERS = {"ddpm": sample_ddpm, "ddim": sample_ddim, "dpm_solver": sample_dpm_solver, "unipc": sample_unipc}
SOLVERS = ("dpm_solver", "unipc")  # those with an order, whose times have a spacing


def _steps(timesteps):
    """Pairs (t, s) of each step, the last to s = -1, the clean mask."""
    return zip(timesteps, [*timesteps[1:], -1], strict=True)


@dataclass(frozen=True)
class SamplingPlan:
    """Which sampler takes which time steps and how: what decides the masks beside the network, image and noise.

    sampler: a name in `SAMPLERS`; timesteps: falling ints. Of solvers alone, else None: solver_order, 1 to 3;
    solver_type, "ode" or "sde"; time_spacing, what made the timesteps. clip and dynamic_threshold: see
    `GaussianDiffusion.denoiser`.
    """

    sampler: str
    timesteps: tuple[int, ...]
    solver_order: int | None = None
    solver_type: str | None = None
    time_spacing: str | None = None
    clip: bool = True
    dynamic_threshold: float = 0.0

    def __str__(self):
        return f"{self.sampler}, {len(self.timesteps)} steps"

    def settings(self):
        """What a manifest records, in plain types."""
        settings = dataclasses.asdict(self)
        return settings | {"timesteps": list(self.timesteps), "clip_denoised": settings.pop("clip")}

    def run(self, denoise, x, schedule, noise, watch=None):
        """Sample; a sampler of the common signature without its `timesteps`."""
        how = {"order": self.solver_order} if self.sampler in SOLVERS else {}
        if self.sampler == "dpm_solver":
            how["solver_type"] = self.solver_type
        return SAMPLERS[self.sampler](denoise, x, self.timesteps, schedule, noise, watch, **how)


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
def draw_members(model, diffusion, plan, image, names, *, members, seed=0, label=None, watch=None, rows=None):
    """Draw `members` masks for each image, which is encoded once; row e * N + n of the work is member e of image n.

    plan: a `SamplingPlan`; image: [N, C, H, W]; names: N case names, which with `seed` decide the noise; label: int
    [N] or None. rows: how many go through the network in one pass; None: all E * N. A result does not depend on it
    but for rounding. watch(x, x0): called at each step of each pass with x_t and its x0, [rows, K, H, W]. The network
    is in evaluation mode meanwhile, whatever mode it is in. Returns `Members`.
    """
    count = members * len(names)
    soft, coarse = [], []
    with _evaluating(model):
        condition = model.encode(image, label)
        for low in range(0, count, rows or count):
            part = range(low, min(low + (rows or count), count))
            x0, logits = _draw_rows(model, diffusion, plan, condition, image, names, part, seed, watch)
            soft.append((x0.float().clamp(-1, 1) + 1) / 2)
            coarse.append(logits)

    def ensemble_shape(parts):
        return torch.cat(parts).unflatten(0, (members, len(names)))  # [E * N, K, H, W] -> [E, N, K, H, W]

    if coarse[0] is None:
        return Members(ensemble_shape(soft), None)
    return Members(ensemble_shape(soft), class_probabilities(ensemble_shape(coarse).float(), diffusion.exclusive))


def _draw_rows(model, diffusion, plan, condition, image, names, part, seed, watch):
    """The last step's x0 [rows, K, H, W] and coarse logits (or None) of the rows in the range `part`."""
    who = [(names[row % len(names)], row // len(names)) for row in part]
    noise = MemberNoise(seed, who, (model.mask_channels, *image.shape[-2:]), image.device)
    which = torch.arange(part.start, part.stop, device=image.device) % len(names)
    denoiser = diffusion.denoiser(
        model, condition.rows(which), clip=plan.clip, dynamic_threshold=plan.dynamic_threshold
    )
    last = {}

    def denoise(x, t):
        denoised = denoiser(x, t)
        last["coarse"] = denoised.coarse
        return denoised

    return plan.run(denoise, noise(), diffusion.schedule, noise, watch), last["coarse"]
