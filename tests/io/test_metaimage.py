"""MetaImage files against SimpleITK, and headers that lie."""

import nibabel
import numpy as np
import pytest
import SimpleITK
from volume_files import DIRECTIONS, write_volume_as

from guided_diffusion.io.metaimage import metaimage_data_file, open_metaimage
from guided_diffusion.io.nifti import read_nifti, read_nifti_labels
from guided_diffusion.io.volume_formats import open_volume
from guided_diffusion.runtime.errors import UserError

RNG = np.random.default_rng(0)
KINDS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
@pytest.mark.parametrize("place", DIRECTIONS)
def test_values_and_place_are_those_of_simpleitk(tmp_path, suffix, place):
    values = RNG.integers(-999, 999, (5, 6, 7)).astype(np.int16)
    for compressed in (False, True):
        path = write_volume_as(tmp_path / f"v{suffix}", values, DIRECTIONS[place], compressed)
        reference = nibabel.load(write_volume_as(tmp_path / "v.nii", values, DIRECTIONS[place]))
        opened = open_metaimage(path)
        assert np.array_equal(np.asarray(opened.dataobj), values)
        assert np.allclose(opened.affine, reference.affine, atol=1e-5)
        for ours, its in zip(read_nifti(path), read_nifti(tmp_path / "v.nii"), strict=True):
            assert np.allclose(ours, its, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_of_values(tmp_path, kind):
    values = RNG.integers(0, 100, (5, 6, 7)).astype(kind)
    path = write_volume_as(tmp_path / "v.mha", values)
    assert open_metaimage(path).get_data_dtype() == values.dtype
    assert np.array_equal(read_nifti_labels(path), read_nifti_labels(write_volume_as(tmp_path / "v.nii", values)))


def test_pictures_and_channels(tmp_path):
    flat = RNG.random((5, 6)).astype(np.float32)
    opened = open_metaimage(write_volume_as(tmp_path / "flat.mha", flat))
    assert np.array_equal(np.asarray(opened.dataobj), flat) and np.allclose(opened.header.get_zooms(), (0.7, 1.3))
    several = RNG.random((7, 6, 5, 3)).astype(np.float32)  # [Z, Y, X, C]
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(several, isVector=True), str(tmp_path / "v.mha"))
    assert np.array_equal(np.asarray(open_metaimage(tmp_path / "v.mha").dataobj), several.transpose(2, 1, 0, 3))


HEADER = "NDims = 3\nDimSize = 2 3 4\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"


def made(tmp_path, header=HEADER, values=bytes(24)):
    path = tmp_path / "v.mha"
    path.write_bytes(header.encode() + values)
    return path


def test_a_header_without_a_place_lies_as_in_itk(tmp_path):
    path = made(tmp_path, HEADER, bytes(range(24)))
    itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    assert np.array_equal(np.asarray(open_metaimage(path).dataobj), itk.T)
    assert np.array_equal(open_metaimage(path).affine, np.diag([-1, -1, 1, 1]))


def test_big_endian_values(tmp_path):
    header = HEADER.replace("MET_UCHAR", "MET_SHORT").replace("NDims", "BinaryDataByteOrderMSB = True\nNDims")
    path = made(tmp_path, header, np.arange(24, dtype=">i2").tobytes())
    assert np.array_equal(read_nifti_labels(path).sum(), 276)
    assert np.array_equal(
        np.asarray(open_metaimage(path).dataobj), SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).T
    )


WRONG = {
    "DimSize = 2 3": ("NDims is 3 and DimSize 2 3", "DimSize = 2 3 4"),
    "DimSize = 2 3 -4": ("DimSize 2 3 -4", "DimSize = 2 3 4"),
    "DimSize = 2 3 x": ("DimSize is '2 3 x'", "DimSize = 2 3 4"),
    "DimSize = 9999 9999 9999": ("claims 999700029999 bytes of values", "DimSize = 2 3 4"),
    "ElementType = MET_STRING": ("ElementType is 'MET_STRING'", "ElementType = MET_UCHAR"),
    "NDims = 3\nOffset = 1 2": ("Offset has 2 numbers for 3 axes", "NDims = 3"),
    "NDims = 3\nBinaryData = False": ("save it in binary form", "NDims = 3"),
    "ElementDataFile = LIST": ("a file for each slice", "ElementDataFile = LOCAL"),
    "ElementDataFile = slice%03d.raw": ("a file for each slice", "ElementDataFile = LOCAL"),
    "ElementDataFile = ../../secret": ("not below its own folder", "ElementDataFile = LOCAL"),
    "ElementDataFile = lost.raw": ("there is no such file", "ElementDataFile = LOCAL"),
    "NDims = 3\nElementToIntensityFunctionSlope = 2": ("intensity function", "NDims = 3"),
    "NDims = 3\nCompressedData = True": ("truncated or damaged", "NDims = 3"),
    "": ("has no ElementDataFile", "ElementDataFile = LOCAL\n"),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_header_that_makes_no_sense_is_one_line(tmp_path, text):
    line, place = WRONG[text]
    path = made(tmp_path, HEADER.replace(place, text))
    with pytest.raises(UserError, match=r"v\.mha: ") as raised:
        read_nifti(path)
    assert line in str(raised.value) and "\n" not in str(raised.value)


def test_a_truncated_file(tmp_path, truncate):
    for compressed in (False, True):
        values = RNG.integers(0, 255, (16, 16, 16)).astype(np.uint8)
        path = truncate(write_volume_as(tmp_path / "v.mha", values, compressed=compressed))
        with pytest.raises(UserError, match="truncated or damaged"):
            read_nifti(path)


def test_the_file_of_the_values(tmp_path):
    path = write_volume_as(tmp_path / "v.mhd", np.zeros((2, 3, 4), np.uint8))
    assert metaimage_data_file(path) == tmp_path / "v.raw" and metaimage_data_file(made(tmp_path)) is None
    (tmp_path / "v.raw").unlink()
    with pytest.raises(UserError, match="v.raw"):
        open_volume(path)
