"""What holds for every option: help, rules, and flags without effect."""

import dataclasses

import pytest
from helpers import SAMPLE, TRAIN

from guided_diffusion.config.command_line import parse
from guided_diffusion.config.fields import build, check_variant, unused_flags
from guided_diffusion.config.options import DiffusionOptions, ModelOptions
from guided_diffusion.config.sample_options import CheckOptions, EvalOptions
from guided_diffusion.config.values import check_value
from guided_diffusion.runtime.errors import UserError


def test_every_option_has_help_and_keeps_its_own_rules():
    for group in {*TRAIN, *SAMPLE, EvalOptions, CheckOptions}:
        for item in dataclasses.fields(group):
            assert len(item.metadata["help"]) > 10, item.name
            check_value(item, item.default)


@pytest.mark.parametrize(
    ("line", "flag", "where"),
    [
        ("--version v1 --anchor_levels 0", "anchor_levels", "--version v2, not v1"),
        ("--version unet --ss_former cross", "ss_former", "--version v2, not unet"),
        ("--version v2 --ss_former add --nbp_filter False", "nbp_filter", "--ss_former fourier"),
        ("--version v2 --ss_former cross --nbp_filter False", "nbp_filter", "--ss_former fourier"),
        ("--version v2 --ss_former add --ss_blocks 3", "ss_blocks", "--ss_former fourier or cross"),
        ("--version unet --coarse_weight 10", "coarse_weight", "--version v1 or v2"),
        ("--coarse_loss mse --coarse_ce 10", "coarse_ce", "--coarse_loss bce_dice"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(line, flag, where):
    (model, diffusion), given = parse("", [ModelOptions, DiffusionOptions], line.split())
    with pytest.raises(UserError, match=f"--{flag} belongs to {where}.*; leave it out"):
        check_variant(model, diffusion, given=given)
    check_variant(model, diffusion, given=given - {flag})


def test_an_option_may_need_a_switch():
    options, _ = parse("", [ModelOptions], ["--nbp_filter", "False"])
    assert unused_flags(*options) == {"nbp_factor": "belongs to --nbp_filter True, not False"}


@pytest.mark.parametrize("line", ["--objective eps", "--use_kl True", "--learn_sigma True"])
def test_the_plain_unet_refuses_what_belongs_to_diffusion(line):
    (model, diffusion), _ = parse("", [ModelOptions, DiffusionOptions], ["--version", "unet", *line.split()])
    with pytest.raises(UserError, match=f"leave out {line}"):
        check_variant(model, diffusion)
    check_variant(build(ModelOptions, {"version": "v2", "learn_sigma": True}), diffusion)
