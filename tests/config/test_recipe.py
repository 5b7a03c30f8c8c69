"""`--recipe`: the published settings, and the staged ones that are the default, below every flag that is given."""

import pytest
import torch

from guided_diffusion.config.command_line import parse
from guided_diffusion.config.fields import check_variant
from guided_diffusion.config.options import DiffusionOptions, ModelOptions
from guided_diffusion.config.train_options import TrainOptions
from guided_diffusion.diffusion.gaussian_diffusion import build_diffusion
from guided_diffusion.diffusion.schedule import linear_betas
from guided_diffusion.runtime.errors import UserError

GROUPS = [TrainOptions, ModelOptions, DiffusionOptions]


def options_of(flags):
    (train, model, diffusion), _ = parse("", GROUPS, flags.split())
    return train, model, diffusion


@pytest.mark.parametrize("version", ["v1", "v2", "new"])
def test_the_published_process_is_ddpm_s_on_eps_with_a_learned_variance(version):
    train, model, diffusion_options = options_of(f"--recipe published --version {version}")
    diffusion = build_diffusion(diffusion_options)
    betas = 1 - diffusion.schedule.alphas_bar / torch.tensor([1.0, *diffusion.schedule.alphas_bar[:-1]]).numpy()
    assert betas == pytest.approx(linear_betas(1000)) and betas[0] == pytest.approx(1e-4)
    assert (diffusion.objective, diffusion.mask_loss, diffusion.logit_skip) == ("eps", "mse", "none")
    assert model.learn_sigma and not model.use_scale_shift_norm and model.diffusion_level == 0
    assert (train.lr, train.batch_size, train.ema_rate, train.augment) == (1e-4, 8, "0.9999", "none")
    assert not train.lr_anneal_steps and not train.weight_decay


def test_the_coarse_losses_are_each_paper_s_and_code_s():
    train, _, v1 = options_of("--recipe published --version v1")
    assert (v1.mask_range, train.ema_rate, train.ema_warmup) == ("unit", "0.9999", False)
    _, _, v2 = options_of("--recipe published --version v2")
    assert (v1.coarse_loss, v1.coarse_weight, v1.coarse_every) == ("mse", 10, 1)
    assert (v2.coarse_loss, v2.coarse_weight, v2.coarse_ce, v2.coarse_every) == ("bce_dice", 1, 10, 5)


def test_flags_and_yaml_win_over_the_recipe(tmp_path):
    (tmp_path / "run.yaml").write_text("recipe: published\nlr: 0.002\nnoise_schedule: cosine\n")
    train, model, diffusion = options_of(f"--config {tmp_path / 'run.yaml'} --version v1 --lr 0.003")
    assert (train.lr, diffusion.noise_schedule, diffusion.objective) == (0.003, "cosine", "eps")
    assert model.learn_sigma


def test_the_plain_unet_was_not_published():
    with pytest.raises(UserError, match="--recipe published goes with --version v1 or v2, not unet"):
        options_of("--recipe published --version unet")


def test_a_recipe_that_is_none_is_refused():
    with pytest.raises(UserError, match="--recipe mine: must be one of auto, none, published, staged"):
        options_of("--recipe mine")


@pytest.mark.parametrize("flags", ["", "--version new", "--objective x0", "--predict_xstart True", "--mask_loss bce"])
def test_the_staged_recipe_is_the_default_of_v2_which_is_the_default(flags):
    train, model, diffusion = options_of(flags)
    asked = options_of("--version v2 --recipe staged")
    assert (train, model, diffusion) == asked and train.recipe == "staged" and train.condition_steps == -1


@pytest.mark.parametrize(
    "flags",
    ["--version v1", "--version unet", "--objective eps", "--predict_xstart False", "--use_kl True", "--recipe none"],
)
def test_without_x0_by_cross_entropy_of_v2_each_flag_has_its_own_default(flags):
    train, model, diffusion = options_of(flags)
    assert (train.recipe, train.condition_steps, train.second_stage_lr) == ("none", 0, 1)
    assert (diffusion.logit_skip, model.diffusion_level) == ("none", 0)


