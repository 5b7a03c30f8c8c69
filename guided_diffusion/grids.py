"""Which integer steps of the training schedule a sampler visits."""

import numpy as np


def strided_timesteps(num_timesteps, steps):
    """`steps` times spread evenly over 0 .. T - 1, both ends included (one step: T - 1 alone), falling. int [steps]."""
    if steps == 1:
        return np.array([num_timesteps - 1])
    return np.linspace(num_timesteps - 1, 0, steps).round().astype(int)


def _log_noise_to_signal(alphas_bar):
    """log((1 - abar) / abar), rising. The step to noise alone (abar = 0), which is infinitely wide, is made as wide as
    all others together: wide enough to be one part, however many there are."""
    with np.errstate(divide="ignore"):
        values = np.log((1 - alphas_bar) / alphas_bar)
    if np.isinf(values[-1]):
        values[-1] = 2 * values[-2] - values[0]
    return values


SPACINGS = {  # a quantity that rises with t = 0 .. T - 1, of which a solver's steps take even parts. float64 [T]
    "uniform": lambda alphas_bar: np.arange(len(alphas_bar), dtype=np.float64),
    "logsnr": _log_noise_to_signal,
    "quadratic": lambda alphas_bar: np.sqrt(np.arange(len(alphas_bar))),
}


def solver_timesteps(schedule, steps, spacing="uniform"):
    """The times of a solver of the diffusion ODE or SDE: T - 1 first, the last one still noisy. int [steps], falling.

    schedule: `schedule.Schedule` of T steps; 1 <= steps <= T. spacing: "uniform" in t, "logsnr" uniform in
    log(abar / (1 - abar)), or "quadratic": uniform in sqrt(t) (arXiv 2010.02502, D.2), dense where noise is low.
    The way from T - 1 to 0 is cut into `steps` even parts, whose upper ends are taken: from the last the solver goes
    to the clean mask itself. A visit to t = 0 as well, which has almost no noise left, would cost a network call and
    move little; only T steps take it in. A training step that is wider than a part (such as the cosine schedule's
    last) counts as one part, so that no time comes twice.
    """
    total = len(schedule)
    if not 1 <= steps <= total:
        raise ValueError(f"{steps} steps through a schedule of {total}")
    if steps >= total - 1:
        return np.arange(total)[::-1][:steps]
    way = _capped(SPACINGS[spacing](schedule.alphas_bar), steps)
    wanted = np.interp(np.linspace(0, way[-1], steps + 1)[:0:-1], way, np.arange(total)).round().astype(int)
    # What rounding has still put together goes to the next free times below, or above if there are none left.
    ranks = np.arange(steps)
    falling = np.minimum.accumulate(wanted + ranks) - ranks
    return np.maximum(falling, 1 + ranks[::-1])


def _capped(quantity, parts):
    """The quantity from 0, its increments cut to a width of which the whole then has `parts` < T - 1. float64 [T]."""
    increments = np.diff(quantity)
    width = increments.sum() / parts
    while (wide := increments > width).any():
        increments[wide] = width  # the others share what is left, by which parts become narrower and more may be wide
        narrow = increments < width
        width = increments[narrow].sum() / (parts - (~narrow).sum())
    return np.r_[0.0, np.cumsum(increments)]
