"""The phantoms of ISIC: the published layout, plausible lesions, and no grey value that gives them away."""

import numpy as np
import pytest
from conftest import files
from PIL import Image

from guided_diffusion.data.phantoms import best_threshold_dice, isic_case, write_isic


def test_isic_layout_is_the_published_one(tmp_path):
    write_isic(tmp_path, 2, 1, size=32)
    train, test = "Train/ISBI2016_ISIC_Part", "Test/ISBI2016_ISIC_Part"
    assert set(files(tmp_path)) == {
        f"{train}1_Training_Data/ISIC_0000000.jpg",
        f"{train}1_Training_Data/ISIC_0000001.jpg",
        f"{train}1_Training_GroundTruth/ISIC_0000000_Segmentation.png",
        f"{train}1_Training_GroundTruth/ISIC_0000001_Segmentation.png",
        f"{train}3B_Training_GroundTruth.csv",
        f"{test}1_Test_Data/ISIC_0005000.jpg",
        f"{test}1_Test_GroundTruth/ISIC_0005000_Segmentation.png",
        f"{test}3B_Test_GroundTruth.csv",
    }


def test_isic_images_and_masks_agree_in_size(tmp_path):
    write_isic(tmp_path, 3, 0, size=32)
    for path in (tmp_path / "Train/ISBI2016_ISIC_Part1_Training_Data").iterdir():
        image = Image.open(path)
        mask = Image.open(tmp_path / f"Train/ISBI2016_ISIC_Part1_Training_GroundTruth/{path.stem}_Segmentation.png")
        assert (image.mode, image.size) == ("RGB", (40, 32))
        assert (mask.mode, mask.size) == ("L", (40, 32))
        assert set(np.unique(mask)) == {0, 255}


def test_isic_files_hold_the_case_of_their_number(tmp_path):
    write_isic(tmp_path, 2, 0, size=48, seed=3)
    folder = tmp_path / "Train"
    image, mask, malignant = isic_case(1, 48, seed=3)
    written = np.asarray(Image.open(folder / "ISBI2016_ISIC_Part1_Training_Data/ISIC_0000001.jpg"), dtype=float)
    truth = Image.open(folder / "ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_0000001_Segmentation.png")
    assert np.abs(written.mean(-1) - image.mean(-1)).mean() < 4  # JPEG is near, not exact
    assert np.array_equal(np.asarray(truth) > 0, mask)
    labels = (folder / "ISBI2016_ISIC_Part3B_Training_GroundTruth.csv").read_text().splitlines()
    assert labels[1] == f"ISIC_0000001,{'malignant' if malignant else 'benign'}"


def test_isic_test_labels_are_numbers(tmp_path):
    write_isic(tmp_path, 0, 12, size=32)
    lines = (tmp_path / "Test/ISBI2016_ISIC_Part3B_Test_GroundTruth.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == [f"ISIC_{5000 + i:07d}" for i in range(12)]
    assert {line.split(",")[1] for line in lines} == {"0.0", "1.0"}


def test_too_many_training_cases_for_the_numbering(tmp_path):
    with pytest.raises(ValueError, match="5001"):
        write_isic(tmp_path, 5001, 1, size=32)


def test_lesions_cover_a_plausible_share_and_vary():
    masks = [isic_case(index)[1] for index in range(40)]
    areas = [mask.mean() for mask in masks]
    assert min(areas) > 0.04 and max(areas) < 0.36
    assert max(areas) > 2 * min(areas)
    centres = np.array([np.argwhere(mask).mean(0) / mask.shape for mask in masks])
    assert (centres.std(0) > 0.05).all()


def border_roughness(mask):
    """How much the farthest lesion pixel's distance from the centre jumps between neighbouring 15 degree sectors."""
    offset = np.argwhere(mask) - np.argwhere(mask).mean(0)
    sector = np.floor(np.arctan2(*offset.T) / (2 * np.pi) * 24).astype(int) % 24
    distance = np.hypot(*offset.T)
    reach = np.array([distance[sector == k].max() for k in range(24) if (sector == k).any()])
    return np.abs(np.diff(reach)).mean() / reach.mean()


def test_malignant_lesions_have_the_more_irregular_border():
    roughness = {True: [], False: []}
    for index in range(120):
        _, mask, malignant = isic_case(index, 48)
        roughness[malignant].append(border_roughness(mask))
    assert min(len(group) for group in roughness.values()) > 20
    assert np.mean(roughness[True]) > 1.15 * np.mean(roughness[False])


def test_no_grey_value_solves_isic():
    cases = [isic_case(index) for index in range(60)]
    assert np.mean([best_threshold_dice(image.transpose(2, 0, 1), mask) for image, mask, _ in cases]) < 0.65


def test_a_full_disk_cuts_no_picture_short(tmp_path, full_disk):
    with pytest.raises(OSError) as error, full_disk():
        write_isic(tmp_path, 1, 0, size=200)
    assert error.value.filename.endswith("ISIC_0000000.jpg")
