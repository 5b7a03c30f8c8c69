"""The content of NIfTI files: read whatever their name, or named for what they are."""

import bz2
import gzip
import logging
import lzma
import shutil
import zipfile

import nibabel
import numpy as np
import pytest
from PIL import Image

from guided_diffusion.io.nifti import nifti_notes, read_nifti, read_nifti_channels, read_nifti_header
from guided_diffusion.io.nifti_header import Placement, forms_apart, length_unit
from guided_diffusion.runtime.errors import UserError

RNG = np.random.default_rng(0)
ARRAY = RNG.random((4, 5, 6)).astype(np.float32)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


@pytest.fixture
def plain(tmp_path):
    """A plain NIfTI file."""
    nibabel.save(nibabel.Nifti1Image(ARRAY, AFFINE), tmp_path / "plain.nii")
    return tmp_path / "plain.nii"


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(
    "stored, named", [(".nii", "x.nii.gz"), (".nii.gz", "x.nii"), (".nii", "X.NII"), (".nii.gz", "X.NII.GZ")]
)
def test_the_content_decides_not_the_name(tmp_path, kind, stored, named):
    nibabel.save(kind(ARRAY, AFFINE), tmp_path / f"t{stored}")
    path = shutil.move(tmp_path / f"t{stored}", tmp_path / named)
    for _ in range(2):  # whatever the first reading left open
        np.testing.assert_array_equal(read_nifti(path)[0], ARRAY)
    assert read_nifti_header(path)[0] == ARRAY.shape


def test_big_endian_files_are_read(tmp_path):
    image = nibabel.Nifti1Image(ARRAY, AFFINE).header.as_byteswapped(">")
    nibabel.save(nibabel.Nifti1Image(ARRAY, AFFINE, image), tmp_path / "b.nii")
    np.testing.assert_array_equal(read_nifti(tmp_path / "b.nii")[0], ARRAY)
    placement = Placement.of_header(nibabel.load(tmp_path / "b.nii").header)
    np.testing.assert_array_equal(placement.header().get_best_affine(), AFFINE)


def test_a_wrong_size_of_the_header_alone_does_not_matter(plain):
    data = bytearray(plain.read_bytes())
    data[:4] = bytes(4)
    plain.write_bytes(data)
    np.testing.assert_array_equal(read_nifti(plain)[0], ARRAY)


def test_a_second_version_cut_short_is_refused(tmp_path):
    nibabel.save(nibabel.Nifti2Image(ARRAY, AFFINE), tmp_path / "b.nii")
    (tmp_path / "b.nii").write_bytes((tmp_path / "b.nii").read_bytes()[:400])
    with pytest.raises(UserError, match="b.nii: is truncated or damaged"):
        read_nifti_header(tmp_path / "b.nii")


def picture(kind):
    def make(path, _):
        Image.fromarray(np.zeros((40, 40), np.uint8)).save(path, kind)

    return make


def zipped(path, data):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.nii", data)


def analyze(path, _):
    nibabel.save(nibabel.AnalyzeImage(ARRAY, AFFINE), path.with_suffix(".img"))
    shutil.copy(path.with_suffix(".hdr"), path)


def pair(path, _):
    nibabel.save(nibabel.Nifti1Pair(ARRAY, AFFINE), path.with_suffix(".img"))
    shutil.copy(path.with_suffix(".hdr"), path)


def freesurfer(path, _):
    nibabel.save(nibabel.MGHImage(ARRAY, AFFINE), path.with_name("x.mgz"))
    shutil.copy(path.with_name("x.mgz"), path)


def of_type(kind):
    def make(path, _):
        nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), kind), AFFINE), path)

    return make


