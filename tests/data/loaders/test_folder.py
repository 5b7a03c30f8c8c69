"""Folders of images and masks: pairing, splits, labels, pictures and NIfTI."""

import json

import numpy as np
import pytest
import torch

from guided_diffusion.data.batches import sampling_batches
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.splits import SPLIT_FOLDERS
from guided_diffusion.runtime.errors import NoCasesError, UserError

IMAGE = np.zeros((20, 30, 3), np.uint8)
IMAGE[..., 0] = 255
MASK = np.zeros((20, 30), np.uint8)
MASK[5:15, 10:20] = 255


@pytest.fixture
def put(tmp_path, save_picture):
    """A function (name, mask name) that writes a pair into images/ and masks/ below tmp_path."""

    def write(name, mask="", image=IMAGE, truth=MASK, below=""):
        save_picture(tmp_path / below / "images" / name, image)
        if mask:
            save_picture(tmp_path / below / "masks" / mask, truth)

    return write


def load(folder, **keywords):
    return build_dataset("FOLDER", folder, 16, **{"need_masks": True, **keywords})


def names(dataset):
    return [case.name for case in dataset.cases]


# ---- pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "tif", "tiff", "bmp", "PNG"])
def test_pictures(tmp_path, put, suffix):
    put(f"b.{suffix}", "b.png")
    put(f"a.x.{suffix}", "a.x.png")
    dataset = load(tmp_path)
    assert names(dataset) == ["a.x", "b"] and dataset.image_channels == 3
    item = dataset[0]
    assert item["image"].shape == (3, 16, 16) and item["mask"].shape == (1, 1, 16, 16) and item["size"] == (20, 30)
    assert item["image"][0].min() > 0.95 and item["image"][1:].max() < -0.95
    expected = torch.zeros(16, 16)
    expected[4:12, 5:11] = 1
    assert torch.equal((item["mask"][0, 0] > 0.5).float(), expected)
    assert dataset.geometry(dataset.cases[0]) is None


@pytest.mark.parametrize("ending", ["", "_mask", "_seg", "_segmentation", "_Segmentation"])
def test_mask_endings(tmp_path, put, ending):
    put("a.jpg", f"a{ending}.png")
    put("b_seg.jpg", f"b_seg{ending}.bmp")
    assert [case.masks[0].suffix for case in load(tmp_path).cases] == [".png", ".bmp"]


def test_grey_pictures_have_one_channel_and_others_are_refused(tmp_path, put):
    put("a.png", "a.png", image=MASK)
    put("b.png", "b.png")
    dataset = load(tmp_path)
    assert dataset.image_channels == 1 and dataset[0]["image"].shape == (1, 16, 16)
    with pytest.raises(UserError, match="b.png: has 3 channels, the data set has 1"):
        dataset[1]


def test_sampling_needs_no_masks(tmp_path, put, save_picture):
    put("a.png", "a.png")
    put("b.png")
    with pytest.raises(UserError, match="b.png: has no mask; add b.png to masks/ or remove the image$"):
        load(tmp_path)
    dataset = load(tmp_path, need_masks=False)
    assert [len(case.masks) for case in dataset.cases] == [1, 0]
    put("c.png")
    with pytest.raises(UserError, match=r"remove the image \(2 of 3 have none; python scripts/check_data.py"):
        load(tmp_path)
    (tmp_path / "masks" / "a.png").unlink()
    with pytest.raises(UserError, match=r"\(none of 3 has one: is .* the folder that holds the masks too\?\)"):
        load(tmp_path)
    assert "mask" not in next(iter(sampling_batches(dataset, [[0, 1]])))
    save_picture(tmp_path / "loose" / "x.png", IMAGE)
    assert names(load(tmp_path / "loose", need_masks=False)) == ["x"]


def test_pairing_errors(tmp_path, put):
    put("a.png", "a.png")
    put("a.png", "a_mask.png")
    with pytest.raises(UserError, match="a_mask.png: is a second mask of a.png beside a.png; keep one"):
        load(tmp_path)
    (tmp_path / "masks" / "a_mask.png").unlink()
    put("a.jpg")
    with pytest.raises(UserError, match="its case name 'a' is also that of"):
        load(tmp_path)


