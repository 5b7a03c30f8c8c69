"""NIfTI files: reading, writing, and volumes in any orientation."""

import gzip
from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from conftest import FAST

from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.volumes import VolumeReader
from guided_diffusion.evaluation.evaluate import evaluate
from guided_diffusion.io.nifti import (
    NO_TURN,
    canonical_turn,
    is_no_turn,
    lies_elsewhere,
    nifti_channels,
    nifti_grid,
    read_nifti,
    read_nifti_channels,
    read_nifti_header,
    read_nifti_labels,
    reoriented,
    reoriented_back,
    turn_onto,
    turned_affine,
    turned_shape,
    write_nifti,
)
from guided_diffusion.runtime.errors import UserError

RNG = np.random.default_rng(0)
AFFINE = np.array([[-2.0, 0, 0, 90], [0, 0, 3.0, -126], [0, 0.5, 0, -72], [0, 0, 0, 1]])


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_nifti_values_affine_and_spacing(tmp_path, save_nifti, suffix):
    array = RNG.integers(-300, 300, (4, 5, 6)).astype(np.int16)
    path = save_nifti(tmp_path / f"v.{suffix}", array, AFFINE)
    values, affine, spacing = read_nifti(path)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, array[::-1].transpose(0, 2, 1))  # to the right, front and up
    np.testing.assert_array_equal(affine, [[2, 0, 0, 84], [0, 3, 0, -126], [0, 0, 0.5, -72], [0, 0, 0, 1]])
    assert spacing == (2.0, 3.0, 0.5)
    lies, turn, has_codes = nifti_grid(path)
    assert has_codes
    np.testing.assert_array_equal(lies, AFFINE)
    np.testing.assert_array_equal(reoriented(array, turn), values)


def test_nifti_without_an_affine_lies_as_another(tmp_path, save_nifti):
    array = RNG.integers(0, 9, (4, 5, 6)).astype(np.uint8)
    image = save_nifti(tmp_path / "i.nii", array, AFFINE)
    lost = save_nifti(tmp_path / "m.nii", array)
    np.testing.assert_array_equal(read_nifti_labels(lost), array)
    np.testing.assert_array_equal(read_nifti_labels(lost, like=image), array[::-1].transpose(0, 2, 1))
    assert read_nifti_header(lost, like=image)[0] == (4, 6, 5)


# ---- files that have lost their affine ---------------------------------------------------------------------------


SHAPE = (4, 5, 6)
LPS = np.diag([-1.0, -1, 1, 1])  # of a file whose corner is the origin
CENTRED = np.array([[1.0, 0, 0, -1.5], [0, 1, 0, -2], [0, 0, 1, -2.5], [0, 0, 0, 1]])  # as nibabel's, but to the right
SAME_BOX = np.array([[-1.0, 0, 0, 3], [0, -1, 0, 4], [0, 0, 1, 0], [0, 0, 0, 1]])  # as that of the identity


@pytest.fixture
def saved(tmp_path):
    """A function (name, array, affine) that writes a NIfTI file, of None without codes, and returns its path."""

    def save(name, array, affine):
        nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize("image, mask", [
    (CENTRED, None), (np.eye(4), None), (AFFINE, None), (AFFINE, np.eye(4)),  # the mask's is lost
    (np.eye(4), LPS), (np.eye(4), AFFINE), (None, LPS), (None, CENTRED),  # the image's
    (None, np.eye(4)), (None, None), (np.eye(4), np.eye(4)), (AFFINE, AFFINE),
])  # fmt: skip
def test_where_an_affine_is_lost_files_lie_voxel_for_voxel(saved, image, mask):
    array = RNG.integers(0, 9, SHAPE).astype(np.uint8)
    image, mask = saved("i.nii", array, image), saved("m.nii", array, mask)
    np.testing.assert_array_equal(read_nifti(mask, like=image)[0], read_nifti(image)[0])
    assert read_nifti_header(mask, like=image)[0] == read_nifti_header(image)[0]
    assert read_nifti_header(mask, like=image)[2] == read_nifti_header(image)[2]
    (case, *_) = VolumeReader().cases("v", [image], [mask])
    np.testing.assert_array_equal(read_nifti(mask, onto=VolumeReader().geometry(case))[0], read_nifti(image)[0])


