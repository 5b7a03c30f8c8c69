"""DPM-Solver++: multistep solvers, of orders 1 to 3, of the diffusion ODE in data prediction (arXiv 2211.01095)."""

import math
from collections import deque
from typing import NamedTuple

import numpy as np

from .schedule import Schedule


def sample_dpm_solver(
    denoise,
    x,
    timesteps,
    schedule: Schedule,
    noise=None,
    watch=None,
    *,
    order=2,
    lower_order_final=None,
):
    """Integrate from x at timesteps[0] to the clean mask; a sampler of the common signature (see `sampling`).

    order: 1 (DDIM), 2 (algorithm 2 of the paper, "2M") or 3. lower_order_final: whether the last steps have orders
    ..., 3, 2, 1; None: where they are fewer than 15, as usual. In any case the first steps, which have no history, have
    orders 1, 2, ..., and the last returns the network's x0 itself, where the solution of first order leads as sigma_s
    becomes 0. The solver is deterministic: `noise` is not used.
    """
    levels = NoiseLevels.at(schedule, timesteps)
    count = len(timesteps)
    if lower_order_final is None:
        lower_order_final = count < 15
    history = deque(maxlen=order)  # (step, its x0), the newest first
    for i, t in enumerate(timesteps):
        x0 = denoise(x, t).x0
        if watch is not None:
            watch(x, x0)
        if i + 1 == count:
            return x0
        history.appendleft((i, x0))
        points = list(history)[: count - i] if lower_order_final else history
        x = integrate(levels, x, i, points)
    raise ValueError("needs at least one time step")


class NoiseLevels(NamedTuple):
    """alpha = sqrt(abar), sigma = sqrt(1 - abar) and lambda = log(alpha / sigma) at each step; float64 [steps]."""

    alpha: np.ndarray
    sigma: np.ndarray
    log_snr: np.ndarray

    @classmethod
    def at(cls, schedule, timesteps):
        """The levels at falling integer `timesteps`."""
        abar = schedule.alpha_bar(np.asarray(timesteps, dtype=int))
        return cls(np.sqrt(abar), np.sqrt(1 - abar), 0.5 * np.log(abar / (1 - abar)))


def integrate(levels, x, i, points):
    """x at step i + 1 from x at step i, where x0 is the polynomial in lambda through `points`, pairs (step, its x0).

    With h = lambda_s - lambda_t and u = (lambda - lambda_t) / h the variation of constants of the diffusion ODE reads
        x_s = sigma_s / sigma_t x_t + alpha_s integral_0^1 h e^(-h (1 - u)) x0(u) du.
    """
    h = levels.log_snr[i + 1] - levels.log_snr[i]
    nodes = [(levels.log_snr[j] - levels.log_snr[i]) / h for j, _ in points]
    weights = levels.alpha[i + 1] * quadrature(nodes, h)
    x = levels.sigma[i + 1] / levels.sigma[i] * x
    for weight, (_, x0) in zip(weights, points, strict=True):
        x = x + float(weight) * x0
    return x


def quadrature(nodes, h):
    """Weights w [n] with sum_j w_j p(u_j) = J(p) = h integral_0^1 e^(-h (1 - u)) p(u) du for all p of degree < n.

    nodes: n different u_j, one of them 0; h > 0. The monomials' J(u^k) follow from one another by parts. With two
    nodes J(u) is simplified as in the paper (2M): half of J(1). With three nothing is simplified: diffusers'
    DPM-Solver++ halves the second difference's part there, and its error then falls with the square of the step only.
    """
    moments = [-math.expm1(-h)]
    for k in range(1, len(nodes)):
        moments.append(1 - k / h * moments[-1])
    if len(nodes) == 2:
        moments[1] = moments[0] / 2
    return np.linalg.solve(np.vander(nodes, increasing=True).T, moments)
