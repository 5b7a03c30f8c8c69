"""DPM-Solver++ (arXiv 2211.01095): multistep solvers of the diffusion ODE, of orders 1 to 3, in data prediction."""

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
    """Integrate the diffusion ODE from x at timesteps[0] to the clean mask; a sampler as `samplers` defines it.

    order: 1 (DDIM), 2 (algorithm 2 of the paper, "2M") or 3. lower_order_final: whether the orders fall to 1 over the
    last steps; None: only with fewer than 15 steps, as is usual.
    The first steps have orders 1, 2, ..., because they have no history. The last step returns the predicted x_0, the
    limit of the first-order solution as sigma_s falls to 0. The solver is deterministic and ignores `noise`.
    Raises ValueError without time steps.
    """
    levels = NoiseLevels.at(schedule, timesteps)
    count = len(timesteps)
    if lower_order_final is None:
        lower_order_final = count < 15
    history = deque(maxlen=order)  # pairs (step, its x0), the newest first
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
    half_log_snr: np.ndarray

    @classmethod
    def at(cls, schedule, timesteps):
        """The levels at falling integer `timesteps`."""
        abar = schedule.alpha_bar(np.asarray(timesteps, dtype=int))
        return cls(np.sqrt(abar), np.sqrt(1 - abar), 0.5 * np.log(abar / (1 - abar)))


def integrate(levels, x, i, points):
    """One step of the solver: x [N, K, H, W] at step i + 1 from x at step i.

    points: pairs (step, its x0); x0 is interpolated by the polynomial in lambda through them.
    With h = lambda_s - lambda_t and u = (lambda - lambda_t) / h the exact solution of the diffusion ODE is
        x_s = sigma_s / sigma_t x_t + alpha_s integral_0^1 h e^(-h (1 - u)) x0(u) du.
    """
    h = levels.half_log_snr[i + 1] - levels.half_log_snr[i]
    nodes = [(levels.half_log_snr[j] - levels.half_log_snr[i]) / h for j, _ in points]
    weights = levels.alpha[i + 1] * quadrature(nodes, h)
    x = levels.sigma[i + 1] / levels.sigma[i] * x
    for weight, (_, x0) in zip(weights, points, strict=True):
        x = x + float(weight) * x0
    return x


def quadrature(nodes, h):
    """Weights w [n] with sum_j w_j p(u_j) = J(p) = h integral_0^1 e^(-h (1 - u)) p(u) du for every p of degree < n.

    nodes: n different u_j, one of them 0; h > 0. Integration by parts gives each J(u^k) from J(u^(k - 1)).
    With two nodes J(u) is half of J(1), the paper's simplification (2M). With three nodes J is exact: diffusers'
    DPM-Solver++ halves the second difference there, and its error falls only with the square of the step.
    """
    moments = [-math.expm1(-h)]
    for k in range(1, len(nodes)):
        moments.append(1 - k / h * moments[-1])
    if len(nodes) == 2:
        moments[1] = moments[0] / 2
    return np.linalg.solve(np.vander(nodes, increasing=True).T, moments)
