"""Which folder holds the images, which the masks, and which mask is whose: in layouts as people have them."""

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

from guided_diffusion.data.accounting import account
from guided_diffusion.data.pairing import case_name, image_of, unwrapped
from guided_diffusion.data.registry import build_dataset, recognised
from guided_diffusion.io.images import PICTURE_SUFFIXES
from guided_diffusion.runtime.errors import NoSplitError, UserError

NFC, NFD = "M\u00fcller_1", unicodedata.normalize("NFD", "M\u00fcller_1")


def put(root, *paths, value=255):
    """Write a picture at each path: an image in grey, or a mask with one row of `value`, which differs by its index."""
    for row, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        values = np.zeros((8, 10), np.uint8)
        values[row % 8] = value
        Image.fromarray(values).save(root / path)


def load(folder, **keywords):
    return build_dataset("FOLDER", folder, 8, **{"need_masks": True, **keywords})


def pairs(dataset):
    """{case: its masks, as paths from data_dir}."""
    return {case.name: [str(path.relative_to(dataset.data_dir)) for path in case.masks] for case in dataset.cases}


def note_of(dataset, word):
    (note,) = (note for note in dataset.notes if word in note)
    return note


# ---- names that nearly fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image, mask, how",
    [
        (f"{NFC}.png", f"{NFD}.png", "Unicode form"),
        (f"{NFD}.jpg", f"{NFC}_mask.png", "Unicode form"),
        ("a\u00a01.png", "a 1.png", "Unicode form"),  # a blank as web pages have it
        ("a\u200b.png", "a_mask.png", "Unicode form"),  # and one without width
        ("A.PNG", "a.png", "case"),
        ("scan.JPG", "Scan_Mask.PNG", "case"),
        ("scan.jpeg", "scan_SEG.tif", "case"),
        ("a.jpg", "a.jpg.png", "suffix"),
        ("a.jpg", "A.jpg_mask.png", "suffix"),
        ("STRASSE.png", "stra\u00dfe.png", "case"),
    ],
)
def test_a_mask_whose_name_nearly_fits_is_taken_and_said(tmp_path, image, mask, how):
    put(tmp_path, f"images/{image}", f"masks/{mask}", "images/other.png", "masks/other.png")
    dataset = load(tmp_path)
    assert [f"masks/{mask}"] in pairs(dataset).values()
    assert dataset.notes == (f"masks/{mask} differs from its image's name in {how}: taken",)
    assert not account([dataset]).left_over


def test_near_masks_are_counted(tmp_path):
    for name in "abcde":
        put(tmp_path, f"images/{name}.png", f"masks/{name.upper()}.png")
    assert load(tmp_path).notes == (
        "masks/A.png, masks/B.png, masks/C.png and 2 more differ from their images' names in case: taken",
    )


def test_an_exact_name_always_wins(tmp_path):
    put(
        tmp_path, "images/A.png", "images/a.png", "masks/a.png", "masks/A.png", f"images/{NFC}.png", f"images/{NFD}.png"
    )
    put(tmp_path, f"masks/{NFD}.png", f"masks/{NFC}.png")
    found = pairs(load(tmp_path))
    assert found == {name: [f"masks/{name}.png"] for name in ("A", "a", NFC, NFD)}
    (tmp_path / "masks/A.png").unlink()  # a.png is another image's mask
    assert pairs(load(tmp_path, need_masks=False))["A"] == []
    put(tmp_path, "images/b.png", "images/b_mask.png", "masks/b_mask.png")
    found = pairs(load(tmp_path, need_masks=False))
    assert found["b_mask"] == ["masks/b_mask.png"] and found["b"] == []