@pytest.mark.parametrize("image, mask", [(np.eye(4), SAME_BOX), (SAME_BOX, np.eye(4)), (AFFINE, LPS), (LPS, AFFINE)])
def test_affines_that_are_meant_stay(saved, image, mask):
    """Proper ones, and an identity that agrees with the other file's."""
    image, mask = saved("i.nii", np.ones(SHAPE), image), saved("m.nii", RNG.random(SHAPE), mask)
    for own, beside in zip(read_nifti(mask), read_nifti(mask, like=image), strict=True):
        np.testing.assert_array_equal(own, beside)


def test_a_mask_of_an_image_that_was_turned_and_lost_its_affine_keeps_its_own(saved):
    array = RNG.integers(0, 9, SHAPE).astype(np.uint8)
    mask = saved("m.nii", array, AFFINE)
    image = saved("i.nii", read_nifti(mask)[0], np.eye(4))
    np.testing.assert_array_equal(read_nifti(mask, like=image)[0], read_nifti(image)[0])
    (case, *_) = VolumeReader().cases("v", [image], [mask])
    np.testing.assert_array_equal(read_nifti(mask, onto=VolumeReader().geometry(case))[0], read_nifti(image)[0])


def shifted(by):
    affine = AFFINE.copy()
    affine[:3, 3] += by
    return affine


@pytest.mark.parametrize("image, mask, words", [
    (AFFINE, AFFINE, ""), (AFFINE, shifted(0.05), ""), (AFFINE, None, ""), (AFFINE, np.eye(4), ""),
    (None, None, ""), (np.eye(4), SAME_BOX, ""), (SAME_BOX, np.eye(4), ""), (None, np.eye(4), ""),
    (AFFINE, shifted([0, 30, 40]), "its corner is 50.0 mm from that of i.nii"),
    (AFFINE, AFFINE @ np.diag([-1, 1, 1, 1]), "its corner is 6.0 mm from that of i.nii"),
    (AFFINE, AFFINE @ np.diag([1.2, 1, 1, 1]), "its corner is 1.2 mm from that of i.nii"),
    (np.diag([1.0, 1, 2, 1]), np.diag([1e-3, 1e-3, 2e-3, 1]), "its corner is 11.2 mm from that of i.nii"),  # in metres
    (np.eye(4), LPS, "i.nii has lost its affine, so that how the two lie is a guess"),
    (None, CENTRED, "i.nii has lost its affine, so that how the two lie is a guess"),
])  # fmt: skip
def test_where_volumes_lie_is_compared_by_their_corners(saved, image, mask, words):
    image, mask = saved("i.nii", np.ones(SHAPE), image), saved("m.nii", np.ones(SHAPE), mask)
    assert lies_elsewhere(mask, image) == words


def test_a_file_stored_in_another_orientation_lies_alike(saved):
    array = np.ones(SHAPE, np.float32)
    image = saved("i.nii", array, AFFINE)
    values, affine, _ = read_nifti(image)
    assert lies_elsewhere(saved("m.nii", values, affine), image) == ""


@pytest.mark.parametrize("affine", [np.diag([0.0, 0, 0, 1]), np.diag([1.0, 2, 0, 1]), np.diag([1.0, np.nan, 1, 1])])
def test_an_affine_that_places_nothing_is_refused(saved, affine):
    path = saved("a.nii", np.ones(SHAPE), np.eye(4))
    data = bytearray(path.read_bytes())
    data[280:328] = affine[:3].astype("<f4").tobytes()  # srow_x, srow_y, srow_z
    path.write_bytes(data)
    for read in (read_nifti, read_nifti_header, nifti_grid):
        with pytest.raises(UserError, match="a.nii: its affine places no volume in space .*; save it with the right"):
            read(path)


