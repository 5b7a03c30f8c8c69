"""Intensities: z-scores, windows, and which of them the values suit."""

import json
import re

import numpy as np
import pytest
from conftest import BODY, mri

from guided_diffusion.config.options import DataOptions
from guided_diffusion.config.settings import trained_data
from guided_diffusion.data.compatibility import used_window
from guided_diffusion.data.intensities import zscore
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.runtime.errors import UserError


@pytest.mark.parametrize("value", [0.0, 7.0, 0.1, 1e4])
def test_zero_and_constant_channels_give_zeros(value):
    values = np.full((9, 7, 5), value, np.float32)
    values[0] = 0
    np.testing.assert_array_equal(zscore(values), np.zeros((9, 7, 5)))


def test_outliers_are_clipped():
    values = np.random.default_rng(0).normal(100, 1, (50, 50)).astype(np.float32)
    values[0, :2] = 1e4, -1e4
    scores = zscore(values)
    assert scores[0, 0] == 5 and scores[0, 1] == -5 and np.abs(scores).max() == 5


# ---- CT or not ---------------------------------------------------------------------------------------------------

SHAPE = BODY.shape


def ct(seed=0, low=-1000):
    """A volume in HU: air around a body with organs of -1, 0 and 1 HU and bone."""
    values = np.random.default_rng(seed).normal(40, 60, SHAPE)
    values[8:, 2:5] = np.arange(-1, 2)[:, None]
    values[9, 9] = 1200
    return np.where(BODY, values, low).round().astype(np.int16)


def phase(seed=0):
    return np.random.default_rng(seed).integers(-4096, 4096, SHAPE).astype(np.int16)


@pytest.mark.parametrize("values", [
    ct(), ct(low=-1024), ct().astype(np.float32), np.where(np.indices(SHAPE)[1] == 0, -3024, ct()).astype(np.int16),
])  # fmt: skip
def test_ct_in_a_folder_gets_a_window_and_the_checkpoint_keeps_it(volumes, values):
    dataset = build_dataset("FOLDER", volumes(values, values), 16, need_masks=True)
    assert dataset.ct_window == (-160, 240) and dataset.kept_values()["ct_window"] == (-160, 240)
    (note,) = dataset.notes
    assert note.startswith("CT: v0.nii.gz has values from -") and "-160 to 240 HU become -1 to 1 (--ct_w" in note
    assert used_window(dataset.kept_values()) == "-160,240" and dataset.background is None
    image = dataset.load_image(dataset.cases[3])
    expected = np.clip(values[..., 3].astype(float), -160, 240) / 200 - 0.2
    assert np.abs(image[0] - expected).max() < 1e-3  # float16
    organs = dataset.load_image(dataset.cases[0])[0, 8:, 2:5]
    assert np.ptp(organs) < 0.2  # -1, 0 and 1 HU are alike


def test_a_folder_named_lung_gets_the_window_of_the_lung(volumes):
    assert build_dataset("FOLDER", volumes(ct(), folder="Lung_nodules"), 16).ct_window == (-1000, 400)


def test_what_was_chosen_stays_without_a_word(volumes):
    folder = volumes(ct(), ct(1))
    for asked, window in (((), ()), ((-100, 300), (-100, 300))):
        dataset = build_dataset("FOLDER", folder, 16, ct_window=asked)
        assert dataset.ct_window == window and dataset.notes == ()
    assert DataOptions(ct_window="none").window() == () and DataOptions().window() is None


@pytest.mark.parametrize("values", [mri(), mri().astype(np.float32) / 900, (mri() - 300.0) / 100, np.uint8(mri() // 4)])
def test_other_volumes_have_z_scores(volumes, values):
    dataset = build_dataset("FOLDER", volumes(values), 16, need_masks=True)
    assert dataset.ct_window is None and dataset.notes == () and dataset.background == 0


@pytest.mark.parametrize("values", [
    phase(), np.random.default_rng(0).normal(0, 300, SHAPE), np.where(BODY, ct(), -150).clip(-150, 250),
    np.where(BODY, ct().clip(-150), -3000),
])  # fmt: skip
def test_negative_values_that_may_be_ct_are_doubted(volumes, values):
    (note,) = build_dataset("FOLDER", volumes(values.astype(np.int16)), 16).notes
    assert "warning: " in note and "z-scores take 0 for the background. If it is CT, in Hounsfield units, add" in note
    assert build_dataset("FOLDER", volumes(values.astype(np.int16)), 16, ct_window=()).notes == ()


def test_ct_among_other_volumes_is_asked_for_in_training(volumes):
    folder = volumes(ct(), mri())
    with pytest.raises(UserError, match=r"v0.nii.gz: has values from -1000 to 1200, as CT .*, but v1.nii.gz has val"):
        build_dataset("FOLDER", folder, 16, need_masks=True)
    (note,) = build_dataset("FOLDER", folder, 16).notes
    assert note.startswith("warning: ") and "--ct_window none takes z-scores" in note


@pytest.mark.parametrize("values, words", [
    (np.uint8(mri() // 4), "has values from 0 to 224 and none below 0, which is no CT in Hounsfield units; the window"),
    ((ct() + 1024).astype(np.uint16), "none below 0, .*, perhaps HU \\+ 1024: subtract the offset; the window"),
    ((mri() * 5).astype(np.int16), "perhaps HU"),
])  # fmt: skip
def test_a_window_over_other_values_is_doubted(volumes, values, words):
    (note,) = build_dataset("FOLDER", volumes(values), 16, ct_window=(-160, 240)).notes
    assert re.search(words, note)
    assert build_dataset("FOLDER", volumes(values), 16, ct_window=(0, 80)).notes == ()


@pytest.mark.parametrize("modality, values, words", [
    ("CT", mri(), "none below 0, which is no CT"), ("MRI", ct(), "If it is CT"), ("CT", ct(), None),
    ("MRI", mri(), None),
])  # fmt: skip
def test_a_declared_modality_that_the_values_deny_is_doubted(tmp_path, save_nifti, modality, values, words):
    for folder, array in (("imagesTr", values), ("labelsTr", BODY.astype(np.uint8))):
        save_nifti(tmp_path / folder / "v.nii.gz", array)
    described = {"name": "task", "modality": {"0": modality}, "labels": {"0": "background", "1": "body"}}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    notes = [note for note in build_dataset("MSD", tmp_path, 16).notes if note.startswith("warning")]
    assert len(notes) == (words is not None) and (words is None or words in notes[0])
    assert build_dataset("MSD", tmp_path, 16, ct_window=()).window == ()


def test_sampling_with_an_older_checkpoint_keeps_its_z_scores():
    older = {"data": {"data_name": "FOLDER", "ct_window": ""}, "loader": {"is_nifti": True, "ct_window": None}}
    assert trained_data(older)["ct_window"] == "none"
    assert trained_data({**older, "loader": {"is_nifti": False, "ct_window": None}})["ct_window"] == ""
    assert trained_data({**older, "loader": {"is_nifti": True, "ct_window": (-160, 240)}})["ct_window"] == ""