def test_two_candidates_are_an_error_that_names_both(tmp_path):
    put(tmp_path / "masks_of_one", "images/aB.png", "masks/ab.png", "masks/AB.png")
    with pytest.raises(UserError, match="ab.png: is a second mask of aB.png beside AB.png"):
        load(tmp_path / "masks_of_one")
    put(tmp_path / "images_of_one", "images/aB.png", "images/Ab.png", "masks/ab.png")
    with pytest.raises(UserError, match="masks/ab.png: may be the mask of Ab.png and of aB.png; name each mask as its"):
        load(tmp_path / "images_of_one")


@pytest.mark.parametrize("entry", ["a.png", "images/a.png", "./a", "A", "images\\a.PNG", "a.PNG", " a "])
def test_names_in_split_json_and_labels_csv(tmp_path, entry):
    put(tmp_path, "images/a.png", "images/b.png", "masks/a.png", "masks/b.png")
    (tmp_path / "split.json").write_text(json.dumps({"train": [entry], "test": ["b.jpg"]}))
    (tmp_path / "labels.csv").write_text(f"{entry},x\nb,y\n")
    dataset = load(tmp_path, split="train")
    assert list(pairs(dataset)) == ["a"] and dataset.cases[0].label == 0
    assert list(pairs(load(tmp_path, split="test"))) == ["b"]
    assert sum("in Unicode form or case: taken" in note for note in dataset.notes) == 2 * (entry == "A")


def test_a_listed_name_of_two_images(tmp_path):
    put(tmp_path, "images/aB.png", "images/Ab.png", "images/c.png", "masks/aB.png", "masks/Ab.png", "masks/c.png")
    (tmp_path / "split.json").write_text('{"train": ["ab"], "test": ["c"]}')
    with pytest.raises(UserError, match="split.json: 'ab' may be .*images/Ab.png and .*images/aB.png; write one"):
        load(tmp_path, split="train")
    (tmp_path / "split.json").write_text('{"train": ["aB", "images/aB.png"], "test": ["aB.png"]}')
    with pytest.raises(UserError, match="names 'aB.png' in 'train' and in 'test'"):
        load(tmp_path, split="train")
    (tmp_path / "split.json").unlink()
    (tmp_path / "labels.csv").write_text("ab,x\nc,y\n")
    with pytest.raises(UserError, match="labels.csv: 'ab' may be "):
        load(tmp_path)


# ---- folders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "images, masks",
    [
        ("imgs", "labels"),
        ("image", "mask"),
        ("Images", "Masks"),
        ("img", "label"),
        ("images", "annotations"),
        ("Original", "Ground Truth"),
        ("images", "ground_truth"),
        ("IMAGES", "gt"),
    ],
)
def test_folder_names_that_nearly_fit(tmp_path, images, masks):
    put(tmp_path, f"{images}/a.png", f"{masks}/a.png")
    (tmp_path / "labels.csv").write_text("a,x\n")
    dataset = load(tmp_path)
    assert pairs(dataset) == {"a": [f"{masks}/a.png"]} and recognised("AUTO", tmp_path) == "FOLDER"
    taken = [f"{images}/ for images/"] * (images != "images") + [f"{masks}/ for masks/"]
    assert note_of(dataset, " taken") == f"{tmp_path}: {' and '.join(taken)} {'is' if len(taken) == 1 else 'are'} taken"
    assert not account([dataset]).left_over


def test_folders_of_which_two_nearly_fit(tmp_path):
    put(tmp_path / "masks", "images/a.png", "labels/a.png", "gt/a.png")
    with pytest.raises(
        UserError, match="gt/ and labels/ may both hold the masks; keep one of them there, called masks/"
    ):
        load(tmp_path / "masks")
    dataset = load(tmp_path / "masks", need_masks=False)  # sampling needs none
    assert pairs(dataset) == {"a": []} and "gt/ and labels/ may both" in dataset.notes[0]
    assert set(account([dataset]).error_lines()[0].split(": ")[1].split(";")[0].split(", ")) == {
        "gt/a.png",
        "labels/a.png",
    }
    put(tmp_path / "images", "imgs/a.png", "photos/a.png")
    with pytest.raises(UserError, match="imgs/ and photos/ may both hold the images; keep one, called images/"):
        load(tmp_path / "images", need_masks=False)
    put(tmp_path / "images", "images/a.png", "masks/a.png", "labels/a.png")  # the exact names win
    assert pairs(load(tmp_path / "images")) == {"a": ["masks/a.png"]}


