"""NRRD files against SimpleITK, and headers that lie."""

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK
from volume_files import DIRECTIONS, write_volume_as

from guided_diffusion.io.nifti import read_nifti, read_nifti_labels
from guided_diffusion.io.nrrd import nrrd_data_file, open_nrrd
from guided_diffusion.io.volume_formats import open_volume
from guided_diffusion.runtime.errors import UserError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr"])
@pytest.mark.parametrize("place", DIRECTIONS)
def test_values_and_place_are_those_of_simpleitk(tmp_path, suffix, place):
    values = RNG.integers(-999, 999, (5, 6, 7)).astype(np.int16)
    for compressed in (False, True):
        path = write_volume_as(tmp_path / f"v{suffix}", values, DIRECTIONS[place], compressed)
        reference = nibabel.load(write_volume_as(tmp_path / "v.nii", values, DIRECTIONS[place]))
        opened = open_nrrd(path)
        assert np.array_equal(np.asarray(opened.dataobj), values)
        assert np.allclose(opened.affine, reference.affine, atol=1e-5)
        for ours, its in zip(read_nifti(path), read_nifti(tmp_path / "v.nii"), strict=True):
            assert np.allclose(ours, its, atol=1e-4)


@pytest.mark.parametrize("kind", ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"))
def test_every_type_of_values(tmp_path, kind):
    values = RNG.integers(0, 100, (5, 6, 7)).astype(kind)
    path = write_volume_as(tmp_path / "v.nrrd", values)
    assert open_nrrd(path).get_data_dtype() == values.dtype
    assert np.array_equal(read_nifti_labels(path), read_nifti_labels(write_volume_as(tmp_path / "v.nii", values)))


HEADER = """NRRD0005
# as a program of its own may write it
type: unsigned char
dimension: 3
sizes: 2 3 4
encoding: raw
"""
PLACE = "space directions: (0,2,0) (3,0,0) (0,0,4)\nspace origin: (10,20,30)\n"


def made(tmp_path, header=HEADER, values=None):
    path = tmp_path / "v.nrrd"
    path.write_bytes(f"{header}\n".encode() + (bytes(range(24)) if values is None else values))
    return path


@pytest.mark.parametrize("space", ["right-anterior-superior", "RAS", "left-anterior-superior", "LPS", "3D-left-handed"])
def test_spaces(tmp_path, space):
    path = made(tmp_path, f"{HEADER}space: {space}\n{PLACE}")
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(tmp_path / "v.nii"))
    assert np.allclose(open_nrrd(path).affine, nibabel.load(tmp_path / "v.nii").affine, atol=1e-5)


def test_a_header_without_a_space_lies_as_in_itk(tmp_path):
    path = made(tmp_path, f"{HEADER}spacings: 2 3 4\n")
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(tmp_path / "v.nii"))
    assert np.allclose(open_nrrd(path).affine, nibabel.load(tmp_path / "v.nii").affine)
    assert np.array_equal(np.asarray(open_nrrd(path).dataobj), np.arange(24).reshape(2, 3, 4, order="F"))


def test_pictures_and_channels(tmp_path):
    flat = RNG.random((5, 6)).astype(np.float32)
    opened = open_nrrd(write_volume_as(tmp_path / "flat.nrrd", flat))
    assert np.array_equal(np.asarray(opened.dataobj), flat) and np.allclose(opened.header.get_zooms(), (0.7, 1.3))
    several = RNG.random((7, 6, 5, 3)).astype(np.float32)  # [Z, Y, X, C]
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(several, isVector=True), str(tmp_path / "v.nrrd"))
    assert np.array_equal(np.asarray(open_nrrd(tmp_path / "v.nrrd").dataobj), several.transpose(2, 1, 0, 3))
    four = HEADER.replace("dimension: 3", "dimension: 4").replace("2 3 4", "2 3 2 2")
    assert open_nrrd(made(tmp_path, f"{four}kinds: list domain domain domain\n")).shape == (3, 2, 2, 2)
    assert open_nrrd(made(tmp_path, four)).shape == (2, 3, 2, 2)


