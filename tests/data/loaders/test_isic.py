"""ISIC folder layouts, as they come out of the published archives."""

import numpy as np
import pytest
import torch

from guided_diffusion.data import phantoms as phantom
from guided_diffusion.data.accounting import account
from guided_diffusion.data.batches import sampling_batches
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.runtime.errors import NoTruthError, UserError

IMAGE = np.full((24, 32, 3), 255, np.uint8)
IMAGE[:, :16] = 0
MASK = np.zeros((24, 32), np.uint8)
MASK[6:18, 8:24] = 255


@pytest.fixture
def put(tmp_path, save_picture):
    """A function (image folder, names, truth folder) that writes pairs below tmp_path in the ISIC manner."""

    def write(folder, names, truth=None, ending="_Segmentation"):
        for name in names:
            save_picture(tmp_path / folder / f"{name}.jpg", IMAGE, quality=95)
            if truth:
                save_picture(tmp_path / truth / f"{name}{ending}.png", MASK)

    return write


def load(folder, **keywords):
    return build_dataset("ISIC", folder, 16, **{"need_masks": True, **keywords})


def names(dataset):
    return [case.name for case in dataset.cases]


LAYOUTS = {
    "2016 part 1": ("ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth", "_Segmentation"),
    "2016 part 3B": ("ISBI2016_ISIC_Part3B_Training_Data", "ISBI2016_ISIC_Part3B_Training_Data", "_Segmentation"),
    "2017": ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth", "_segmentation"),
    "2017 test": ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth", "_segmentation"),
    "2018": ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth", "_segmentation"),
}


def test_other_tasks_are_no_left_over_data(tmp_path, put, save_picture):
    put("ISIC2018_Task1-2_Training_Input", ["a", "b"], "ISIC2018_Task1_Training_GroundTruth", "_segmentation")
    for path in (
        "ISIC2018_Task2_Training_GroundTruth_v3/a_attribute_globules.png",
        "Task3/ISIC2018_Task3_Training_Input/c.jpg",
        "ISBI2016_ISIC_Part2B_Training_GroundTruth (1)/a_streaks.png",
    ):
        save_picture(tmp_path / path, IMAGE)
    found = account([load(tmp_path)])
    assert found.error_lines() == [] and found.note().endswith("not read: 3 of other tasks of ISIC")
    save_picture(tmp_path / "ISIC2018_Task1_Training_GroundTruth/lost_segmentation.png", MASK)
    assert "lost_segmentation.png" in account([load(tmp_path)]).error_lines()[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("below", ["", "DATA/Train/"], ids=["here", "below"])
def test_every_layout(tmp_path, put, save_picture, layout, below):
    folder, truth, ending = LAYOUTS[layout]
    put(below + folder, ["ISIC_0000001", "ISIC_0000000"], below + truth, ending)
    save_picture(tmp_path / below / folder / "ISIC_0000000_superpixels.png", IMAGE)
    dataset = load(tmp_path)
    assert names(dataset) == ["ISIC_0000000", "ISIC_0000001"]
    item = dataset[0]
    assert item["image"].shape == (3, 16, 16) and item["mask"].shape == (1, 1, 16, 16)
    assert item["size"] == (24, 32) and "label" not in item
    expected = torch.zeros(16, 16)
    expected[4:12, 4:12] = 1
    assert torch.equal((item["mask"][0, 0] > 0.5).float(), expected)
    assert item["image"][:, :, :6].max() < -0.9 and item["image"][:, :, 10:].min() > 0.9


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "images, truths",
    [
        ("{0}/{0}", "{0}/{0}"),  # as Kaggle's copies are
        ("{0} (1)/{0}", "{0} (2)"),  # downloaded twice
        ("a/b/{0}", "c/{0}/{0}"),  # anywhere
    ],
)
def test_copies_of_the_published_folders(tmp_path, put, layout, images, truths):
    folder, truth, ending = LAYOUTS[layout]
    inside = folder == truth
    put(images.format(folder), ["ISIC_0000001"], images.format(folder) if inside else truths.format(truth), ending)
    for name in ("ATTRIBUTION.txt", "LICENSE.txt"):
        (tmp_path / images.format(folder) / name).touch()
    dataset = load(tmp_path)
    assert names(dataset) == ["ISIC_0000001"] and dataset.load_mask(dataset.cases[0]).any()
    below = tmp_path / images.format(folder)
    if "/b/" not in images and not inside:  # the truth is beside it, though not below data_dir
        assert len(load(below)) == 1


def test_upper_case_and_other_suffixes(tmp_path, save_picture):
    save_picture(tmp_path / "isic2018_task1-2_training_input" / "ISIC_1.JPG", IMAGE)
    save_picture(tmp_path / "ISIC2018_Task1_Training_groundtruth" / "ISIC_1_segmentation.PNG", MASK)
    dataset = load(tmp_path)
    assert dataset.cases[0].masks and dataset.layout == "ISIC 2018 Training"


