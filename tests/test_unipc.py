"""UniPC: against diffusers step by step, and its order of convergence against an exact solution."""

import pytest
from oracles import (
    flow_error,
    network,
    orders_of_convergence,
    randn,
    record,
    smooth_denoiser,
    solver_of_diffusers,
)

from guided_diffusion.dpm_solver import sample_dpm_solver
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.grids import solver_timesteps
from guided_diffusion.schedule import Schedule, noise_schedule
from guided_diffusion.unipc import sample_unipc


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@pytest.mark.parametrize(("schedule", "b"), [("linear", 1.0), ("cosine", 0.1)])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20])
def test_every_step_agrees_with_diffusers(objective, schedule, b, order, variant, steps):
    from diffusers import UniPCMultistepScheduler

    diffusion = GaussianDiffusion(noise_schedule(schedule, 1000, b), objective=objective)
    alphas_bar = diffusion.schedule.alphas_bar
    scheduler = solver_of_diffusers(
        UniPCMultistepScheduler, alphas_bar, objective, steps, solver_order=order, solver_type=variant
    )
    times = solver_timesteps(diffusion.schedule, steps)
    denoise, x = smooth_denoiser(diffusion, clip=False), randn(2, 1, 8, 8)
    result, states, _ = record(sample_unipc, denoise, x, times, diffusion.schedule, order=order, variant=variant)
    for t, ours in zip(scheduler.timesteps, states, strict=True):
        assert (ours - x).abs().max() < 1e-5 * x.abs().max()
        x = scheduler.step(diffusion.activate(network(x, t.reshape(1))), t, x).prev_sample
    if variant == "bh1":
        assert x.isnan().all()  # theirs multiplies 0 by B1(h) = h, infinite in the step to the clean mask
    else:
        assert (result - x).abs().max() < 1e-5 * x.abs().max()


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_error_falls_one_order_faster_than_the_predictor_s(order, variant):
    orders, errors = orders_of_convergence(
        lambda steps: flow_error(sample_unipc, steps, order=order, variant=variant), (80, 160, 320)
    )
    assert (abs(orders - (order + 1)) < 0.2).all()
    assert errors[-1] < flow_error(sample_dpm_solver, 320, order=order) / 4


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        sample_unipc(None, randn(1), [], Schedule([0.9, 0.1]))
