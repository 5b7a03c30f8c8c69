"""The phantoms of ultrasound: a FOLDER of patients, small faint lesions, and no grey value that gives them away."""

import json

import numpy as np
import pytest
from conftest import files
from scipy.ndimage import label

from guided_diffusion.data.phantoms import best_threshold_dice, ultrasound_case, write_ultrasound
from guided_diffusion.data.registry import build_dataset


@pytest.fixture(scope="module")
def cases():
    return [ultrasound_case(index, 96) for index in range(40)]


def test_layout(tmp_path):
    write_ultrasound(tmp_path, 3, 2, size=64, seed=5)
    names = ["P0000/P0000_0.png", "P0000/P0000_1.png", "P0001/P0001_0.png", "P2500/P2500_0.png", "P2500/P2500_1.png"]
    assert set(files(tmp_path)) == {"split.json", *(f"{kind}/{name}" for kind in ("images", "masks") for name in names)}
    assert json.loads((tmp_path / "split.json").read_text())["test"] == ["P2500_0", "P2500_1"]
    dataset = build_dataset("AUTO", tmp_path, 32, split="train", need_masks=True)
    assert [case.group for case in dataset.cases] == ["P0000", "P0000", "P0001"]
    image, mask = ultrasound_case(1, 64, seed=5)
    assert np.array_equal(dataset.read_mask(dataset.cases[1])[0, 0], mask)
    assert np.array_equal(dataset.read_image(dataset.cases[1])[0], image)


def test_cases_follow_from_seed_and_number(cases):
    image, mask = ultrasound_case(7, 96)
    assert image.dtype == np.uint8 and np.array_equal(image, cases[7][0]) and np.array_equal(mask, cases[7][1])
    other = ultrasound_case(7, 96, seed=1)[0]
    assert other.shape != image.shape or not np.array_equal(other, image)


def test_sizes_vary(cases):
    sides = np.array([image.shape for image, _ in cases])
    assert sides.min() >= 48 and sides.max() <= 96 and (np.ptp(sides, axis=0) > 36).all()


def test_lesions_are_small_sometimes_two_and_sometimes_none(cases):
    shares = np.array([mask.mean() for _, mask in cases])
    counts = np.array([label(mask)[1] for _, mask in cases])
    assert ((shares == 0) | ((shares > 0.004) & (shares < 0.085))).all()
    assert 2 <= (counts == 0).sum() <= 12 and 3 <= (counts == 2).sum() <= 14 and counts.max() == 2


def test_lesions_are_far_from_the_edges(cases):
    rims = [np.concatenate([mask[[0, -1]].ravel(), mask[:, [0, -1]].ravel()]).mean() for _, mask in cases]
    assert np.mean(rims) < 0.002


def test_no_grey_value_gives_the_lesion_away_though_it_is_darker(cases):
    with_lesion = [(image, mask) for image, mask in cases if mask.any()]
    assert np.mean([best_threshold_dice(image[None], mask) for image, mask in with_lesion]) < 0.25
    darker = [image[mask].mean() < image[~mask].mean() for image, mask in with_lesion]
    assert np.mean(darker) > 0.8
