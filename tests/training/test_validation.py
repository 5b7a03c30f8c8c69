"""Validation: which cases it takes, and the figures of one."""

import math

import numpy as np
import pytest
import torch
from networks import inputs, model_of, run_model

from guided_diffusion.evaluation.statistics import mean_defined
from guided_diffusion.inference.members import Members
from guided_diffusion.training.validation import Drawn, ValidationResult, head_zeroed, spread_cases, standard_error


class Cases:
    """A data set whose masks are empty but for those of some indices."""

    def __init__(self, count, filled):
        self.cases, self.filled = list(range(count)), filled

    def load_mask(self, case):
        return np.full((1, 1, 2, 2), case in self.filled)


def test_cases_are_spread_and_have_something_to_segment():
    assert spread_cases(Cases(100, range(100)), 4) == [12, 37, 62, 87]
    assert spread_cases(Cases(100, {40, 61, 90}), 4) == [12, 40, 61, 90]
    assert spread_cases(Cases(3, range(3)), 8) == [0, 1, 2]


def test_figures_of_one_case():
    truth = np.zeros((1, 4, 4), dtype=bool)
    truth[0, :2] = True
    half, empty, full = truth.astype(np.float32), np.zeros_like(truth, np.float32), np.ones_like(truth, np.float32)
    soft = torch.from_numpy(np.stack([half, empty, full]))
    members = Members(soft[:, None], torch.from_numpy(full)[None, None])
    found = Drawn.of(members, "vote", True).figures(truth[None].astype(np.float32))
    assert found["dice"] == 1 and found["coarse_dice"] == pytest.approx(2 / 3)
    assert found["member_dice"] == pytest.approx((1 + 0 + 2 / 3) / 3) and found["class_dice"] == [1]
    assert found["agreement"] == pytest.approx((0 + 2 / 3 + 0) / 3)
    assert found["empty"] == found["full"] == pytest.approx(1 / 3)
    nothing = Drawn.of(Members(soft[:1, None], None), "vote", True).figures(np.zeros((1, 1, 4, 4), np.float32))
    assert nothing["dice"] == 0 and all(math.isnan(nothing[name]) for name in ("agreement", "coarse_dice", "empty"))


def test_proper_figures_are_of_the_mean_probability_against_all_raters():
    """Two raters mark one half and the whole of the image; two members are drawn as just these."""
    raters = np.ones((2, 1, 4, 4), np.float32)
    raters[0, 0, 2:] = 0
    drawn = torch.from_numpy(raters)
    soft = torch.full_like(drawn, 0.5)
    coarse = drawn.mean(dim=0, keepdim=True)
    found = Drawn.of(Members(soft[:, None], coarse[None], drawn[:, None]), "mean", False).figures(raters)
    assert found["log_loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert found["coarse_log_loss"] == pytest.approx(math.log(2) / 2, rel=1e-3)  # 0 where p is 1, log 2 where it is 0.5
    assert (found["truth"], found["expected"], found["coarse_expected"]) == (12, 8, 12)
    assert found["ged2"] == pytest.approx(2 * 0.25 - 0.5 - 0.5)  # d(S, Y) = 0, 0.5, 0.5, 0; the others 0.5
    assert found["agreement"] == pytest.approx(2 / 3)  # of the masks as drawn


def test_what_is_delivered_decides():
    figures = {"log_loss": 0.3, "coarse_log_loss": 0.1}
    assert ValidationResult(figures, None, False, 0).log_loss == 0.3
    assert ValidationResult(figures, None, False, 0, in_one_pass=True).log_loss == pytest.approx(0.2)
    assert math.isnan(ValidationResult(figures | {"log_loss": math.nan}, None, True, 0, in_one_pass=True).log_loss)


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_a_zeroed_head_is_one_whose_weights_are_zero(learn_sigma):
    model = model_of(image_channels=3, version="v2", learn_sigma=learn_sigma)
    image, x_t, t = inputs(16)
    before = run_model(model, image, x_t, t)
    with head_zeroed(model):
        hooked = run_model(model, image, x_t, t)
    after = run_model(model, image, x_t, t)
    torch.nn.init.zeros_(model.head.conv.weight)
    torch.nn.init.zeros_(model.head.conv.bias)
    zeroed = run_model(model, image, x_t, t)
    for part, others in zip(after, zip(before, hooked, zeroed, strict=True), strict=True):
        assert part is None or (torch.equal(part, others[0]) and torch.equal(others[1], others[2]))
    assert not torch.equal(after.prediction, zeroed.prediction)


def test_a_gain_counts_beyond_its_standard_error():
    def healthy(*gains):
        figures = {"health": mean_defined(gains)}
        return ValidationResult(figures, None, False, 0.0, health_error=standard_error(gains)).is_healthy

    assert standard_error([1.0, 2.0, 3.0, math.nan]) == pytest.approx(1 / math.sqrt(3))
    assert healthy(0.1, 0.2, 0.1) and healthy(0.1) and not healthy(0.3, -0.25, 0.0)
    assert healthy(-0.1, math.nan) is False and healthy(math.nan) is None