def test_two_folders_that_may_be_the_truth(tmp_path, put):
    folder, truth, ending = LAYOUTS["2018"]
    put(folder, ["ISIC_1"], f"{truth} (1)", ending)
    put(folder, ["ISIC_1"], f"{truth} (2)", ending)
    with pytest.raises(UserError, match=r"\(1\): may be the ground truth of .*, and so may .*\(2\); keep one"):
        load(tmp_path)
    put(folder, ["ISIC_1"], truth, ending)  # its very name
    assert load(tmp_path).cases[0].masks[0].parent.name == truth


def test_part_3b_beside_part_1(tmp_path, put):
    """Its images are those of Part 1: each is taken once, with the masks that are there and the labels."""
    one, three = LAYOUTS["2016 part 1"], LAYOUTS["2016 part 3B"]
    put(one[0], ["ISIC_1", "ISIC_2"])
    put(one[0], ["ISIC_1"], one[1])
    put(three[0], ["ISIC_1", "ISIC_2"], three[1])
    (tmp_path / three[0] / "ISBI2016_ISIC_Part3B_Training_GroundTruth.csv").write_text("ISIC_1,benign\nISIC_2,benign\n")
    dataset = load(tmp_path)
    assert [case.masks[0].parent.name for case in dataset.cases] == [one[1], three[0]]
    assert dataset.notes == ("Part 3B holds 2 images of Part 1 again; each is taken once",)
    assert [case.label for case in dataset.cases] == [0, 0]
    used = {path for case in dataset.cases for path in (*case.images, *case.masks, *dataset.further_files(case))}
    assert len(used) == len(list(tmp_path.rglob("*.jpg"))) + len(list(tmp_path.rglob("*.png")))


def test_a_validation_part_without_truth(tmp_path, put):
    put("ISIC2018_Task1-2_Training_Input", ["ISIC_1"], "ISIC2018_Task1_Training_GroundTruth", "_segmentation")
    put("ISIC2018_Task1-2_Validation_Input", ["ISIC_2"])
    with pytest.raises(NoTruthError, match="its 1 validation case has no mask and is not used in training"):
        load(tmp_path, split="val")
    assert names(load(tmp_path, split="val", need_masks=False)) == ["ISIC_2"]


def test_data_dir_may_be_the_image_folder_itself(tmp_path, put):
    folder, truth, ending = LAYOUTS["2017"]
    put(folder, ["ISIC_0000000"], truth, ending)
    assert len(load(tmp_path / folder)) == 1


def test_split_picks_where_both_are_there(tmp_path, put):
    for part, name in (("Training", "ISIC_0000000"), ("Test", "ISIC_0000001"), ("Validation", "ISIC_0000002")):
        put(f"ISIC2018_Task1-2_{part}_Input", [name], f"ISIC2018_Task1_{part}_GroundTruth", "_segmentation")
    assert names(load(tmp_path, split="train")) == ["ISIC_0000000"]
    assert names(load(tmp_path, split="test")) == ["ISIC_0000001"]
    assert names(load(tmp_path, split="val")) == ["ISIC_0000002"]
    assert len(load(tmp_path)) == 3


def test_split_falls_back_on_validation_and_on_the_only_part(tmp_path, put):
    put("ISIC-2017_Validation_Data", ["ISIC_0000002"])
    assert names(load(tmp_path, split="train", need_masks=False)) == ["ISIC_0000002"]
    put("ISIC-2017_Training_Data", ["ISIC_0000000"])
    assert names(load(tmp_path, split="test", need_masks=False)) == ["ISIC_0000002"]
    (tmp_path / "ISIC-2017_Training_Data").rename(tmp_path / "ISIC-2017_Test_v2_Data")
    with pytest.raises(UserError, match="holds Test and Validation folders, but none for train"):
        load(tmp_path, split="train")


def test_missing_masks(tmp_path, put):
    images, truth, _ = LAYOUTS["2016 part 1"]
    put(images, ["ISIC_0000000"], truth)
    put(images, ["ISIC_0000001"])
    expected = f"ISIC_0000001.jpg: has no mask; add {tmp_path}/{truth}/ISIC_0000001_Segmentation.png or remove"
    with pytest.raises(UserError, match=expected):
        load(tmp_path)
    dataset = load(tmp_path, need_masks=False)
    assert [len(case.masks) for case in dataset.cases] == [1, 0]
    batch = next(iter(sampling_batches(dataset, [[0, 1]])))
    assert "mask" not in batch and batch["image"].shape == (2, 3, 16, 16)


def test_test_folder_without_ground_truth(tmp_path, put):
    put("ISBI2016_ISIC_Part1_Test_Data", ["ISIC_0000003"])
    assert load(tmp_path, need_masks=False)[0]["name"] == "ISIC_0000003"
    with pytest.raises(UserError, match="ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_0000003_Segmentation.png"):
        load(tmp_path)


