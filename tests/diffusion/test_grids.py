"""The grids of time steps: as many as asked for, falling, of the training schedule, evenly spread."""

import numpy as np
import pytest

from guided_diffusion.diffusion.schedule import Schedule, noise_schedule, solver_timesteps, strided_timesteps


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
