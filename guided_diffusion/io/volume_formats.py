"""The formats of volumes: which files and folders are volumes, and one way to open them all."""

import os
from pathlib import Path

from .dicom import DICOM_SUFFIXES, is_series, open_dicom
from .files import decoding, split_suffix
from .images import PICTURE_SUFFIXES
from .metaimage import METAIMAGE_SUFFIXES, metaimage_data_file, open_metaimage
from .nifti_header import open_nifti
from .nrrd import NRRD_SUFFIXES, nrrd_data_file, open_nrrd

NIFTI_SUFFIXES = (".nii", ".nii.gz")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, *NRRD_SUFFIXES, *METAIMAGE_SUFFIXES, *DICOM_SUFFIXES)
OTHER_OPENERS = {
    **dict.fromkeys(NRRD_SUFFIXES, ("NRRD file", open_nrrd)),
    **dict.fromkeys(METAIMAGE_SUFFIXES, ("MetaImage file", open_metaimage)),
    **dict.fromkeys(DICOM_SUFFIXES, ("DICOM file", open_dicom)),
}


def is_nifti(path):
    """Whether a file's name has the suffix of NIfTI."""
    return split_suffix(path)[1].lower() in NIFTI_SUFFIXES


def is_volume_path(path):
    """Whether a path is a volume, or a 2-D image of a volume's formats: by a file's suffix, or a folder of slices."""
    suffix = split_suffix(path)[1].lower()
    return suffix in VOLUME_SUFFIXES or (suffix not in PICTURE_SUFFIXES and is_series(path))


def open_volume(path):
    """nibabel's image of a NIfTI, NRRD, MetaImage or DICOM file, or of a folder of DICOM slices.

    No values are decoded: its `dataobj` gives them when they are asked for. Raises `UserError` for a missing or damaged
    file and for a form that is not read.
    """
    if os.path.isdir(path) and is_series(path):
        return open_dicom(path)
    kind, opener = OTHER_OPENERS.get(split_suffix(path)[1].lower(), ("", None))
    if opener is None:
        return open_nifti(path)[0]
    with decoding(path, kind):
        return opener(Path(path))


def data_files(path):
    """The files beside a volume's header that hold its values, as x.raw of x.mhd: a tuple, () for the other formats and
    for a header that cannot be read."""
    suffix = split_suffix(path)[1].lower()
    find = {".mhd": metaimage_data_file, ".nhdr": nrrd_data_file}.get(suffix)
    try:
        found = find(Path(path)) if find else None
    except Exception:  # opening the volume gives the message
        return ()
    return () if found is None else (found,)
