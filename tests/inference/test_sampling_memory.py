"""How many rows of members pass the network at once, by what a pass takes and what is free."""

from dataclasses import replace

import pytest
import torch
from networks import options_of

from guided_diffusion.config.fields import build
from guided_diffusion.config.options import DiffusionOptions
from guided_diffusion.config.sample_options import SampleOptions
from guided_diffusion.diffusion.gaussian_diffusion import build_diffusion
from guided_diffusion.inference import sampling_memory
from guided_diffusion.inference.plan import NO_STEPS, SamplingPlan
from guided_diffusion.inference.sampler import EnsembleSampler
from guided_diffusion.inference.sampling_memory import bound, fitting_rows, pass_bytes
from guided_diffusion.models.medsegdiff import build_model
from guided_diffusion.runtime import live_memory
from guided_diffusion.runtime.errors import UserError

PLAN = SamplingPlan("ddim", (900, 500, 100))
AUGMENTED = replace(NO_STEPS, scales=(1.25,))


def sampler(version, plan, members, rows="auto"):
    options = options_of(version=version, image_size=32)
    sample = build(SampleOptions, {"num_ensemble": members, "sample_batch_size": rows})
    diffusion = build_diffusion(build(DiffusionOptions, {}))
    return EnsembleSampler(build_model(options, 2, 1), diffusion, plan, sample, torch.device("cpu"), "fp32", 32)


@pytest.fixture
def free(monkeypatch):
    """A function that sets the free memory, beside which the code of convolutions takes none."""
    monkeypatch.setitem(live_memory.CODE, "cpu", 0)
    return lambda count: monkeypatch.setattr(sampling_memory, "free_memory_on", lambda device, sharing: count)


def test_rows_are_halved_until_they_fit(free):
    one = sampler("v1", PLAN, members=5)
    assert one.rows == 128
    needs = {rows: pass_bytes(one, 2, rows, 32) for rows in (16, 32)}
    assert 1.6 < needs[32] / needs[16] < 2.2 and needs[32] < bound(one, 32, 32)
    free((needs[16] + needs[32]) / 2 / live_memory.USABLE)
    one.fit_memory(2)
    assert one.rows == 16 and one.images == 3
    with pytest.raises(UserError, match="^--sample_batch_size 40: a pass needs about .*; give 20, or leave it out$"):
        fitting_rows(sampler("v1", PLAN, members=5, rows="40"), 2)
    free(1e12)
    assert fitting_rows(sampler("v1", PLAN, members=5, rows="40"), 2) == 40


def test_a_single_row_that_does_not_fit_is_refused_with_a_size_that_does(free):
    one = sampler("v2", AUGMENTED, 0)
    free((pass_bytes(one, 2, 1, 16) + pass_bytes(one, 2, 1, 32)) / 2 / live_memory.USABLE)
    with pytest.raises(UserError, match="^--image_size 32: one row alone needs about .*; give --image_size 16, with"):
        one.fit_memory(2)
    free(1000)
    with pytest.raises(UserError, match="; sample on a device with more memory$"):
        one.fit_memory(2)


def test_the_pass_on_a_gpu_follows_its_rules():
    """In half precision on a fake GPU; what is there counts in both."""
    one = sampler("v1", PLAN, members=2)
    one.device = torch.device("cuda", 0)
    assert pass_bytes(one, 2, 4, 32) > live_memory.CODE["cuda"]