def test_a_volume_beside_its_compressed_copy(tmp_path, save_nifti):
    for name in ("images/a.nii", "images/a.nii.gz", "masks/a.nii.gz"):
        save_nifti(tmp_path / name, np.eye(3, dtype=np.uint8)[..., None] * np.ones(2, np.uint8))
    with pytest.raises(UserError, match="its case name 'a_slice_000' is also that of .*; rename one or keep only one"):
        load(tmp_path)


def test_sizes_that_differ_and_damage(tmp_path, put, truncate):
    put("a.png", "a.png", truth=MASK.T)
    with pytest.raises(UserError, match="the mask has 30x20 pixels, its image a.png has 20x30; they must agree"):
        load(tmp_path)[0]
    put("a.png", "a.png")
    truncate(tmp_path / "masks" / "a.png")
    with pytest.raises(UserError, match="masks/a.png: is truncated or damaged"):
        load(tmp_path)[0]
    truncate(tmp_path / "images" / "a.png")
    with pytest.raises(UserError, match="images/a.png: is truncated or damaged"):
        load(tmp_path)


def test_lists_called_as_folders_may_be(tmp_path, put):
    for name in "abcd":
        put(f"{name}.png", f"{name}.png")
    lists = {"Training": ["a"], "valid": ["b"], "test_set": ["c"], "excluded": ["d"]}
    (tmp_path / "split.json").write_text(json.dumps(lists))
    assert [names(load(tmp_path, split=split)) for split in SPLIT_FOLDERS] == [["a"], ["b"], ["c"]]
    assert "split.json: the list 'excluded' is no split's: not read" in load(tmp_path, split="train").notes[0]
    (tmp_path / "split.json").write_text(json.dumps({"val": ["a"], "valid": ["b"]}))
    with pytest.raises(UserError, match="has the lists 'val' and 'valid', both of one split; keep one"):
        load(tmp_path, split="val")
    (tmp_path / "split.json").write_text(json.dumps({"fold 0": ["a"]}))
    with pytest.raises(UserError, match='has no list "train", "val" or "test"; write'):
        load(tmp_path, split="train")


def test_palettes_that_number_the_colours_differently(tmp_path, put, save_palette):
    labels = MASK // 255
    labels[:2] = 2
    red, green = (255, 0, 0), (0, 255, 0)
    for name, colours in (("a", [(0, 0, 0), red, green]), ("b", [(0, 0, 0), red, green]), ("c", [(9, 9, 9), red])):
        put(f"{name}.png")
        save_palette(tmp_path / "masks" / f"{name}.png", labels if name != "c" else labels % 2, colours)
    dataset = load(tmp_path, classes="x=1,y=2")
    assert [len(dataset.load_mask(case)) for case in dataset.cases] == [1, 1, 1]
    save_palette(tmp_path / "masks" / "b.png", labels, [(0, 0, 0), green, red])
    with pytest.raises(UserError, match="masks/b.png: its palette shows 1 as #00ff00, which is 2 in .*a.png"):
        load(tmp_path, classes="x=1,y=2").load_mask(dataset.cases[1])


def test_labels_that_contradict_each_other(tmp_path, put):
    put("a.png", "a.png")
    put("b.png", "b.png")
    for text, message in [
        ("a,x\nb,x\na,y\n", "line 3 gives a the label 'y', an earlier line 'x'"),
        ("a,x\nb,x\na.png,y\n", "'a' and 'a.png' give one image two labels; keep one line"),
    ]:
        (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            load(tmp_path)
    (tmp_path / "labels.csv").write_text("Image ID,diagnosis\na,x\nb,y\na.png,x\n")
    assert load(tmp_path).label_names == ("x", "y")  # the first line is no label


def test_labels_by_the_folder_of_a_split(tmp_path, put):
    put("a.png", "a.png", below="train")
    put("a.png", "a.png", below="test")
    (tmp_path / "labels.csv").write_text("train/a.png,x\ntest/a.png,y\n")
    assert [load(tmp_path, split=split).cases[0].label for split in ("train", "test")] == [0, 1]


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "none")
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="no cases found for FOLDER; it must hold images/NAME.png and masks/NAME.png"):
        load(tmp_path)


# ---- splits and labels -------------------------------------------------------------------------------------------


