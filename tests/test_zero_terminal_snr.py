"""Schedules that end in noise alone: against diffusers, and every sampler from there, exactly and by the scripts."""

import numpy as np
import pytest
import torch
from conftest import TINY, rows
from oracles import exact_flow, gaussian_denoiser, marginal, noise_source, randn, record, smooth_denoiser
from oracles import solver_of_diffusers as theirs

from guided_diffusion.dpm_solver import sample_dpm_solver
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.grids import SPACINGS, solver_timesteps, strided_timesteps
from guided_diffusion.sampling import sample_ddim, sample_ddpm
from guided_diffusion.schedule import Schedule, linear_betas, noise_schedule, rescaled_to_zero_snr
from guided_diffusion.unipc import sample_unipc

SOLVERS = {"dpm_solver": sample_dpm_solver, "unipc": sample_unipc}


def ending_in_noise(name="cosine", b=1.0, steps=1000):
    return Schedule(noise_schedule(name, steps, b, zero_terminal_snr=True))


# ---- the schedule ------------------------------------------------------------------------------------------------


def test_rescaling_is_diffusers():
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    betas = linear_betas(1000)
    wanted = np.cumprod(1 - rescale_zero_terminal_snr(torch.from_numpy(betas)).numpy())
    np.testing.assert_allclose(ending_in_noise("linear").alphas_bar, wanted, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("b", [0.1, 1.0])
def test_it_ends_in_noise_alone_and_begins_as_it_was_scaled(name, b):
    scaled, schedule = noise_schedule(name, 1000, b), ending_in_noise(name, b)
    assert schedule.alphas_bar[-1] == 0 and schedule.alphas_bar[0] == pytest.approx(scaled[0], rel=1e-12)
    assert (schedule.alphas_bar == rescaled_to_zero_snr(scaled)).all() and (np.diff(schedule.alphas_bar) < 0).all()


def test_the_ends_of_a_schedule():
    for broken in ([1.0, 0.5], [0.9, 0.5, -0.1], [0.9, 0.0, 0.0], [0.9, np.nan, 0.0]):
        with pytest.raises(ValueError, match="abar must fall"):
            Schedule(broken)
    with pytest.raises(ValueError, match="needs the objective x0 or v"):
        GaussianDiffusion([0.9, 0.0], objective="eps")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("num_timesteps", [2, 3, 10, 100])
def test_a_solver_s_times(spacing, num_timesteps):
    schedule = ending_in_noise("linear", 0.1, num_timesteps)
    for steps in range(1, num_timesteps + 1):
        times = solver_timesteps(schedule, steps, spacing)
        assert len(times) == steps and times[0] == num_timesteps - 1 and (np.diff(times) < 0).all()
    if spacing == "logsnr" and num_timesteps == 100:  # all but the step from noise alone are even
        log_snr = np.log(schedule.alphas_bar[:-1] / (1 - schedule.alphas_bar[:-1]))
        times = solver_timesteps(schedule, 6, spacing)
        assert times[1] == 98
        gaps = np.diff(log_snr[[*times[1:], 0]])
        assert gaps.max() < 1.6 * gaps.min()


# ---- samplers ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_follow_the_exact_flow_from_noise_alone(solver, order, spacing):
    """As closely as through the same schedule with a trace of signal at its end."""
    x, plain = randn(1, 1, 16, 16), Schedule(noise_schedule("cosine", 1000))

    def error(schedule, steps):
        times = solver_timesteps(schedule, steps, spacing)
        _, states, _ = record(SOLVERS[solver], gaussian_denoiser(schedule), x, times, schedule, order=order)
        return (states[-1] - exact_flow(schedule, x, times[0], times[-1])).abs().max().item()

    assert error(ending_in_noise(), 20) < 1.1 * error(plain, 20) + 1e-3
    assert error(ending_in_noise(), 80) < (0.05 if solver == "dpm_solver" and order == 1 else 0.005)


def test_the_correction_of_the_first_step_is_exact_where_the_signal_is_small():
    """x0 of Gaussian masks is linear in alpha there, to first order, and the error falls with its square."""
    errors = []
    for alpha in (0.1, 0.05):
        schedule = Schedule([0.9, alpha**2, 0.0])
        x = randn(1, 1, 8, 8)
        states = record(sample_unipc, gaussian_denoiser(schedule), x, (2, 1, 0), schedule)[1]
        predicted = record(sample_dpm_solver, gaussian_denoiser(schedule), x, (2, 1, 0), schedule)[1]
        assert torch.equal(states[1], predicted[1])
        x0 = gaussian_denoiser(schedule)(states[1], 1).x0
        corrected = (1 - alpha**2) ** 0.5 * x + alpha * (x0 + gaussian_denoiser(schedule)(x, 2).x0) / 2
        exact = exact_flow(schedule, x, 2, 1)
        errors.append((corrected - exact).abs().max().item())
        assert errors[-1] < 0.2 * (states[1] - exact).abs().max()
    assert errors[1] < errors[0] / 6


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning", "ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("solver_type", ["ode", "sde"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("objective", ["x0", "v"])
def test_dpm_solver_is_the_limit_of_diffusers(objective, order, solver_type):
    """They put a small number in place of the last abar, 0; here a smaller one."""
    from diffusers import DPMSolverMultistepScheduler

    schedule = ending_in_noise("linear")
    x = randn(1, 1, 8, 8)
    times = solver_timesteps(schedule, 10)
    diffusion = GaussianDiffusion(schedule.alphas_bar, objective=objective)
    near = schedule.alphas_bar.copy()
    near[-1] = 1e-300
    kind = {"ode": "dpmsolver++", "sde": "sde-dpmsolver++"}[solver_type]
    scheduler = theirs(DPMSolverMultistepScheduler, near, objective, 10, solver_order=order, algorithm_type=kind)
    denoise, noise = smooth_denoiser(diffusion, clip=False), noise_source(x.shape)
    settings = {"order": order, "solver_type": solver_type}
    _, states, predictions = record(sample_dpm_solver, denoise, x, times, schedule, noise, **settings)
    noise, theirs_x = noise_source(x.shape), x
    for t, ours, x0 in zip(scheduler.timesteps, states, predictions, strict=True):
        torch.testing.assert_close(ours, theirs_x, rtol=0, atol=5e-4)
        near_diffusion = GaussianDiffusion(near, objective=objective)
        value = near_diffusion.target(x0, t.reshape(1), near_diffusion.to_eps(x0, theirs_x, t.reshape(1)))
        theirs_x = scheduler.step(value, t, theirs_x, variance_noise=noise()).prev_sample


@pytest.mark.filterwarnings("error")
def test_random_samplers_reach_the_masks_distribution():
    schedule = ending_in_noise(steps=200)
    x = randn(64, 1, 16, 16)
    for sampler, settings in ((sample_ddpm, {}), (sample_dpm_solver, {"solver_type": "sde"})):
        times = strided_timesteps(200, 100)
        noise = noise_source(x.shape)
        states = record(sampler, gaussian_denoiser(schedule), x, times, schedule, noise, **settings)[1]
        mean, deviation = marginal(schedule, times[-1])
        assert states[-1].mean().item() == pytest.approx(mean, abs=0.01)
        assert states[-1].std().item() == pytest.approx(deviation, rel=0.05)
    states = record(sample_ddim, gaussian_denoiser(schedule), x, strided_timesteps(200, 200), schedule)[1]
    assert (states[-1] - exact_flow(schedule, x, 199, 0)).abs().max() < 0.03


# ---- the scripts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["--objective v", "--objective x0 --learn_sigma True --loss_weighting min_snr"])
def test_train_and_sample(train, sample, pictures, flags):
    checkpoint = train("FOLDER", pictures, f"--zero_terminal_snr True --diffusion_steps 20 {flags}")
    for number, how in enumerate(
        [
            "--diffusion_steps 20",
            "--use_ddim True --diffusion_steps 3",
            "--sampler unipc --solver_order 3 --diffusion_steps 4",
            "--dpm_solver True --solver_type sde --time_spacing logsnr --diffusion_steps 4",
        ]
    ):
        out = sample(checkpoint, pictures, f"--num_ensemble 2 --num_workers 0 --precision fp32 {how}", f"r{number}")
        assert len(rows(out)) >= 4


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("--objective eps", "goes with --objective x0 or v, not eps"),
        ("--version unet", "leave out --zero_terminal_snr True"),
    ],
)
def test_where_it_makes_no_sense(refusal, pictures, tmp_path, flags, wanted):
    line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / "r", TINY, "--zero_terminal_snr True"]
    assert wanted in refusal("segmentation_train", [*line, flags])