def test_nifti_channels_are_a_fourth_axis(tmp_path, save_nifti):
    array = RNG.integers(0, 9, (4, 5, 6, 3)).astype(np.uint8)
    path = save_nifti(tmp_path / "c.nii.gz", array, AFFINE)
    assert nifti_channels(path) == 3 and read_nifti_header(path)[0] == (4, 6, 5)
    np.testing.assert_array_equal(read_nifti_channels(path), array[::-1].transpose(0, 2, 1, 3))
    flat = save_nifti(tmp_path / "f.nii.gz", array[:, :, :1])
    assert nifti_channels(flat) == 3 and read_nifti_channels(flat).shape == (4, 5, 1, 3)
    with pytest.raises(UserError, match="e.nii: has shape .*; save it with two or three axes and one for channels"):
        nifti_channels(save_nifti(tmp_path / "e.nii", array[:, :, None, :, :2]))


def test_nifti_axes_of_length_one(tmp_path, save_nifti):
    assert read_nifti(save_nifti(tmp_path / "a.nii", np.ones((4, 5), np.uint8)))[0].shape == (4, 5)
    assert read_nifti(save_nifti(tmp_path / "b.nii", np.ones((4, 5, 1), np.uint8)))[0].shape == (4, 5, 1)
    assert read_nifti(save_nifti(tmp_path / "c.nii", np.ones((4, 5, 6, 1), np.uint8)))[0].shape == (4, 5, 6)
    with pytest.raises(UserError, match="d.nii: has shape"):
        read_nifti(save_nifti(tmp_path / "d.nii", np.ones((4, 5, 6, 2), np.uint8)))


def test_header_is_read_without_the_data(tmp_path, save_nifti, truncate, reads):
    path = save_nifti(tmp_path / "v.nii.gz", RNG.integers(0, 999, (16, 16, 16)).astype(np.int16), AFFINE)
    shape, affine, spacing = read_nifti_header(truncate(path))
    assert shape == (16, 16, 16) and spacing == (2.0, 3.0, 0.5) and reads == []
    assert affine[0, 0] == 2


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("fraction", [0.0, 0.02, 0.5, 0.97])
def test_truncated_nifti_is_one_line_with_its_name(tmp_path, save_nifti, truncate, suffix, fraction):
    array = RNG.integers(0, 999, (16, 16, 16)).astype(np.int16)
    path = truncate(save_nifti(tmp_path / f"v.{suffix}", array), fraction)
    with pytest.raises(UserError, match="truncated or damaged.*copy it again") as caught:
        read_nifti(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_nifti_is_refused(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"not an image" * 100))
    (tmp_path / "b.nii.gz").write_bytes(b"not even gzip" * 100)
    for name, words in (("a", "is truncated or damaged, or is no NIfTI file"), ("b", "is a text .*, no NIfTI file")):
        with pytest.raises(UserError, match=f"{name}.nii.gz: {words}"):
            read_nifti(tmp_path / f"{name}.nii.gz")
    with pytest.raises(UserError, match="c.nii.gz: no such file"):
        read_nifti_header(tmp_path / "c.nii.gz")


def test_labels_are_rounded_integers(tmp_path, save_nifti):
    labels = read_nifti_labels(save_nifti(tmp_path / "s.nii.gz", np.array([[0, 0.9999, 4.0001]], np.float32)))
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, [[0, 1, 4]])
    with pytest.raises(UserError, match="n.nii: holds labels that are not finite"):
        read_nifti_labels(save_nifti(tmp_path / "n.nii", np.array([[0, np.nan]], np.float32)))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_write_nifti_round_trip_keeps_dtype_and_affine(tmp_path, dtype):
    array = (RNG.random((4, 5, 6)) * 200).astype(dtype)
    write_nifti(tmp_path / "v.nii.gz", array, AFFINE)
    image = nibabel.load(tmp_path / "v.nii.gz")
    assert image.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(image.dataobj), array)
    np.testing.assert_array_equal(image.affine, AFFINE)
    with pytest.raises(ValueError, match="uint8, uint16 or float32"):
        write_nifti(tmp_path / "w.nii.gz", array.astype(np.int64), AFFINE)


# ---- orientations ---------------------------------------------------------------------------------------------------


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
