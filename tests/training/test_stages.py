"""The stages of a run with --condition_steps: the learning rate of each, and runs that have no second one."""

import json

import pytest
import torch
from conftest import TINY
from helpers import TRAIN

from guided_diffusion.config.command_line import parse
from guided_diffusion.config.fields import build
from guided_diffusion.config.train_options import TrainOptions
from guided_diffusion.runtime.distributed import Processes
from guided_diffusion.training.run import prepare_run
from guided_diffusion.training.stages import Stages


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


def test_the_average_takes_over_at_the_second_stage_unless_the_weights_have_come_to_rest():
    def starts(**options):
        stages = Stages(build(TrainOptions, {"lr": 0.1, "max_steps": 1000, **options}))
        return [step for step in range(1000) if stages.takes_average(step)]

    assert starts(condition_steps=500) == [500] and starts(condition_steps=-1) == [850]
    assert starts(condition_steps=0) == [] and starts(condition_steps=1) == [1]
    assert starts(condition_steps=500, lr_anneal_steps=1000) == []  # its rate has fallen to 1 / 500 of --lr
    assert starts(condition_steps=50, lr_anneal_steps=1000) == [50]  # to 1 / 50


def test_dice_shapes_the_first_part_of_the_first_stage_alone():
    def dice(steps=range(1000), **options):
        stages = Stages(build(TrainOptions, {"max_steps": 1000, **options}))
        return [step for step in steps if stages.has_dice(step)]

    assert dice(condition_steps=100) == list(range(85))
    assert dice(condition_steps=100, dice_share=0.6) == list(range(60))  # as up to version 0.7.0
    assert dice(condition_steps=-1) == list(range(723))  # of 850
    assert dice(condition_steps=100, dice_steps=20) == list(range(20))
    assert dice(condition_steps=100, dice_steps=400) == list(range(100))
    assert dice() == list(range(300)) and dice(dice_steps=20) == list(range(20)) and dice(dice_steps=0) == []


def by_time(seconds, step=1, ended=None, decayed=0.0, **options):
    """The learning rate, in units of --lr, of a run of ten minutes at these seconds of training."""
    options = {"lr": 1.0, "lr_anneal_steps": -1, "max_minutes": 10, "max_steps": 1000, **options}
    stages = Stages(build(TrainOptions, options), ended, decayed)
    stages.seconds = seconds
    return stages.learning_rate(step)


def test_the_decay_may_follow_the_time_limit_or_the_steps_whichever_comes_first():
    assert [by_time(seconds) for seconds in (0, 300, 600)] == pytest.approx([0.999, 0.5, 0])
    assert by_time(0, step=900) == pytest.approx(0.1) and by_time(60, step=900, max_minutes=0) == pytest.approx(0.1)
    assert by_time(300, step=1, warmup_steps=4) == 0.5 and by_time(0, step=0, warmup_steps=4) == 0.25
    assert by_time(450, lr_decay="cosine") == pytest.approx(0.1464, abs=1e-3)
    assert build(TrainOptions, {"lr_anneal_steps": -1, "max_steps": 70}).last_step == 70


def test_each_stage_decays_in_its_own_part_of_the_limit():
    staged = {"condition_steps": -1, "condition_share": 0.9}
    assert [by_time(seconds, **staged) for seconds in (270, 540)] == pytest.approx([0.5, 0])
    stages = Stages(build(TrainOptions, {"lr": 1.0, "lr_anneal_steps": -1, "max_minutes": 10, **staged}))
    stages.seconds = 540
    assert not stages.takes_average(50)  # the first stage's weights have come to rest
    stages.ended = 50
    stages.enter_second()
    rates = [stages.learning_rate(51) for stages.seconds in (540, 570, 600)]
    assert rates == pytest.approx([1, 0.5, 0], abs=1e-3)


def test_a_resumed_decay_goes_on_where_it_stopped_and_a_finished_one_begins_anew():
    assert [by_time(seconds, decayed=0.5) for seconds in (0, 300)] == pytest.approx([0.5, 0.25])
    assert by_time(0, decayed=1.0) == pytest.approx(0.999)  # a new limit of a run that the old one ended
    second = {"condition_steps": -1, "ended": 100, "step": 101}
    assert [by_time(seconds, decayed=0.5, **second) for seconds in (0, 300)] == pytest.approx([0.5, 0.25])


def test_the_share_of_the_first_stage_is_an_option():
    stages = Stages(build(TrainOptions, {"condition_steps": -1, "condition_share": 0.5, "max_minutes": 10}))
    assert stages.condition_steps == 50_000 and [stages.is_late(s) for s in (299, 300)] == [False, True]


# ---- runs without a second stage ---------------------------------------------------------------------------------


def settled(pictures, tmp_path, flags):
    line = f"{TINY} --version v2 --data_name FOLDER --data_dir {pictures} --out_dir {tmp_path / 'run'} {flags}"
    return prepare_run(*parse("", TRAIN, line.split()), Processes(0, 1, torch.device("cpu")))


@pytest.mark.parametrize(
    ("flags", "warned"),
    [
        ("--condition_steps 5 --max_steps 5", True),
        ("--condition_steps 5 --max_steps 9 --lr_anneal_steps 4", True),
        ("--condition_steps 5 --max_steps 6", False),
        ("--condition_steps -1 --max_steps 9", False),
        ("--max_steps 5", False),
    ],
)
def test_a_first_stage_that_fills_the_run_is_warned_of(pictures, tmp_path, flags, warned):
    warnings = settled(pictures, tmp_path, flags).warnings
    assert len(warnings) == warned and all("leaves none of" in line and "or -1 for 85 %" in line for line in warnings)


@pytest.mark.parametrize(
    ("flags", "share"),
    [
        ("--ema_warmup False --max_steps 1000", "90%"),
        ("--ema_warmup False --max_steps 1000 --ema_rate 0.99", None),
        ("--max_steps 1000", None),
    ],
)
def test_averages_that_hold_much_of_the_random_start_are_warned_of(pictures, tmp_path, flags, share):
    warnings = settled(pictures, tmp_path, flags).warnings
    assert len(warnings) == bool(share) and all(f"still hold {share} of the random start" in line for line in warnings)


def test_a_run_that_is_past_its_first_stage_is_not(script, pictures, tmp_path, capsys):
    """It ends there, or goes on, by its own number of steps."""
    line = ["--data_name FOLDER --data_dir", pictures, "--resume_checkpoint auto --out_dir", tmp_path / "run", TINY]
    flags = "--version v2 --condition_steps 1 --max_steps"
    for steps, warned in (("1", True), ("1", False), ("2", False)):
        capsys.readouterr()
        script("segmentation_train", [*line, flags, steps])
        assert ("--condition_steps 1 leaves none of 1 steps" in capsys.readouterr().out) == warned


@pytest.mark.parametrize("flags", ["--condition_steps 5000", "--condition_steps -1", "--recipe staged"])
def test_a_check_by_overfit_has_no_stages(pictures, tmp_path, flags):
    run = settled(pictures, tmp_path, f"{flags} --overfit 2 --sample_interval 10")
    assert run.settings.train.condition_steps == 0 and not run.warnings


def test_the_log_has_the_rate_of_its_step_not_a_mean_over_those_before(script, pictures, tmp_path):
    flags = "--lr 1e-3 --lr_anneal_steps 4 --log_interval 2 --sample_interval 0"
    script("segmentation_train", ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path, TINY, flags])
    logged = [json.loads(line)["lr"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert logged == pytest.approx([0.75e-3, 0.25e-3])  # of steps 2 and 4
