"""What is a volume, and one door for all formats."""

import numpy as np
import pytest
from volume_files import OBLIQUE, ORIGIN, SPACING, write_series, write_volume_as

from guided_diffusion.data.volumes import VolumeReader
from guided_diffusion.io.nifti import read_nifti, read_nifti_onto
from guided_diffusion.io.volume_formats import VOLUME_SUFFIXES, data_files, is_nifti, is_volume_path, open_volume
from guided_diffusion.runtime.errors import UserError

VALUES = np.random.default_rng(0).integers(0, 99, (7, 6, 5)).astype(np.uint16)
WRITTEN = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


@pytest.mark.parametrize("suffix", VOLUME_SUFFIXES)
def test_a_suffix_says_what_a_file_is(suffix):
    assert is_volume_path(f"a/b.c{suffix}") and is_volume_path(f"B{suffix.upper()}")
    assert is_nifti(f"b{suffix}") == suffix.startswith(".nii")
    assert not is_volume_path(f"b{suffix}.txt")


def test_every_format_gives_the_same_volume(tmp_path):
    paths = [write_volume_as(tmp_path / suffix / f"v{suffix}", VALUES) for suffix in WRITTEN]
    paths.append(write_series(tmp_path / "dicom", VALUES))
    first, *others = map(read_nifti, paths)
    for other in others:
        assert np.array_equal(other[0], first[0]) and np.allclose(other[1], first[1], atol=1e-4)


def test_a_crop_in_another_format_is_brought_onto_its_image(tmp_path):
    """As the segmentations of 3D Slicer, which hold the box around the structure alone."""
    image = write_series(tmp_path / "P07", VALUES)
    origin = np.array(ORIGIN) + OBLIQUE @ (np.array(SPACING) * (2, 1, 1))
    crop = write_volume_as(tmp_path / "crop.nrrd", VALUES[2:6, 1:4, 1:3], origin=tuple(origin))
    geometry = VolumeReader().file_geometry(VolumeReader().cases("P07", [image])[0])
    expected = np.zeros_like(VALUES)
    expected[2:6, 1:4, 1:3] = VALUES[2:6, 1:4, 1:3]
    found = read_nifti_onto(crop, geometry, labels=True).values
    assert np.array_equal(geometry.as_in_file(found)[0], expected)


def test_files_of_values_beside_a_header(tmp_path):
    for suffix in WRITTEN:
        path = write_volume_as(tmp_path / suffix / f"v{suffix}", VALUES)
        assert data_files(path) == ((tmp_path / suffix / "v.raw",) if suffix in (".mhd", ".nhdr") else ())
    (tmp_path / "broken.mhd").write_bytes(b"x")
    assert data_files(tmp_path / "broken.mhd") == data_files(tmp_path / "absent.nhdr") == ()


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha", ".dcm"])
def test_a_file_that_is_not_there_or_is_another(tmp_path, suffix):
    path = tmp_path / f"v{suffix}"
    with pytest.raises(UserError, match="no such file"):
        open_volume(path)
    path.write_bytes(b"\x89PNG" + bytes(500))
    with pytest.raises(UserError, match="is a PNG picture"):
        open_volume(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        open_volume(path)
    with pytest.raises(UserError, match="is a folder, not a file"):
        open_volume(tmp_path)
