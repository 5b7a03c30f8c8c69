"""Mistakes of whoever writes a loader: each is one line that says what to write instead."""

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import ArrayDataset, Stack, array_dataset
from PIL import Image

from guided_diffusion.data.batches import collate
from guided_diffusion.data.cases import Case, Geometry, group_cases, same_cases
from guided_diffusion.data.check import findings
from guided_diffusion.data.dataset import SegmentationDataset
from guided_diffusion.data.division import part_of
from guided_diffusion.data.inspection import Part, inspect_unit
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.splits import HoldOut
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


@pytest.mark.parametrize(
    "attributes, message",
    [
        ({"class_names": None}, "class_names is None, no tuple of texts"),
        ({"class_names": {"a", "b"}}, "no tuple of texts; write ("),  # its order changes from run to run
        ({"class_names": {0: "background", 1: "a"}}, "no tuple of texts"),
        ({"class_values": ("1", "2")}, "class_values has '1', no whole number or tuple of such"),
        ({"image_channels": "2"}, "image_channels is '2', no whole number"),
        (
            {"class_names": ("Background", "a"), "read_labels": None},
            "begins with 'Background', which would be the label",
        ),
    ],
)
def test_attributes_of_another_type(tmp_path, attributes, message):
    assert message in refused(lambda: made(tmp_path, **attributes))


def test_attributes_that_differ_in_type_alone(tmp_path):
    dataset = made(tmp_path, class_names=["a", "b"], class_values=np.array([3, 4]))
    assert dataset.kept_values()["class_values"] == [[3], [4]]
    assert made(tmp_path, class_names=("background", "a")).class_names == ("background", "a")  # masks may hold both


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


def test_names_that_are_numbers_or_paths_become_texts():
    case = Case(7, ("a.png",), volume=Path("v"), slice_index=np.int64(3), group=5, label=2.0)
    assert (case.name, case.volume, case.slice_index, case.group, case.label) == ("7", "v", 3, "5", 2)
    assert type(case.slice_index) is int


@pytest.mark.parametrize("name, given", [("label", "benign"), ("label", 0.5), ("slice_index", "3")])
def test_numbers_of_a_case_that_are_none(name, given):
    with pytest.raises(TypeError, match=f"{name} must be a whole number.*, not {given!r}"):
        Case("a", ("a.png",), **{name: given})


@pytest.mark.parametrize("volume", ["/data/P1", "../P1", "a/../../P1"])
def test_a_volume_whose_results_would_lie_elsewhere(tmp_path, volume):
    found = [Case("a", ("a.png",), ("m",), volume=volume, slice_index=0)]
    line = refused(lambda: array_dataset(tmp_path, find_cases=lambda self: found))
    assert line.startswith(f"a.png: its volume's name {volume!r} cannot be a file name")