def test_a_folder_of_other_files_is_no_folder_of_masks(tmp_path):
    put(tmp_path, "images/a.png", "masks/a.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/a.xml").write_text("<a/>")
    dataset = load(tmp_path)
    assert dataset.notes == () and account([dataset]).note().endswith("not read: 1 table or document")


@pytest.mark.parametrize(
    "below", ["data/images", "data/data/images", "Data/images", "inner/images", "data/imgs", "data/train/images"]
)
def test_a_folder_inside_another(tmp_path, below):
    root = tmp_path / "data"
    put(root, f"{below}/a.png", f"{below.rpartition('/')[0]}/masks/a.png")
    (root / "__MACOSX").mkdir()
    (root / "info").mkdir()
    dataset = load(root)
    assert list(pairs(dataset)) == ["a"] and len(dataset.cases[0].masks) == 1
    assert note_of(dataset, "is read, the folder inside").startswith(f"{root / below.split('/')[0]}")
    assert recognised("AUTO", root) == "FOLDER"


def test_a_folder_inside_the_folder_of_a_split(tmp_path):
    put(tmp_path, "TrainDataset/image/a.png", "TrainDataset/masks/a.png", "test/test/images/b.png")
    assert pairs(load(tmp_path, split="train")) == {"a": ["TrainDataset/masks/a.png"]}
    dataset = load(tmp_path, split="test", need_masks=False)
    assert pairs(dataset) == {"b": []} and "the folder inside" in dataset.notes[0]


def test_of_two_folders_inside_another_none_is_taken(tmp_path):
    put(tmp_path, "one/images/a.png", "two/images/a.png")
    assert unwrapped(tmp_path) == tmp_path


@pytest.mark.parametrize("layout", ["{}/images/a.png {}/masks/a.png", "{}/x/P1/a.png {}/x/P1/a_mask.png"])
def test_of_several_layouts_one_is_asked_for(tmp_path, layout):
    for folder in ("one", "two"):
        put(tmp_path, *layout.replace("{}", folder).split())
    with pytest.raises(UserError, match="no cases found for FOLDER; one/, two/ each hold data of their own: name one"):
        load(tmp_path)


def test_images_in_images(tmp_path):
    put(tmp_path, "images/images/a.png", "masks/Masks/a.png")
    dataset = load(tmp_path)
    assert pairs(dataset) == {"a": ["masks/Masks/a.png"]} and not dataset.cases[0].raters
    assert sum("the folder of the same name inside it is read" in note for note in dataset.notes) == 2


# ---- sub-folders ---------------------------------------------------------------------------------------------------


def test_a_sub_folder_for_each_patient(tmp_path):
    put(tmp_path, "images/P1/a.png", "images/P2/a.png", "images/P3/P3_a.png")
    put(tmp_path, "masks/P1/a.png", "masks/P2/a_mask.png", "masks/P3/P3_a.png")
    dataset = load(tmp_path)
    assert pairs(dataset) == {
        "P1_a": ["masks/P1/a.png"],
        "P2_a": ["masks/P2/a_mask.png"],
        "P3_a": ["masks/P3/P3_a.png"],
    }
    assert [case.group for case in dataset.cases] == ["P1", "P2", "P3"] and not dataset.cases[0].raters
    assert note_of(dataset, "patient").endswith(
        "3 sub-folders (P1/, P2/, P3/), each taken as one patient; --group_key overrides that"
    )
    (tmp_path / "split.json").write_text('{"train": ["P1/a.png", "P3_a"], "test": ["P2_a"]}')
    assert list(pairs(load(tmp_path, split="train"))) == ["P1_a", "P3_a"]
    (tmp_path / "split.json").write_text('{"train": ["a"], "test": ["P3_a"]}')
    with pytest.raises(UserError, match="'a' may be .*P1/a.png and .*P2/a.png"):
        load(tmp_path, split="train")


