"""Samplers: functions `sampler(denoise, x, timesteps, schedule, noise, watch) -> x0` from noise to a mask.

denoise(x, t): a `Denoised`, for an int t. x: standard noise [N, K, H, W]. timesteps: falling ints, a subset of the
training schedule. schedule: a `Schedule`. noise(): fresh standard noise like x. watch(x, x0), unless it is None, gets
each step's x_t and predicted x_0. The result is the last step's predicted x_0, [N, K, H, W] in about [-1, 1].
"""

import torch

from .dpm_solver import sample_dpm_solver


def sample_ddpm(denoise, x, timesteps, schedule, noise, watch=None):
    """Ancestral sampling (DDPM algorithm 2): x_s ~ q(x_s | x_t, x_0) with the predicted x_0.

    The variance is the network's where it learns one (arXiv 2102.09672 eq. 15), else the posterior's.
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


def sample_bernoulli(denoise, x, timesteps, schedule, noise, watch=None, *, draw):
    """Ancestral sampling that draws the clean mask, not its mean: x_0 ~ p(x_0 | x_t), then x_s ~ q(x_s | x_t, x_0).

    draw(x0): clean masks whose pixels are drawn independently with the means x0 (see `GaussianDiffusion.draw`).
    Where the predicted mean is right for the x_t that this sampler reaches, each pixel's x_s has its exact
    distribution, for any number of steps: q(x_s) = E q(x_s | x_t, x_0) over the joint distribution of x_t and x_0. So a
    mask drawn from the result has exact margins where pixels are independent. Where they depend on one another, a step
    keeps as much of their dependence as x_t has: few steps lose some, and x_t is then not quite one of training.
    """
    for t, s in _steps(timesteps):
        x0 = denoise(x, t).x0
        if watch is not None:
            watch(x, x0)
        if s < 0:
            break
        of_x0, of_xt, variance, _ = (float(value) for value in schedule.posterior(t, s))
        x = of_x0 * draw(x0) + of_xt * x + variance**0.5 * noise()
    return x0


def sample_ddim(denoise, x, timesteps, schedule, noise=None, watch=None):
    """Deterministic DDIM (arXiv 2010.02502 eq. 12 with eta = 0): x_s = sqrt(abar_s) x_0 + sqrt(1 - abar_s) eps."""
    for t, s in _steps(timesteps):
        denoised = denoise(x, t)
        if watch is not None:
            watch(x, denoised.x0)
        abar = float(schedule.alpha_bar(s))
        x = abar**0.5 * denoised.x0 + (1 - abar) ** 0.5 * denoised.eps
    return x


def _steps(timesteps):
    """The pair (t, s) of each step; the last s is -1, the clean mask."""
    return zip(timesteps, [*timesteps[1:], -1], strict=True)


SAMPLERS = {
    "bernoulli": sample_bernoulli,
    "ddpm": sample_ddpm,
    "ddim": sample_ddim,
    "dpm_solver": sample_dpm_solver,
}
