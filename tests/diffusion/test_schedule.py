"""The schedule against closed forms, diffusers and Bayes' rule by numbers, and the times that samplers visit."""

import math

import numpy as np
import pytest

from guided_diffusion.diffusion.schedule import (
    Schedule,
    bernoulli_timesteps,
    cosine_betas,
    linear_betas,
    noise_schedule,
    solver_timesteps,
    strided_timesteps,
)

# ---- schedules -------------------------------------------------------------------------------------------------------


def test_linear_schedule_is_ddpm_s_and_ends_at_the_same_noise_for_other_lengths():
    betas = linear_betas(1000)
    np.testing.assert_allclose(betas, 1e-4 + np.arange(1000) * (0.02 - 1e-4) / 999, rtol=1e-12)
    final = [np.log(noise_schedule("linear", steps)[-1]) for steps in (200, 1000, 4000)]
    np.testing.assert_allclose(final, final[1], rtol=0.05)
    assert linear_betas(10).max() <= 0.999


@pytest.mark.parametrize("steps", [50, 1000])
def test_cosine_schedule_is_the_closed_form(steps):
    t = np.arange(1, steps)  # the last beta is cut
    closed = np.cos((t / steps + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(noise_schedule("cosine", steps)[:-1], closed, rtol=1e-9)
    assert cosine_betas(steps)[-1] == 0.999


@pytest.mark.parametrize("steps", [100, 1000])
@pytest.mark.parametrize(("name", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_schedules_agree_with_diffusers(name, theirs, steps):
    from diffusers import DDPMScheduler

    scale = 1000 / steps
    scheduler = DDPMScheduler(steps, beta_start=1e-4 * scale, beta_end=0.02 * scale, beta_schedule=theirs)
    ours = {"linear": linear_betas, "cosine": cosine_betas}[name](steps)
    np.testing.assert_allclose(ours, scheduler.betas.numpy(), rtol=2e-6)
    np.testing.assert_allclose(noise_schedule(name, steps), scheduler.alphas_cumprod.numpy(), rtol=1e-3)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("b", [0.1, 0.3, 1.0])
def test_input_scale_multiplies_the_signal_to_noise_ratio_by_its_square(name, b):
    plain, scaled = noise_schedule(name, 1000), noise_schedule(name, 1000, b)
    assert scaled.dtype == np.float64
    np.testing.assert_allclose(scaled / (1 - scaled), b**2 * plain / (1 - plain), rtol=1e-9)
    assert (np.diff(scaled) < 0).all() and 0 < scaled[-1] and scaled[0] < 1


@pytest.mark.parametrize("alphas_bar", [[0.9, 0.9], [0.5, 0.6], [1.0, 0.5], [0.5, 0.0], [0.5, -0.1], [0.5, math.nan]])
def test_a_schedule_that_does_not_fall_from_below_1_to_above_0_is_refused(alphas_bar):
    with pytest.raises(ValueError, match="abar"):
        Schedule(alphas_bar)


# ---- the posterior ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("t", "s"), [(1, 0), (40, 39), (70, 20), (99, 98), (99, 0)])
@pytest.mark.parametrize("b", [0.3, 1.0])
def test_posterior_is_bayes_rule(t, s, b):
    schedule = Schedule(noise_schedule("cosine", 100, b))
    x0, x_t = -1.0, 0.4
    abar_t, abar_s = schedule.alphas_bar[t], schedule.alphas_bar[s]
    x_s = np.linspace(-9, 9, 40001)
    prior = -((x_s - math.sqrt(abar_s) * x0) ** 2) / (2 * (1 - abar_s))
    likelihood = -((x_t - math.sqrt(abar_t / abar_s) * x_s) ** 2) / (2 * (1 - abar_t / abar_s))
    density = np.exp(prior + likelihood - (prior + likelihood).max())
    density /= density.sum()
    mean = (density * x_s).sum()
    of_x0, of_xt, variance, beta = schedule.posterior(t, s)
    assert of_x0 * x0 + of_xt * x_t == pytest.approx(mean, abs=1e-6)
    assert variance == pytest.approx((density * (x_s - mean) ** 2).sum(), rel=1e-4)
    assert beta == pytest.approx(1 - abar_t / abar_s)


@pytest.mark.parametrize(("t", "s"), [(99, 49), (50, 3), (20, 18)])
def test_a_long_posterior_step_is_the_composition_of_single_ones(t, s):
    schedule = Schedule(noise_schedule("cosine", 100, 0.1))
    of_x0, of_xt, variance = 0.0, 1.0, 0.0
    for step in range(t, s, -1):
        a, b, v, _ = schedule.posterior(step, step - 1)
        of_x0, of_xt, variance = a + b * of_x0, b * of_xt, v + b**2 * variance
    np.testing.assert_allclose(schedule.posterior(t, s)[:3], (of_x0, of_xt, variance), rtol=1e-9)
    np.testing.assert_allclose(schedule.posterior(t, -1)[:3], (1, 0, 0), atol=1e-12)  # s = -1 is the clean mask


def test_learned_variance_ends_at_the_posterior_s_and_beta():
    schedule, betas = Schedule(noise_schedule("cosine", 100)), cosine_betas(100)
    t = np.arange(100)
    smallest, largest = schedule.log_variances(t, t - 1)
    np.testing.assert_allclose(np.exp(largest), betas, rtol=1e-9)
    abar = np.cumprod(1 - betas)
    posterior = betas[1:] * (1 - abar[:-1]) / (1 - abar[1:])
    np.testing.assert_allclose(np.exp(smallest[1:]), posterior, rtol=1e-9)
    assert smallest[0] == pytest.approx(np.log(posterior[0]))  # cut: the true one is log 0
    assert (smallest <= largest).all()
    long = schedule.log_variances(60, 30)
    np.testing.assert_allclose(np.exp(long), (schedule.posterior(60, 30)[2], 1 - abar[60] / abar[30]), rtol=1e-9)


# ---- the times that a sampler visits ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_timesteps", "steps"), [(1000, 50), (1000, 1000), (1000, 7), (20, 19), (5, 2)])
def test_strided_times_are_training_steps_evenly_spread_with_both_ends(num_timesteps, steps):
    times = strided_timesteps(num_timesteps, steps)
    assert len(set(times.tolist())) == steps
    assert (times[0], times[-1]) == (num_timesteps - 1, 0)
    gaps = -np.diff(times)
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1
    assert strided_timesteps(num_timesteps, 1).tolist() == [num_timesteps - 1]


@pytest.mark.parametrize("num_timesteps", [2, 3, 10, 37, 1000])
def test_a_solver_s_times_are_as_many_as_asked_for_and_fall_from_the_last_to_above_0(num_timesteps):
    schedule = Schedule(noise_schedule("linear", num_timesteps))
    for steps in range(1, num_timesteps + 1) if num_timesteps < 100 else (1, 2, 3, 20, 50, 333, 998, 999, 1000):
        times = solver_timesteps(schedule, steps)
        assert len(times) == steps and times.dtype.kind == "i" and times[0] == num_timesteps - 1
        assert (np.diff(times) < 0).all()
        assert times[-1] >= 1 if steps < num_timesteps else times[-1] == 0


@pytest.mark.parametrize(("num_timesteps", "steps"), [(1000, 20), (1000, 999), (50, 7), (2, 1), (10, 9)])
def test_uniform_times_are_diffusers_and_evenly_spread(num_timesteps, steps):
    from diffusers import DPMSolverMultistepScheduler

    times = solver_timesteps(Schedule(noise_schedule("linear", num_timesteps)), steps)
    scheduler = DPMSolverMultistepScheduler(num_timesteps)
    scheduler.set_timesteps(steps)
    assert times.tolist() == scheduler.timesteps.tolist()
    spacing = -np.diff([*times, 0])
    assert spacing.min() >= 1 and spacing.max() - spacing.min() <= 1


@pytest.mark.parametrize("steps", [0, 11])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match="schedule of 10"):
        solver_timesteps(Schedule(noise_schedule("linear", 10)), steps)


@pytest.mark.parametrize(("name", "scale"), [("linear", 1.0), ("cosine", 0.1), ("cosine", 1.0)])
@pytest.mark.parametrize("num_timesteps", [2, 10, 1000])
def test_a_drawing_sampler_s_times_fall_from_the_last_to_one_of_little_noise(name, scale, num_timesteps):
    schedule = Schedule(noise_schedule(name, num_timesteps, scale))
    for steps in {1, 2, 5, 10, 100, num_timesteps} & set(range(1, num_timesteps + 1)):
        times = bernoulli_timesteps(schedule, steps)
        assert len(times) == steps and times.dtype.kind == "i" and times[0] == num_timesteps - 1
        assert (np.diff(times) < 0).all() and times[-1] >= 0
    if num_timesteps == 1000:
        times = bernoulli_timesteps(schedule, 10)
        abar = schedule.alpha_bar(times[[-1]])
        assert 2 * np.sqrt(abar) / (1 - abar) >= 8 and times[-1] > 0
        abar = schedule.alpha_bar(times[1:])
        levels = np.log(abar / (1 - abar))
        assert levels[0] > -9 and np.ptp(np.diff(levels)) < 0.15  # even, and none in pure noise
    with pytest.raises(ValueError, match=f"schedule of {num_timesteps}"):
        bernoulli_timesteps(schedule, num_timesteps + 1)
