"""Mistakes of whoever writes a loader: each is one line that says what to write instead."""

from pathlib import Path

import numpy as np
import pytest
from networks import ArrayDataset, array_dataset

from guided_diffusion.data.cases import Case, Geometry
from guided_diffusion.data.dataset import SegmentationDataset
from guided_diffusion.runtime.errors import NoCasesError, UserError


def refused(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def made(tmp_path, **attributes):
    return array_dataset(tmp_path, need_masks=True, **attributes)


# ---- the class -----------------------------------------------------------------------------------------------------


def test_methods_that_lack_are_named_at_once(tmp_path):
    class Nothing(SegmentationDataset):
        pass

    line = refused(lambda: Nothing(tmp_path, 8, need_masks=True))
    lacking = "find_cases(self) and read_image(self, case) and read_mask(self, case)"
    assert line.startswith(f"{__file__}: Nothing must define {lacking}; docs/")
    assert "must define find_cases(self); docs" in refused(Nothing, tmp_path, 8)

    class ForSampling(ArrayDataset):
        read_mask = SegmentationDataset.read_mask

    dataset = ForSampling(tmp_path, 16)  # sampling needs no masks
    assert dataset[0]["image"].shape == (2, 16, 16)
    assert "ForSampling must define read_mask(self, case)" in refused(dataset.load_mask, dataset.cases[0])
    assert "must define read_mask(self, case)" in refused(lambda: ForSampling(tmp_path, 16, need_masks=True))

    class ForEvaluation(ArrayDataset):
        read_image = SegmentationDataset.read_image

    dataset = ForEvaluation(tmp_path, 16)  # evaluation needs the truth alone
    assert dataset.load_mask(dataset.cases[0]).any()
    assert "ForEvaluation must define read_image(self, case)" in refused(dataset.load_image, dataset.cases[0])


def test_one_class_name_without_its_comma(tmp_path):
    line = refused(lambda: made(tmp_path, class_names=("lesion")))
    assert "class_names is the text 'lesion'; for one class write (\"lesion\",), with the comma" in line


# ---- cases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "found, message",
    [
        (None, "find_cases returned None, not a list of cases; does it lack return cases?"),
        ([("a", "a.png")], "find_cases returned a tuple, ('a', 'a.png'), among its cases; each must be a Case("),
        ([{"image": "a.png"}], "find_cases returned a dict"),
        ([Case("a", ())], "case 'a' has no image file"),
        ([Case("a", ("a.png",))] * 2, "a.png: is given twice as case 'a'; give it once"),
        ([Case("a", ("a.png",)), Case("a", ("b.png",))], "b.png: its case name 'a' is also that of a.png"),
    ],
)
def test_what_find_cases_returns(tmp_path, found, message):
    assert message in refused(lambda: array_dataset(tmp_path, need_masks=False, find_cases=lambda self: found))


def test_no_case_at_all_is_said_of_the_loader(tmp_path):
    with pytest.raises(NoCasesError, match="no cases found for Made"):
        array_dataset(tmp_path, find_cases=lambda self: [])
    assert len(array_dataset(tmp_path, find_cases=lambda self: (Case(n, (n,), ("m",)) for n in "ab"))) == 2


@pytest.mark.parametrize("name, files", [("images", "a.png"), ("masks", Path("a.png")), ("raters", "anna")])
def test_a_tuple_without_its_comma(name, files):
    with pytest.raises(TypeError, match=rf"{name} must be a tuple, not .* alone: write {name}=\(..., \), with the com"):
        Case("a", **{"images": ("a.png",), name: files})


def test_lists_and_texts_become_tuples_of_paths():
    case = Case("a", ["a.png"], masks=["b.png", Path("c.png")], raters=["anna", "ben"])
    assert case.images == (Path("a.png"),) and case.masks == (Path("b.png"), Path("c.png"))
    assert case.raters == ("anna", "ben") and hash(case)


