"""DPM-Solver++ (2M): a second-order multistep solver of the diffusion ODE in data prediction (arXiv 2211.01095)."""

import math

import numpy as np

from .gaussian_diffusion import Schedule


def solver_timesteps(num_timesteps, steps):
    """`steps` integer times, falling, uniform in t from T - 1 down to one spacing above 0; [steps] of int.

    The last step goes from the last of them to the clean mask itself.
    """
    grid = np.linspace(0, num_timesteps - 1, steps + 1).round().astype(int)
    return grid[:0:-1]


def sample_dpm_solver(denoise, x, timesteps, schedule: Schedule, noise=None, watch=None):
    """Integrate from x at timesteps[0] to the clean mask; a sampler of the common signature (see `sampling`).

    With lambda = log(alpha / sigma) and h = lambda_s - lambda_t, one step t -> s is (algorithm 2)
        D = (1 + 1 / 2r) x0_t - 1 / 2r x0_previous,   r = h_previous / h,
        x_s = sigma_s / sigma_t x_t - alpha_s (exp(-h) - 1) D.
    The first step has no previous x0 and the last has sigma_s = 0: both are of first order, and the last returns
    the network's x0 itself. The solver is deterministic: `noise` is not used.
    """
    abar = schedule.alpha_bar(np.asarray(timesteps, dtype=int))  # float64 [steps]
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    log_snr = np.log(alpha / sigma)
    previous = None
    for i, t in enumerate(timesteps):
        x0 = denoise(x, t).x0
        if watch is not None:
            watch(x, x0)
        if i + 1 == len(timesteps):
            return x0
        h = log_snr[i + 1] - log_snr[i]
        direction = x0
        if previous is not None:
            r = (log_snr[i] - log_snr[i - 1]) / h
            direction = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous
        x = (sigma[i + 1] / sigma[i]) * x - (alpha[i + 1] * math.expm1(-h)) * direction
        previous = x0
    raise ValueError("needs at least one time step")
