"""The noise schedule: how much of the mask and how much noise there is at each time step."""

import math

import numpy as np


def linear_betas(steps):
    """DDPM's betas from 1e-4 to 0.02 at T = 1000, scaled so that other T end at the same noise. float64 [T]."""
    scale = 1000 / steps
    return np.minimum(np.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=np.float64), 0.999)


def cosine_betas(steps):
    """abar(t) = cos^2((t/T + 0.008) / 1.008 * pi/2) (arXiv 2102.09672 eq. 17), betas cut at 0.999. float64 [T]."""
    t = np.arange(steps + 1, dtype=np.float64) / steps
    alphas_bar = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - alphas_bar[1:] / alphas_bar[:-1], 0.999)


def noise_schedule(name, steps, input_scale=1.0):
    """abar_t for t = 0..T-1, float64 [T]: the named schedule with the mask scaled by b = `input_scale`.

    Scaling x_0 by b and normalising the variance again gives abar_b = b^2 abar / ((b^2 - 1) abar + 1)
    (arXiv 2504.05977): the signal-to-noise ratio times b^2.
    """
    betas = {"linear": linear_betas, "cosine": cosine_betas}[name](steps)
    alphas_bar = np.cumprod(1 - betas)
    return input_scale**2 * alphas_bar / ((input_scale**2 - 1) * alphas_bar + 1)


class Schedule:
    """abar_t in float64, strictly between 0 and 1, with t = -1 standing for the clean mask (abar = 1)."""

    def __init__(self, alphas_bar):
        self.alphas_bar = np.asarray(alphas_bar, dtype=np.float64)
        ends = self.alphas_bar[0] < 1 and self.alphas_bar[-1] > 0
        if not ends or not (np.diff(self.alphas_bar) < 0).all():
            raise ValueError("abar must fall strictly, from below 1 to above 0")

    def __len__(self):
        return len(self.alphas_bar)

    def alpha_bar(self, t):
        """abar at integer t (array or scalar), 1 at t = -1."""
        return np.where(np.asarray(t) < 0, 1.0, self.alphas_bar[t])

    def posterior(self, t, s):
        """q(x_s | x_t, x_0) for s < t (DDPM eq. 7, between any two times): coefficients of x_0 and x_t, the variance,
        and beta = 1 - abar_t / abar_s of the step."""
        abar_t, abar_s = self.alpha_bar(t), self.alpha_bar(s)
        beta = 1 - abar_t / abar_s
        of_x0 = np.sqrt(abar_s) * beta / (1 - abar_t)
        of_xt = np.sqrt(1 - beta) * (1 - abar_s) / (1 - abar_t)
        return of_x0, of_xt, beta * (1 - abar_s) / (1 - abar_t), beta

    def log_variances(self, t, s):
        """log of the smallest and largest sensible variance of the step t -> s: the posterior's and beta.

        Where s is the clean mask the posterior's variance is 0; its log is taken from the step before, as in the
        improved DDPM paper, so that it stays finite.
        """
        t, s = np.asarray(t), np.asarray(s)
        _, _, variance, beta = self.posterior(t, s)
        _, _, second, _ = self.posterior(t + (s < 0), np.where(s < 0, t, s))
        return np.log(np.where(s < 0, np.minimum(second, beta), variance)), np.log(beta)


# ---- Which integer steps of the training schedule a sampler visits --------------------------------------------------


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