# ---- images and masks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image, message",
    [
        (None, "read_image of Made returned None, not an array; does it lack return?"),
        (np.zeros((20, 30, 2)), r"shape (20, 30, 2), with its channels last; return image.transpose(2, 0, 1)"),
        (np.zeros((20, 30)), "not [C, H, W]; return image[None]"),
        (np.zeros((2, 0, 30)), "shape (2, 0, 30), not [C, H, W]"),
        (np.where(np.arange(1200).reshape(2, 20, 30) < 120, np.nan, 1), "10 % of its values are not finite"),
    ],
)
def test_images(tmp_path, image, message):
    dataset = made(tmp_path, images={"c0": image})
    line = refused(dataset.load_image, dataset.cases[0])
    assert line.startswith(f"{tmp_path / 'c0'}: ") and message in line


@pytest.mark.parametrize(
    "mask, message",
    [
        (None, "read_mask of Made returned None, not an array; does it lack return?"),
        (np.zeros((2, 20, 30), bool), "not [raters, 2, H, W]; return mask[None]"),
        (np.zeros((20, 30, 2), bool), "with its classes last; return mask.transpose(2, 0, 1)[None]"),
        (np.zeros((2, 1, 20, 30), bool), "with the classes first; return mask.swapaxes(0, 1)"),
        (np.arange(1200).reshape(1, 2, 20, 30) % 3, "a mask with the value 1 beside 0 and 2; return True where"),
        (np.full((1, 2, 20, 30), 0.3) * (np.arange(30) < 7) + 0.5, "with the value 0.5 beside 0 and 0.8"),
        (np.full((1, 2, 20, 30), np.nan), "with the value nan"),
        (-np.ones((1, 2, 20, 30)), "with the value -1"),
    ],
)
def test_masks(tmp_path, mask, message):
    dataset = made(tmp_path, masks={"c0": mask})
    line = refused(dataset.load_mask, dataset.cases[0])
    assert line.startswith(f"{tmp_path / 'm'}: ") and message in line


def test_a_mask_of_one_class_without_its_axes(tmp_path):
    one = {"class_names": ("a",), "masks": {"c0": np.zeros((20, 30), bool)}}
    dataset = made(tmp_path, **one)
    assert "; return mask[None, None]" in refused(dataset.load_mask, dataset.cases[0])


@pytest.mark.parametrize("top", [1, 255, 0.5])
def test_masks_of_two_values_are_read(tmp_path, top):
    dataset = made(tmp_path, masks={"c0": ArrayDataset.masks["c0"] * top})
    assert (dataset.load_mask(dataset.cases[0]) == ArrayDataset.masks["c0"]).all()


def test_normalise_and_geometry(tmp_path):
    for result, given in ((None, "None"), (np.zeros((2, 3, 3)), r"\(2, 3, 3\)")):
        dataset = made(tmp_path, normalise=lambda self, image, result=result: result)
        with pytest.raises(UserError, match=rf"c0: normalise made {given} of the shape \(2, 20, 30\); keep it"):
            dataset.load_normalised(dataset.cases[0])
    dataset = made(tmp_path, geometry=lambda self, case: np.eye(4))
    assert "geometry of Made returned a ndarray, not a " in refused(dataset.load_geometry, dataset.cases[0])
    dataset = made(tmp_path, geometry=lambda self, case: Geometry(np.eye(4), (1, 1, 1), (20, 30, 4)))
    assert dataset.load_geometry(dataset.cases[0]).shape == (20, 30, 4)


# ---- classes ---------------------------------------------------------------------------------------------------------


class Organs(ArrayDataset):
    """Label maps with the values 0, 1, 2 and, where `more`, 7."""

    class_names = ("liver", "tumour")
    read_mask = SegmentationDataset.read_mask
    more = False

    def read_labels(self, case):
        return (
            np.where(np.arange(30) < 8, 7, np.arange(30) % 3)[None, None].repeat(20, 1)
            if self.more
            else (np.arange(600).reshape(1, 20, 30) % 3)
        )


def test_classes_auto_keeps_the_loader_s_names(tmp_path):
    assert str(Organs(tmp_path, 16, classes="auto").classes) == "liver=1,tumour=2"
    more = type("More", (Organs,), {"more": True, "class_values": (2, 7)})
    assert str(more(tmp_path, 16, classes="auto").classes) == "class_1=1,liver=2,tumour=7"
