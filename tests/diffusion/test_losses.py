"""Classes that exclude one another in the diffusion: softmax, categorical cross-entropy and Bayes' rule of a pixel."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal

from guided_diffusion.config.options import DiffusionOptions, build
from guided_diffusion.data.classes import BINARY, parse_classes
from guided_diffusion.diffusion.gaussian_diffusion import GaussianDiffusion, build_diffusion
from guided_diffusion.diffusion.losses import bce, bce_dice, class_probabilities
from guided_diffusion.diffusion.schedule import noise_schedule
from guided_diffusion.models.outputs import ModelOutput
from guided_diffusion.runtime.errors import UserError

ONE_OF_MANY, REGIONS = parse_classes("a=1,b=2"), parse_classes("a=1+2,b=2")


def logits_and_labels(classes=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, classes, 4, 5, generator=generator, dtype=dtype)
    return logits, torch.randint(classes + 1, (2, 4, 5), generator=generator)  # 0: background


def one_hot(labels, classes=3):
    return F.one_hot(labels, classes + 1).movedim(-1, 1)[:, 1:].double()


def test_cross_entropy_is_torch_s_over_the_classes_and_a_background_of_logit_0():
    logits, labels = logits_and_labels()
    whole = torch.cat([torch.zeros(2, 1, 4, 5, dtype=torch.float64), logits], dim=1)
    expected = F.cross_entropy(whole, labels, reduction="none").mean(dim=(1, 2))
    torch.testing.assert_close(bce(logits, one_hot(labels), exclusive=True), expected)
    torch.testing.assert_close(class_probabilities(logits, True), whole.softmax(dim=1)[:, 1:])
    raters = (one_hot(labels) + one_hot(labels.flip(0))) / 2  # a soft target: the mean of two raters
    expected = (expected + F.cross_entropy(whole, labels.flip(0), reduction="none").mean(dim=(1, 2))) / 2
    torch.testing.assert_close(bce(logits, raters, exclusive=True), expected)


def test_of_a_single_class_softmax_is_sigmoid():
    logits, labels = logits_and_labels(classes=1)
    mask = one_hot(labels, 1)
    torch.testing.assert_close(bce_dice(logits, mask, exclusive=True), bce_dice(logits, mask))
    schedule = noise_schedule("cosine", 20, 0.1)
    for loss in ("mse", "bce"):
        values = [
            GaussianDiffusion(schedule, objective="x0", mask_loss=loss, class_activation=kind).activate(logits)
            for kind in ("sigmoid", "softmax")
        ]
        torch.testing.assert_close(*values)


@pytest.mark.parametrize("mask_loss", ["bce", "mse"])
@pytest.mark.parametrize("t", [0, 60, 199])
def test_a_pixel_s_own_evidence_is_exact_for_classes_that_exclude_one_another(t, mask_loss):
    """Posterior of the K + 1 classes of one pixel by enumeration, with a prior as the coarse logits have it."""
    diffusion = GaussianDiffusion(
        noise_schedule("cosine", 200, 0.1),
        objective="x0",
        mask_loss=mask_loss,
        logit_skip="both",
        class_activation="softmax",
    )
    prior = torch.tensor([0.5, 0.2, 0.25, 0.05], dtype=torch.float64)  # of the background and three classes
    abar = float(diffusion.schedule.alpha_bar(t))
    x_t = torch.tensor([0.3, -0.4, 0.1], dtype=torch.float64)
    clean = 2 * torch.eye(4, dtype=torch.float64)[:, 1:] - 1  # [K + 1, K]: the mask of each class
    density = prior * Normal(abar**0.5 * clean, (1 - abar) ** 0.5).log_prob(x_t).sum(dim=1).exp()
    coarse = (prior[1:] / prior[0]).log().reshape(1, 3, 1, 1)
    output = ModelOutput(torch.zeros(1, 3, 1, 1, dtype=torch.float64), None, coarse)
    value = diffusion.activate(diffusion.prediction(output, x_t.reshape(1, 3, 1, 1), t)).flatten()
    torch.testing.assert_close((value + 1) / 2, density[1:] / density.sum())


def test_classes_choose_the_activation():
    def settled(classes, **values):
        options = build(DiffusionOptions, values)
        activation = options.activation_for(str(classes), len(classes), classes.is_exclusive)
        return activation, build_diffusion(dataclasses.replace(options, class_activation=activation)).exclusive

    assert settled(BINARY) == settled(REGIONS) == settled(ONE_OF_MANY, objective="v") == ("sigmoid", False)
    assert settled(ONE_OF_MANY) == settled(BINARY, class_activation="softmax") == ("softmax", True)
    assert settled(ONE_OF_MANY, class_activation="sigmoid") == ("sigmoid", False)
    with pytest.raises(UserError, match="--class_activation softmax: the classes a=1.2,b=2 overlap; leave it out"):
        settled(REGIONS, class_activation="softmax")
    with pytest.raises(UserError, match="--class_activation softmax goes with --objective x0, not eps"):
        build(DiffusionOptions, {"class_activation": "softmax", "objective": "eps"})
    with pytest.raises(ValueError, match="class activation 'softmax' does not go with the objective eps"):
        GaussianDiffusion(noise_schedule("cosine", 20, 0.1), class_activation="softmax")
