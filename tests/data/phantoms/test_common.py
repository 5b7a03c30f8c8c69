"""What phantoms share: the same case for the same seed and number, and the best threshold by brute force."""

import numpy as np
import pytest
from conftest import files

from guided_diffusion.data.phantoms import (
    best_threshold_dice,
    brats_case,
    isic_case,
    write_brats,
    write_brats_slices,
    write_isic,
)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files(folder)}


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
