"""Cardiac phantoms: three classes that touch and exclude one another, which no grey value separates."""

import numpy as np

from guided_diffusion.data.phantoms import best_threshold_dice, cardiac_case, write_cardiac
from guided_diffusion.data.phantoms.cardiac import CLASS_LABELS, SLICES
from guided_diffusion.data.registry import build_dataset


def test_a_heart_from_base_to_apex():
    areas = np.array([np.bincount(cardiac_case(level)[1].ravel(), minlength=4)[1:] for level in range(SLICES)])
    assert (areas[:5] > 0).all() and not areas[-1].any()  # the last slice lies beyond the apex
    first_without = (areas > 0).argmin(axis=0)
    assert first_without[0] < first_without[2]  # the right ventricle ends first
    image, labels = cardiac_case(1)
    assert image.dtype == labels.dtype == np.uint8 and image.shape == labels.shape == (96, 96)
    again = cardiac_case(1)
    assert all(np.array_equal(*pair) for pair in zip((image, labels), again, strict=True))
    assert not np.array_equal(cardiac_case(SLICES + 1)[1], labels)  # another patient


def test_the_left_ventricle_is_inside_its_wall_and_the_right_one_beside_it():
    labels = cardiac_case(2, size=64)[1].astype(int)
    seen = {
        (int(low), int(high))
        for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1]))
        for low, high in zip(np.minimum(a, b).ravel(), np.maximum(a, b).ravel(), strict=True)
    }
    assert (2, 3) in seen and (1, 2) in seen and (0, 3) not in seen and (1, 3) not in seen


def test_no_grey_value_tells_the_classes_apart():
    for label in CLASS_LABELS.values():
        pairs = (cardiac_case(SLICES * patient + 1, size=64) for patient in range(3))
        assert np.mean([best_threshold_dice(image[None], labels == label) for image, labels in pairs]) < 0.6


def test_they_are_written_as_a_folder_of_exclusive_classes(tmp_path):
    write_cardiac(tmp_path, 2, size=32)
    dataset = build_dataset("AUTO", tmp_path, 32, need_masks=True, classes="auto")
    assert dataset.class_names == tuple(CLASS_LABELS) and dataset.classes.is_exclusive
    assert len(dataset) == 2 * SLICES and dataset.cases[3].name == "patient000_slice3"
    assert np.array_equal(dataset[SLICES]["mask"][0, 2].numpy() > 0, cardiac_case(SLICES, size=32)[1] == 3)