def test_patients_with_masks_in_one_folder_and_of_several_raters(tmp_path):
    put(tmp_path / "flat", "images/P1/a.png", "images/P2/b.png", "masks/a.png", "masks/b.png")
    assert pairs(load(tmp_path / "flat")) == {"P1_a": ["masks/a.png"], "P2_b": ["masks/b.png"]}
    put(tmp_path / "flat", "images/P2/a.png")
    with pytest.raises(UserError, match="masks/a.png: may be the mask of P1/a.png and of P2/a.png"):
        load(tmp_path / "flat")
    for rater in ("anna", "ben"):
        put(
            tmp_path / "raters",
            "images/P1/a.png",
            "images/P2/a.png",
            f"masks/{rater}/P1/a.png",
            f"masks/{rater}/P2/a.png",
        )
    dataset = load(tmp_path / "raters")
    assert [case.raters for case in dataset.cases] == [("anna", "ben")] * 2
    assert pairs(dataset)["P2_a"] == ["masks/anna/P2/a.png", "masks/ben/P2/a.png"]


def test_sub_folders_beside_more_images_need_masks(tmp_path):
    put(tmp_path, "images/a.png", "images/b.png", "masks/a.png", "masks/b.png", "images/small/a.png")
    dataset = load(tmp_path)
    assert list(pairs(dataset)) == ["a", "b"] and account([dataset]).error_lines() == [
        "1 file is in no case: images/small/a.png; move it to where the layout has its images and masks, or away"
    ]
    put(tmp_path, "masks/Small/a.png")
    assert list(pairs(load(tmp_path))) == ["a", "b", "small_a"]


def test_masks_below_images_are_no_images(tmp_path):
    put(tmp_path, "images/a.png", "images/masks/a.png", "images/masks/b.png")
    dataset = load(tmp_path, need_masks=False)
    assert (
        pairs(dataset) == {"a": []} and "2 files are in no case: images/masks/a" in account([dataset]).error_lines()[0]
    )


def test_splits_below_images_are_splits(tmp_path):
    for part in ("train", "Val", "test"):
        put(tmp_path, f"images/{part}/{part}1.png", f"masks/{part}/{part}1.png")
    put(tmp_path, "images/train2/x.png")
    found = {split: list(pairs(load(tmp_path, split=split))) for split in ("train", "val", "test")}
    assert found == {"train": ["train1"], "val": ["Val1"], "test": ["test1"]}
    assert "images/train2/x.png; rename the folder to train/" in account([load(tmp_path)]).error_lines()[0]
    (tmp_path / "only").mkdir()
    put(tmp_path / "only", "images/train/a.png", "masks/train/a.png")
    with pytest.raises(NoSplitError, match="images/ has no sub-folder test/"):
        load(tmp_path / "only", split="test")


# ---- masks beside their images, and several files of one mask ------------------------------------------------------


def busi(root):
    for kind in ("benign", "malignant", "normal"):
        for k in (1, 2):
            put(root, f"{kind}/{kind} ({k}).png", f"{kind}/{kind} ({k})_mask.png")
    put(root, "benign/benign (2)_mask_1.png")


