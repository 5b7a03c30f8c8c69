"""The phantoms of LIDC: readers disagree about the same nodule, and no grey value gives it away."""

import numpy as np

from guided_diffusion.data.phantoms import READERS, TEST_START, best_threshold_dice, lidc_case, write_lidc


def test_layout(tmp_path):
    write_lidc(tmp_path, 3, 2, size=32, seed=5)
    with np.load(tmp_path / "lidc4_phantom.npz", allow_pickle=False) as data:
        assert data["is_test"].tolist() == [False] * 3 + [True] * 2
        assert data["patient"].tolist() == [f"PHANTOM-{n:04d}" for n in (0, 0, 1, TEST_START // 2, TEST_START // 2)]
        assert data["images"].dtype == np.uint8 and data["images"].shape == (5, 32, 32)
        masks = np.unpackbits(data["masks"], axis=-1).astype(bool)
        for place, index in enumerate((0, 1, 2, TEST_START, TEST_START + 1)):
            image, marks = lidc_case(index, 32, seed=5)
            assert np.array_equal(data["images"][place], image) and np.array_equal(masks[place], marks)


def test_cases_follow_from_seed_and_number():
    image, masks = lidc_case(7, 48)
    again, masks_again = lidc_case(7, 48)
    assert np.array_equal(image, again) and np.array_equal(masks, masks_again)
    assert not np.array_equal(image, lidc_case(8, 48)[0]) and not np.array_equal(image, lidc_case(7, 48, seed=1)[0])


def test_readers_disagree_but_mean_the_same_nodule():
    agreement, shared = [], []
    for index in range(40):
        masks = lidc_case(index, 64)[1]
        assert masks.shape == (READERS, 64, 64) and masks.any(axis=(1, 2)).all()
        union = masks.any(axis=0)
        assert union.mean() < 0.3
        agreement += [(a & b).sum() / (a | b).sum() for k, a in enumerate(masks) for b in masks[:k]]
        shared.append(masks.all(axis=0).any())
    assert 0.5 < np.mean(agreement) < 0.9 and min(agreement) < 0.4 and np.mean(shared) > 0.9


def test_small_patches_have_nodules_too():
    for index in range(20):
        image, masks = lidc_case(index, 16)
        assert image.shape == (16, 16) and masks.any(axis=(1, 2)).all()


def test_no_grey_value_gives_the_nodule_away():
    dice = []
    for index in range(40):
        image, masks = lidc_case(index, 64)
        dice.append(best_threshold_dice(image[None], masks.mean(axis=0) > 0.5))
    assert np.nanmean(dice) < 0.75
