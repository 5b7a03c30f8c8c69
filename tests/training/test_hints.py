"""Hints: what looks wrong in a run's figures, and what to try."""

import math

import pytest

from guided_diffusion.config.options import DiffusionOptions
from guided_diffusion.training import hints
from guided_diffusion.training.hints import symptoms

GOOD = {"dice": 0.8, "member_dice": 0.8, "coarse_dice": 0.8, "agreement": 0.9, "empty": 0.0, "full": 0.0}


@pytest.mark.parametrize(
    "figures, losses, name, words",
    [
        ({"empty": 0.6}, (2.0, 1.0), "empty", "60% of the samples are empty"),
        ({"full": 0.7}, (2.0, 1.0), "full", "is it inverted?"),
        ({"agreement": 0.2}, (2.0, 1.0), "disagreement", "hardly agree (Dice 0.20"),
        ({"dice": 0.1}, (1.0, 1.0), "flat", "the loss does not fall"),
        ({"dice": math.nan, "coarse_dice": 0.1}, (1.0, 1.1), "flat", "--lr 0.003 or 0.0003"),
    ],
)
def test_what_is_wrong_is_told_with_what_to_try(figures, losses, name, words):
    diffusion = {"objective": "x0", "mask_loss": "bce_dice", "input_scale": 0.1}
    train = {"lr": 1e-3, "overfit": 0}
    found = symptoms(GOOD | figures, losses, diffusion, train)
    assert list(found) == [name] and words in found[name] and "--overfit 4" in found[name]
    assert symptoms(GOOD, losses, diffusion, train) == {}
    eps = {"objective": "eps", "mask_loss": "mse", "input_scale": 1.0}
    assert ("--objective x0" in symptoms(GOOD | figures, losses, eps, train)[name]) == (name != "flat")
    for options in (diffusion, eps):
        assert "--overfit" not in symptoms(GOOD | figures, losses, options, train | {"overfit": 4})[name]


def test_a_symptom_needs_two_losses_and_knows_the_plain_unet():
    figures = GOOD | {"dice": 0.1, "member_dice": math.nan, "agreement": math.nan}
    options = DiffusionOptions()
    diffusion = {"objective": options.objective, "mask_loss": options.mask_loss, "input_scale": options.input_scale}
    assert symptoms(figures, (None, 1.0), diffusion, {"lr": 1e-3, "overfit": 0}) == {}


@pytest.mark.parametrize(
    "folders, training, expected",
    [
        (["train", "val", "test"], "train", "test"),
        (["MICCAI_BraTS2020_TrainingData", "MICCAI_BraTS2020_ValidationData"], "MICCAI_BraTS2020_TrainingData", 1),
        (["training_data1_v2", "other"], "training_data1_v2", "training_data1_v2"),
        (["train", "test"], "", ""),
        (["train"], "", "train"),
    ],
)
def test_the_folder_to_sample_after_training(tmp_path, folders, training, expected):
    for name in folders:
        (tmp_path / name).mkdir()
    expected = folders[expected] if isinstance(expected, int) else expected
    assert hints.testing_folder(tmp_path / training) == tmp_path / expected