RGB = [("R", "u1"), ("G", "u1"), ("B", "u1")]
OTHERS = {
    "bzip2": (lambda path, data: path.write_bytes(bz2.compress(data)), "is compressed by bzip2, no NIfTI file; unpack"),
    "xz": (lambda path, data: path.write_bytes(lzma.compress(data)), "is compressed by xz, no NIfTI file; unpack"),
    "zstd": (lambda path, data: path.write_bytes(b"\x28\xb5\x2f\xfd" + data), "is compressed by Zstandard"),
    "zip": (zipped, "is a zip archive"),
    "twice": (lambda path, data: path.write_bytes(gzip.compress(gzip.compress(data))), "is compressed twice by gzip"),
    "lfs": (lambda path, _: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "is a placeholder of Git"),
    "web": (lambda path, _: path.write_text("\n<!DOCTYPE html><title>Sign in</title>"), "is a web page"),
    "DICOM": (lambda path, _: path.write_bytes(bytes(128) + b"DICM" + bytes(500)), "is a DICOM file"),
    "PNG": (picture("PNG"), "is a PNG picture"),
    "HDF5": (lambda path, _: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500)), "is an HDF5 or MINC file"),
    "short": (lambda path, data: path.write_bytes(data[:200]), "is truncated or damaged, or is no NIfTI file"),
    "empty": (lambda path, _: path.write_bytes(b""), "is truncated or damaged: it is empty; copy it again"),
    "Analyze": (analyze, "is an Analyze header without the mark of NIfTI"),
    "pair": (pair, "is the header of a pair .hdr and .img; save the two as one file .nii.gz"),
    "MGZ": (freesurfer, "is an MGH file of FreeSurfer, no NIfTI file; convert it by mri_convert"),
    "RGB24": (of_type(RGB), r"holds colours \(RGB24\), not a grey value for each voxel; save it in grey"),
    "RGBA32": (of_type([*RGB, ("A", "u1")]), r"holds colours \(RGBA32\)"),
    "complex": (of_type(np.complex64), "holds complex numbers, .*; save their magnitude"),
    "noise": (lambda path, _: path.write_bytes(b"\x07\x80no" * 100), "is truncated or damaged, or is no NIfTI file"),
    "text": (lambda path, _: path.write_bytes(b"not an image" * 100), "is a text that begins 'not an image"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_content_is_named(tmp_path, plain, name):
    make, words = OTHERS[name]
    path = tmp_path / "x.nii"
    make(path, plain.read_bytes())
    for read in (read_nifti, read_nifti_header):
        with pytest.raises(UserError, match=f"^{path}: {words}") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_a_file_cut_short_is_truncated(tmp_path, plain):
    packed = gzip.compress(plain.read_bytes())
    for data, name in ((packed[: len(packed) // 2], "half.nii.gz"), (plain.read_bytes()[:500], "half.nii")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f"{name}: is truncated or damaged.*; copy it again"):
            read_nifti(tmp_path / name)
    assert read_nifti_header(tmp_path / "half.nii.gz")[0] == (4, 5, 6)


@pytest.mark.parametrize("place, value, words", [
    (42, np.int16(-4), "its header is damaged: it gives 3 axes of lengths -4, 5, 6"),
    (44, np.int16(0), "its header is damaged: it gives 3 axes of lengths 4, 0, 6"),
    (40, np.int16(0), "its header is damaged: it gives 0 axes"),
    (40, np.int16(99), "its header is damaged: it gives 99 axes"),
    (108, np.float32(0), "its header is damaged: it has the values begin at byte 0, within the header"),
    (108, np.float32(np.nan), "its header is damaged: it has the values begin at byte nan, within the header"),
    (70, np.int16(12345), "is truncated or damaged, or is no NIfTI file .*data code 12345"),
    (108, np.float32(1e9), "its header is damaged: it has the values begin at byte 1e\\+09"),
    (108, np.float32(8), "it has the values begin at byte 8, within the header"),
    (280, np.float32(0), "its affine places no volume in space"),
])  # fmt: skip
def test_fields_that_make_no_sense_are_named(plain, place, value, words):
    data = bytearray(plain.read_bytes())
    data[place : place + value.nbytes] = value.tobytes()
    plain.write_bytes(data)
    with pytest.raises(UserError, match=words) as caught:
        read_nifti(plain)
    assert "\n" not in str(caught.value)


def test_a_header_that_nibabel_mends_prints_nothing(plain):
    printed, handler = [], logging.Handler()
    handler.emit = printed.append
    data = bytearray(plain.read_bytes())
    data[80:92] = bytes(12)  # the sizes of the voxels, beside a proper sform
    plain.write_bytes(data)
    nibabel.imageglobals.logger.addHandler(handler)
    assert read_nifti_header(plain)[0] == (4, 5, 6)
    nibabel.imageglobals.logger.removeHandler(handler)
    assert not printed


def test_a_qform_that_is_no_rotation(plain):
    data = bytearray(plain.read_bytes())
    data[256:264] = np.array([9, 9], np.float32).tobytes()  # quatern_b, quatern_c
    data[252:254] = np.int16(1).tobytes()  # qform_code
    plain.write_bytes(data)
    assert nifti_notes(plain)["forms"].startswith(f"{plain}: its qform is no rotation: the sform counts here")
    np.testing.assert_array_equal(read_nifti(plain)[0], ARRAY)
    data[254:256] = np.int16(0).tobytes()  # sform_code
    plain.write_bytes(data)
    with pytest.raises(UserError, match="its qform places no volume in space .*; save it with the right one"):
        read_nifti(plain)


def test_values_that_float32_cannot_hold_are_named(tmp_path):
    array = np.ones((4, 5, 2))
    array[0, 0, 0] = 1e300
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / "l.nii")
    with pytest.raises(UserError, match=r"l.nii: holds values up to 1e\+300, which are beyond the range of float32; "):
        read_nifti_channels(tmp_path / "l.nii")
    array[0, 0, 0], array[0, 0, 1] = np.nan, np.inf
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / "n.nii")
    with pytest.raises(UserError, match=r"n.nii: holds values that are not finite \(NaN or infinite in 5 % of its vox"):
        read_nifti_channels(tmp_path / "n.nii")
    array[:] = 3e38
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / "h.nii")
    assert np.isfinite(read_nifti_channels(tmp_path / "h.nii")).all()


def test_units_and_forms():
    header = nibabel.Nifti1Image(ARRAY, AFFINE).header
    for unit, expected in (("mm", (1, "")), ("unknown", (1, "")), ("micron", (0.001, "micrometres"))):
        header.set_xyzt_units(unit)
        assert length_unit(header) == expected
    assert forms_apart(header, ARRAY.shape) == 0  # no qform
    moved = AFFINE.copy()
    moved[:3, 3] = 3000, 4000, 0
    header.set_sform(AFFINE, 1), header.set_qform(moved, 1)
    assert forms_apart(header, ARRAY.shape) == pytest.approx(5)  # micrometres
