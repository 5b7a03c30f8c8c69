"""The phantoms of BraTS: the published layouts, labels, and no modality that gives the tumour away."""

import nibabel as nib
import numpy as np
import pytest
from conftest import files

from guided_diffusion.data.loaders.brats import MODALITIES
from guided_diffusion.data.phantoms import best_threshold_dice, brats_case, write_brats, write_brats_slices

KINDS = {*MODALITIES, "seg"}


def test_brats_layout_is_the_published_one(tmp_path):
    write_brats(tmp_path, 2, 1, size=32, num_slices=4)
    cases = ("training/BraTS2021_00000", "training/BraTS2021_00001", "testing/BraTS2021_05000")
    assert set(files(tmp_path)) == {f"{case}/{case.split('/')[1]}_{kind}.nii.gz" for case in cases for kind in KINDS}


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


def test_no_modality_solves_brats():
    scores = []
    for index in range(10):
        case = brats_case(index)
        for z in np.flatnonzero(case["seg"].any(axis=(0, 1))):
            image = np.stack([case[kind][..., z] for kind in MODALITIES])
            scores.append(best_threshold_dice(image, case["seg"][..., z] > 0))
    assert np.mean(scores) < 0.70
