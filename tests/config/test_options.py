"""Options: the published names, their values and pairs, and what is refused with which line."""

import dataclasses

import pytest

from guided_diffusion.config import command_line
from guided_diffusion.config.command_line import parse
from guided_diffusion.config.options import (
    DataOptions,
    DiffusionOptions,
    ModelOptions,
    ProcessOptions,
    build,
    check_variant,
)
from guided_diffusion.config.sample_options import CheckOptions, EvalOptions, SampleOptions
from guided_diffusion.config.settings import unless_contradicted
from guided_diffusion.config.train_options import TrainOptions
from guided_diffusion.runtime.errors import UserError

TRAIN = [DataOptions, TrainOptions, ModelOptions, DiffusionOptions, ProcessOptions]
SAMPLE = [SampleOptions, DataOptions, ModelOptions, DiffusionOptions, ProcessOptions]
GROUPS = {
    "segmentation_train": TRAIN,
    "segmentation_sample": SAMPLE,
    "segmentation_eval": [EvalOptions],
    "check_data": [CheckOptions, DataOptions],
    "demo": [],
}
PUBLISHED = (
    "--data_dir DATA/training --out_dir OUT --image_size 256 --num_channels 128 --class_cond False "
    "--num_res_blocks 2 --num_heads 1 --learn_sigma True --use_scale_shift_norm False --attention_resolutions 16 "
    "--diffusion_steps 1000 --noise_schedule linear --rescale_learned_sigmas False --rescale_timesteps False"
)


def train(line):
    return parse("", TRAIN, line.split())


def values(line, groups=TRAIN):
    """All options of a command line in one dict."""
    options, _ = parse("", groups, line.split())
    return {name: value for group in reversed(options) for name, value in dataclasses.asdict(group).items()}


def refused(line, groups=TRAIN):
    with pytest.raises(UserError) as error:
        parse("", groups, line.split())
    assert "\n" not in str(error.value)
    return str(error.value)


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


def test_published_sampling_command():
    line = PUBLISHED + " --model_path M.pt --num_ensemble 5"
    (sample, data, model, diffusion, _), given = parse("", SAMPLE, line.split())
    assert (sample.diffusion_steps, sample.num_ensemble, sample.model_path) == (1000, 5, "M.pt")
    assert model.learn_sigma and diffusion.noise_schedule == "linear" and data.data_dir == "DATA/training"
    assert {"diffusion_steps", "learn_sigma", "model_path"} <= given and "fuse" not in given


def test_published_flags_for_the_large_model_and_fast_sampling():
    got = values(
        "--num_channels 512 --num_res_blocks 12 --num_heads 8 --use_scale_shift_norm True --attention_resolutions 24"
    )
    assert (got["num_channels"], got["num_heads"], got["attention_resolutions"]) == (512, 8, "24")
    got = values("--dpm_solver True --diffusion_steps 50 --num_ensemble 5", SAMPLE)
    assert got["dpm_solver"] is True and got["diffusion_steps"] == 50


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


@pytest.mark.parametrize(
    "line, words",
    [
        ("--image_size 0", "--image_size 0: must be above 0"),
        ("--image_size big", "--image_size big: must be a whole number"),
        ("--num_channels -8", "--num_channels -8: must be above 0"),
        ("--num_head_channels 0", "--num_head_channels 0: must be -1 or above 0"),
        ("--channel_mult 1,x", "--channel_mult 1,x: must be numbers"),
        ("--channel_mult 0,1", "every level needs at least one channel"),
        ("--attention_resolutions 16.5", "--attention_resolutions 16.5: must be numbers"),
        ("--dropout 1", "--dropout 1.0: must be at most 0.99"),
        ("--dropout -0.1", "--dropout -0.1: must be at least 0"),
        ("--diffusion_steps 1", "--diffusion_steps 1: must be at least 2"),
        ("--noise_schedule sigmoid", "must be one of linear, cosine"),
        ("--input_scale 2", "--input_scale 2.0: must be at most 1"),
        ("--lr 0", "--lr 0.0: must be above 0"),
        ("--lr nan", "--lr nan: is not a finite number"),
        ("--lr inf", "--lr inf: is not a finite number"),
        ("--weight_decay -1e-1", "--weight_decay -0.1: must be at least 0"),
        ("--microbatch 0", "--microbatch 0: must be -1 or above 0"),
        ("--ema_rate 1", "every rate must be at least 0 and below 1"),
        ("--ema_rate 0.9,x", "--ema_rate 0.9,x: must be numbers"),
        ("--ema_rate ,", "needs at least one rate"),
        ("--max_steps 0", "--max_steps 0: must be above 0"),
        ("--save_interval 0", "--save_interval 0: must be above 0"),
        ("--schedule_sampler random", "must be one of uniform, loss-second-moment"),
        ("--gpu_dev 0,1", "--gpu_dev 0,1: must be the number of one GPU, or cpu"),
        ("--precision fp8", "must be one of auto, fp32, bf16, fp16"),
        ("--seed -1", "--seed -1: must be at least 0"),
        ("--ct_window 5", "--ct_window 5: must be two numbers, the lower one first"),
        ("--ct_window 240,-160", "must be two numbers, the lower one first"),
        ("--ct_window -160,-240", "--ct_window -160,-240: must be two numbers, the lower one first"),
        ("--ct_window a,b", "--ct_window a,b: must be numbers"),
        ("--num_workers -1", "--num_workers -1: must be at least 0"),
    ],
)
def test_training_values_out_of_range(line, words):
    assert words in refused(line)


def test_unknown_versions_and_presets():
    assert "--version v9: must be one of v1, v2, unet" in refused("--version v9")
    assert "--preset XL: must be one of S, B, L, ++" in refused("--preset XL")


@pytest.mark.parametrize(
    "line", ["--num_ensemble 0", "--fuse median", "--diffusion_steps -1", "--num_samples -1", "--sample_batch_size 0"]
)
def test_sampling_values_out_of_range(line):
    assert refused(line, SAMPLE).startswith(line + ": must be ")


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


# ---- a checkpoint's options --------------------------------------------------------------------------------------


def test_saved_options_win_unless_contradicted():
    saved = dataclasses.asdict(ModelOptions(num_channels=16)) | {"of_another_version": 1}
    asked = ModelOptions(num_channels=16, num_heads=4)
    assert unless_contradicted(asked, {"num_channels"}, saved, "m.pt") == ModelOptions(num_channels=16)
    with pytest.raises(UserError, match="--num_heads 4 contradicts the checkpoint m.pt, .* num_heads 1"):
        unless_contradicted(asked, {"num_heads"}, saved, "m.pt")
