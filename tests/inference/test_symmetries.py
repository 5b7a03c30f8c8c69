"""Members that see the image turned and mirrored: their answers are turned back, the coarse masks averaged."""

import dataclasses
from typing import NamedTuple

import pytest
import torch

from guided_diffusion.config.sample_options import SampleOptions
from guided_diffusion.config.settings import members_as_trained
from guided_diffusion.diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.diffusion.losses import class_logits, class_probabilities
from guided_diffusion.diffusion.schedule import noise_schedule
from guided_diffusion.inference.members import coupled, draw_members
from guided_diffusion.inference.plan import SamplingPlan, plan_sampling
from guided_diffusion.inference.tta import SYMMETRIES, each_turned, turned, turned_back
from guided_diffusion.models.outputs import ModelOutput, _RowSelection
from guided_diffusion.runtime.errors import UserError

DIFFUSION = GaussianDiffusion(noise_schedule("cosine", 50, 0.3), objective="x0", mask_loss="bce")
PLAN = SamplingPlan("dpm_solver", (49, 30, 10), 2, symmetric=True)


class _Seen(NamedTuple):
    image: torch.Tensor
    coarse: torch.Tensor


class Seen(_RowSelection, _Seen):
    """What the fake network knows of an image."""


class Fake:
    """Predicts the image itself, and as the coarse mask what lies at the left: it does not turn with the image."""

    mask_channels = 1

    def __init__(self):
        self.encoded = 0

    def encode(self, image, label=None):
        self.encoded += len(image)
        left = torch.linspace(3, -3, image.shape[-1]).expand(image.shape)
        return Seen(image, left.clone())

    def __call__(self, x_t, t, condition):
        return ModelOutput(condition.image, None, condition.coarse)

    def modules(self):
        return []

    def eval(self):
        return self


@pytest.fixture
def image():
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_symmetries_are_eight_and_go_back(image):
    seen = [turned(image, symmetry) for symmetry in SYMMETRIES]
    assert torch.equal(seen[0], image)
    assert len({part.numpy().tobytes() for part in seen}) == 8
    for symmetry, part in zip(SYMMETRIES, seen, strict=True):
        assert torch.equal(turned_back(part, symmetry), image)
    assert torch.equal(each_turned(torch.stack(seen), SYMMETRIES, back=True), image.expand(8, *image.shape))


@pytest.mark.parametrize(("members", "rows"), [(3, None), (8, 5), (11, 4)])
def test_members_answer_as_the_image_lies_and_it_is_encoded_once_for_each_symmetry(image, members, rows):
    model, watched = Fake(), []
    drawn = draw_members(
        model, DIFFUSION, PLAN, image, ["a", "b"], members=members, rows=rows, watch=lambda x, x0: watched.append(x0)
    )
    for member in drawn.soft:
        torch.testing.assert_close(member, torch.sigmoid(image), atol=1e-5, rtol=0)
    assert model.encoded == 2 * 8  # the coarse mask is a mean over all of them, however few the members
    shown = torch.cat(watched[2::3])  # of each pass the last step
    torch.testing.assert_close(shown, (2 * torch.sigmoid(image) - 1).repeat(members, 1, 1, 1), atol=1e-5, rtol=0)


def test_every_member_has_the_mean_of_the_coarse_masks(image):
    drawn = draw_members(Fake(), DIFFUSION, PLAN, image, ["a", "b"], members=8)
    left = torch.sigmoid(torch.linspace(3, -3, 8).expand(8, 8))
    mean = sum(turned_back(left, symmetry) for symmetry in SYMMETRIES) / 8
    torch.testing.assert_close(drawn.coarse, mean.expand(8, 2, 1, 8, 8), atol=1e-5, rtol=0)


def test_coupled_members_have_the_coarse_mask_s_probability(image):
    plan = dataclasses.replace(PLAN, coupling_sigma=0.1)
    drawn = draw_members(Fake(), DIFFUSION, plan, image, ["a", "b"], members=5)
    torch.testing.assert_close(drawn.soft.mean(dim=0), drawn.coarse[0], atol=1e-5, rtol=0)
    alone = draw_members(Fake(), DIFFUSION, plan, image, ["a", "b"], members=1)
    torch.testing.assert_close(alone.soft[0], torch.sigmoid(image), atol=1e-5, rtol=0)


def test_coupled_members_are_ranked_by_a_neighbourhood_in_parts_of_the_network_s_side(image):
    drawn, by_pixel, alike = (
        draw_members(Fake(), DIFFUSION, dataclasses.replace(PLAN, coupling_sigma=sigma), image, ["a", "b"], members=5)
        for sigma in (0.1, 0.0, None)
    )
    expected = coupled(alike.soft, alike.coarse.mean(dim=0), sigma=0.8)  # of 8 pixels
    torch.testing.assert_close(drawn.soft, expected)
    torch.testing.assert_close(by_pixel.soft, coupled(alike.soft, alike.coarse.mean(dim=0)))


def test_an_image_that_is_not_square_is_seen_as_it_is():
    model, image = Fake(), torch.randn(1, 1, 8, 16)
    drawn = draw_members(model, DIFFUSION, PLAN, image, ["a"], members=3)
    assert model.encoded == 1
    torch.testing.assert_close(drawn.soft[2], torch.sigmoid(image), atol=1e-5, rtol=0)


def test_a_neighbourhood_is_refused_where_nothing_is_coupled():
    options = SampleOptions(coupling="own", coupling_sigma=0.1)
    with pytest.raises(UserError, match="--coupling_sigma 0.1: belongs to --coupling coarse"):
        members_as_trained(options, {"condition_steps": 85}, exclusive=False)


@pytest.mark.parametrize("exclusive", [False, True])
def test_logits_are_the_inverse_of_probabilities(exclusive):
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    again = class_logits(class_probabilities(logits, exclusive), exclusive)
    torch.testing.assert_close(again, logits)


@pytest.mark.parametrize(
    ("flags", "train", "exclusive", "expected"),
    [
        ({}, {}, False, (False, None, "staple")),
        ({}, {"augment": "light", "orientation": "any"}, False, (True, None, "staple")),
        ({}, {"augment": "light", "orientation": "upright"}, False, (False, None, "staple")),
        ({}, {"augment": "none", "orientation": "any"}, False, (False, None, "staple")),
        ({}, {"condition_steps": 85}, False, (False, 1 / 64, "mean")),
        ({"coupling_sigma": 0.0}, {"condition_steps": 85}, False, (False, 0.0, "mean")),
        ({}, {"condition_steps": 85}, True, (False, None, "staple")),
        ({"fuse": "vote", "symmetries": "all"}, {"condition_steps": 85}, False, (True, 1 / 64, "vote")),
        ({"coupling": "own", "symmetries": "none"}, {"condition_steps": 85, "augment": "light", "orientation": "any"},
         False, (False, None, "staple")),
        ({"coupling": "coarse"}, {}, False, (False, 1 / 64, "mean")),
    ],
)  # fmt: skip
def test_what_is_left_open_follows_from_the_training(flags, train, exclusive, expected):
    options = members_as_trained(SampleOptions(**flags), train, exclusive=exclusive)
    plan = plan_sampling(options, set(flags), DIFFUSION)
    assert (plan.symmetric, plan.coupling_sigma, options.fuse) == expected