WRONG = {
    "sizes: 2 3": ("dimension is 3 and sizes 2 3", "sizes: 2 3 4"),
    "sizes: 2 3 0": ("sizes 2 3 0", "sizes: 2 3 4"),
    "sizes: 9999 9999 9999": ("claims 999700029999 bytes of values", "sizes: 2 3 4"),
    "type: block": ("its type is 'block'", "type: unsigned char"),
    "encoding: ascii": ("the encoding 'ascii'; save it as raw or gzip", "encoding: raw"),
    "encoding: gzip": ("truncated or damaged", "encoding: raw"),
    "encoding: raw\ndata file: ../x.raw": ("not below its own folder", "encoding: raw"),
    "encoding: raw\ndatafile: /etc/passwd": ("not below its own folder", "encoding: raw"),
    "encoding: raw\ndata file: LIST": ("a file for each slice", "encoding: raw"),
    "encoding: raw\nline skip: 3": ("skips lines", "encoding: raw"),
    "encoding: raw\nspace: scanner-xyz-time": ("an axis of time", "encoding: raw"),
    "encoding: raw\nspace directions: (1,0,0) (0,1,0)": ("2 space directions for 3 axes", "encoding: raw"),
    "encoding: raw\nspace directions: (1,0,0) (0,x,0) (0,0,1)": ("space directions is '0 x 0'", "encoding: raw"),
    "encoding: raw\nspacings: 1 2": ("2 spacings for 3 axes", "encoding: raw"),
    "encoding: raw\nspace directions: none none (0,0,1)": ("truncated or damaged|several axes", "encoding: raw"),
    "XRRD0005": ("is truncated or damaged, or is no NRRD file", "NRRD0005"),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_header_that_makes_no_sense_is_one_line(tmp_path, text):
    lines, place = WRONG[text]
    with pytest.raises(UserError, match=r"v\.nrrd: ") as raised:
        read_nifti(made(tmp_path, HEADER.replace(place, text)))
    assert any(line in str(raised.value) for line in lines.split("|")) and "\n" not in str(raised.value)


def test_a_small_file_that_unpacks_to_much_stops_at_its_claim(tmp_path):
    """10 MB of zeros in 10 KB, of which the header claims 24 bytes; and a claim beyond what gzip can hold."""
    path = made(tmp_path, HEADER.replace("raw", "gzip"), gzip.compress(bytes(10**7)))
    assert np.array_equal(np.asarray(open_nrrd(path).dataobj), np.zeros((2, 3, 4)))
    made(tmp_path, HEADER.replace("raw", "gzip").replace("2 3 4", "20000 30000 4"), gzip.compress(bytes(10**5)))
    with pytest.raises(UserError, match="claims 2400000000 bytes of values"):
        read_nifti(path)


def test_a_truncated_file(tmp_path, truncate):
    for compressed in (False, True):
        values = RNG.integers(0, 255, (16, 16, 16)).astype(np.uint8)
        path = truncate(write_volume_as(tmp_path / "v.nrrd", values, compressed=compressed))
        with pytest.raises(UserError, match="truncated or damaged"):
            read_nifti(path)


def test_the_file_of_the_values(tmp_path):
    path = write_volume_as(tmp_path / "v.nhdr", np.zeros((2, 3, 4), np.uint8))
    assert nrrd_data_file(path) == tmp_path / "v.raw" and nrrd_data_file(made(tmp_path)) is None


@pytest.mark.parametrize("field", ["byte skip: 10", "byteskip: 10", "byteskip: -1"])
def test_bytes_before_the_values_are_skipped(tmp_path, field):
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "v.raw").write_bytes(bytes(10) + values.tobytes(order="F"))
    header = ["NRRD0004", "type: uchar", "dimension: 3", "sizes: 2 3 4", "encoding: raw", field, "datafile: v.raw"]
    (tmp_path / "v.nhdr").write_text("\n".join(header) + "\n\n")
    assert np.array_equal(np.asarray(open_volume(tmp_path / "v.nhdr").dataobj), values)
