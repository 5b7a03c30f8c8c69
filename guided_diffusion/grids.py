"""Which integer steps of the training schedule a sampler visits."""

import numpy as np


def strided_timesteps(num_timesteps, steps):
    """`steps` times spread evenly over 0 .. T - 1, both ends included (one step: T - 1 alone), falling. int [steps]."""
    if steps == 1:
        return np.array([num_timesteps - 1])
    return np.linspace(num_timesteps - 1, 0, steps).round().astype(int)


def _uniform(alphas_bar, parts):
    return np.linspace(0, len(alphas_bar) - 1, parts + 1)


def _quadratic(alphas_bar, parts):
    return (len(alphas_bar) - 1) * np.linspace(0, 1, parts + 1) ** 2


def _logsnr(alphas_bar, parts):
    rising = np.log(alphas_bar / (1 - alphas_bar))[::-1]  # with T - 1 - t
    wanted = np.linspace(rising[-1], rising[0], parts + 1)
    return len(alphas_bar) - 1 - np.interp(wanted, rising, np.arange(len(alphas_bar)))


SPACINGS = {"uniform": _uniform, "logsnr": _logsnr, "quadratic": _quadratic}


def solver_timesteps(schedule, steps, spacing="uniform"):
    """The times of a solver of the diffusion ODE or SDE: T - 1 first, the last one still noisy. int [steps], falling.

    schedule: `gaussian_diffusion.Schedule` of T steps; 1 <= steps <= T. spacing: "uniform" in t, "logsnr" uniform in
    log(abar / (1 - abar)), or "quadratic": t ~ u^2 for uniform u (arXiv 2010.02502, D.2), dense where noise is low.
    0 .. T - 1 is cut into `steps` parts, whose upper ends are taken: from the last the solver goes to the clean mask
    itself. A visit to t = 0 as well, which has almost no noise left, would cost a network call and move little; only
    T steps take it in. Where parts are narrower than one training step, times move to the nearest free ones below,
    or above if there are none left, so that the times are always `steps` in number.
    """
    total = len(schedule)
    if not 1 <= steps <= total:
        raise ValueError(f"{steps} steps through a schedule of {total}")
    wanted = SPACINGS[spacing](schedule.alphas_bar, steps)[:0:-1].round().astype(int)
    ranks = np.arange(steps)
    falling = np.minimum.accumulate(wanted + ranks) - ranks
    lowest = 1 if steps < total else 0
    return np.maximum(falling, lowest + ranks[::-1])
