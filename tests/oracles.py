"""What the tests of samplers compare with: a network, Gaussian masks with a known solution, diffusers' schedulers."""

import numpy as np
import torch

from guided_diffusion.diffusion.gaussian_diffusion import Denoised
from guided_diffusion.diffusion.schedule import Schedule
from guided_diffusion.models.outputs import ModelOutput

THEIR_NAMES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
MEAN, STD = 0.3, 0.5


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def noise_source(shape, dtype=torch.float64, seed=1):
    """Standard noise by each call, and uniform numbers by `uniform()`, both of one generator."""
    generator = torch.Generator().manual_seed(seed)

    def noise():
        return torch.randn(shape, generator=generator, dtype=dtype)

    noise.uniform = lambda: torch.rand((shape[0], 1, *shape[2:]), generator=generator, dtype=dtype)
    return noise


def network(x, t):
    """Some smooth, nonlinear network that mixes pixels, not rows, and depends on the time."""
    return torch.tanh(0.8 * x + 0.3 * x.roll(1, -1) - 0.2 * x.roll(1, -2) ** 2 + 1e-3 * t.reshape(-1, 1, 1, 1) - 0.3)


def smooth_denoiser(diffusion, learned=False, clip=True):
    """`network` as a denoiser."""

    def model(x, t, condition):
        return ModelOutput(network(x, t), network(-x, t) if learned else None, None)

    return diffusion.denoiser(model, None, clip=clip)


def record(sampler, denoise, x, timesteps, schedule, noise=None, **settings):
    """Sample. Returns the result, and x_t and x0 of each step as two lists."""
    states, predictions = [], []

    def watch(x, x0):
        states.append(x)
        predictions.append(x0)

    return sampler(denoise, x, timesteps, schedule, noise, watch, **settings), states, predictions


# ---- Gaussian masks --------------------------------------------------------------------------------------------------


def even_schedule(steps, lowest=-6, highest=3):
    """A schedule whose log(alpha / sigma) falls evenly."""
    return Schedule(1 / (1 + np.exp(-2 * np.linspace(highest, lowest, steps))))


def exact_x0(alphas_bar, x, t, mean=MEAN, std=STD):
    """E[x_0 | x_t] of masks whose every pixel is N(mean, std^2)."""
    abar = float(alphas_bar[t])
    return (mean * (1 - abar) + abar**0.5 * std**2 * x) / (abar * std**2 + 1 - abar)


def gaussian_denoiser(schedule):
    """The exact denoiser of such masks."""

    def denoise(x, t):
        x0, abar = exact_x0(schedule.alphas_bar, x, t), float(schedule.alphas_bar[t])
        return Denoised(x0, (x - abar**0.5 * x0) / (1 - abar) ** 0.5, None, None)

    return denoise


def marginal(schedule, t):
    """Mean and deviation of x_t."""
    abar = schedule.alphas_bar[t]
    return abar**0.5 * MEAN, (abar * STD**2 + 1 - abar) ** 0.5


def exact_flow(schedule, x, t, s):
    """The diffusion ODE's solution: a pixel keeps its place in the marginal distribution."""
    (mean_t, std_t), (mean_s, std_s) = marginal(schedule, t), marginal(schedule, s)
    return mean_s + std_s * (x - mean_t) / std_t


def even_times(schedule, steps):
    return np.linspace(len(schedule) - 1, 0, steps + 1).astype(int)


def orders_of_convergence(error, numbers):
    """The slopes of log error(steps) against -log steps between neighbours, and the errors."""
    errors = np.array([error(steps) for steps in numbers])
    return np.log(errors[:-1] / errors[1:]) / np.log(np.divide(numbers[1:], numbers[:-1])), errors


def flow_error(sampler, steps, **settings):
    """How far the sampler is from the exact flow two steps before its end, where all orders are still the full ones."""
    schedule = even_schedule(11521)
    x, times = randn(1, 1, 16, 16), even_times(schedule, steps)
    _, states, _ = record(sampler, gaussian_denoiser(schedule), x, times, schedule, **settings)
    return (states[-2] - exact_flow(schedule, x, times[0], times[-2])).abs().max().item()


# ---- diffusers -------------------------------------------------------------------------------------------------------


def with_our_schedule(scheduler_class, alphas_bar, objective, **options):
    """A scheduler of diffusers over our schedule, in float64."""
    betas = 1 - alphas_bar / np.r_[1, alphas_bar[:-1]]
    scheduler = scheduler_class(len(betas), trained_betas=betas, prediction_type=THEIR_NAMES[objective], **options)
    scheduler.alphas_cumprod = torch.from_numpy(alphas_bar)
    return scheduler


def solver_of_diffusers(scheduler_class, alphas_bar, objective, steps, **options):
    """The same for its solvers, which round their sigmas to float32 otherwise."""
    scheduler = with_our_schedule(scheduler_class, alphas_bar, objective, final_sigmas_type="zero", **options)
    scheduler.set_timesteps(steps)
    sigmas = ((1 - alphas_bar) / alphas_bar)[scheduler.timesteps.numpy()] ** 0.5
    scheduler.sigmas = torch.from_numpy(np.r_[sigmas, 0.0])
    return scheduler
