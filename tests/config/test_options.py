"""Options: the published names, their values and pairs, and the line that refuses a pair."""

import pytest
from helpers import PUBLISHED, refused, values

# ---- the published commands --------------------------------------------------------------------------------------


def test_published_training_command():
    got = values(PUBLISHED + " --lr 1e-4 --batch_size 8")
    assert got["data_name"] == "AUTO" and got["data_dir"] == "DATA/training" and got["out_dir"] == "OUT"
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


# ---- values that make no sense -----------------------------------------------------------------------------------


def test_unknown_versions_and_presets():
    assert "--version v9: must be one of v1, v2, unet" in refused("--version v9")
    assert "--preset XL: must be one of XS, S, B, L, ++" in refused("--preset XL")


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
