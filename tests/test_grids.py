"""The grids of time steps: as many as asked for, falling, of the training schedule, spaced as they say."""

import numpy as np
import pytest
from oracles import even_schedule

from guided_diffusion.grids import SPACINGS, solver_timesteps, strided_timesteps
from guided_diffusion.schedule import Schedule, noise_schedule

every_spacing = pytest.mark.parametrize("spacing", SPACINGS)


@pytest.mark.parametrize(("num_timesteps", "steps"), [(1000, 50), (1000, 1000), (1000, 7), (20, 19), (5, 2)])
def test_strided_times_are_training_steps_evenly_spread_with_both_ends(num_timesteps, steps):
    times = strided_timesteps(num_timesteps, steps)
    assert len(set(times.tolist())) == steps
    assert (times[0], times[-1]) == (num_timesteps - 1, 0)
    gaps = -np.diff(times)
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1
    assert strided_timesteps(num_timesteps, 1).tolist() == [num_timesteps - 1]


@every_spacing
@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("b", [0.1, 1.0])
@pytest.mark.parametrize("num_timesteps", [2, 3, 10, 37, 1000])
def test_a_solver_s_times_are_as_many_as_asked_for_and_fall_from_the_last_to_above_0(spacing, name, b, num_timesteps):
    schedule = Schedule(noise_schedule(name, num_timesteps, b))
    for steps in range(1, num_timesteps + 1) if num_timesteps < 100 else (1, 2, 3, 20, 50, 333, 998, 999, 1000):
        times = solver_timesteps(schedule, steps, spacing)
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


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_logsnr_times_cut_the_log_signal_to_noise_ratio_evenly(name):
    schedule = Schedule(noise_schedule(name, 100000))
    log_snr = np.log(schedule.alphas_bar / (1 - schedule.alphas_bar))
    gaps = np.diff(log_snr[[*solver_timesteps(schedule, 20, "logsnr"), 0]])
    if name == "cosine":
        assert gaps[0] > 3 * gaps[1]  # one training step, the last one, in which all noise but a trace appears
        gaps = gaps[1:]
    np.testing.assert_allclose(gaps[4:], gaps.mean(), rtol=0.1)
    assert gaps.min() > 0.5 * gaps.mean()


def test_spacings_agree_where_they_are_the_same():
    schedule = even_schedule(901)
    assert (solver_timesteps(schedule, 30, "logsnr") == solver_timesteps(schedule, 30, "uniform")).all()


def test_quadratic_times_are_squares():
    schedule = even_schedule(10001)
    assert solver_timesteps(schedule, 10, "quadratic").tolist() == [100 * k**2 for k in range(10, 0, -1)]


@every_spacing
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_parts_are_even_up_to_rounding_and_a_wider_training_step_is_one(spacing, name):
    for num_timesteps, steps in ((100, 10), (100, 40), (100, 90), (1000, 20), (1000, 300)):
        schedule = Schedule(noise_schedule(name, num_timesteps, 0.1))
        quantity = SPACINGS[spacing](schedule.alphas_bar)
        increments = np.diff(quantity)
        ends = np.array([*solver_timesteps(schedule, steps, spacing), 0])
        sizes, gaps = -np.diff(quantity[ends]), -np.diff(ends)
        usual = np.median(sizes[gaps > 1])
        for high, low, size, gap in zip(ends[:-1], ends[1:], sizes, gaps, strict=True):
            rounding = 1.5 * increments[max(low - 1, 0) : high + 1].max()  # up to half a training step at each end
            assert size >= usual - rounding
            assert size <= usual + rounding or gap == 1


@pytest.mark.parametrize("steps", [0, 11])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match="schedule of 10"):
        solver_timesteps(Schedule(noise_schedule("linear", 10)), steps)
