"""DICOM series against SimpleITK, enhanced files, single images, and what is refused."""

import sys

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless
from volume_files import DIRECTIONS, ORIGIN, SPACING, write_series, write_slice

from guided_diffusion.io import dicom
from guided_diffusion.io.dicom import is_series, open_dicom
from guided_diffusion.io.nifti import nifti_sample, read_nifti
from guided_diffusion.io.volume_formats import open_volume
from guided_diffusion.runtime.errors import UserError

VALUES = np.random.default_rng(0).integers(0, 3000, (7, 6, 5)).astype(np.uint16)
HU = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def by_itk(folder):
    """SimpleITK's (array [X, Y, Z], affine) of a series."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    SimpleITK.WriteImage(reader.Execute(), str(folder.parent / "itk.nii"))
    image = nibabel.load(folder.parent / "itk.nii")
    return image.get_fdata(), image.affine


@pytest.mark.parametrize("place", DIRECTIONS)
def test_values_and_place_are_those_of_simpleitk(tmp_path, place):
    folder = write_series(tmp_path / "P07", VALUES, DIRECTIONS[place], **HU)
    values, affine = by_itk(folder)
    opened = open_volume(folder)
    assert np.array_equal(np.asarray(opened.dataobj), values) and values.min() < -900
    assert np.allclose(opened.affine, affine, atol=1e-4)
    assert np.array_equal(read_nifti(folder)[0], read_nifti(tmp_path / "itk.nii")[0])


def test_stored_values_stay_whole_where_nothing_rescales_them(tmp_path):
    opened = open_dicom(write_series(tmp_path / "s", VALUES))
    assert opened.get_data_dtype() == np.uint16 and np.array_equal(np.asarray(opened.dataobj), VALUES)
    signed = (VALUES - 1500).astype(np.int16)
    assert np.array_equal(np.asarray(open_dicom(write_series(tmp_path / "t", signed)).dataobj), signed)


def test_each_slice_has_its_own_rescaling(tmp_path):
    for k in range(3):
        place = {"position": (0, 0, 2 * k), "directions": np.eye(3)}
        write_slice(tmp_path / f"{k}.dcm", VALUES[..., k], **place, RescaleSlope=0.5 + k, RescaleIntercept=k)
    expected = VALUES[..., :3] * (0.5 + np.arange(3)) + np.arange(3)
    assert np.allclose(np.asarray(open_dicom(tmp_path).dataobj), expected)


def test_a_tilted_gantry_gives_a_shear(tmp_path):
    for k in range(4):
        write_slice(tmp_path / f"{k}", VALUES[..., k], (0, 1.5 * k, 5 * k), np.eye(3))
    opened = open_dicom(tmp_path)
    assert np.allclose(opened.affine[:3, 2], (0, -1.5, 5)) and opened.header["qform_code"] == 0


def test_only_the_first_slices_are_decoded_for_a_look(tmp_path, monkeypatch):
    folder, decoded = write_series(tmp_path / "s", VALUES), []
    original = dicom._pixels_of
    monkeypatch.setattr(dicom, "_pixels_of", lambda frame: decoded.append(frame) or original(frame))
    assert nifti_sample(folder, 2 * 42)[0].size == 2 * 42 and len(decoded) == 2


def test_files_without_a_suffix_and_other_files_beside_them(tmp_path):
    folder = write_series(tmp_path / "1.2.840.17", VALUES)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"1.2.840.17.{number}")
    (folder / "LICENSE").write_text("free")
    (folder / "DICOMDIR").write_bytes(b"x")
    (folder / "series.json").write_text("{}")
    assert is_series(folder) and np.array_equal(np.asarray(open_dicom(folder).dataobj), VALUES)


def test_what_is_no_series(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "a.dcm").write_bytes(b"no DICOM")
    write_slice(tmp_path / "xray" / "a.dcm", VALUES[..., 0])  # no place in space
    for name in ("empty", "named", "xray", "absent"):
        assert not is_series(tmp_path / name)


# ---- single images and enhanced files ---------------------------------------------------------------------------


def test_an_image_without_a_place_is_two_dimensional_and_white_is_high(tmp_path):
    fields = {"Modality": "DX", "BitsStored": 12, "HighBit": 11, "spacing": (0.2, 0.1, 1)}
    path = write_slice(tmp_path / "a.dcm", VALUES[..., 0], **fields, PhotometricInterpretation="MONOCHROME1")
    opened = open_volume(path)
    assert opened.shape == (7, 6, 1) and np.allclose(opened.header.get_zooms()[:2], (0.2, 0.1))
    assert np.array_equal(np.asarray(opened.dataobj)[..., 0], 4095 - VALUES[..., 0])
    path = write_slice(tmp_path / "b.dcm", VALUES[..., 0], PhotometricInterpretation="MONOCHROME1", **HU)  # HU stay HU
    assert np.array_equal(np.asarray(open_volume(path).dataobj)[..., 0], VALUES[..., 0] - 1024.0)


def enhanced(path, order=(2, 0, 3, 1), **fields):
    """A file of several frames, in this order of slices, with a rescaling of its own for each."""
    shared, frames = Dataset(), []
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    for k in order:
        frame, position, transform = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [ORIGIN[0], ORIGIN[1], ORIGIN[2] + 2 * k]
        transform.RescaleSlope, transform.RescaleIntercept = 1, -k
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [transform]
        frames.append(frame)
    content = b"".join(VALUES[..., k].T.tobytes() for k in order)
    fields = {"PerFrameFunctionalGroupsSequence": frames, "SharedFunctionalGroupsSequence": [shared], **fields}
    return write_slice(path, VALUES[..., 0], content=content, NumberOfFrames=len(order), **fields)


def test_an_enhanced_file_is_a_volume(tmp_path):
    opened = open_volume(enhanced(tmp_path / "a.dcm"))
    assert np.array_equal(np.asarray(opened.dataobj), VALUES[..., :4] - np.arange(4.0))
    assert np.allclose(opened.affine, [[-0.7, 0, 0, -4], [0, -1.3, 0, 5], [0, 0, 2, 6.5], [0, 0, 0, 1]])
    assert not is_series(tmp_path)


# ---- what is refused --------------------------------------------------------------------------------------------


def place(k=0, directions=DIRECTIONS["plain"]):
    return {"position": (0, 0, 3 * k), "directions": directions}


WRONG = {
    "two series": ({"series": "1.2.4"}, place(5), "holds 2 DICOM series"),
    "another size": ({"pixels": VALUES[:5, :, 0]}, place(5), "has 5x6 pixels, but .* has 7x6"),
    "another plane": ({}, place(5, DIRECTIONS["oblique"]), "lies in another plane"),
    "the same place": ({}, place(2), "1 slice lies at the place of another, as 2.dcm and 9.dcm"),
    "a gap": ({}, place(7), "lie 9 mm apart, the other slices 3 mm"),
    "aside": ({}, {"position": (4, 0, 15), "directions": np.eye(3)}, "do not lie along a line"),
    "no place": ({}, {}, "has no ImagePositionPatient"),
    "colours": ({"PhotometricInterpretation": "RGB"}, place(5), "is a DICOM file in colour"),
    "a film": ({"NumberOfFrames": 3}, place(5), "is a DICOM film of 3 frames"),
    "single bits": ({"BitsAllocated": 1}, place(5), "has 1 bits for each pixel"),
    "no spacing": ({"PixelSpacing": ["0", "0"]}, place(5), "header is damaged|another spacing"),
    "short": ({"content": b"\0\0"}, place(5), "truncated or damaged"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_series_that_is_no_even_volume_is_one_line(tmp_path, name):
    fields, position, line = WRONG[name]
    folder = tmp_path / "s"
    for k in range(5):
        write_slice(folder / f"{k}.dcm", VALUES[..., k], **place(k))
    fields = {"pixels": VALUES[..., 0], **position, **fields}
    write_slice(folder / "9.dcm", **fields)
    with pytest.raises(UserError, match=line) as raised:
        np.asarray(open_volume(folder).dataobj)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_the_missing_decoder_is_named(tmp_path, monkeypatch):
    folder, content = tmp_path / "s", encapsulate([b"\xff\x4f"])
    write_slice(folder / "0.dcm", VALUES[..., 0], **place(), syntax=JPEG2000Lossless, content=content)
    monkeypatch.setattr(Decoder, "is_available", property(lambda self: False))
    with pytest.raises(UserError, match=r"0.dcm: is compressed as JPEG 2000 .*pip install 'pylibjpeg\[all\]'"):
        np.asarray(open_volume(folder).dataobj)


def test_compressed_slices_are_decoded(tmp_path):
    folder = write_series(tmp_path / "s", VALUES)
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        data.compress(RLELossless)
        data.save_as(path)
    assert np.array_equal(np.asarray(open_volume(folder).dataobj), VALUES)


def test_damaged_files(tmp_path, truncate):
    folder = write_series(tmp_path / "s", VALUES)
    truncate(folder / "IM0002.dcm", 0.9)
    with pytest.raises(UserError, match="IM0002.dcm: is truncated or damaged"):
        np.asarray(open_volume(folder).dataobj)
    (folder / "IM0003.dcm").write_bytes(b"text")
    with pytest.raises(UserError, match="IM0003.dcm: is a text that begins .text., no DICOM file"):
        open_volume(folder)


def test_a_deflated_data_set_is_not_unpacked(tmp_path):
    path = write_slice(tmp_path / "a.dcm", VALUES[..., 0], **place(), syntax=DeflatedExplicitVRLittleEndian)
    with pytest.raises(UserError, match="a.dcm: is deflated as a whole"):
        open_volume(path)


def test_without_pydicom_one_line_says_what_to_install(tmp_path, monkeypatch):
    folder = write_series(tmp_path / "s", VALUES)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    dicom._is_series.cache_clear()
    dicom._series.cache_clear()
    assert is_series(folder)
    with pytest.raises(UserError, match=r"pip install 'guided_diffusion\[medical\]'"):
        open_volume(folder)
    dicom._is_series.cache_clear()


def test_an_element_that_cannot_be_decoded(tmp_path):
    """pydicom decodes each element only when it is asked for."""
    path = write_slice(tmp_path / "a.dcm", VALUES[..., 0], **place())
    content = path.read_bytes()
    assert content.count(b"\x28\0\x02\0US") == 1  # SamplesPerPixel
    path.write_bytes(content.replace(b"\x28\0\x02\0US", b"\x28\0\x02\0U_"))
    with pytest.raises(UserError, match="a.dcm: its DICOM header is damaged"):
        open_volume(path)
