"""`--recipe published`: the published settings, below every flag that is given, for the published variants."""

import pytest
import torch

from guided_diffusion.command_line import parse
from guided_diffusion.config import DiffusionOptions, ModelOptions
from guided_diffusion.errors import UserError
from guided_diffusion.gaussian_diffusion import build_diffusion
from guided_diffusion.run_options import TrainOptions
from guided_diffusion.schedule import linear_betas


def options_of(flags):
    (train, model, diffusion), _ = parse("", [TrainOptions, ModelOptions, DiffusionOptions], flags.split())
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
    _, _, v1 = options_of("--recipe published --version v1")
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
    with pytest.raises(UserError, match="--recipe mine: must be one of staged, published"):
        options_of("--recipe mine")


def test_it_trains_from_the_shell(train, pictures, capsys):
    checkpoint = train("FOLDER", pictures, "--recipe published --version v2")
    config = torch.load(checkpoint, weights_only=True)["config"]
    assert config["diffusion"]["objective"] == "eps" and config["train"]["recipe"] == "published"
    capsys.readouterr()


def test_the_staged_recipe_is_v2_s(train, pictures, capsys):
    checkpoint = train("FOLDER", pictures, "--recipe staged --version v2", steps=4)
    config = torch.load(checkpoint, weights_only=True)["config"]
    assert config["train"]["condition_steps"] == 3 and config["diffusion"]["logit_skip"] == "both"
    assert config["model"]["diffusion_channels"] == config["model"]["num_channels"] // 2
    with pytest.raises(UserError, match="--recipe staged goes with --version v2, not v1"):
        options_of("--recipe staged --version v1")
    capsys.readouterr()