def test_split_json(tmp_path, put):
    for name in "abc":
        put(f"{name}.png", f"{name}.png")
    splits = {"train": ["c", "a"], "test": ["b"]}
    (tmp_path / "split.json").write_text(json.dumps(splits))
    assert names(load(tmp_path, split="train")) == ["a", "c"] and names(load(tmp_path, split="test")) == ["b"]
    assert names(load(tmp_path)) == ["a", "b", "c"] and load(tmp_path, split="train").notes == ()
    splits["train"].remove("a")
    (tmp_path / "split.json").write_text(json.dumps(splits))
    for split in ("train", "test"):
        assert load(tmp_path, split=split).notes == (f"{tmp_path / 'split.json'}: 1 image in no list, left out",)


def test_both_lists_of_split_json_are_checked_at_training(tmp_path, put):
    for name in "ab":
        put(f"{name}.png", f"{name}.png")
    (tmp_path / "split.json").write_text('{"train": ["a"], "test": ["b", "lost"]}')
    for split in ("train", "test"):
        with pytest.raises(UserError, match="split.json: names 'lost' in 'test', but there is no such image"):
            load(tmp_path, split=split)
    (tmp_path / "split.json").write_text('{"train": ["a", "b"], "test": ["b"]}')
    for split in ("train", "test"):
        with pytest.raises(UserError, match="split.json: names 'b' in 'train' and in 'test'; keep it in one list"):
            load(tmp_path, split=split)
    (tmp_path / "split.json").write_text('{"train": ["gone"], "test": ["b"]}')
    assert names(load(tmp_path, split="test")) == ["b"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("[]", "holds no lists of names"),
        ('{"test": []}', 'has no list "train", or an empty one'),
        ('{"train": "a"}', '"train" is no list of names'),
        ('{"train": [["a"]]}', '"train" is no list of names'),
        ('{"train": [null]}', '"train" is no list of names'),
        ('{"train": {"a": 1}}', '"train" is no list of names'),
        ('"train"', "holds no lists of names"),
    ],
)
def test_split_json_of_another_form(tmp_path, put, text, words):
    put("a.png", "a.png")
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(UserError, match=f"split.json: {words}; write "):
        load(tmp_path, split="train")


def test_validation_lists_and_folders(tmp_path, put):
    for name in "abc":
        put(f"{name}.png", f"{name}.png")
    with pytest.raises(NoCasesError, match="has no validation cases; hold some out with --val_fraction"):
        load(tmp_path, split="val")
    (tmp_path / "split.json").write_text('{"train": ["a"], "val": ["b"], "test": ["c"]}')
    assert [names(load(tmp_path, split=split)) for split in SPLIT_FOLDERS] == [["a"], ["b"], ["c"]]
    (tmp_path / "split.json").write_text('{"train": ["a", "c"], "val": ["b"]}')
    assert names(load(tmp_path, split="test")) == ["b"]  # for want of better
    for part, name in (("train", "d"), ("validation", "e")):
        put(f"{name}.png", f"{name}.png", below=f"parts/{part}")
    assert [names(load(tmp_path / "parts", split=split)) for split in SPLIT_FOLDERS] == [["d"], ["e"], ["e"]]


def test_split_sub_folders(tmp_path, put, save_picture):
    put("a.png", "a.png", below="train")
    save_picture(tmp_path / "test" / "b.png", IMAGE)
    assert names(load(tmp_path, split="train")) == ["a"]
    assert names(load(tmp_path, split="test", need_masks=False)) == ["b"]
    assert names(load(tmp_path, need_masks=False)) == ["a", "b"]


def test_labels(tmp_path, put):
    for name in "abcd":
        put(f"{name}.png", f"{name}.png")
    (tmp_path / "labels.csv").write_text("Name,Label\na,nevus\nb,melanoma\nc,wart\nd,freckle\n")
    (tmp_path / "split.json").write_text('{"train": ["a", "c"]}')
    dataset = load(tmp_path, split="train")
    # All names of the file, so that every split counts alike.
    assert dataset.label_names == ("freckle", "melanoma", "nevus", "wart")
    assert [dataset[i]["label"] for i in range(2)] == [2, 3]
    (tmp_path / "labels.csv").write_text("a,nevus\n")
    with pytest.raises(UserError, match="labels.csv: has no line for the image b; add one"):
        load(tmp_path)
    (tmp_path / "labels.csv").write_text("a,nevus\nb\n")
    with pytest.raises(UserError, match="labels.csv: line 2 is not NAME,LABEL"):
        load(tmp_path)


