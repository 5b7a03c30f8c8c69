"""Options: the published names, their values and pairs, and the line that refuses a pair."""

import dataclasses

import pytest
from helpers import PUBLISHED, SAMPLE, TRAIN, refused, values

from guided_diffusion.config import command_line
from guided_diffusion.config.command_line import parse
from guided_diffusion.config.options import DiffusionOptions, ModelOptions, build, check_variant
from guided_diffusion.config.sample_options import CheckOptions, EvalOptions
from guided_diffusion.runtime.errors import UserError

# ---- every option ------------------------------------------------------------------------------------------------


def test_every_option_has_help_and_keeps_its_own_rules():
    for group in {*TRAIN, *SAMPLE, EvalOptions, CheckOptions}:
        for item in dataclasses.fields(group):
            assert len(item.metadata["help"]) > 10, item.name
            command_line.check_value(item, item.default)


# ---- the published commands --------------------------------------------------------------------------------------


def test_published_training_command():
    got = values(PUBLISHED + " --lr 1e-4 --batch_size 8")
    assert got["data_name"] == "BRATS" and got["data_dir"] == "DATA/training" and got["out_dir"] == "OUT"
    assert (got["image_size"], got["num_channels"], got["num_res_blocks"], got["num_heads"]) == (256, 128, 2, 1)
    assert got["class_cond"] is False and got["learn_sigma"] is True and got["use_scale_shift_norm"] is False
    assert got["attention_resolutions"] == "16" and got["noise_schedule"] == "linear"
    assert (got["diffusion_steps"], got["lr"], got["batch_size"]) == (1000, 1e-4, 8)
    assert got["rescale_learned_sigmas"] is False and got["rescale_timesteps"] is False
    assert got["max_steps"] == 100000


# ---- forms of a flag ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "version"), [("1", "v1"), ("2", "v2"), ("new", "v2"), ("unet", "unet")])
def test_version_synonyms(word, version):
    assert values(f"--version {word}")["version"] == version


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


@pytest.mark.parametrize("line", ["--objective eps", "--use_kl True", "--learn_sigma True"])
def test_the_plain_unet_refuses_what_belongs_to_diffusion(line):
    (model, diffusion), _ = parse("", [ModelOptions, DiffusionOptions], ["--version", "unet", *line.split()])
    with pytest.raises(UserError, match=f"leave out {line}"):
        check_variant(model, diffusion)
    check_variant(build(ModelOptions, {"version": "v2", "learn_sigma": True}), diffusion)


# ---- values that make no sense -----------------------------------------------------------------------------------


def test_unknown_versions_and_presets():
    assert "--version v9: must be one of v1, v2, unet" in refused("--version v9")
    assert "--preset XL: must be one of S, B, L, ++" in refused("--preset XL")


# ---- pairs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "--predict_xstart True --objective eps",
        "--predict_xstart True --objective v",
        "--predict_xstart False --objective x0",
    ],
)
def test_predict_xstart_against_objective(line):
    assert "contradicts --objective" in refused(line)


@pytest.mark.parametrize(
    "line, objective",
    [
        ("", "x0"),
        ("--predict_xstart True", "x0"),
        ("--predict_xstart False", "eps"),
        ("--predict_xstart False --objective v", "v"),
        ("--objective eps", "eps"),
    ],
)
def test_objective_follows(line, objective):
    got = values(f"--recipe none {line}")
    assert got["objective"] == objective and got["predict_xstart"] is (objective == "x0")
    assert got["mask_loss"] == ("bce_dice" if objective == "x0" else "mse")
    assert got["input_scale"] == (1.0 if objective == "eps" else 0.1)


def test_other_contradicting_pairs():
    assert "--mask_loss bce_dice goes with --objective x0, not eps" in refused("--mask_loss bce_dice --objective eps")
    assert "--mask_loss bce_dice goes with --objective x0, not v" in refused("--mask_loss bce_dice --objective v")
    assert "--use_kl True replaces --mask_loss" in refused("--use_kl True --mask_loss bce_dice")
    assert "--use_fp16 True contradicts --precision bf16" in refused("--use_fp16 True --precision bf16")
    assert values("--use_kl True")["mask_loss"] == "mse"
    assert values("--use_fp16 True")["precision"] == "fp16"
    assert values("--use_fp16 True --precision fp16")["precision"] == "fp16"
    assert values("--precision fp16")["use_fp16"] is True


def test_the_path_of_a_loader_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert values("--data_name below/my.py:Own")["data_name"] == f"{tmp_path / 'below' / 'my.py'}:Own"
    assert values("--data_name ISIC")["data_name"] == "ISIC"