def test_masks_beside_their_images_in_a_folder_for_each_class(tmp_path):
    busi(tmp_path)
    dataset = load(tmp_path)
    assert len(dataset) == 6 and recognised("AUTO", tmp_path) == "FOLDER"
    assert pairs(dataset)["benign (1)"] == ["benign/benign (1)_mask.png"]
    assert {case.group for case in dataset.cases} == {None}  # three classes are no patients
    assert note_of(dataset, "sub-folders").endswith("not taken as patients; --group_key overrides that")
    assert note_of(dataset, "NAME_mask beside") == "6 masks as NAME_mask beside the image NAME"
    assert note_of(dataset, "united") == "1 mask united from several files: benign (2)_mask.png + benign (2)_mask_1.png"
    (case,) = (case for case in dataset.cases if case.name == "benign (2)")
    assert dataset.load_mask(case)[0, 0].any(axis=1).tolist() == [True, True] + [False] * 6  # a row of each file
    assert not account([dataset]).left_over


def test_patients_with_masks_beside_their_images(tmp_path):
    for patient in ("TCGA_CS_4941", "TCGA_DU_5849"):
        put(tmp_path, *(f"kaggle_3m/{patient}/{patient}_{k}{end}.tif" for k in (1, 2) for end in ("", "_mask")))
    (tmp_path / "kaggle_3m/data.csv").write_text("Patient,x\n")
    dataset = load(tmp_path)
    assert [case.group for case in dataset.cases] == ["TCGA_CS_4941"] * 2 + ["TCGA_DU_5849"] * 2
    assert all(len(masks) == 1 for masks in pairs(dataset).values())


@pytest.mark.parametrize("second", ["a_mask_1.png", "a_mask2.png", "a_mask-10.PNG"])
def test_a_second_file_of_a_mask_is_united_with_it(tmp_path, second):
    put(tmp_path, "images/a.png", "masks/a_mask.png", f"masks/{second}", "images/b.png", "masks/b_mask.png")
    dataset = load(tmp_path)
    assert "united" in dataset.notes[0] and dataset.load_mask(dataset.cases[0])[0, 0].any(axis=1).sum() == 2
    assert not account([dataset]).left_over
    with pytest.raises(UserError, match="is a second label map of a.png; label maps cannot be united: keep one"):
        load(tmp_path, classes="x=1,y=255")


def test_a_second_file_that_may_mean_something_else_is_named(tmp_path):
    put(tmp_path, "images/a.png", "masks/a.png", "masks/a_1.png", "masks/a_old.png", "masks/other.png")
    dataset = load(tmp_path)
    assert dataset.load_mask(dataset.cases[0])[0, 0].any(axis=1).sum() == 1
    assert account([dataset]).error_lines() == [
        "2 files are second masks of an image: masks/a_1.png, masks/a_old.png; keep one; several raters have a folder "
        "each",
        "1 file is a mask that belongs to no image: masks/other.png; give it the name of its image, or remove it",
    ]


def test_an_image_that_is_called_like_a_second_mask_keeps_its_own(tmp_path):
    put(tmp_path, "images/a.png", "images/a_mask_1.png", "masks/a_mask.png", "masks/a_mask_1.png")
    dataset = load(tmp_path)
    assert pairs(dataset) == {"a": ["masks/a_mask.png"], "a_mask_1": ["masks/a_mask_1.png"]} and not dataset.further


def test_loose_images_with_masks_beside_them(tmp_path):
    put(tmp_path, "a.png", "a_Mask.png", "b.jpg", "b_segmentation.png", "c.png")
    assert pairs(load(tmp_path, need_masks=False)) == {"a": ["a_Mask.png"], "b": ["b_segmentation.png"], "c": []}
    put(tmp_path, "a_seg.png")
    with pytest.raises(UserError, match="is a second mask of a.png beside"):
        load(tmp_path, need_masks=False)


@pytest.mark.parametrize("ending", ["_1stHO", "_anno", ".gt", "-mask2"])
def test_masks_of_another_ending_are_no_images(tmp_path, ending):
    put(tmp_path, "a.jpg", "b.jpg", f"a{ending}.png", f"b{ending}.png")
    for need_masks in (False, True):
        with pytest.raises(
            UserError, match=rf"a{ending}.png: is a mask of a.jpg by its name and .*rename \*{ending} to"
        ):
            load(tmp_path, need_masks=need_masks)
    for name in ("a", "b"):
        Image.fromarray(np.arange(80, dtype=np.uint8).reshape(8, 10) * 3).save(tmp_path / f"{name}{ending}.png")
    assert len(load(tmp_path, need_masks=False).cases) == 4  # another view of each


