"""The phantoms: layouts as published, the same case for the same seed, and no way round them by grey value."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from guided_diffusion.data.loaders.brats import MODALITIES
from guided_diffusion.data.phantoms import (
    best_threshold_dice,
    brats_case,
    isic_case,
    write_brats,
    write_brats_slices,
    write_isic,
)

KINDS = {*MODALITIES, "seg"}


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


# ---- ISIC layout ---------------------------------------------------------------------------------------------------


def test_isic_layout_is_the_published_one(tmp_path):
    write_isic(tmp_path, 2, 1, size=32)
    train, test = "Train/ISBI2016_ISIC_Part", "Test/ISBI2016_ISIC_Part"
    assert files_below(tmp_path) == {
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


# ---- BraTS layouts -------------------------------------------------------------------------------------------------


def test_brats_layout_is_the_published_one(tmp_path):
    write_brats(tmp_path, 2, 1, size=32, num_slices=4)
    cases = ("training/BraTS2021_00000", "training/BraTS2021_00001", "testing/BraTS2021_05000")
    assert files_below(tmp_path) == {f"{case}/{case.split('/')[1]}_{kind}.nii.gz" for case in cases for kind in KINDS}


def test_brats_volumes_have_type_shape_and_geometry(tmp_path):
    write_brats(tmp_path, 1, 0, size=48, num_slices=10)
    images = {kind: nib.load(tmp_path / f"training/BraTS2021_00000/BraTS2021_00000_{kind}.nii.gz") for kind in KINDS}
    for kind, image in images.items():
        assert image.shape == (48, 48, 10)
        assert image.get_data_dtype() == (np.uint8 if kind == "seg" else np.int16)
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        assert image.header.get_zooms() == pytest.approx((5.0, 5.0, 15.5))
        assert np.array_equal(image.affine, images["seg"].affine)
    expected = brats_case(0, 48, 10)
    for kind, image in images.items():
        assert np.array_equal(np.asarray(image.dataobj), expected[kind])


def test_brats_slice_layout_is_the_published_one(tmp_path):
    write_brats_slices(tmp_path, 2, 1, size=32)
    folders = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*")}
    assert folders == {"training/slice0001", "training/slice0002", "testing/slice5001"}
    for folder in folders:
        slices = [path.name.removesuffix(".nii.gz").split("_") for path in (tmp_path / folder).iterdir()]
        assert {name[3] for name in slices} == KINDS
        assert {tuple(name[:2]) for name in slices} == {("brats", "train")}
        assert {name[2] for name in slices} == {f"{int(folder[-4:]):03d}"}
        assert len({name[4] for name in slices}) == 1  # all of one slice of the volume
        assert {name[5] for name in slices} == {"w"}


def test_brats_slices_are_slices_of_their_volumes(tmp_path):
    write_brats_slices(tmp_path, 8, 0, size=32, seed=5)
    for index in range(8):
        volumes = brats_case(index, 32, 16, seed=5)
        for path in (tmp_path / f"training/slice{index + 1:04d}").iterdir():
            kind, z = path.name.split("_")[3:5]
            written = np.asarray(nib.load(path).dataobj)
            assert np.array_equal(written, volumes[kind][..., int(z)])
            if kind == "seg":
                assert written.any() == (index != 7)  # one in eight has no tumour


# ---- what a case is ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("index", range(4))
def test_brats_labels_and_skull_stripping(index):
    case = brats_case(index)
    assert set(np.unique(case["seg"])) == {0, 1, 2, 4}
    brain = case["t1"] > 0
    for kind in MODALITIES:
        assert np.array_equal(case[kind] > 0, brain)
    assert 0.2 < brain.mean() < 0.6
    assert not brain[0].any() and not brain[:, -1].any()
    assert not case["seg"][~brain].any()
    slices = (case["seg"] > 0).any(axis=(0, 1))
    assert 3 <= slices.sum() <= 13
    assert np.ptp(np.flatnonzero(slices)) <= slices.sum()  # one lump, not scattered over the volume


def test_whole_tumour_is_bright_in_t2_and_in_flair_together():
    for index in range(4):
        case = brats_case(index)
        brain, tumour = case["t1"] > 0, case["seg"] > 0
        ranks = {k: np.argsort(np.argsort(case[k][brain])) / brain.sum() for k in ("t2", "flair")}
        both = np.minimum(ranks["t2"], ranks["flair"])
        inside, outside = both[tumour[brain]], both[~tumour[brain]]
        assert np.median(inside) > np.quantile(outside, 0.85)


def test_enhancing_rim_is_the_brightest_tumour_part_in_t1ce():
    case = brats_case(0)
    means = {label: case["t1ce"][case["seg"] == label].mean() for label in (1, 2, 4)}
    assert means[4] > 1.3 * max(means[1], means[2])


# ---- determinism ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_isic, write_brats, write_brats_slices])
def test_a_case_depends_on_seed_and_number_alone(tmp_path, write):
    for folder, num_train, num_test, seed in (("few", 1, 1, 0), ("many", 3, 2, 0), ("other", 1, 1, 1)):
        write(tmp_path / folder, num_train, num_test, size=32, seed=seed)
    few, many, other = (
        {name: data for name, data in contents(tmp_path / folder).items() if not name.endswith(".csv")}
        for folder in ("few", "many", "other")
    )
    assert few.keys() < many.keys()
    assert all(many[name] == data for name, data in few.items())
    assert all(other.get(name) != data for name, data in few.items())


def test_train_and_test_cases_differ():
    assert not np.array_equal(isic_case(0, 32)[0], isic_case(5000, 32)[0])
    assert not np.array_equal(brats_case(0, 32, 4)["t1"], brats_case(5000, 32, 4)["t1"])


# ---- thresholds ----------------------------------------------------------------------------------------------------


def brute_force(image, mask):
    best = 0.0
    for channel in image:
        for value in np.unique(channel):
            for guess in (channel >= value, channel <= value):
                best = max(best, 2 * (guess & mask).sum() / (guess.sum() + mask.sum()))
    return best


@pytest.mark.parametrize("seed", range(20))
def test_best_threshold_agrees_with_brute_force(seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, rng.integers(2, 30), (rng.integers(1, 4), 6, 7)).astype(np.float32)  # with many ties
    mask = rng.random((6, 7)) < 0.3
    mask[0, 0] = True
    assert best_threshold_dice(image, mask) == pytest.approx(brute_force(image, mask), abs=1e-12)


def test_best_threshold_finds_a_dark_lesion_in_one_channel():
    mask = np.zeros((8, 8), bool)
    mask[2:5, 3:6] = True
    noise = np.random.default_rng(0).normal(size=(8, 8))
    assert best_threshold_dice(np.stack([noise, np.where(mask, -9.0, noise)]), mask) == 1.0


def test_best_threshold_is_undefined_without_a_lesion():
    assert np.isnan(best_threshold_dice(np.zeros((1, 4, 4)), np.zeros((4, 4), bool)))


def test_no_grey_value_solves_isic():
    cases = [isic_case(index) for index in range(60)]
    assert np.mean([best_threshold_dice(image.transpose(2, 0, 1), mask) for image, mask, _ in cases]) < 0.65


def test_no_modality_solves_brats():
    scores = []
    for index in range(10):
        case = brats_case(index)
        for z in np.flatnonzero(case["seg"].any(axis=(0, 1))):
            image = np.stack([case[kind][..., z] for kind in MODALITIES])
            scores.append(best_threshold_dice(image, case["seg"][..., z] > 0))
    assert np.mean(scores) < 0.70