# ---- several raters ----------------------------------------------------------------------------------------------


def test_each_rater_has_a_folder(tmp_path, put, save_picture):
    for name in "ab":
        put(f"{name}.png")
        save_picture(tmp_path / "masks" / "anna" / f"{name}.png", MASK)
        save_picture(tmp_path / "masks" / "ben" / f"{name}_mask.png", 255 - MASK)
    dataset = load(tmp_path)
    assert dataset.layout == "folder of 2 pictures, not divided, 2 raters"
    assert [path.parent.name for path in dataset.cases[0].masks] == ["anna", "ben"]
    mask = dataset.load_mask(dataset.cases[1])
    assert mask.shape == (2, 1, 20, 30)
    np.testing.assert_array_equal(mask[:, 0], [MASK > 0, MASK == 0])
    assert dataset[0]["mask"].shape == (2, 1, 16, 16)
    (tmp_path / "masks" / "ben" / "a_mask.png").unlink()
    assert [case.raters for case in load(tmp_path, need_masks=False).cases] == [("anna",), ("anna", "ben")]
    with pytest.raises(UserError, match="masks/ben: has no mask of a.png, which anna/ has; training needs one of each"):
        load(tmp_path)
    save_picture(tmp_path / "masks" / "ben" / "a.png", MASK[:10])
    with pytest.raises(UserError, match="ben/a.png: has 10x30 pixels, but .*anna/a.png has 20x30; they must agree"):
        load(tmp_path)[0]
    save_picture(tmp_path / "masks" / "a.png", MASK)
    with pytest.raises(UserError, match=r"masks: holds masks and folders of masks \(anna/\); with several raters give"):
        load(tmp_path)


def test_raters_of_volumes(tmp_path, save_nifti):
    save_nifti(tmp_path / "images" / "p.nii.gz", volume((8, 10, 5)))
    for value, rater in enumerate(("anna", "ben")):
        save_nifti(tmp_path / "masks" / rater / "p.nii.gz", np.full((8, 10, 5), value, np.uint8))
    dataset = load(tmp_path)
    assert {case.raters for case in dataset.cases} == {("anna", "ben")}
    mask = dataset[3]["mask"]
    assert mask.shape == (2, 1, 16, 16) and not mask[0].any() and mask[1].all()


# ---- NIfTI -------------------------------------------------------------------------------------------------------


def volume(shape, seed=0):
    return np.random.default_rng(seed).integers(1, 500, shape).astype(np.int16)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_volumes_become_slices(tmp_path, save_nifti, suffix, reads):
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    truth = (volume((8, 10, 5), seed=1) % 3).astype(np.uint8)
    save_nifti(tmp_path / "images" / f"p.{suffix}", volume((8, 10, 5)), affine)
    save_nifti(tmp_path / "masks" / "p_seg.nii.gz", truth, affine)
    dataset = load(tmp_path, classes="foreground=1+2")
    assert names(dataset) == [f"p_slice_{k:03d}" for k in range(5)] and dataset.image_channels == 1
    assert reads == []
    images = np.stack([dataset.load_image(case)[0] for case in dataset.cases], axis=-1)
    raw = volume((8, 10, 5)).astype(np.float64)
    np.testing.assert_allclose(images, (raw - raw.mean()) / raw.std(), atol=2e-3)
    masks = np.stack([dataset.load_mask(case)[0, 0] for case in dataset.cases], axis=-1)
    np.testing.assert_array_equal(masks, truth > 0)
    assert dataset.geometry(dataset.cases[0]).spacing == (2.0, 2.0, 5.0)
    assert dataset[2]["volume"] == "p" and dataset[2]["slice_index"] == 2 and len(reads) == 2


def test_2d_nifti(tmp_path, save_nifti):
    save_nifti(tmp_path / "images" / "p.nii.gz", volume((8, 10)))
    save_nifti(tmp_path / "masks" / "p.nii.gz", np.ones((8, 10, 1), np.uint8))
    item = load(tmp_path)[0]
    assert item["name"] == "p" and "volume" not in item and item["mask"].min() == 1
    assert abs(item["image"].mean()) < 0.3  # a z-score; as a photograph it would be above 0.5


