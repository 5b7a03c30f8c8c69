"""Validation: which cases it takes, and the figures of one."""

import math

import numpy as np
import pytest
import torch

from guided_diffusion.training.validation import Drawn, spread_cases


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
    found = Drawn.of(soft[:, None], torch.from_numpy(full)[None, None], "vote", True).figures(truth)
    assert found["dice"] == 1 and found["coarse_dice"] == pytest.approx(2 / 3)
    assert found["member_dice"] == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert found["agreement"] == pytest.approx((0 + 2 / 3 + 0) / 3)
    assert found["empty"] == found["full"] == pytest.approx(1 / 3)
    nothing = Drawn.of(soft[:1, None], None, "vote", True).figures(np.zeros_like(truth))
    assert nothing["dice"] == 0 and all(math.isnan(nothing[name]) for name in ("agreement", "coarse_dice", "empty"))
