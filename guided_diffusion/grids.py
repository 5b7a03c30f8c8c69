"""Which integer steps of the training schedule a sampler visits."""

import numpy as np


def strided_timesteps(num_timesteps, steps):
    """`steps` times spread evenly over 0 .. T - 1, both ends included (one step: T - 1 alone), falling. int [steps]."""
    if steps == 1:
        return np.array([num_timesteps - 1])
    return np.linspace(num_timesteps - 1, 0, steps).round().astype(int)


def solver_timesteps(schedule, steps):
    """The times of a solver of the diffusion ODE: T - 1 first, the last one still noisy. int [steps], falling.

    schedule: `schedule.Schedule` of T steps; 1 <= steps <= T. The way from T - 1 to 0 is cut into `steps` even parts,
    whose upper ends are taken: from the last one the solver steps to the clean mask itself. A visit to t = 0, where
    almost no noise is left, would cost a network call and move little; only T steps take it in.
    """
    total = len(schedule)
    if not 1 <= steps <= total:
        raise ValueError(f"{steps} steps through a schedule of {total}")
    if steps == total:
        return np.arange(total)[::-1]
    return np.linspace(0, total - 1, steps + 1)[:0:-1].round().astype(int)
