"""Plans of sampling: which flags make which sampler, steps and settings, and which make no sense."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import files

from guided_diffusion.config.fields import build
from guided_diffusion.config.sample_options import SampleOptions
from guided_diffusion.diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.diffusion.schedule import noise_schedule, solver_timesteps
from guided_diffusion.inference.cleanup import Cleanup
from guided_diffusion.inference.plan import (
    NO_STEPS,
    ONE_STEP,
    describe_augmentation,
    describe_masks,
    describe_members,
    plan_sampling,
)
from guided_diffusion.runtime.errors import UserError


def plan_of(flags, num_timesteps=1000, objective="eps", **how):
    diffusion = GaussianDiffusion(noise_schedule("cosine", num_timesteps), objective=objective)
    return plan_sampling(build(SampleOptions, flags), set(flags), diffusion, **how)


PLANS = [
    ({}, "dpm_solver", 20),
    ({"diffusion_steps": 0}, "dpm_solver", 20),
    ({"diffusion_steps": 1000}, "ddpm", 1000),
    ({"diffusion_steps": 50}, "ddpm", 50),
    ({"use_ddim": True}, "ddim", 50),
    ({"use_ddim": True, "diffusion_steps": 25}, "ddim", 25),
    ({"dpm_solver": True}, "dpm_solver", 20),
    ({"dpm_solver": True, "diffusion_steps": 50}, "dpm_solver", 50),
    ({"dpm_solver": True, "diffusion_steps": 1000}, "dpm_solver", 1000),
    ({"dpm_solver": False}, "ddpm", 1000),
    ({"use_ddim": False}, "dpm_solver", 20),
    ({"timestep_respacing": "50"}, "ddpm", 50),
    ({"timestep_respacing": "ddim50"}, "ddim", 50),
    ({"timestep_respacing": "50", "use_ddim": True}, "ddim", 50),
    ({"timestep_respacing": "10,20,30"}, "ddpm", 60),
    ({"timestep_respacing": "ddim10,5"}, "ddim", 15),
    ({"sampler": "auto"}, "dpm_solver", 20),
    ({"sampler": "auto", "diffusion_steps": 50}, "ddpm", 50),
    ({"sampler": "auto", "use_ddim": True}, "ddim", 50),
    ({"sampler": "ddpm"}, "ddpm", 1000),
    ({"sampler": "ddpm", "diffusion_steps": 50}, "ddpm", 50),
    ({"sampler": "ddpm", "dpm_solver": False, "use_ddim": False}, "ddpm", 1000),
    ({"sampler": "ddim"}, "ddim", 50),
    ({"sampler": "ddim", "use_ddim": True}, "ddim", 50),
    ({"sampler": "dpm_solver"}, "dpm_solver", 20),
    ({"sampler": "dpm_solver", "dpm_solver": True, "diffusion_steps": 50}, "dpm_solver", 50),
    ({"sampler": "ddim", "timestep_respacing": "25"}, "ddim", 25),
    ({"sampler": "ddim", "timestep_respacing": "ddim25"}, "ddim", 25),
    ({"sampler": "ddpm", "timestep_respacing": "25"}, "ddpm", 25),
    ({"solver_order": 3}, "dpm_solver", 20),
]


@pytest.mark.parametrize(("flags", "sampler", "steps"), PLANS, ids=str)
def test_the_flags_make_the_plan(flags, sampler, steps):
    plan = plan_of(flags)
    assert (plan.sampler, len(plan.timesteps)) == (sampler, steps)
    assert str(plan) == f"{sampler}, {steps} steps"
    assert plan.timesteps[0] == 999 and all(type(t) is int for t in plan.timesteps)
    assert all(t > s >= 0 for t, s in zip(plan.timesteps[:-1], plan.timesteps[1:], strict=True))


PREDICTING_X0 = [
    ({}, "bernoulli", 10),
    ({"diffusion_steps": 5}, "bernoulli", 5),
    ({"diffusion_steps": 1000}, "bernoulli", 1000),
    ({"sampler": "bernoulli", "diffusion_steps": 7}, "bernoulli", 7),
    ({"dpm_solver": True}, "dpm_solver", 20),
    ({"solver_order": 3}, "dpm_solver", 20),
    ({"use_ddim": True}, "ddim", 50),
    ({"dpm_solver": False}, "ddpm", 1000),
    ({"timestep_respacing": "50"}, "ddpm", 50),
    ({"sampler": "ddpm", "diffusion_steps": 50}, "ddpm", 50),
]


@pytest.mark.parametrize(("flags", "sampler", "steps"), PREDICTING_X0, ids=str)
def test_a_checkpoint_that_predicts_x0_draws_the_clean_mask_by_default(flags, sampler, steps):
    plan = plan_of(flags, objective="x0")
    assert (plan.sampler, len(plan.timesteps), plan.draws) == (sampler, steps, sampler == "bernoulli")
    assert plan.timesteps[0] == 999 and all(type(t) is int for t in plan.timesteps)
    assert plan.fuse == ("mean" if sampler == "bernoulli" else "staple")
    assert plan_of({}, objective="x0", is_published=True).sampler == "dpm_solver"


@pytest.mark.parametrize("flags", [{}, {"use_ddim": True}, {"dpm_solver": False}, {"sampler": "bernoulli"}])
@pytest.mark.parametrize("num_timesteps", [2, 10])
def test_default_step_numbers_shrink_to_a_short_schedule(flags, num_timesteps):
    times = plan_of(flags, num_timesteps).timesteps
    assert times[0] == num_timesteps - 1 and len(set(times)) == len(times) <= num_timesteps


def test_respacing_counts_the_steps_of_each_section():
    flags = {"timestep_respacing": "4,2,1"}
    times = np.array(plan_of(flags, 90).timesteps)
    assert [((times >= low) & (times < low + 30)).sum() for low in (0, 30, 60)] == [4, 2, 1]
    assert times[0] == 89 and times[-1] == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"use_ddim": True, "dpm_solver": True}, "contradicts"),
        ({"diffusion_steps": 1001}, "1000"),
        ({"diffusion_steps": 1001, "dpm_solver": True}, "1000"),
        ({"timestep_respacing": "50", "diffusion_steps": 50}, "leave out"),
        ({"timestep_respacing": "50", "dpm_solver": True}, "leave out"),
        ({"timestep_respacing": "fifty"}, "write it as 50, ddim50 or 10,20,30"),
        ({"timestep_respacing": "ddim"}, "write it as 50, ddim50 or 10,20,30"),
        ({"timestep_respacing": "1001"}, "cannot give 1001"),
        ({"timestep_respacing": "400,10,10"}, "cannot give 400"),
        ({"sampler": "dpm_solver", "timestep_respacing": "50"}, "leave out"),
        ({"sampler": "bernoulli", "timestep_respacing": "50"}, "leave out it or bernoulli"),
        ({"sampler": "bernoulli", "dpm_solver": True}, "--sampler bernoulli contradicts --dpm_solver True"),
        ({"sampler": "ddpm", "timestep_respacing": "ddim50"}, "--sampler ddpm contradicts --timestep_respacing ddim50"),
        ({"sampler": "dpm_solver", "use_ddim": True}, "--sampler dpm_solver contradicts --use_ddim True"),
        ({"sampler": "ddim", "use_ddim": False}, "--sampler ddim contradicts --use_ddim False"),
        ({"sampler": "ddpm", "dpm_solver": True}, "--sampler ddpm contradicts --dpm_solver True"),
        ({"sampler": "dpm_solver", "dpm_solver": False}, "--sampler dpm_solver contradicts --dpm_solver False"),
        ({"solver_order": 2, "use_ddim": True}, "--solver_order 2: ddim has none"),
        ({"solver_order": 3, "diffusion_steps": 50}, "ddpm has none; leave it out, or add --sampler dpm_solver"),
        ({"solver_order": 3, "timestep_respacing": "50"}, "--solver_order 3: ddpm has none"),
    ],
    ids=str,
)
def test_flags_that_make_no_sense_are_refused_in_one_line(flags, words):
    with pytest.raises(UserError, match=words) as caught:
        plan_of(flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "flags", "threshold"),
    [
        ("published", {}, 0.995),
        ("published", {"dpm_solver": True, "diffusion_steps": 50}, 0.995),
        ("published", {"clip_denoised": False}, 0),
        ("published", {"use_ddim": True}, 0),
        ("published", {"diffusion_steps": 1000}, 0),
        ("staged", {}, 0),
        (None, {}, 0),
    ],
    ids=str,
)
def test_the_published_solver_alone_thresholds_dynamically(recipe, flags, threshold):
    plan = plan_of(flags, is_published=recipe == "published")
    assert plan.dynamic_threshold == threshold


def test_the_plan_holds_all_settings():
    plan = plan_of({"sampler": "dpm_solver", "diffusion_steps": 12, "solver_order": 3})
    times = solver_timesteps(GaussianDiffusion(noise_schedule("cosine", 1000)).schedule, 12).tolist()
    assert plan.settings() == {
        "sampler": "dpm_solver",
        "timesteps": times,
        "solver_order": 3,
        "symmetric": False,
        "shares": [],
        "threshold": 0.5,
        "max_misses": 0.0,
        "fill_holes": False,
        "keep_largest": False,
        "min_size": 0,
        "scales": [],
        "published": "",
        "fuse": "staple",
        "clip_denoised": True,
        "dynamic_threshold": 0.0,
    }
    assert json.loads(json.dumps(plan.settings())) == plan.settings()
    ddpm = plan_of({"sampler": "ddpm", "clip_denoised": False}).settings()
    assert not ddpm["clip_denoised"] and ddpm["solver_order"] is None


def test_a_plan_describes_augmentation():
    plan = plan_of({"sampler": "ddim", "diffusion_steps": 12})
    assert str(plan) == "ddim, 12 steps"
    assert describe_augmentation(plan.settings()) == describe_augmentation(NO_STEPS.settings()) == ""
    views = {"symmetric": True, "scales": (0.9, 1.1)}
    plan, one_pass = dataclasses.replace(plan, **views), dataclasses.replace(NO_STEPS, **views)
    assert describe_augmentation(plan.settings()) == (
        "each member sees one of 8 symmetries of the image, coarse mask also at scales 0.9, 1.1"
    )
    assert describe_augmentation(one_pass.settings()) == "mean over 8 symmetries of the image and scales 1, 0.9, 1.1"
    assert describe_members(plan.settings() | {"num_ensemble": 5}) == "5 by ddim, 12 steps"
    assert describe_members(one_pass.settings()) == "none: one pass of the condition model"
    assert describe_members(ONE_STEP.settings() | {"num_ensemble": 1}) == "none: one pass of the plain U-Net"


def test_masks_are_described_where_they_are_no_plain_cut():
    assert describe_masks(NO_STEPS.settings()) == describe_masks({}) == ""
    rules = (Cleanup(keep_largest=True), Cleanup(min_size=5))
    plan = dataclasses.replace(NO_STEPS, threshold=(0.25, 0.5), max_misses=0.1, cleanup=rules)
    assert describe_masks(plan.settings()) == (
        "probability above 0.25, 0.5; fitted to miss at most 0.1 of the lesion pixels on average; the largest "
        "component kept in some classes; components of fewer than 0, 5 pixels removed in some classes"
    )
    plan = dataclasses.replace(NO_STEPS, threshold=(0.3,), cleanup=(Cleanup(True, False, 9),))
    line = "probability above 0.3; holes filled; components of fewer than 9 pixels removed"
    assert describe_masks(plan.settings()) == line


# ---- from the command line -------------------------------------------------------------------------------------------


@pytest.fixture
def sample(script, tmp_path):
    """A function (checkpoint, folder, flags) that samples into a new folder and returns that."""

    def run(checkpoint, folder, flags):
        line = ["--model_path", checkpoint, "--data_dir", folder, "--out_dir", tmp_path / "results", flags]
        script("segmentation_sample", line)
        return tmp_path / "results"

    return run


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--sampler ddim --diffusion_steps 3", {"sampler": "ddim", "solver_order": None}),
        ("--dpm_solver True --diffusion_steps 3", {"sampler": "dpm_solver", "solver_order": 2}),
        ("--solver_order 1", {"sampler": "dpm_solver", "solver_order": 1}),
    ],
)
def test_sampling_records_how_it_stepped(sample, trained, pictures, flags, expected):
    results = sample(trained, pictures, f"{flags} --num_ensemble 2 --num_samples 1 --num_workers 0 --precision fp32")
    settings = json.loads((results / "manifest.json").read_text())["settings"]
    assert settings.items() >= expected.items()
    assert files(results / "masks") == ["case0.png"]


def test_other_settings_and_contradictions_are_refused_for_a_results_folder(sample, refusal, trained, pictures):
    fast = "--sampler dpm_solver --diffusion_steps 2 --num_ensemble 1 --num_samples 1 --num_workers 0 --precision fp32"
    results = sample(trained, pictures, fast)
    again = ["--model_path", trained, "--data_dir", pictures, "--out_dir", results, fast]
    assert "made with --solver_order 2, now it is 1" in refusal("segmentation_sample", [*again, "--solver_order 1"])
    assert "must be at most 3" in refusal("segmentation_sample", [*again, "--solver_order 4"])
    manifest = json.loads((results / "manifest.json").read_text())
    for idle in ({}, {"solver_type": "ode", "time_spacing": "uniform", "begin_at": 1.0}):  # as version 0.1.0 wrote it
        manifest["settings"] |= idle
        (results / "manifest.json").write_text(json.dumps(manifest))
        sample(trained, pictures, fast)
    manifest["settings"]["begin_at"] = 0.4
    (results / "manifest.json").write_text(json.dumps(manifest))
    line = refusal("segmentation_sample", again)
    assert "were made with begin_at 0.4, which this version no longer has: use version 0.1.0" in line
