"""Reading and writing of NIfTI files."""

import gzip

import nibabel
import numpy as np
import pytest

from guided_diffusion.errors import UserError
from guided_diffusion.nifti import (
    nifti_channels,
    nifti_grid,
    read_nifti,
    read_nifti_channels,
    read_nifti_header,
    read_nifti_labels,
    write_nifti,
)
from guided_diffusion.orientation import turned

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
    lies, turn = nifti_grid(path)
    np.testing.assert_array_equal(lies, AFFINE)
    np.testing.assert_array_equal(turned(array, turn), values)


def test_nifti_without_an_affine_lies_as_another(tmp_path, save_nifti):
    array = RNG.integers(0, 9, (4, 5, 6)).astype(np.uint8)
    image = save_nifti(tmp_path / "i.nii", array, AFFINE)
    lost = save_nifti(tmp_path / "m.nii", array)
    np.testing.assert_array_equal(read_nifti_labels(lost), array)
    np.testing.assert_array_equal(read_nifti_labels(lost, like=image), array[::-1].transpose(0, 2, 1))
    assert read_nifti_header(lost, like=image)[0] == (4, 6, 5)


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
    for name in ("a.nii.gz", "b.nii.gz"):
        with pytest.raises(UserError, match=f"{name}: is truncated or damaged, or is no NIfTI file"):
            read_nifti(tmp_path / name)
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