def test_a_fourth_axis_is_channels(tmp_path, save_nifti):
    values = volume((8, 10, 5, 3))
    save_nifti(tmp_path / "images" / "p.nii.gz", values)
    save_nifti(tmp_path / "masks" / "p.nii.gz", np.ones((8, 10, 5), np.uint8))
    dataset = load(tmp_path)
    assert dataset.image_channels == 3 and len(dataset) == 5 and dataset[0]["image"].shape == (3, 16, 16)
    images = np.stack([dataset.load_image(case) for case in dataset.cases], axis=-1)
    for channel in range(3):
        raw = values[..., channel].astype(np.float64)
        np.testing.assert_allclose(images[channel], (raw - raw.mean()) / raw.std(), atol=2e-3)
    save_nifti(tmp_path / "images" / "q.nii.gz", volume((8, 10, 5)))
    save_nifti(tmp_path / "masks" / "q.nii.gz", np.ones((8, 10, 5), np.uint8))
    with pytest.raises(UserError, match="q.nii.gz: has 1 channels, the data set has 3"):
        load(tmp_path)[-1]


def test_ct_window(tmp_path, save_nifti):
    hounsfield = np.linspace(-1000, 1000, 8 * 10 * 5).reshape(8, 10, 5).astype(np.int16)
    save_nifti(tmp_path / "images" / "p.nii.gz", hounsfield)
    dataset = load(tmp_path, need_masks=False, ct_window=(-160, 240))
    images = np.stack([dataset.load_image(case)[0] for case in dataset.cases], axis=-1)
    np.testing.assert_allclose(images, np.interp(hounsfield, (-160, 240), (-1, 1)), atol=1e-3)


def test_nifti_errors(tmp_path, put, save_nifti):
    save_nifti(tmp_path / "images" / "p.nii.gz", volume((8, 10, 5)))
    save_nifti(tmp_path / "masks" / "p.nii.gz", volume((8, 10, 4)))
    with pytest.raises(UserError, match="masks/p.nii.gz: has 8x10x4 voxels, but p.nii.gz has 8x10x5"):
        load(tmp_path)
    put("q.png", "q.png")
    with pytest.raises(UserError, match="q.png: cannot be mixed with p.nii.gz; keep pictures or volumes, not both"):
        load(tmp_path)


def test_a_damaged_mask_of_a_volume_does_not_hinder_sampling(tmp_path, save_nifti, truncate):
    save_nifti(tmp_path / "images" / "p.nii.gz", volume((8, 10, 5)))
    save_nifti(tmp_path / "masks" / "p.nii.gz", volume((8, 10, 4)))
    dataset = load(tmp_path, need_masks=False)
    with pytest.raises(UserError, match="masks/p.nii.gz: has 8x10x4 voxels, but p.nii.gz has 8x10x5"):
        dataset.load_mask(dataset.cases[0])
    truncate(tmp_path / "masks" / "p.nii.gz", 0.01)
    dataset = load(tmp_path, need_masks=False)
    with pytest.raises(UserError, match="masks/p.nii.gz: is truncated or damaged"):
        dataset.load_mask(dataset.cases[0])
    with pytest.raises(UserError, match="masks/p.nii.gz: is truncated or damaged"):
        load(tmp_path)


def test_workers_give_the_same_batches(tmp_path, put):
    for name in "abcd":
        put(f"{name}.png", f"{name}.png", image=np.full((20, 30), ord(name), np.uint8))
    dataset = load(tmp_path)
    alone, helped = (list(sampling_batches(dataset, [[3, 1, 0], [2]], num_workers=n)) for n in (0, 2))
    for one, other in zip(alone, helped, strict=True):
        assert one["name"] == other["name"] and torch.equal(one["image"], other["image"])


@pytest.mark.parametrize("name", ["split.json", "labels.csv"])
def test_a_list_that_is_no_file_is_refused_and_not_overlooked(tmp_path, put, name):
    put("a.png", "a.png")
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name}: is a folder, not a file"):
        load(tmp_path, split="train")
    (tmp_path / name).rmdir()
    (tmp_path / name).symlink_to("gone")
    with pytest.raises(UserError, match=f"{name}: is a link to gone, which is not there"):
        load(tmp_path, split="train")
