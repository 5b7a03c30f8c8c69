"""UniPC: a predictor-corrector solver, of orders 1 to 3, of the diffusion ODE in data prediction (arXiv 2302.04867)."""

from collections import deque

from .dpm_solver import NoiseLevels, integrate
from .schedule import Schedule


def sample_unipc(
    denoise,
    x,
    timesteps,
    schedule: Schedule,
    noise=None,
    watch=None,
    *,
    order=2,
    variant="bh2",
):
    """Integrate from x at timesteps[0] to the clean mask; a sampler of the common signature (see `sampling`).

    Each step is predicted from the last `order` x0 (UniP), and when the network has seen the prediction, taken again
    with its x0 as one more point (UniC), which makes the error fall with h^(order + 1) at no further network call.
    variant: "bh2" or "bh1", the paper's two choices of B(h). The first steps have orders 1, 2, ..., and the last
    ..., 3, 2, 1 (the authors' code does so for any number of steps); the last returns the network's x0 itself. The
    solver is deterministic: `noise` is not used.
    """
    levels = NoiseLevels.at(schedule, timesteps)
    count = len(timesteps)
    history = deque(maxlen=order)  # (step, its x0), the newest first
    points = before = None  # what step i - 1 was predicted from
    for i, t in enumerate(timesteps):
        x0 = denoise(x, t).x0
        if watch is not None:
            watch(x, x0)
        if i + 1 == count:
            return x0
        if points:
            x = integrate(levels, before, i - 1, [(i, x0), *points], variant=variant)
        history.appendleft((i, x0))
        points, before = list(history)[: count - i], x
        x = integrate(levels, x, i, points, variant=variant)
    raise ValueError("needs at least one time step")
