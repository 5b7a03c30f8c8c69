"""Orientation: volumes are turned to right, front and up, and back, in any orientation of their files."""

from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from conftest import FAST

from guided_diffusion.data.registry import build_dataset
from guided_diffusion.evaluation.evaluate import evaluate
from guided_diffusion.io.nifti import read_nifti
from guided_diffusion.io.orientation import (
    NO_TURN,
    canonical_turn,
    is_no_turn,
    reoriented,
    reoriented_back,
    turn_onto,
    turned_affine,
    turned_shape,
)

RNG = np.random.default_rng(0)
WORLD = RNG.normal(size=(5, 6, 7))  # by whole places in space: right, front, up
LIES = [(axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def stored(volume, axes, signs, spacing=(1.0, 1.0, 1.0)):
    """A volume [R, A, S] as a file may hold it: (array, affine); axis i of the file runs along space's axes[i]."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    array = volume.transpose(axes)
    for i, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, i] = sign * spacing[axis]
        if sign < 0:
            array = np.flip(array, i)
            affine[axis, 3] = (volume.shape[axis] - 1) * spacing[axis]
    return array, affine


@pytest.mark.parametrize("axes, signs", LIES)
def test_all_48_orientations_are_read_alike_and_written_back(axes, signs):
    array, affine = stored(WORLD, axes, signs)
    turn = canonical_turn(affine, array.shape)
    np.testing.assert_array_equal(reoriented(array, turn), WORLD)
    np.testing.assert_array_equal(turned_affine(affine, turn, array.shape), np.eye(4))
    assert turned_shape(array.shape, turn) == WORLD.shape
    np.testing.assert_array_equal(reoriented_back(WORLD, turn), array)
    assert is_no_turn(turn) == ((axes, signs) == ((0, 1, 2), (1, 1, 1)))


@pytest.mark.parametrize("axes, signs", LIES[::5])
def test_a_file_is_turned_onto_another_that_is_turned_itself(axes, signs):
    one, other = stored(WORLD, (2, 0, 1), (-1, 1, -1)), stored(WORLD, axes, signs)
    for turn in (NO_TURN, canonical_turn(one[1], one[0].shape)):
        np.testing.assert_array_equal(reoriented(other[0], turn_onto(other[1], one[1], turn)), reoriented(one[0], turn))


@pytest.mark.parametrize("thick, order", [(0, (1, 2, 0)), (1, (0, 2, 1)), (2, (0, 1, 2))])
def test_slices_stay_in_the_plane_in_which_they_were_acquired(thick, order):
    spacing = [0.5, 0.7, 0.6]
    spacing[thick] = 4.0
    for axes, signs in LIES[::7]:
        array, affine = stored(WORLD, axes, signs, spacing)
        turn = canonical_turn(affine, array.shape)
        np.testing.assert_array_equal(reoriented(array, turn), WORLD.transpose(order))
        np.testing.assert_array_equal(reoriented_back(WORLD.transpose(order), turn), array)


@pytest.mark.parametrize("single, order", [(0, (1, 2, 0)), (1, (0, 2, 1))])
def test_a_single_slice_along_any_axis_is_the_last(single, order):
    volume = np.take(WORLD, [2], axis=single)
    for axes, signs in LIES[::7]:
        array, affine = stored(volume, axes, signs)
        if array.shape[2] > 1:  # else it is a 2-D image already
            turn = canonical_turn(affine, array.shape)
            np.testing.assert_array_equal(reoriented(array, turn), volume.transpose(order))


def test_oblique_volumes_keep_every_voxel_in_its_place():
    angle = np.radians(25)
    turning = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    array, affine = stored(WORLD, (2, 0, 1), (-1, 1, -1), (0.9, 1.0, 1.1))
    affine[:3, :3] = turning @ affine[:3, :3]
    turn = canonical_turn(affine, array.shape)
    ours = turned_affine(affine, turn, array.shape)
    where = np.argwhere(np.isin(array, WORLD[1:3, 2:4, 3:5]))
    for index in where:  # the same value at the same place in space
        place = affine @ [*index, 1]
        found = np.linalg.solve(ours, place)[:3].round(6)
        assert reoriented(array, turn)[tuple(found.astype(int))] == array[tuple(index)]


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
def test_2d_images_stay_as_they_are(shape):
    assert is_no_turn(canonical_turn(np.diag([-1.0, -1, 1, 1]), shape))
    assert is_no_turn(canonical_turn(np.zeros((4, 4)), (4, 5, 6)))  # nor does an affine turn that says nothing


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """One data set twice: with volumes as [R, A, S], and the same flipped and permuted, images and masks unlike."""
    folders = [tmp_path_factory.mktemp(name) for name in ("straight", "turned")]
    for number in range(2):
        image = RNG.integers(1, 500, (32, 28, 3)).astype(np.int16)
        truth = np.zeros((32, 28, 3), np.uint8)
        truth[4:20, 3:9, 1:] = 1
        for part, volume, unlike in (("images", image, (2, 0, 1)), ("masks", truth, (1, 2, 0))):
            for folder, axes, signs in ((folders[0], (0, 1, 2), (1, 1, 1)), (folders[1], unlike, (-1, 1, -1))):
                (folder / part).mkdir(exist_ok=True)
                array, affine = stored(volume, axes, signs, (1.0, 1.0, 1.4))
                nibabel.save(nibabel.Nifti1Image(array, affine), folder / part / f"v{number}.nii.gz")
    return folders


def test_items_do_not_depend_on_how_the_file_lies(volumes):
    straight, turned_ = (build_dataset("FOLDER", folder, 32, need_masks=True) for folder in volumes)
    assert [case.name for case in straight.cases] == [case.name for case in turned_.cases]
    for one, other in zip(straight, turned_, strict=True):
        assert one["image"].equal(other["image"]) and one["mask"].equal(other["mask"]) and one["size"] == other["size"]


def test_masks_lie_exactly_over_the_input(volumes, train, sample):
    checkpoint = train("FOLDER", volumes[0], steps=1)
    results = [sample(checkpoint, folder, FAST, out=folder.name) for folder in volumes]
    for folder, found in zip(volumes, results, strict=True):
        image = nibabel.load(folder / "images" / "v0.nii.gz")
        for part in ("seg", "prob", "uncertainty"):
            ours = nibabel.load(found / f"v0_{part}.nii.gz")
            assert ours.shape == image.shape and np.array_equal(ours.affine, image.affine)
    parts = [read_nifti(found / "v0_prob.nii.gz")[0] for found in results]
    np.testing.assert_array_equal(*parts)
    assert (results[0] / "metrics.csv").read_text() == (results[1] / "metrics.csv").read_text()


def test_predictions_that_lie_otherwise_are_compared_in_space(volumes, tmp_path):
    """Masks of the turned data set, scored against the truth of the straight one."""
    summary = evaluate(volumes[1] / "masks", build_dataset("FOLDER", volumes[0], 32), tmp_path)
    assert summary["ensemble"]["dice"]["mean"] == 1
