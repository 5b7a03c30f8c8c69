"""Volumes in the formats of scanners and of other programs, written for tests by SimpleITK and pydicom."""

import warnings

import numpy as np
import SimpleITK

COSINE, SINE = np.cos(0.4), np.sin(0.4)
OBLIQUE = np.array([[COSINE, -SINE * 0.8, SINE * 0.6], [SINE, COSINE * 0.8, -COSINE * 0.6], [0, 0.6, 0.8]])
DIRECTIONS = {
    "plain": np.eye(3),
    "flipped": np.diag([-1.0, 1, -1]),
    "sagittal": np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "oblique": OBLIQUE,
}
SPACING, ORIGIN = (0.7, 1.3, 2.9), (4.0, -5.0, 6.5)


def itk_volume(values, directions=OBLIQUE, spacing=SPACING, origin=ORIGIN):
    """SimpleITK's image of an array [X, Y, Z] or [X, Y] in a place (LPS)."""
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(values.T))
    image.SetSpacing(spacing[: values.ndim])
    image.SetOrigin(origin[: values.ndim])
    if values.ndim == 3:
        image.SetDirection(np.asarray(directions).ravel())
    return image


def write_volume_as(path, values, directions=OBLIQUE, compressed=False, **place):
    """Write an array [X, Y, Z] or [X, Y] by SimpleITK; the suffix is the format. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(itk_volume(values, directions, **place), str(path), compressed)
    return path


def write_slice(path, pixels, position=None, directions=OBLIQUE, spacing=SPACING, series="1.2.3", **fields):
    """Write a DICOM file of one slice, pixels [X, Y] with 16 bits. position: in LPS; fields: further elements."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = fields.pop("syntax", ExplicitVRLittleEndian)
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", generate_uid()
    data.SeriesInstanceUID, data.Modality = series, "CT"
    data.Columns, data.Rows = pixels.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelSpacing = [spacing[1], spacing[0]]  # between rows, then between columns
    if position is not None:
        data.ImagePositionPatient = [float(number) for number in position]
        data.ImageOrientationPatient = [float(number) for number in np.asarray(directions)[:, :2].T.ravel()]
    data.PixelData = fields.pop("content", np.ascontiguousarray(pixels.swapaxes(0, 1)).tobytes())
    for name, value in fields.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(path, enforce_file_format=True)
    return path


def write_series(folder, values, directions=OBLIQUE, spacing=SPACING, origin=ORIGIN, **fields):
    """Write an array [X, Y, Z] as a DICOM series whose files are not in the order of the slices. Returns the folder."""
    order = np.random.default_rng(7).permutation(values.shape[2])
    for number, k in enumerate(order):
        position = np.array(origin) + np.asarray(directions)[:, 2] * spacing[2] * k
        write_slice(folder / f"IM{number:04d}.dcm", values[..., k], position, directions, spacing, **fields)
    return folder
