"""The stages of a run with --condition_steps: the learning rate of each."""

import pytest

from guided_diffusion.config import build
from guided_diffusion.stages import Stages
from guided_diffusion.train_options import TrainOptions


def rates(steps, **options):
    stages = Stages(build(TrainOptions, {"lr": 0.1, "lr_anneal_steps": 100, **options}))
    return [stages.learning_rate(step) for step in steps]


def test_the_second_stage_s_decay_ends_where_max_steps_ends_the_run():
    assert rates((50, 55, 59), condition_steps=50, max_steps=60) == pytest.approx([0.1, 0.05, 0.01])
    assert rates((16, 17, 19), condition_steps=-1, max_steps=20) == pytest.approx([0.1 / 17, 0.1, 0.1 / 3])
    assert rates((50, 52), condition_steps=50, max_steps=60, warmup_steps=4) == pytest.approx([0.025, 0.075])


def test_a_run_that_has_all_its_steps_and_one_without_stages_follow_lr_anneal_steps():
    assert rates((49, 50, 75, 99), condition_steps=50) == pytest.approx([0.002, 0.1, 0.05, 0.002])
    assert rates((0, 50), condition_steps=0, max_steps=60) == pytest.approx([0.1, 0.05])
