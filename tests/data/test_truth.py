"""The truth of several raters: their order, the majority, and other grids."""

import numpy as np
import pytest

from guided_diffusion.data.cases import Case
from guided_diffusion.data.dataset import SegmentationDataset
from guided_diffusion.data.truth import (
    NearNames,
    RaterFolders,
    majority,
    near_key,
    on_grid,
    rater_names,
    raters_of,
)
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


# ---- names that stand for one another ----------------------------------------------------------------------------

NFC, NFD = "M\u00fcller", "Mu\u0308ller"


def test_near_names():
    assert near_key(NFC) == near_key(NFD) == near_key("M\u00dcLLER") != near_key("Muller")


def test_a_name_is_found_exactly_then_by_form_then_by_case():
    names = NearNames([(NFC, 1), (NFD, 2), ("A", 3), ("a", 4), ("a.png", 5), ("b", 6), ("B", 7), ("x", 8), ("x", 9)])
    assert [names.find(name) for name in (NFC, NFD, "A", "a")] == [[1], [2], [3], [4]]
    assert names.find("M\u00dcLLER") == [1, 2] and names.find("c") == [] and names.find("x") == [8, 9]
    assert NearNames({NFD: 1, "M\u00dcLLER": 2}).find(NFC) == [1]  # the form is nearer than the case


@pytest.mark.parametrize(
    "text, expected",
    [("a.png", 5), ("images/a.png", 5), ("a.jpg", 4), ("x/b.nii.gz", 6), ("x\\A.TIF", 3), ("./b", 6), ("b.txt", None)],
)
def test_a_name_that_a_person_listed(text, expected):
    names = NearNames({"A": 3, "a": 4, "a.png": 5, "b": 6})
    assert names.find_listed(text) == ([expected] if expected else [])
    assert names.has_listed(text) == bool(expected)
    assert NearNames({"Scan": 1}).find_listed("scan.png") == [1] and not NearNames({"Scan": 1}).has_listed("scan.png")


def test_masks_are_matched_exactly_where_no_names_are_known(tmp_path):
    """Loaders that give no `known` names get exact matches alone."""
    for name in ("A.png", "b.jpg.png", "c_mask.png", "c_mask_1.png"):
        (tmp_path / name).touch()
    raters = RaterFolders(tmp_path)
    assert [raters.masks_of(f"{name}.png", [name]) for name in ("a", "b")] == [(), ()] and not raters.near
    assert len(raters.masks_of("c.png", ["c", "c_mask"])) == 1 and not raters.united
    raters = RaterFolders(tmp_path, known=("a", "b", "c", "c_mask"))
    found = [raters.masks_of(image, [image[0], f"{image[0]}_mask"]) for image in ("a.png", "b.jpg", "c.png")]
    assert [path.name for (path,) in found] == ["A.png", "b.jpg.png", "c_mask.png"]
    assert [how for _, how in raters.near] == ["case", "suffix"]
    assert raters.united == {tmp_path / "c_mask.png": (tmp_path / "c_mask_1.png",)}


def test_a_sub_folder_without_masks_of_images_is_no_rater(tmp_path):
    (tmp_path / "old").mkdir()
    for name in ("a.png", "old/x.png"):
        (tmp_path / name).touch()
    assert RaterFolders(tmp_path, known=("a",)).is_one
    with pytest.raises(UserError, match="holds masks and folders of masks"):
        RaterFolders(tmp_path)
    (tmp_path / "old/A.png").touch()
    with pytest.raises(UserError, match="holds masks and folders of masks"):
        RaterFolders(tmp_path, known=("a",))