def test_the_order_of_cases_does_not_make_a_test_part(tmp_path):
    step = {"train": 1, "test": -1, "val": 1}
    attributes = {"find_cases": lambda self: [Case(n, (n,), ("m",)) for n in "abcdefgh"][:: step[self.split]]}
    loader = type("Turned", (ArrayDataset,), attributes)
    parts = [loader(tmp_path, 16, split=split, hold_out=HoldOut(0.25)).cases for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [6, 2, 2] and same_cases(parts[1], parts[2])
    assert part_of(loader(tmp_path, 16, split="test")) == "all"


# ---- images and masks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image, message",
    [
        (None, "read_image of Made returned None, not an array; does it lack return?"),
        (np.zeros((20, 30, 2)), r"shape (20, 30, 2), with its channels last; return image.transpose(2, 0, 1)"),
        (np.zeros((20, 30)), "not [C, H, W]; return image[None]"),
        (np.zeros((2, 0, 30)), "shape (2, 0, 30), not [C, H, W]"),
        (np.full((2, 20, 30), 3 + 4j), "gave complex numbers; return their magnitude, np.abs(image)"),
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
        (np.zeros((1, 3, 20, 30), bool), "; the background is no class: it has neither a mask nor a name in class_n"),
        (np.arange(1200).reshape(1, 2, 20, 30) % 3, "a mask with the values 0, 1, 2; return True where"),
        (np.full((1, 2, 20, 30), 0.3) * (np.arange(30) < 7) + 0.5, "with the values 0.5, 0.8"),
        (np.full((1, 2, 20, 30), np.nan), "with the values nan"),
        (-np.ones((1, 2, 20, 30)), "with the values -1"),
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
    dataset = made(tmp_path, normalise=lambda self, image: image * np.nan)
    assert "normalise made values that are not finite" in refused(dataset.load_normalised, dataset.cases[0])
    dataset = made(tmp_path, geometry=lambda self, case: np.eye(4))
    assert "geometry of Made returned a ndarray, not a " in refused(dataset.load_geometry, dataset.cases[0])
    dataset = made(tmp_path, geometry=lambda self, case: Geometry(np.eye(4), (1, 1, 1), (20, 30, 4)))
    assert dataset.load_geometry(dataset.cases[0]).shape == (20, 30, 4)


@pytest.mark.parametrize(
    "affine, spacing, shape, message",
    [
        (np.eye(3), (1, 1, 1), (2, 2, 2), "its affine is no invertible matrix [4, 4]"),
        (np.zeros((4, 4)), (1, 1, 1), (2, 2, 2), "its affine is no invertible matrix"),
        (np.full((4, 4), np.nan), (1, 1, 1), (2, 2, 2), "its affine is no invertible matrix"),
        (np.eye(4), (1, 1, 3), (2, 2, 2), "its spacing is 1 x 1 x 3 mm, the voxels of its affine have 1 x 1 x 1 mm"),
        (np.eye(4), (1, 1), (2, 2, 2), "its spacing is 1 x 1 mm"),
        (np.eye(4), (1, 1, 1), (2.5, 2, 2), "its shape is (2.5, 2, 2), not (X, Y, Z)"),
    ],
)
def test_a_geometry_that_places_masks_wrongly(tmp_path, affine, spacing, shape, message):
    dataset = made(tmp_path, geometry=lambda self, case: Geometry(affine, spacing, shape))
    assert f"c0: geometry of Made: {message}" in refused(dataset.load_geometry, dataset.cases[0])


def test_batches_of_masks_of_several_raters():
    items = [{"name": name, "mask": torch.zeros(raters, 1, 4, 4)} for name, raters in (("a", 1), ("b", 2))]
    assert "case b: its mask has the shape [2, 1, 4, 4], that of a [1, 1, 4, 4]" in refused(collate, items)


def found_in(dataset):
    return findings([Part("train", dataset, [inspect_unit(dataset, unit) for unit in group_cases(dataset.cases)])])


def test_the_check_counts_the_raters_of_each_mask(tmp_path):
    dataset = made(tmp_path, masks={**ArrayDataset.masks, "c0": ArrayDataset.masks["c0"][:1]})
    assert any(one.is_error and "not masked by 2 raters as the others: c0" in one.text for one in found_in(dataset))


def test_the_check_says_what_sampling_refuses(tmp_path):
    line = next(one for one in found_in(Stack(tmp_path, 8)) if "cannot be sampled" in one.text)
    assert "2 volumes cannot be sampled, only trained on" in line.text and not line.is_error
    assert line.text.endswith("without which its masks cannot be written; define geometry(case)")


def test_dark_images_of_a_loader_of_ones_own(tmp_path):
    class Dark(ArrayDataset):
        normalise = SegmentationDataset.normalise

        def read_image(self, case):
            return np.linspace(0, 1, 1200).reshape(2, 20, 30)

    texts = [one.text for one in found_in(Dark(tmp_path, 16))]
    assert any("; let read_image of Dark give 0 to 255, or define normalise" in text for text in texts)


@pytest.mark.parametrize(
    "init, message",
    [
        (
            "(self, data_dir, image_size): super().__init__(data_dir, image_size)",
            "does not take what the program gives",
        ),
        (
            "(self, data_dir, image_size, **settings): self.data_dir = data_dir",
            "does not call that of its base; write ",
        ),
    ],
)
def test_an_init_of_ones_own(tmp_path, init, message):
    (tmp_path / "own.py").write_text(
        "from guided_diffusion.data.loaders.folder import FolderDataset\n"
        f"class Own(FolderDataset):\n    def __init__{init}\n"
    )
    line = refused(lambda: build_dataset(f"{tmp_path / 'own.py'}:Own", tmp_path, 4))
    assert line.startswith(f"{tmp_path / 'own.py'}: Own: its __init__ {message}")


def test_a_loader_written_before_unreadable_headers_were_kept(tmp_path):
    (tmp_path / "old.py").write_text(
        "from guided_diffusion.data.loaders.folder import FolderDataset\n"
        "from guided_diffusion.data.volumes import CTWindow\n"
        "class Old(FolderDataset):\n"
        "    def __init__(self, data_dir, image_size, *, split=None, need_masks=False):\n"
        "        super().__init__(data_dir, image_size, split=split, need_masks=need_masks)\n"
    )
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "images" / "a.png")
    assert len(build_dataset(f"{tmp_path / 'old.py'}:Old", tmp_path, 4, keep_unreadable=True)) == 1


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


@pytest.mark.parametrize(
    "labels, message",
    [
        (None, "read_labels of One returned None, not an array; does it lack return?"),
        (np.zeros((20, 30), int), "labels of shape (20, 30), not [raters, H, W]; return labels[None]"),
        (np.zeros((1, 1, 20, 30), int), "labels of shape (1, 1, 20, 30), not [raters, H, W]"),
    ],
)
def test_labels(tmp_path, labels, message):
    dataset = type("One", (Organs,), {"read_labels": lambda self, case: labels})(tmp_path, 16)
    for read in (dataset.load_labels, dataset.load_mask):
        assert refused(read, dataset.cases[0]).endswith(message)


def test_classes_auto_keeps_the_loader_s_names(tmp_path):
    assert str(Organs(tmp_path, 16, classes="auto").classes) == "liver=1,tumour=2"
    more = type("More", (Organs,), {"more": True, "class_values": (2, 7)})
    assert str(more(tmp_path, 16, classes="auto").classes) == "class_1=1,liver=2,tumour=7"
