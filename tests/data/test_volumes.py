"""Volumes: files decoded once, and what a check of the data says of them."""

import numpy as np
import pytest
from conftest import BODY, mri

from guided_diffusion.data.cases import Case
from guided_diffusion.data.check import findings, training_findings
from guided_diffusion.data.dataset import SegmentationDataset
from guided_diffusion.data.inspection import Inspections, find_parts
from guided_diffusion.data.intensities import zscore
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.volume_cache import VolumeCache
from guided_diffusion.runtime.errors import UserError


def test_cache_stays_within_its_bytes_and_drops_the_least_recently_used():
    decoded = []

    def decode(key):
        decoded.append(key)
        return np.zeros(100, np.uint8)

    cache = VolumeCache(250)
    for key in "abacab":
        cache.get(key, decode)
        assert cache.used <= 250
    assert decoded == ["a", "b", "c", "b"]


# ---- what a check says -------------------------------------------------------------------------------------------


SHAPE = BODY.shape


def test_a_check_says_what_flattens_an_image_and_what_is_empty(volumes):
    bright = mri().astype(np.float32)
    bright[7, 7, 3] = 1e6
    huge = mri() * np.float32(1e30)
    folder = volumes(mri(), bright, np.zeros(SHAPE, np.int16), np.full(SHAPE, 7, np.int16), huge)
    (part,) = find_parts("FOLDER", folder)
    part.inspections = [Inspections(part.dataset)[k] for k in range(5)]
    said = [str(finding) for finding in findings([part]) if "volume" in str(finding) or "one value" in str(finding)]
    assert said == [
        "warning: all: 2 images of one value alone: v2, v3",
        "warning: all: 1 volume nearly flat as z-scores, since a few values lie far from all others: v1; clip these "
        "values or leave the volumes out",
    ]
    np.testing.assert_allclose(zscore(huge), zscore(mri().astype(np.float32)), atol=1e-4)


def test_a_check_names_every_header_that_cannot_be_read_training_the_first(volumes):
    folder = volumes(mri(), mri(1), mri(2), mri(3))
    for number in (0, 2):
        (folder / "images" / f"v{number}.nii.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"v0.nii.gz: is truncated .*\(2 volumes in all cannot be read: python scripts"):
        build_dataset("FOLDER", folder, 16, need_masks=True)
    (part,) = find_parts("FOLDER", folder)
    part.inspections = [Inspections(part.dataset)[k] for k in range(4)]
    errors = [str(finding) for finding in findings([part]) if finding.is_error]
    assert len(errors) == 2 and "v0.nii.gz: is truncated" in errors[0] and "v2.nii.gz: is truncated" in errors[1]
    assert part.dataset.image_channels == 1


def test_where_no_header_can_be_read_a_check_still_names_all(volumes):
    folder = volumes(mri(), mri(1))
    for path in (folder / "images").iterdir():
        path.write_bytes(b"BZh")
    (part,) = find_parts("FOLDER", folder)
    part.inspections = [Inspections(part.dataset)[k] for k in range(2)]
    assert [one.problems[0].partition("is ")[2][:19] for one in part.inspections] == ["compressed by bzip2"] * 2


def test_a_check_names_masks_without_an_affine(volumes, save_nifti):
    folder = volumes(mri(), mri(1))
    for number in range(2):
        save_nifti(folder / "masks" / f"v{number}.nii.gz", BODY.astype(np.uint8))
    (part,) = find_parts("FOLDER", folder)
    part.inspections = [Inspections(part.dataset)[k] for k in range(2)]
    said = f"over its image: {folder / 'masks' / 'v0.nii.gz'} and 1 more"
    assert [str(one) for one in findings([part]) if "affine" in str(one)] == [
        f"warning: all: a file has lost its affine and is taken voxel for voxel {said}"
    ]
    assert [str(one) for one in training_findings(part)] == [
        f"warning: all: a file has lost its affine and is taken voxel for voxel {said}"
    ]


class Arrays(SegmentationDataset):
    """Volumes in .npy files."""

    image_channels = 1

    def find_cases(self):
        paths = sorted(self.data_dir.glob("*.npy"))
        return [Case(f"{p.stem}_{k}", (p,), (p,), volume=p.stem, slice_index=k) for p in paths for k in range(3)]

    def read_image(self, case):
        return np.load(case.images[0])[None, ..., case.slice_index]

    def read_mask(self, case):
        return np.load(case.masks[0])[None, None, ..., case.slice_index] > 0


def test_volumes_that_are_no_nifti_pass_a_check(tmp_path):
    np.save(tmp_path / "v.npy", mri()[..., :3])
    dataset = Arrays(tmp_path, 16)
    (found,) = [Inspections(dataset)[0]]
    assert found.problems == [] and found.elsewhere == ""