@pytest.mark.parametrize(
    "part, text",
    [
        ("Training", "ISIC_0000000,benign\nISIC_0000001,malignant\n"),
        ("Test", "ISIC_0000000,0.0\nISIC_0000001,1.0\n"),
        ("Test", "image_id,label\nISIC_0000000,0\nISIC_0000001,1\n"),
    ],
)
@pytest.mark.parametrize("images", ["Part3B", "Part1"])
def test_labels_of_part_3b(tmp_path, put, part, text, images):
    folder = f"ISBI2016_ISIC_{images}_{part}_Data"
    put(folder, ["ISIC_0000000", "ISIC_0000001"], folder)
    (tmp_path / f"ISBI2016_ISIC_Part3B_{part}_GroundTruth.csv").write_text(text)
    dataset = load(tmp_path, need_masks=False)
    assert dataset.label_names == ("benign", "malignant")
    assert [dataset[i]["label"] for i in range(2)] == [0, 1]


def test_labels_only_if_all_have_one(tmp_path, put):
    for part, name in (("Training", "ISIC_0000000"), ("Test", "ISIC_0000001")):
        put(f"ISBI2016_ISIC_Part1_{part}_Data", [name])
    (tmp_path / "ISBI2016_ISIC_Part3B_Training_GroundTruth.csv").write_text("ISIC_0000000,benign\n")
    assert load(tmp_path, need_masks=False, split="train").cases[0].label == 0
    dataset = load(tmp_path, need_masks=False)
    assert dataset.label_names == () and [case.label for case in dataset.cases] == [None, None]


@pytest.mark.parametrize(
    "text, message",
    [
        ("ISIC_0000009,benign\n", "ISIC_0000000.jpg: has no line in the Part 3B CSV"),
        ("ISIC_0000000,benign\nISIC_0000001,unsure\n", "GroundTruth.csv: line 2 is not NAME,benign"),
    ],
)
def test_wrong_label_files(tmp_path, put, text, message):
    put("ISBI2016_ISIC_Part3B_Training_Data", ["ISIC_0000000"])
    (tmp_path / "ISBI2016_ISIC_Part3B_Training_GroundTruth.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        load(tmp_path, need_masks=False)


def test_grey_images_become_rgb(tmp_path, save_picture):
    save_picture(tmp_path / "ISIC-2017_Test_v2_Data" / "ISIC_0000000.png", IMAGE[..., 0])
    image = load(tmp_path, need_masks=False)[0]["image"]
    assert image.shape == (3, 16, 16) and torch.equal(image[0], image[2])


def test_empty_folder_twice_the_same_name_and_damage(tmp_path, put, truncate):
    with pytest.raises(
        UserError, match="no cases found for ISIC; it must hold, at any depth, pairs of folders such as ISBI2016"
    ):
        load(tmp_path)
    put("ISBI2016_ISIC_Part1_Training_Data", ["ISIC_0000000"])
    put("ISIC-2017_Training_Data", ["ISIC_0000000"])
    with pytest.raises(UserError, match="its case name 'ISIC_0000000' is also that of"):
        load(tmp_path, need_masks=False)
    only = tmp_path / "ISBI2016_ISIC_Part1_Training_Data"
    truncate(only / "ISIC_0000000.jpg")
    with pytest.raises(UserError, match="ISIC_0000000.jpg: is truncated or damaged"):
        load(only, need_masks=False)[0]


def test_sizes_that_differ(tmp_path, put, save_picture):
    images, truth, _ = LAYOUTS["2016 part 1"]
    put(images, ["ISIC_0000000"])
    save_picture(tmp_path / truth / "ISIC_0000000_Segmentation.png", MASK.T)
    with pytest.raises(UserError, match="_Segmentation.png: the mask has 32x24 pixels, its image ISIC_0000000.jpg"):
        load(tmp_path)[0]


def test_each_rater_may_have_a_folder(tmp_path, put):
    images, truth, _ = LAYOUTS["2016 part 1"]
    for rater in ("a", "b", "c"):
        put(images, ["ISIC_0000000"], f"{truth}/{rater}")
    dataset = load(tmp_path)
    assert dataset[0]["mask"].shape == (3, 1, 16, 16) and dataset.cases[0].raters == ("a", "b", "c")


def test_masks_whose_names_nearly_fit_are_taken_and_said(tmp_path):
    phantom.write_isic(tmp_path, num_train=2, num_test=1, size=32)
    for path in tmp_path.rglob("ISIC_0000000_Segmentation.png"):
        path.rename(path.with_name("isic_0000000_segmentation.PNG"))
    dataset = build_dataset("ISIC", tmp_path, 32, split="train", need_masks=True)
    assert all(case.masks for case in dataset.cases)
    assert "isic_0000000_segmentation.PNG differs from its image's name in case: taken" in dataset.notes[0]