def test_a_second_ending_of_masks_beside_the_first(tmp_path):
    put(tmp_path, "a.jpg", "b.jpg", "a_mask.png", "b_mask.png", "a_2ndHO.png", "b_2ndHO.png")
    with pytest.raises(UserError, match="a_2ndHO.png: is a mask of a.jpg"):
        load(tmp_path, need_masks=False)


def test_names_with_numbers_are_not_masks_of_one_another(tmp_path):
    put(tmp_path, "a.png", "a_1.png", "a_2.png", "b.png", "b_1.png", "c.png")
    assert len(load(tmp_path, need_masks=False).cases) == 6


def test_splits_of_masks_alone_are_no_raters(tmp_path):
    put(tmp_path, "images/a.png", "images/b.png", "masks/train/a.png", "masks/test/b.png")
    with pytest.raises(UserError, match="masks: has test/ and train/, but the images lie in no such folders"):
        load(tmp_path, need_masks=False)


def test_no_mask_has_its_images_name(tmp_path):
    put(tmp_path, "images/a.png", "images/b.png", "masks/mask_a.png", "masks/mask_b.png")
    message = r"\(none of 2 has one, and 2 masks belong to no image, as masks/mask_a.png: their names must agree\)"
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_names_of_cases():
    assert [case_name("a", "P1"), case_name("P1_a", "P1"), case_name("a", "")] == ["P1_a", "P1_a", "a"]
    assert [image_of("a_mask"), image_of("a_seg"), image_of("mask")] == ["a", "a", "mask"]


# ---- vessels of the retina: mask/ is the field of view ---------------------------------------------------------------


@pytest.mark.parametrize("suffix", [suffix for suffix in (".gif", ".png") if suffix in PICTURE_SUFFIXES])
def test_drive(tmp_path, suffix):
    for k in (21, 22):
        below = tmp_path / "training"
        put(below, f"images/{k}_training.tif", f"1st_manual/{k}_manual1{suffix}", f"mask/{k}_training_mask{suffix}")
    below = tmp_path / "test"
    put(below, "images/01_test.tif", f"1st_manual/01_manual1{suffix}", f"2nd_manual/01_manual2{suffix}")
    put(below, f"mask/01_test_mask{suffix}")
    dataset = load(tmp_path, split="train")
    assert pairs(dataset)["21_training"] == [f"training/1st_manual/21_manual1{suffix}"]
    assert "training/1st_manual" not in str(dataset.set_aside) and note_of(dataset, "field of view") == (
        "mask/: not read, the field of view"
    )
    test = load(tmp_path, split="test")
    assert pairs(test) == {"01_test": [f"test/1st_manual/01_manual1{suffix}"]}
    assert note_of(test, "second reader") == "2nd_manual/: not read, the second reader"
    found = account([test])
    assert not found.error_lines() and found.note().endswith("1 of a second reader, 3 fields of view")
    for part in ("1st_manual", "2nd_manual"):
        for path in (tmp_path / "test" / part).iterdir():
            path.unlink()
    for folder in (tmp_path, tmp_path / "test"):  # the published test part has no truth
        assert pairs(load(folder, split="test", need_masks=False)) == {"01_test": []}


def test_hrf(tmp_path):
    put(tmp_path, "images/01_dr.JPG", "manual1/01_dr.tif", "mask/01_dr_mask.tif")
    assert pairs(load(tmp_path)) == {"01_dr": ["manual1/01_dr.tif"]}
    put(tmp_path, "masks/01_dr.png")
    with pytest.raises(UserError, match="masks/ and manual1/ may both hold the masks"):
        load(tmp_path)
