"""The noise schedule abar_t, the posterior between any two of its times, and the times that a sampler visits."""

import math

import numpy as np

FIRST_LOG_SNR = -9.0  # below it x_t says nothing even of a mask of thousands of pixels
LAST_EVIDENCE = 8.0  # logits that a pixel of the clean mask is worth at a drawing sampler's last step


def linear_betas(steps):
    """DDPM's linear betas (arXiv 2006.11239 sec. 4), float64 [T]: 1e-4 to 0.02 at T = 1000.

    Other T scale them by 1000 / T, so that x_T holds about the same noise. Betas are cut at 0.999.
    """
    scale = 1000 / steps
    return np.minimum(np.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=np.float64), 0.999)


def cosine_betas(steps):
    """Betas of abar(t) = cos^2((t/T + 0.008) / 1.008 * pi/2) (arXiv 2102.09672 eq. 17), cut at 0.999. float64 [T]."""
    t = np.arange(steps + 1, dtype=np.float64) / steps
    alphas_bar = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - alphas_bar[1:] / alphas_bar[:-1], 0.999)


def noise_schedule(name, steps, input_scale=1.0):
    """abar_t for t = 0..T-1, float64 [T], of the schedule `name` ("linear" or "cosine") with x_0 scaled by b.

    b is `input_scale`. The scaled x_0 with its variance normalised again has abar_b = b^2 abar / ((b^2 - 1) abar + 1)
    (arXiv 2504.05977), which multiplies the signal-to-noise ratio by b^2.
    """
    betas = {"linear": linear_betas, "cosine": cosine_betas}[name](steps)
    alphas_bar = np.cumprod(1 - betas)
    return input_scale**2 * alphas_bar / ((input_scale**2 - 1) * alphas_bar + 1)


class Schedule:
    """abar_t in float64, t = 0..T-1; t = -1 stands for the clean mask, where abar = 1.

    alphas_bar: [T], strictly falling, in (0, 1). Raises ValueError for other values.
    """

    def __init__(self, alphas_bar):
        self.alphas_bar = np.asarray(alphas_bar, dtype=np.float64)
        ends = self.alphas_bar[0] < 1 and self.alphas_bar[-1] > 0
        if not ends or not (np.diff(self.alphas_bar) < 0).all():
            raise ValueError("abar must fall strictly, from below 1 to above 0")

    def __len__(self):
        return len(self.alphas_bar)

    def alpha_bar(self, t):
        """abar at integer t, an array or a scalar; 1 at t = -1."""
        return np.where(np.asarray(t) < 0, 1.0, self.alphas_bar[t])

    def levels(self, t):
        """sqrt(abar_t) and sqrt(1 - abar_t), the shares of x_0 and of the noise in x_t (DDPM eq. 4); of t's shape."""
        abar = self.alpha_bar(t)
        return np.sqrt(abar), np.sqrt(1 - abar)

    def evidence(self, t):
        """The logits that one unit of x_t is worth at t, 2 sqrt(abar) / (1 - abar); of t's shape."""
        abar = self.alpha_bar(t)
        return 2 * np.sqrt(abar) / (1 - abar)

    def step_back(self, t):
        """For the step from t to t - 1 the mean's coefficients of x_0 and of x_t (see `posterior`), then the
        `log_variances`; four of t's shape."""
        return *self.posterior(t, t - 1)[:2], *self.log_variances(t, t - 1)

    def posterior(self, t, s):
        """q(x_s | x_t, x_0) for any s < t (DDPM eq. 7 has s = t - 1).

        Returns four float64 of t's shape: the mean's coefficients of x_0 and of x_t, the variance, and
        beta = 1 - abar_t / abar_s.
        """
        abar_t, abar_s = self.alpha_bar(t), self.alpha_bar(s)
        beta = 1 - abar_t / abar_s
        of_x0 = np.sqrt(abar_s) * beta / (1 - abar_t)
        of_xt = np.sqrt(1 - beta) * (1 - abar_s) / (1 - abar_t)
        return of_x0, of_xt, beta * (1 - abar_s) / (1 - abar_t), beta

    def log_variances(self, t, s):
        """log of the posterior's variance and of beta: the bounds of a learned variance (arXiv 2102.09672 eq. 15).

        Where s is the clean mask the posterior's variance is 0. The log of the step before replaces it, as in that
        paper, so that it is finite.
        """
        t, s = np.asarray(t), np.asarray(s)
        _, _, variance, beta = self.posterior(t, s)
        _, _, second, _ = self.posterior(t + (s < 0), np.where(s < 0, t, s))
        return np.log(np.where(s < 0, np.minimum(second, beta), variance)), np.log(beta)


# ---- The times of the training schedule that a sampler visits ------------------------------------------------------


def strided_timesteps(num_timesteps, steps):
    """`steps` falling times, spread evenly over T - 1 .. 0 with both ends; a single step is T - 1. int [steps]."""
    if steps == 1:
        return np.array([num_timesteps - 1])
    return np.linspace(num_timesteps - 1, 0, steps).round().astype(int)


def solver_timesteps(schedule, steps):
    """The falling times of a solver of the diffusion ODE, int [steps]: T - 1 first, the last one above 0.

    They are the upper ends of `steps` even parts of T - 1 .. 0. From the last one the solver steps to the clean mask.
    A visit to t = 0, which has almost no noise, would cost a network call and change little; only `steps` = T has it.
    Raises ValueError unless 1 <= steps <= T.
    """
    total = len(schedule)
    if not 1 <= steps <= total:
        raise ValueError(f"{steps} steps through a schedule of {total}")
    if steps == total:
        return np.arange(total)[::-1]
    return np.linspace(0, total - 1, steps + 1)[:0:-1].round().astype(int)


def bernoulli_timesteps(schedule, steps):
    """The falling times at which a sampler draws the clean mask, int [steps]: T - 1, then even in log(SNR).

    The first counts as `FIRST_LOG_SNR`: steps between it and T - 1, of a level far lower, would change nothing. At the
    last one a pixel's own evidence 2 sqrt(abar) / (1 - abar) is `LAST_EVIDENCE` logits or more, so that the
    predicted probabilities are close to 0 and 1 there and the last draw adds few specks. A single step is T - 1.
    Raises ValueError unless 1 <= steps <= T.
    """
    total = len(schedule)
    if not 1 <= steps <= total:
        raise ValueError(f"{steps} steps through a schedule of {total}")
    abar = schedule.alphas_bar
    log_snr = np.log(abar) - np.log1p(-abar)  # falls with t
    last = max(np.flatnonzero(2 * np.sqrt(abar) / (1 - abar) >= LAST_EVIDENCE), default=0)
    levels = np.linspace(max(log_snr[-1], FIRST_LOG_SNR), log_snr[last], steps)
    times = np.interp(levels, log_snr[::-1], np.arange(total)[::-1]).round().astype(int)
    times[0] = total - 1
    for i in range(1, steps):  # each time once
        times[i] = min(times[i], times[i - 1] - 1)
    return np.maximum(times, np.arange(steps)[::-1])
