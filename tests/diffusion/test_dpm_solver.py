"""DPM-Solver++: against diffusers step by step, and its order of convergence against exact solutions."""

import math

import numpy as np
import pytest
import torch
from oracles import (
    flow_error,
    gaussian_denoiser,
    network,
    orders_of_convergence,
    randn,
    record,
    smooth_denoiser,
    solver_of_diffusers,
)

from guided_diffusion.diffusion.dpm_solver import sample_dpm_solver
from guided_diffusion.diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.diffusion.samplers import sample_ddim
from guided_diffusion.diffusion.schedule import Schedule, noise_schedule, solver_timesteps

every_objective = pytest.mark.parametrize("objective", ["eps", "x0", "v"])

# ---- against diffusers -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@every_objective
@pytest.mark.parametrize(("schedule", "b"), [("linear", 1.0), ("linear", 0.1), ("cosine", 1.0), ("cosine", 0.1)])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [1, 2, 10, 20])
def test_every_step_agrees_with_diffusers(objective, schedule, b, order, steps):
    from diffusers import DPMSolverMultistepScheduler

    diffusion = GaussianDiffusion(noise_schedule(schedule, 1000, b), objective=objective)
    scheduler = solver_of_diffusers(
        DPMSolverMultistepScheduler,
        diffusion.schedule.alphas_bar,
        objective,
        steps,
        solver_order=order,
    )
    times = solver_timesteps(diffusion.schedule, steps)
    assert scheduler.timesteps.tolist() == times.tolist()
    x = randn(2, 1, 8, 8)
    denoise = smooth_denoiser(diffusion, clip=False)
    result, states, _ = record(sample_dpm_solver, denoise, x, times, diffusion.schedule, order=order)
    for t, ours in zip(scheduler.timesteps, states, strict=True):
        assert (ours - x).abs().max() < 1e-5 * x.abs().max()
        value = diffusion.activate(network(x, t.reshape(1)))
        x = scheduler.step(value, t, x).prev_sample
    assert (result - x).abs().max() < 1e-5 * x.abs().max()


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@every_objective
@pytest.mark.parametrize(("schedule", "b"), [("linear", 1.0), ("cosine", 0.1)])
@pytest.mark.parametrize("steps", [3, 4, 10, 20])
def test_third_order_is_unipc_s_predictor_in_diffusers(objective, schedule, b, steps):
    """Both integrate the polynomial through three x0 exactly, but diffusers' UniPC always lowers the last orders."""
    from diffusers import UniPCMultistepScheduler

    diffusion = GaussianDiffusion(noise_schedule(schedule, 1000, b), objective=objective)
    scheduler = solver_of_diffusers(
        UniPCMultistepScheduler,
        diffusion.schedule.alphas_bar,
        objective,
        steps,
        solver_order=3,
        disable_corrector=list(range(steps)),
    )
    denoise, x, times = smooth_denoiser(diffusion, clip=False), randn(2, 1, 8, 8), scheduler.timesteps.numpy()
    settings = {"order": 3, "lower_order_final": True}
    result, states, _ = record(sample_dpm_solver, denoise, x, times, diffusion.schedule, **settings)
    for t, ours in zip(scheduler.timesteps, states, strict=True):
        assert (ours - x).abs().max() < 1e-5 * x.abs().max()
        x = scheduler.step(diffusion.activate(network(x, t.reshape(1))), t, x).prev_sample
    assert (result - x).abs().max() < 1e-5 * x.abs().max()


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize("steps", [10, 14, 15, 20])
def test_third_order_is_diffusers_with_the_second_difference_in_full(steps):
    """diffusers' third-order step takes half of the second difference's term, D2, which makes its error fall with h^2
    alone (as `flow_error` of it shows); ours takes all of it. Its rule of lowering the last orders is ours."""
    from diffusers import DPMSolverMultistepScheduler

    diffusion = GaussianDiffusion(noise_schedule("linear", 1000), objective="v")
    scheduler = solver_of_diffusers(
        DPMSolverMultistepScheduler, diffusion.schedule.alphas_bar, "v", steps, solver_order=3
    )
    times, denoise = solver_timesteps(diffusion.schedule, steps), smooth_denoiser(diffusion, clip=False)
    settings = {"order": 3}
    result, states, x0s = record(sample_dpm_solver, denoise, randn(2, 1, 8, 8), times, diffusion.schedule, **settings)
    alphas_bar = diffusion.schedule.alphas_bar[times]
    log_snr = 0.5 * np.log(alphas_bar / (1 - alphas_bar))
    third_order_steps = 0
    for i, (x, after) in enumerate(zip(states, [*states[1:], result], strict=True)):
        t = scheduler.timesteps[i]
        theirs = scheduler.step(network(x, t.reshape(1)), t, x).prev_sample
        if 2 <= i < steps - (2 if steps < 15 else 1):
            h, h0, h1 = log_snr[i + 1] - log_snr[i], log_snr[i] - log_snr[i - 1], log_snr[i - 1] - log_snr[i - 2]
            slopes = (x0s[i] - x0s[i - 1]) * h / h0, (x0s[i - 1] - x0s[i - 2]) * h / h1
            d2 = (slopes[0] - slopes[1]) * h / (h0 + h1)
            theirs = theirs - alphas_bar[i + 1] ** 0.5 * ((math.expm1(-h) + h) / h**2 - 0.5) * d2
            third_order_steps += 1
        assert (after - theirs).abs().max() < 1e-5 * theirs.abs().max()
    assert third_order_steps == steps - (4 if steps < 15 else 3)