@pytest.mark.parametrize("recipe", ["", "--recipe staged"])
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--mask_loss bce_dice --condition_steps 0", {"coarse_loss": "bce_dice", "mask_loss": "bce_dice"}),
        ("--coarse_loss mse", {"mask_loss": "bce", "coarse_loss": "mse"}),
    ],
)
def test_a_recipe_leaves_out_values_without_effect_beside_a_flag(recipe, flags, expected):
    (_, model, diffusion), given = parse("", GROUPS, f"{recipe} {flags}".split())
    check_variant(model, diffusion, given=given)
    assert given == {flag.removeprefix("--") for flag in f"{recipe} {flags}".split() if flag.startswith("--")}
    assert {name: getattr(diffusion, name) for name in expected} == expected and model.diffusion_level == 1


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("published --coarse_loss mse", {"coarse_loss": "mse", "coarse_ce": 1, "coarse_every": 5}),
        ("published --predict_xstart True", {"objective": "x0", "mask_loss": "mse", "noise_schedule": "linear"}),
        ("published --predict_xstart False", {"objective": "eps"}),
        ("staged --predict_xstart False", {"objective": "eps", "mask_loss": "mse"}),
        ("staged --objective v", {"logit_skip": "none", "coarse_loss": "mse", "input_scale": 0.5}),
        ("staged --use_kl True", {"objective": "x0", "mask_loss": "mse"}),
    ],
)
def test_flags_win_over_what_contradicts_them_of_a_recipe(flags, found):
    (_, model, diffusion), given = parse("", GROUPS, ["--recipe", *flags.split()])
    check_variant(model, diffusion, given=given)
    assert {name: getattr(diffusion, name) for name in found} == found


def test_a_given_flag_without_effect_is_refused_with_a_recipe_too():
    (_, model, diffusion), given = parse("", GROUPS, "--recipe staged --coarse_loss bce --coarse_ce 4".split())
    with pytest.raises(UserError, match="--coarse_ce belongs to --coarse_loss bce_dice"):
        check_variant(model, diffusion, given=given)


def test_the_published_commands_of_both_variants_train_by_the_default_recipe_where_they_leave_it_open():
    command = (
        "--image_size 256 --num_channels 128 --class_cond False --num_res_blocks 2 --num_heads 1 --learn_sigma True "
        "--use_scale_shift_norm False --attention_resolutions 16 --diffusion_steps 1000 --noise_schedule linear "
        "--rescale_learned_sigmas False --rescale_timesteps False --lr 1e-4 --batch_size 8"
    )
    train, model, diffusion = options_of(command)
    assert (train.recipe, model.version, diffusion.noise_schedule) == ("staged", "v2", "linear")
    assert model.learn_sigma and diffusion.objective == "x0" and train.condition_steps == -1


def test_an_older_checkpoint_goes_on_as_it_began_with_the_command_that_leaves_the_recipe_open(train, pictures, capsys):
    first = train("FOLDER", pictures, "--version v1")
    config = torch.load(first, weights_only=True)["config"]
    later = train("FOLDER", pictures, "--resume_checkpoint auto", steps=3)
    after = torch.load(later, weights_only=True)["config"]
    assert after["model"] == config["model"] and after["diffusion"] == config["diffusion"]
    assert after["train"]["condition_steps"] == 0 and after["train"]["recipe"] == "none"
    capsys.readouterr()


def test_it_trains_from_the_shell(train, pictures, capsys):
    checkpoint = train("FOLDER", pictures, "--recipe published --version v2")
    config = torch.load(checkpoint, weights_only=True)["config"]
    assert config["diffusion"]["objective"] == "eps" and config["train"]["recipe"] == "published"
    capsys.readouterr()


def test_the_staged_recipe_is_v2_s(train, pictures, capsys):
    checkpoint = train("FOLDER", pictures, "--recipe staged --version v2", steps=4)
    content = torch.load(checkpoint, weights_only=True)
    config = content["config"]
    assert content["stage_end"] == 3 and config["diffusion"]["logit_skip"] == "levels"
    assert config["model"]["diffusion_channels"] == config["model"]["num_channels"] // 2
    with pytest.raises(UserError, match="--recipe staged goes with --version v2, not v1"):
        options_of("--recipe staged --version v1")
    capsys.readouterr()
