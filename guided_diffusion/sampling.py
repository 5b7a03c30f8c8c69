"""The reverse process: DDPM and DDIM, and the one entry point that draws an ensemble of masks with any sampler.

Every sampler is a function `sampler(denoise, x, timesteps, schedule, noise, watch) -> x0`:
denoise(x, t) -> `Denoised`; x: pure noise [B, K, H, W]; timesteps: falling ints, a subset of the training schedule;
noise(): fresh standard noise like x; watch(x, x0): called with each step's x_t and x0, for pictures. The result is
the mask's x0 prediction of the last step, in about [-1, 1].
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from .dpm_solver import sample_dpm_solver, solver_timesteps
from .errors import UserError
from .seeds import seeded_generator


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


SAMPLERS = {"ddpm": sample_ddpm, "ddim": sample_ddim, "dpm_solver": sample_dpm_solver}


def _steps(timesteps):
    """Pairs (t, s) of each step, the last to s = -1, the clean mask."""
    return zip(timesteps, [*timesteps[1:], -1], strict=True)


def strided_timesteps(num_timesteps, steps):
    """`steps` times spread evenly over 0 .. T - 1, both ends included (one step: T - 1 alone), falling. int [steps]."""
    if steps == 1:
        return np.array([num_timesteps - 1])
    return np.linspace(num_timesteps - 1, 0, steps).round().astype(int)


@dataclass(frozen=True)
class SamplingPlan:
    """Which sampler takes which time steps. sampler: a name in `SAMPLERS`; timesteps: falling ints."""

    sampler: str
    timesteps: tuple[int, ...]

    def __str__(self):
        return f"{self.sampler}, {len(self.timesteps)} steps"


ONE_LOOK = SamplingPlan("ddim", (0,))  # for the plain U-Net, whose answer is the x0 of any x_t


def plan_sampling(options, given, num_timesteps):
    """The `SamplingPlan` that the flags of `config.SampleOptions` ask for (design, section 4).

    given: names of the flags given explicitly. num_timesteps: the checkpoint's T.
    Raises `UserError` for flags that contradict each other and for more steps than T.
    """
    if options.use_ddim and options.dpm_solver:
        raise UserError("--use_ddim True contradicts --dpm_solver True; choose one")
    if options.timestep_respacing:
        return _respaced(options, num_timesteps)
    steps = options.diffusion_steps
    if options.use_ddim:
        sampler, steps = "ddim", steps or 50
    elif options.dpm_solver or not (steps or "dpm_solver" in given):
        sampler, steps = "dpm_solver", steps or 20
    else:
        sampler, steps = "ddpm", steps or num_timesteps  # --dpm_solver False alone asks for full DDPM
    if steps > num_timesteps and "diffusion_steps" in given and options.diffusion_steps:
        raise UserError(
            f"--diffusion_steps {steps}: the checkpoint was trained with {num_timesteps}; use that or fewer"
        )
    return _plan(sampler, num_timesteps, min(steps, num_timesteps))


def _plan(sampler, num_timesteps, steps):
    if sampler == "dpm_solver":
        # The solver's grid skips t = 0, so that it has at most T - 1 steps.
        times = solver_timesteps(num_timesteps, min(steps, num_timesteps - 1))
    else:
        times = strided_timesteps(num_timesteps, steps)
    return SamplingPlan(sampler, tuple(int(t) for t in times))


def _respaced(options, num_timesteps):
    """A plan from `--timestep_respacing`: "50", "ddim50" or one count for each equal section, as "10,20,30"."""
    text = options.timestep_respacing
    if options.dpm_solver or options.diffusion_steps not in (0, num_timesteps):
        raise UserError("--timestep_respacing sets the steps itself: leave out --diffusion_steps and --dpm_solver")
    sampler = "ddim" if options.use_ddim or text.startswith("ddim") else "ddpm"
    try:
        counts = [int(part) for part in text.removeprefix("ddim").split(",")]
    except ValueError:
        raise UserError(f"--timestep_respacing {text}: must be like 50, ddim50 or 10,20,30") from None
    bounds = np.linspace(0, num_timesteps, len(counts) + 1).round().astype(int)
    times = []
    for low, high, count in zip(bounds[:-1], bounds[1:], counts, strict=True):
        if not 1 <= count <= high - low:
            raise UserError(f"--timestep_respacing {text}: a section of {high - low} steps cannot give {count}")
        times.extend(int(low + t) for t in strided_timesteps(high - low, count))
    return SamplingPlan(sampler, tuple(sorted(times, reverse=True)))


def member_generator(seed, name, member):
    """The CPU generator of one ensemble member of one case: (seed, name, member) alone decide its noise."""
    return seeded_generator(seed, name, member)


class MemberNoise:
    """Standard noise for a batch of ensemble members, each row from a generator of its own.

    Drawn on the CPU, so that a result is the same on every device; row e * N + n is member e of case n.
    """

    def __init__(self, seed, names, members, shape, device):
        self.generators = [member_generator(seed, name, member) for member in range(members) for name in names]
        self.shape, self.device = shape, device

    def __call__(self):
        """Returns float32 [E * N, K, H, W]."""
        rows = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return torch.stack(rows).to(self.device)


class Members(NamedTuple):
    """An ensemble's masks in [0, 1]: soft [E, N, K, H, W], and the last step's coarse masks likewise (or None)."""

    soft: torch.Tensor
    coarse: torch.Tensor | None


@torch.inference_mode()
def draw_members(model, diffusion, plan, image, names, *, members, seed=0, label=None, clip=True, watch=None):
    """Draw `members` masks for each image: all members of all images go through the network as one batch.

    image: [N, C, H, W]; names: N case names, which with `seed` decide the noise; label: int [N] or None.
    watch(x, x0): called at each step with x_t and its x0, [E, N, K, H, W]. Returns `Members`.
    """
    condition = model.encode(image, label).expand(members)
    shape = (model.mask_channels, *image.shape[-2:])
    noise = MemberNoise(seed, names, members, shape, image.device)
    last = {}

    def ensemble_shape(x):
        return x.reshape(members, len(names), *x.shape[1:])  # [E * N, K, H, W] -> [E, N, K, H, W]

    def denoise(x, t):
        times = torch.full((len(x),), t, device=x.device)
        denoised = diffusion.denoiser(model, condition, clip=clip)(x, times)
        last["coarse"] = denoised.coarse
        return denoised

    step_done = None if watch is None else (lambda x, x0: watch(ensemble_shape(x), ensemble_shape(x0)))
    x0 = SAMPLERS[plan.sampler](denoise, noise(), plan.timesteps, diffusion.schedule, noise, step_done)
    soft = ensemble_shape((x0.float().clamp(-1, 1) + 1) / 2)
    coarse = None if last["coarse"] is None else ensemble_shape(torch.sigmoid(last["coarse"].float()))
    return Members(soft, coarse)
