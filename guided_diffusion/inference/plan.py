"""The sampling plan: which sampler takes which steps of the training schedule, as the flags choose them."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from ..config.values import numbers
from ..diffusion.samplers import SAMPLERS
from ..diffusion.schedule import bernoulli_timesteps, solver_timesteps, strided_timesteps
from ..io.texts import shown
from ..runtime.console import counted
from ..runtime.errors import UserError
from .cleanup import CLEANING_FLAGS, Cleanup

DEFAULT_STEPS = {"bernoulli": 10, "ddim": 50, "dpm_solver": 20}  # DDPM takes all T
TIMES = {"bernoulli": bernoulli_timesteps, "dpm_solver": solver_timesteps}  # the others have strided times
CLEANED = {  # by the flags of the clean-up
    "fill_holes": "holes filled",
    "keep_largest": "the largest component kept",
    "min_size": "components of fewer than {} pixels removed",
}
SMOOTHNESS = 0.125  # of the network's side, chosen on training cases of LIDC: 16 of 128 pixels
PUBLISHED_THRESHOLD = 0.995  # the quantile of |x0| by which the published code thresholds in its DPM-Solver++


@dataclass(frozen=True)
class SamplingPlan:
    """All that decides the masks beside the network, image and noise.

    sampler: a name in `SAMPLERS`. timesteps: falling ints. solver_order: 1 to 3 for DPM-Solver++, else None. clip and
    dynamic_threshold: see `GaussianDiffusion.denoiser`. symmetric: each member sees a square image in one of its eight
    symmetries, and the coarse mask is the mean over all eight. scales: further scales of the image over which the
    coarse mask is averaged (see `tta`). Tiled images have neither. published: "v1" or "v2" where members become what
    the published script of that version fuses (see `published`), else "". fuse: one of `ensemble.FUSE_METHODS`. shares:
    the members of each of several checkpoints (see `several.dealt`), in the order of their numbers; () for one.
    threshold: of each class, above which the mean probability is foreground; () for 0.5, or what `fuse` does.
    max_misses: the share of missed lesion pixels that the threshold guarantees (see `evaluation.risk_control`), 0 for
    none. smoothness: the correlation length of the random numbers that draw a mask, as a share of the network's side;
    0: each pixel has its own. cleanup: the `cleanup.Cleanup` of each class, or ().
    """

    sampler: str
    timesteps: tuple[int, ...]
    solver_order: int | None = None
    clip: bool = True
    dynamic_threshold: float = 0.0
    symmetric: bool = False
    scales: tuple[float, ...] = ()
    published: str = ""
    fuse: str = "mean"
    shares: tuple[int, ...] = ()
    threshold: tuple[float, ...] = ()
    max_misses: float = 0.0
    smoothness: float = 0.0
    cleanup: tuple[Cleanup, ...] = ()

    @property
    def draws(self):
        """Whether the sampler draws masks of 0 and 1."""
        return self.sampler == "bernoulli"

    def __str__(self):
        return f"{self.sampler}, {counted(len(self.timesteps), 'step')}"

    def settings(self):
        """A dict of plain types for a manifest."""
        settings = dataclasses.asdict(self)
        settings |= {name: list(settings[name]) for name in ("timesteps", "scales", "shares")}
        settings["threshold"] = _of_classes(self.threshold, 0.5)
        for name in CLEANING_FLAGS:
            settings[name] = _of_classes([getattr(rule, name) for rule in self.cleanup], getattr(Cleanup(), name))
        del settings["cleanup"]
        if not self.smoothness:
            del settings["smoothness"]
        return settings | {"clip_denoised": settings.pop("clip")}

    def run(self, denoise, x, schedule, noise, watch=None, draw=None):
        """The sampled x0 [rows, K, H, W]; arguments as of every sampler (see `diffusion.samplers`).

        draw: needed where the plan `draws`, see `sample_bernoulli`.
        """
        options = {"order": self.solver_order} if self.sampler == "dpm_solver" else {}
        options |= {"draw": draw} if self.draws else {}
        return SAMPLERS[self.sampler](denoise, x, self.timesteps, schedule, noise, watch, **options)


def _of_classes(values, idle):
    """The values of all classes for a manifest: one where they are equal, else a list; `idle` without any."""
    values = list(values) or [idle]
    return values[0] if values.count(values[0]) == len(values) else values


ONE_STEP = SamplingPlan("ddim", (0,))  # for the plain U-Net, which predicts the same x0 from any x_t
NO_STEPS = SamplingPlan("none", ())  # for the condition model's answer in one pass, without the diffusion


def describe_members(settings):
    """Who draws the members, by the `settings` of a manifest, or who answers in one pass instead."""
    shares = settings.get("shares", ())
    if not _has_members(settings):
        each = f" of each of {len(shares)} checkpoints" if shares else ""
        return f"none: one pass of the {'condition model' if settings['sampler'] == 'none' else 'plain U-Net'}{each}"
    each = f", {' + '.join(map(str, shares))} of {len(shares)} checkpoints" if shares else ""
    return f"{settings['num_ensemble']} by {settings['sampler']}, {counted(len(settings['timesteps']), 'step')}{each}"


def describe_augmentation(settings):
    """A line on test-time augmentation by the `settings` of a plan or a manifest; "" without any."""
    scales = ", ".join(f"{scale:g}" for scale in settings.get("scales", ()))
    if not _has_members(settings):
        views = ["8 symmetries of the image"] if settings.get("symmetric") else []
        views += [f"scales 1, {scales}"] if scales else []
        return f"mean over {' and '.join(views)}" if views else ""
    parts = ["each member sees one of 8 symmetries of the image"] if settings.get("symmetric") else []
    return ", ".join([*parts, f"coarse mask also at scales {scales}"] if scales else parts)


def describe_masks(settings):
    """A line on how masks are cut from the probability and cleaned, by the `settings` of a plan or a manifest; "" for a
    cut at 0.5 alone."""
    parts, threshold = [], settings.get("threshold", 0.5)
    if threshold != 0.5:
        values = threshold if isinstance(threshold, list) else [threshold]
        parts.append(f"probability above {', '.join(f'{value:.4g}' for value in values)}")
    if settings.get("max_misses"):
        parts.append(f"fitted to miss at most {settings['max_misses']:.3g} of the lesion pixels on average")
    for name, done in CLEANED.items():
        value = settings.get(name)
        values = value if isinstance(value, list) else [value]
        if any(values):
            numbers_of = ", ".join(map(str, values)) if name == "min_size" else ""
            parts.append(done.format(numbers_of) + (" in some classes" if False in values else ""))
    return "; ".join(parts)


def _has_members(settings):
    return tuple(settings["timesteps"]) not in (ONE_STEP.timesteps, NO_STEPS.timesteps)


def plan_sampling(options, given, diffusion, *, is_published=False):
    """The `SamplingPlan` that `SampleOptions` ask for.

    options: without "auto" for how members are drawn (see `settings.members_as_trained`). given: the names of the flags
    that the user gave. diffusion: the checkpoint's `GaussianDiffusion`, of T steps. is_published: whether training used
    --recipe published; DPM-Solver++ then thresholds x_0 dynamically, as the published code does.
    Raises `UserError` for flags that contradict each other or the checkpoint, and for more steps than T.
    """
    _check_flags(options, given)
    sampler = _choose(options, given, draws=diffusion.objective == "x0" and not is_published)
    is_solver, total = sampler == "dpm_solver", diffusion.num_timesteps
    if not is_solver and "solver_order" in given:
        raise UserError(
            f"--solver_order {options.solver_order}: {sampler} has none; leave it out, or add --sampler dpm_solver"
        )
    if options.timestep_respacing:
        times = _respaced(options, total)
    else:
        steps = options.diffusion_steps or min(DEFAULT_STEPS.get(sampler, total), total)
        if steps > total:
            raise UserError(f"--diffusion_steps {steps}: the checkpoint was trained with {total}; use that or fewer")
        if sampler in TIMES:
            times = TIMES[sampler](diffusion.schedule, steps)
        else:
            times = strided_timesteps(total, steps)
    plan = SamplingPlan(
        sampler,
        tuple(int(t) for t in times),
        solver_order=options.solver_order if is_solver else None,
        smoothness=SMOOTHNESS if sampler == "bernoulli" and diffusion.logit_skip == "levels" else 0.0,
        clip=options.clip_denoised,
        dynamic_threshold=PUBLISHED_THRESHOLD if is_published and is_solver and options.clip_denoised else 0.0,
    )
    return with_members(plan, options)


def with_members(plan, options):
    """The plan with the test-time augmentation and the fusion of resolved `SampleOptions`.

    --fuse auto: the mean of members whose probabilities have exact margins, and of an answer in one pass; else STAPLE.
    """
    fuse = options.fuse
    if fuse == "auto":
        fuse = "mean" if plan.draws or plan == NO_STEPS else "staple"
    symmetric = options.symmetries == "all"
    return dataclasses.replace(plan, symmetric=symmetric, scales=options.other_scales(), fuse=fuse)


def _check_flags(options, given):
    """Raise `UserError` where flags name different samplers."""
    if options.use_ddim and options.dpm_solver:
        raise UserError("--use_ddim True contradicts --dpm_solver True; choose one")
    if options.sampler == "auto":
        return
    for flag, sampler in (("use_ddim", "ddim"), ("dpm_solver", "dpm_solver")):
        if flag in given and getattr(options, flag) != (options.sampler == sampler):
            raise UserError(f"--sampler {options.sampler} contradicts --{flag} {getattr(options, flag)}; leave one out")


def _choose(options, given, draws):
    """The sampler's name in `SAMPLERS`. draws: whether the default draws masks of 0 and 1.

    Raises `UserError` where --timestep_respacing contradicts it.
    """
    respacing = options.timestep_respacing
    if respacing:
        if options.dpm_solver or options.sampler in ("dpm_solver", "bernoulli"):
            what = "bernoulli" if options.sampler == "bernoulli" else "the solver"
            raise UserError(f"--timestep_respacing chooses steps of DDPM or DDIM: leave out it or {what}")
        if respacing.startswith("ddim") and options.sampler == "ddpm":
            raise UserError(f"--sampler ddpm contradicts --timestep_respacing {respacing}; leave one out")
    if options.sampler != "auto":
        return options.sampler
    if options.use_ddim or respacing.startswith("ddim"):
        return "ddim"
    if options.dpm_solver or (draws and "solver_order" in given):
        return "dpm_solver"
    if respacing or "dpm_solver" in given:
        return "ddpm"  # --dpm_solver False alone asks for full DDPM
    if draws:
        return "bernoulli"
    return "ddpm" if options.diffusion_steps else "dpm_solver"


def _respaced(options, num_timesteps):
    """Falling time steps by `--timestep_respacing`: "50", "ddim50", or a count for each equal section: "10,20,30"."""
    text = options.timestep_respacing
    if options.diffusion_steps not in (0, num_timesteps):
        raise UserError("--timestep_respacing sets the number of steps: leave out --diffusion_steps")
    try:
        counts = numbers("timestep_respacing", text.removeprefix("ddim"), int, minimum=1)
    except UserError:
        counts = ()
    if not counts:
        raise UserError(f"--timestep_respacing {shown(text)}: write it as 50, ddim50 or 10,20,30")
    bounds = np.linspace(0, num_timesteps, len(counts) + 1).round().astype(int)
    times = []
    for low, high, count in zip(bounds[:-1], bounds[1:], counts, strict=True):
        if not 1 <= count <= high - low:
            raise UserError(f"--timestep_respacing {text}: a section of {high - low} steps cannot give {count}")
        times.extend(int(low + t) for t in strided_timesteps(high - low, count))
    return tuple(sorted(times, reverse=True))
