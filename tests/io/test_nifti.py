"""NIfTI files: reading, writing, and volumes in any orientation."""

import gzip

import nibabel
import numpy as np
import pytest

from guided_diffusion.data.volumes import VolumeReader
from guided_diffusion.io.nifti import (
    lies_elsewhere,
    nifti_channels,
    nifti_geometry,
    read_nifti,
    read_nifti_channels,
    read_nifti_header,
    read_nifti_labels,
    read_nifti_onto,
    reoriented,
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
    *_, lies, turn, has_codes, _ = nifti_geometry(path)
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
TURNED = AFFINE @ [[-1, 0, 0, 3], [0, 1, 0, 0], [0, 0, -1, 5], [0, 0, 0, 1]]  # as that of AFFINE
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
    np.testing.assert_array_equal(read_nifti_onto(mask, VolumeReader().geometry(case)).values, read_nifti(image)[0])


@pytest.mark.parametrize(
    "image, mask", [(np.eye(4), SAME_BOX), (SAME_BOX, np.eye(4)), (AFFINE, TURNED), (TURNED, AFFINE)]
)
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
    np.testing.assert_array_equal(read_nifti_onto(mask, VolumeReader().geometry(case)).values, read_nifti(image)[0])


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


@pytest.mark.parametrize("mask", [LPS, CENTRED @ np.diag([-1, 1, 1, 1])])
def test_a_mask_that_lies_elsewhere_and_mirrored_is_refused(saved, mask):
    """SimpleITK's default affine, or one side exchanged: turned by it, the mask would lie mirrored over its image."""
    affine = np.diag([1.0, 1.0, 1.5, 1.0]) @ CENTRED
    affine[:3, 3] += 5
    image, mask = saved("i.nii", np.ones((5, 5, 5)), affine), saved("m.nii", np.ones((5, 5, 5)), mask)
    with pytest.raises(UserError, match=r"m.nii: lies [\d.]+ mm from i.nii, and its axes point elsewhere"):
        read_nifti_header(mask, like=image)
    reader = VolumeReader()
    reader.cases("v", [image], [mask])
    assert "its axes point elsewhere" in next(iter(reader.unreadable.values()))


def test_a_mask_that_has_lost_the_size_of_its_voxels_is_not_said_to_have_another_shape(saved):
    """Thick slices make a volume sagittal, and without their thickness the mask would be axial."""
    image, mask = np.diag([3.0, 1, 1, 1]), np.eye(4)
    image[:3, 3] = mask[:3, 3] = 5
    image, mask = saved("i.nii", np.ones((8, 9, 5)), image), saved("m.nii", np.ones((8, 9, 5)), mask)
    with pytest.raises(UserError, match="m.nii: lies 14.0 mm from i.nii, and its axes point elsewhere"):
        read_nifti_header(mask, like=image)


def test_a_mask_in_another_order_of_axes_may_be_shifted_by_a_voxel(saved):
    array = RNG.integers(0, 9, (5, 5, 5)).astype(np.uint8)
    mirrored = np.array([[-1.0, 0, 0, 4], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]])
    image, mask = saved("i.nii", array, CENTRED), saved("m.nii", array[::-1], CENTRED @ mirrored)
    np.testing.assert_array_equal(read_nifti_labels(mask, like=image), array)


@pytest.mark.parametrize("is_flat", [False, True])
def test_a_2d_mask_is_turned_onto_its_image(saved, is_flat):
    """Where both lie in one place; elsewhere the affine of a 2-D file says little, and it lies pixel for pixel."""
    array = RNG.integers(0, 3, (5, 4, 1)).astype(np.uint8)
    stored = array[..., 0] if is_flat else array
    image = saved("i.nii", stored, CENTRED)
    (case,) = VolumeReader().cases("v", [image], [saved("m.nii", stored, CENTRED)])
    back = np.array([[-1.0, 0, 0, 4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    for mask, affine in ((stored[::-1], CENTRED @ back), (stored, CENTRED), (stored, LPS), (stored, np.eye(4))):
        saved("m.nii", mask, affine)
        np.testing.assert_array_equal(VolumeReader().labels(case)[0], array[..., 0])
    turned = CENTRED @ np.eye(4)[:, [1, 0, 2, 3]]
    saved("m.nii", stored.swapaxes(0, 1), turned)
    np.testing.assert_array_equal(VolumeReader().labels(case)[0], array[..., 0])


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
    for read in (read_nifti, read_nifti_header, nifti_geometry):
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
        nifti_channels(save_nifti(tmp_path / "e.nii", array[:, :, :, None, :, None].repeat(2, 3)))
    vectors = r"v.nii: has shape \(4, 5, 6, 1, 3\); .* vectors along the fourth, as \(4, 5, 6, 3\)"
    with pytest.raises(UserError, match=vectors):
        nifti_channels(save_nifti(tmp_path / "v.nii", array[:, :, :, None]))


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


@pytest.mark.parametrize("place", [-6, None])
def test_a_compressed_file_is_read_up_to_its_checksum(tmp_path, save_nifti, place):
    path = save_nifti(tmp_path / "v.nii.gz", RNG.random((30, 30, 30)).astype(np.float32))
    data = bytearray(path.read_bytes())
    if place is None:
        data = data[:-3]
    else:
        data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="v.nii.gz: is truncated or damaged"):
        read_nifti(path)


@pytest.mark.parametrize("added", [b"\0" * 512, b"more bytes"])
def test_bytes_after_a_whole_compressed_file_do_no_harm(tmp_path, save_nifti, added):
    array = RNG.random((30, 30, 30)).astype(np.float32)
    path = save_nifti(tmp_path / "v.nii.gz", array)
    path.write_bytes(path.read_bytes() + added)
    np.testing.assert_array_equal(read_nifti(path)[0], array)


def test_what_is_no_nifti_is_refused(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"not an image" * 100))
    (tmp_path / "b.nii.gz").write_bytes(b"not even gzip" * 100)
    for name, words in (("a", "is truncated or damaged, or is no NIfTI file"), ("b", "is a text .*, no NIfTI file")):
        with pytest.raises(UserError, match=f"{name}.nii.gz: {words}"):
            read_nifti(tmp_path / f"{name}.nii.gz")
    with pytest.raises(UserError, match="c.nii.gz: no such file"):
        read_nifti_header(tmp_path / "c.nii.gz")


def test_large_labels_are_exact(tmp_path):
    """Numbers of structures in atlases need more than float32; those beyond int32 are named as they are."""
    for number, dtype in ((614454277, np.uint32), (2**24 + 1, np.float64), (2**24 + 1, np.int64)):
        array = np.array([[[0], [number]], [[number - 1], [7]]], dtype)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4), dtype=dtype), tmp_path / "m.nii")
        np.testing.assert_array_equal(read_nifti_labels(tmp_path / "m.nii"), array.astype(np.int32))
    array = np.array([[[0, 2**33]]], np.int64)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4), dtype=np.int64), tmp_path / "m.nii")
    with pytest.raises(UserError, match=r"m.nii: holds the label 8589934592; labels up to 2147483647 are read"):
        read_nifti_labels(tmp_path / "m.nii")


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
