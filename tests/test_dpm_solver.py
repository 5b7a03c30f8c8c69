"""DPM-Solver++ (2M): against diffusers step by step, and its order of convergence against an exact solution."""

import numpy as np
import pytest
import torch

from guided_diffusion.dpm_solver import sample_dpm_solver, solver_timesteps
from guided_diffusion.gaussian_diffusion import Denoised, GaussianDiffusion, Schedule, noise_schedule
from guided_diffusion.medsegdiff import ModelOutput
from guided_diffusion.sampling import sample_ddim

THEIR_NAMES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def network(x, t):
    """Some smooth, nonlinear network that mixes pixels and depends on the time."""
    return torch.tanh(0.8 * x + 0.3 * x.roll(1, -1) - 0.2 * x.roll(1, -2) ** 2 + 1e-3 * t.reshape(-1, 1, 1, 1) - 0.3)


def noise_like(shape=(2, 1, 8, 8), dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


# ---- the grid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_timesteps", "steps"), [(1000, 20), (1000, 999), (50, 7), (2, 1), (10, 9)])
def test_the_grid_falls_from_the_last_training_step_and_keeps_above_0(num_timesteps, steps):
    grid = solver_timesteps(num_timesteps, steps)
    assert len(grid) == steps and grid[0] == num_timesteps - 1 and grid[-1] >= 1
    spacing = -np.diff([*grid, 0])
    assert (spacing >= 1).all() and spacing.max() - spacing.min() <= 1


# ---- against diffusers -----------------------------------------------------------------------------------------------


def diffusers_scheduler(alphas_bar, objective, steps):
    """diffusers' solver over our schedule, in float64 (it rounds its own sigmas to float32)."""
    from diffusers import DPMSolverMultistepScheduler

    betas = 1 - alphas_bar / np.r_[1, alphas_bar[:-1]]
    scheduler = DPMSolverMultistepScheduler(
        len(betas), trained_betas=betas, prediction_type=THEIR_NAMES[objective], final_sigmas_type="zero"
    )
    scheduler.alphas_cumprod = torch.from_numpy(alphas_bar)
    scheduler.set_timesteps(steps)
    sigmas = ((1 - alphas_bar) / alphas_bar)[scheduler.timesteps.numpy()] ** 0.5
    scheduler.sigmas = torch.from_numpy(np.r_[sigmas, 0.0])
    return scheduler


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@pytest.mark.parametrize(("schedule", "b"), [("linear", 1.0), ("linear", 0.1), ("cosine", 1.0), ("cosine", 0.1)])
@pytest.mark.parametrize("steps", [1, 2, 10, 20])
def test_every_step_agrees_with_diffusers(objective, schedule, b, steps):
    alphas_bar = noise_schedule(schedule, 1000, b)
    diffusion = GaussianDiffusion(alphas_bar, objective=objective)
    scheduler = diffusers_scheduler(alphas_bar, objective, steps)
    timesteps = solver_timesteps(1000, steps)
    assert scheduler.timesteps.tolist() == timesteps.tolist()
    denoise = diffusion.denoiser(lambda x, t, _: ModelOutput(network(x, t), None, None), None, clip=False)
    x, trajectory = noise_like(), []
    result = sample_dpm_solver(
        lambda x, t: denoise(x, torch.full((2,), int(t))),
        x,
        timesteps,
        diffusion.schedule,
        watch=lambda x, x0: trajectory.append(x),
    )
    theirs = x
    for t, ours in zip(scheduler.timesteps, trajectory, strict=True):
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
        value = diffusion.activate(network(theirs, t.reshape(1)))
        theirs = scheduler.step(value, t, theirs).prev_sample
    assert (result - theirs).abs().max() < 1e-5 * theirs.abs().max()


# ---- order of convergence --------------------------------------------------------------------------------------------


def uniform_schedule(steps):
    """A schedule whose log(alpha / sigma) falls evenly from 3 to -3."""
    return Schedule(1 / (1 + np.exp(-2 * np.linspace(3, -3, steps))))


MEAN, STD = 0.3, 0.5


def gaussian_denoiser(schedule):
    """The exact denoiser E[x_0 | x_t] of masks whose every pixel is N(MEAN, STD^2)."""

    def denoise(x, t):
        abar = float(schedule.alphas_bar[t])
        x0 = (MEAN * (1 - abar) + abar**0.5 * STD**2 * x) / (abar * STD**2 + 1 - abar)
        return Denoised(x0, (x - abar**0.5 * x0) / (1 - abar) ** 0.5, None, None)

    return denoise


def exact_flow(schedule, x, t, s):
    """The diffusion ODE's solution for that data: a pixel keeps its place in N(alpha MEAN, alpha^2 STD^2 + sigma^2)."""

    def place(step):
        abar = schedule.alphas_bar[step]
        return abar**0.5 * MEAN, (abar * STD**2 + 1 - abar) ** 0.5

    (mean_t, std_t), (mean_s, std_s) = place(t), place(s)
    return mean_s + std_s * (x - mean_t) / std_t


def error_before_the_final_jump(sampler, steps):
    schedule = uniform_schedule(961)
    timesteps = np.linspace(960, 0, steps + 1).astype(int)
    x, seen = noise_like((1, 1, 32, 32)), []
    sampler(gaussian_denoiser(schedule), x, timesteps, schedule, watch=lambda x, x0: seen.append(x))
    return (seen[-1] - exact_flow(schedule, x, 960, 0)).abs().max().item()


def test_the_error_falls_with_the_square_of_the_step():
    errors = [error_before_the_final_jump(sample_dpm_solver, steps) for steps in (20, 40, 80, 160)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (orders > 1.7).all() and (orders < 2.4).all()
    assert errors[-1] < 5e-4


def test_the_solver_is_of_higher_order_than_ddim():
    errors = [error_before_the_final_jump(sample_ddim, steps) for steps in (20, 40, 80)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (orders > 0.8).all() and (orders < 1.3).all()
    assert error_before_the_final_jump(sample_dpm_solver, 40) < errors[1] / 5


# ---- steps -----------------------------------------------------------------------------------------------------------


def test_the_first_step_is_ddim_s_and_the_last_is_the_network_s_x0():
    schedule = Schedule(noise_schedule("cosine", 100))
    denoise, x, seen = gaussian_denoiser(schedule), noise_like(), {}
    for name, sampler in (("solver", sample_dpm_solver), ("ddim", sample_ddim)):
        steps = seen[name] = []
        result = sampler(denoise, x, [99, 60, 20], schedule, watch=lambda x, x0, steps=steps: steps.append((x, x0)))
        assert torch.equal(result, steps[-1][1])
        assert len(steps) == 3 and torch.equal(steps[0][0], x)
    torch.testing.assert_close(seen["solver"][1][0], seen["ddim"][1][0], atol=1e-9, rtol=0)
    assert not torch.allclose(seen["solver"][2][0], seen["ddim"][2][0], atol=1e-6)


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("b", [0.1, 1.0])
@pytest.mark.parametrize("clip", [True, False])
def test_twenty_float32_steps_give_no_nan(objective, schedule, b, clip):
    diffusion = GaussianDiffusion(noise_schedule(schedule, 1000, b), objective=objective)
    denoise = diffusion.denoiser(lambda x, t, _: ModelOutput(network(x, t), None, None), None, clip=clip)
    seen = []
    result = sample_dpm_solver(
        lambda x, t: denoise(x, torch.full((2,), int(t))),
        noise_like(dtype=torch.float32),
        solver_timesteps(1000, 20),
        diffusion.schedule,
        watch=lambda x, x0: seen.extend((x, x0)),
    )
    assert all(x.isfinite().all() and x.dtype == torch.float32 for x in [*seen, result])
    if clip:
        assert result.abs().max() <= 1


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        sample_dpm_solver(None, noise_like(), [], Schedule([0.9, 0.1]))