# ---- against the integral --------------------------------------------------------------------------------------------


def test_a_third_order_step_is_the_integral_of_the_parabola_through_three_x0():
    schedule, x = Schedule(noise_schedule("linear", 1000)), randn(2, 1, 8, 8)
    times = solver_timesteps(schedule, 20)
    denoise = smooth_denoiser(GaussianDiffusion(schedule.alphas_bar, objective="x0"))
    _, states, x0s = record(sample_dpm_solver, denoise, x, times, schedule, order=3)
    abar = schedule.alphas_bar[times]
    log_snr, sigma = 0.5 * np.log(abar / (1 - abar)), np.sqrt(1 - abar)
    points, point_weights = np.polynomial.legendre.leggauss(40)
    for i in range(2, 19):
        at, below, above = log_snr[i - 2 : i + 1], log_snr[i], log_snr[i + 1]
        values = torch.stack(x0s[i - 2 : i + 1]).flatten(1).numpy()
        parabola = np.polynomial.polynomial.polyfit(at - below, values, 2)
        places = (points + 1) / 2 * (above - below)  # lambda above the step's start
        x0_at = np.polynomial.polynomial.polyval(places, parabola)  # [pixels, places]
        kernel = np.exp(-(above - below - places)) * point_weights * (above - below) / 2
        expected = sigma[i + 1] / sigma[i] * states[i]
        expected = expected + abar[i + 1] ** 0.5 * torch.from_numpy(x0_at @ kernel).reshape(x.shape)
        torch.testing.assert_close(states[i + 1], expected, atol=1e-9, rtol=1e-9)


# ---- order of convergence --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_error_falls_with_the_step_to_the_power_of_the_order(order):
    orders, errors = orders_of_convergence(
        lambda steps: flow_error(sample_dpm_solver, steps, order=order), (160, 320, 640)
    )
    assert (orders > order - 0.15).all() and (orders < order + 0.5).all()
    assert errors[-1] < {1: 1e-2, 2: 5e-5, 3: 1e-7}[order]


def test_ddim_is_the_first_order_of_the_ode():
    schedule = Schedule(noise_schedule("cosine", 100))
    denoise, x, times = gaussian_denoiser(schedule), randn(2, 1, 8, 8), solver_timesteps(schedule, 12)
    solver, states, _ = record(sample_dpm_solver, denoise, x, times, schedule, order=1)
    ddim, their_states, _ = record(sample_ddim, denoise, x, times, schedule)
    torch.testing.assert_close(torch.stack([*states, solver]), torch.stack([*their_states, ddim]), atol=1e-9, rtol=0)


# ---- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [2, 3])
def test_the_first_step_is_of_first_order_and_the_last_is_the_network_s_x0(order):
    schedule, x = Schedule(noise_schedule("cosine", 100)), randn(2, 1, 8, 8)
    seen = []
    for used in (1, order):
        times = [99, 80, 60, 20]
        result, states, x0s = record(sample_dpm_solver, gaussian_denoiser(schedule), x, times, schedule, order=used)
        assert torch.equal(result, x0s[-1]) and len(states) == 4 and torch.equal(states[0], x)
        seen.append(states)
    torch.testing.assert_close(seen[0][1], seen[1][1], atol=1e-12, rtol=0)
    assert not torch.allclose(seen[0][2], seen[1][2], atol=1e-6)


def test_the_last_orders_are_lowered_below_fifteen_steps_by_default():
    schedule, x = Schedule(noise_schedule("cosine", 200)), randn(2, 1, 8, 8)

    def last(steps, lower):
        times = solver_timesteps(schedule, steps)
        settings = {"order": 3, "lower_order_final": lower}
        return sample_dpm_solver(gaussian_denoiser(schedule), x, times, schedule, **settings)

    for steps in (14, 15):
        lowered, kept, auto = last(steps, True), last(steps, False), last(steps, None)
        assert not torch.allclose(lowered, kept, atol=1e-6)
        assert torch.equal(auto, lowered if steps < 15 else kept)


@every_objective
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("b", [0.1, 1.0])
@pytest.mark.parametrize("clip", [True, False])
def test_float32_steps_give_no_nan(objective, schedule, b, clip):
    diffusion = GaussianDiffusion(noise_schedule(schedule, 1000, b), objective=objective)
    denoise, x = smooth_denoiser(diffusion, clip=clip), randn(2, 1, 8, 8, dtype=torch.float32)
    for steps in (1, 20, 1000):
        times = solver_timesteps(diffusion.schedule, steps)
        order = 3 if clip else 2
        result, states, x0s = record(sample_dpm_solver, denoise, x, times, diffusion.schedule, order=order)
        assert all(part.isfinite().all() and part.dtype == torch.float32 for part in [*states, *x0s, result])
        if clip:
            assert result.abs().max() <= 1


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        sample_dpm_solver(None, randn(1), [], Schedule([0.9, 0.1]))
