"""The truth of several raters: their order, the majority, and other grids."""

import numpy as np
import pytest

from guided_diffusion.data.cases import Case
from guided_diffusion.data.dataset import SegmentationDataset
from guided_diffusion.data.truth import majority, on_grid, rater_names, raters_of
from guided_diffusion.runtime.errors import UserError


def test_the_order_of_raters_is_that_of_their_names():
    cases = [Case("a", (), ("x", "y"), raters=("seg2", "seg10")), Case("b", (), ("x",), raters=("seg1",))]
    cases.append(Case("without a mask", ()))
    assert rater_names(cases) == ("seg1", "seg2", "seg10")
    assert rater_names([*cases, Case("nameless", (), ("x",))]) == ()


@pytest.mark.parametrize("have, want", [((4, 6), (8, 6)), ((8, 9), (4, 3)), ((5,), (7,)), ((2, 3, 4), (4, 3, 2))])
def test_on_grid_is_the_nearest_neighbour(have, want):
    mask = np.random.default_rng(0).random(have) > 0.5
    expected = np.zeros(want, bool)
    for place in np.ndindex(*want):
        source = [int((p + 0.5) / w * h) for p, h, w in zip(place, have, want, strict=True)]  # pixel centres
        expected[place] = mask[tuple(source)]
    assert np.array_equal(on_grid(mask, want), expected)


def test_dimensions_that_differ_are_refused():
    with pytest.raises(UserError, match="cannot be compared"):
        on_grid(np.zeros((4, 4), bool), (4, 4, 4))


class Raters(SegmentationDataset):
    """One case with three raters, or with the first two of them."""

    read_image = None

    count = 3

    def find_cases(self):
        return [Case("a", (self.data_dir / "x",), (self.data_dir / "x",))]

    def read_mask(self, case):
        marks = [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
        return np.array(marks[: self.count])[:, None, None]  # [R, K, H, W]


def test_truth_is_the_majority_and_a_tie_is_background(tmp_path):
    three, two = Raters(tmp_path, 8), type("Two", (Raters,), {"count": 2})(tmp_path, 8)
    assert majority(raters_of(three, three.cases)).tolist() == [[True, True, False, False]]
    assert majority(raters_of(two, two.cases)).tolist() == [[True, True, False, False]]
