"""Masks that do not fit their image, by an EXIF tag, or each other, by the value of their foreground."""

import numpy as np
import pytest
from conftest import LOADER
from PIL import Image

from guided_diffusion.data.registry import build_dataset
from guided_diffusion.runtime.errors import UserError

DISC = np.hypot(*np.mgrid[-12:12, -16:16]) < 7  # 24 x 32
WHITE = DISC.astype(np.uint8) * 255


@pytest.fixture
def save_pair(tmp_path, save_picture):
    """A function (name, mask, tags of image and mask) that adds a case to a FOLDER data set; returns its folder.

    The mask is drawn on the stored pixels.
    """

    def save(name="a", mask=WHITE, image_tag=1, mask_tag=1, shape=(24, 32)):
        for part, tag, array in (("images", image_tag, np.full(shape, 90, np.uint8)), ("masks", mask_tag, mask)):
            exif = Image.Exif()
            exif[0x0112] = tag
            save_picture(tmp_path / part / f"{name}.png", array, **({"exif": exif} if tag != 1 else {}))
        return tmp_path

    return save


def item_of(folder, **settings):
    return build_dataset("FOLDER", folder, 16, need_masks=True, **settings)[0]


@pytest.mark.parametrize("tag", [2, 3, 4])
def test_an_exif_tag_of_the_image_alone_is_refused(save_pair, tag):
    with pytest.raises(UserError, match=rf"a.png: has an EXIF tag \(orientation {tag}: .*as stored or as shown; save"):
        item_of(save_pair(image_tag=tag))
    with pytest.raises(
        UserError, match=rf"masks/a.png: has an EXIF tag \(orientation {tag}: .* and .*images/a.png has not"
    ):
        item_of(save_pair(mask_tag=tag))
    assert item_of(save_pair(image_tag=tag, mask_tag=tag))["mask"].any()


def test_a_quarter_turn_is_certain_by_the_size_of_the_mask(save_pair):
    assert item_of(save_pair(image_tag=6, mask=DISC.T.astype(np.uint8)))["size"] == (32, 24)
    with pytest.raises(UserError, match="the mask has the size of the image as stored; remove the tag"):
        item_of(save_pair(image_tag=8))
    with pytest.raises(UserError, match="the mask has 20x20 pixels, its image a.png has 32x24"):
        item_of(save_pair(image_tag=8, mask=np.eye(20, dtype=np.uint8)))
    with pytest.raises(UserError, match="as stored or as shown"):
        item_of(save_pair(image_tag=8, shape=(20, 20), mask=np.eye(20, dtype=np.uint8)))


def test_label_maps_are_compared_with_their_image_too(save_pair):
    with pytest.raises(UserError, match="orientation 3"):
        item_of(save_pair(image_tag=3), classes="a=255")


@pytest.mark.parametrize("values", [(1, 2), (128, 255), (3, 255)])
def test_slices_of_a_label_map_are_no_masks_of_one_class(save_pair, values):
    """Whichever is read first, in any process."""
    for name, value in zip("abc", (0, *values), strict=True):
        folder = save_pair(name, DISC.astype(np.uint8) * value)
    for order in ((0, 2), (2, 0), (2,)):
        dataset = build_dataset("FOLDER", folder, 16, need_masks=True)
        with pytest.raises(UserError) as error:
            for index in order:
                dataset[index]
        assert f"c.png: its foreground is {values[1]}, that of " in str(error.value)
        assert f"b.png is {values[0]}; are they slices of a label map?" in str(error.value)
    labels = build_dataset("FOLDER", folder, 16, need_masks=True, classes=f"one={values[0]},two={values[1]}")
    assert labels[2]["mask"][0, 1].any() and not labels[2]["mask"][0, 0].any()


def test_colours_of_several_classes_in_files_of_their_own(save_pair):
    for name, colour in (("a", (255, 0, 0)), ("b", (0, 0, 255))):
        folder = save_pair(name, np.where(DISC[..., None], np.uint8(colour), np.uint8(0)))
    with pytest.raises(UserError, match="b.png: its foreground is #0000ff, that of .*a.png is #ff0000; .* in colours"):
        build_dataset("FOLDER", folder, 16, need_masks=True)[1]


def test_masks_of_0_and_1_agree_with_those_of_0_and_255(save_pair):
    for name, mask in (("a", DISC.astype(np.uint8)), ("b", DISC * np.uint8(255)), ("c", DISC * np.uint16(65535))):
        folder = save_pair(name, mask)
    dataset = build_dataset("FOLDER", folder, 16, need_masks=True)
    assert len({dataset[index]["mask"].sum().item() for index in range(3)}) == 1


def test_volumes_follow_the_same_rule(tmp_path, save_nifti):
    volume = np.zeros((8, 8, 4), np.uint8)
    volume[2:5, 2:5, 1], volume[2:5, 2:5, 2] = 1, 2
    for part in ("images", "masks"):
        save_nifti(tmp_path / part / "p.nii.gz", volume)
    dataset = build_dataset("FOLDER", tmp_path, 8, need_masks=True)
    assert dataset[1]["mask"].any()
    with pytest.raises(UserError, match=r"p.nii.gz: its foreground is 2, .* --classes object=1\+2 reads them as one"):
        dataset[2]
    volume[3, 3, 1] = 2
    save_nifti(tmp_path / "masks" / "p.nii.gz", volume)
    with pytest.raises(UserError, match=r"p.nii.gz: its values 0 .*, 1 .*, 2 .* are no mask of one class"):
        build_dataset("FOLDER", tmp_path, 8, need_masks=True)[1]
    save_nifti(tmp_path / "masks" / "p.nii.gz", volume * np.float32(0.25))
    with pytest.raises(UserError, match=r"p.nii.gz: holds the label values 0.25, 0.5"):
        build_dataset("FOLDER", tmp_path, 8, need_masks=True)[1]


def test_loaders_of_ones_own_are_held_to_it(tmp_path, save_picture):
    (tmp_path / "own.py").write_text(LOADER)
    for name, value in (("p1", 1), ("p2", 2)):
        save_picture(tmp_path / "data" / name / "photo.png", np.full((24, 32, 3), 90, np.uint8))
        save_picture(tmp_path / "data" / name / "truth.png", DISC.astype(np.uint8) * value)
    dataset = build_dataset(f"{tmp_path / 'own.py'}:Polyps", tmp_path / "data", 16, need_masks=True)
    with pytest.raises(UserError, match="p2/truth.png: its foreground is 2, that of .*p1/truth.png is 1"):
        dataset[1]
