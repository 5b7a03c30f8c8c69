"""What several test files share: tiny pictures and volumes on disk."""

import nibabel
import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def save_picture():
    """A function (path, array) that writes a picture in the format of its suffix, makes the folder, returns path."""

    def save(path, array, **options):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(array)).save(path, **options)
        return path

    return save


@pytest.fixture
def save_nifti():
    """A function (path, array, affine) that writes a NIfTI file, makes the folder, returns path."""

    def save(path, array, affine=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(np.asarray(array), np.eye(4) if affine is None else affine), path)
        return path

    return save


@pytest.fixture
def truncate():
    """A function (path, fraction) that cuts a file short, as a broken download does."""

    def cut(path, fraction=0.5):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * fraction)])
        return path

    return cut


@pytest.fixture
def reads(monkeypatch):
    """A list to which the file name is added whenever a NIfTI file's data (not only its header) are decoded."""
    names = []
    original = nibabel.Nifti1Image.get_fdata

    def counted(image, *args, **keywords):
        names.append(image.get_filename().rpartition("/")[2])
        return original(image, *args, **keywords)

    monkeypatch.setattr(nibabel.Nifti1Image, "get_fdata", counted)
    return names
