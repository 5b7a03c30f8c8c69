"""The Medical Segmentation Decathlon's layout, and nnU-Net's: channels and labels from dataset.json, CT windows."""

import json

import nibabel
import numpy as np
import pytest
from conftest import FAST, rows
from helpers import TASK_AFFINE, write_task

from guided_diffusion.data import phantoms as phantom
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.runtime.errors import UserError

MRI = {"name": "BRATS", "modality": {"0": "FLAIR", "1": "T1w", "2": "T1gd", "3": "T2w"}}
LABELS = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}


def mri(index, size=32, slices=3):
    """A phantom as (four channels [X, Y, Z, 4], label map)."""
    case = phantom.brats_case(index, size, slices)
    return np.stack([case[kind] for kind in ("flair", "t1", "t1ce", "t2")], axis=-1), case["seg"]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    images, labels = zip(*(mri(index) for index in range(3)), strict=True)
    named = ["BRATS_001", "BRATS_002"]
    return write_task(
        tmp_path_factory.mktemp("Task01_BrainTumour"),
        {**MRI, "labels": LABELS},
        dict(zip(named, images, strict=False)),
        dict(zip(named, labels, strict=False)),
        {"BRATS_003": images[2]},
    )


def load(folder, **keywords):
    return build_dataset("MSD", folder, 32, **keywords)


def test_a_published_task(task):
    dataset = load(task, split="train", need_masks=True)
    assert [case.name for case in dataset.cases][::3] == ["BRATS_001_slice_000", "BRATS_002_slice_000"]
    assert (dataset.image_channels, dataset.class_names) == (4, ("foreground",)) and len(dataset) == 6
    assert dataset.layout == ("Medical Segmentation Decathlon, BRATS: 2 volumes of 4 channels (FLAIR, T1w, T1gd, T2w)")
    image, seg = mri(0)
    volume = np.stack([dataset.load_image(case) for case in dataset.cases[:3]], axis=-1)
    raw = image[::-1, ::-1, :, 2].astype(np.float64)  # turned to the right and to the front
    expected = (raw - raw[raw != 0].mean()) / raw[raw != 0].std()
    np.testing.assert_allclose(volume[2][raw != 0], expected[raw != 0].clip(-5, 5), atol=3e-3)
    mask = np.stack([dataset.load_mask(case)[0, 0] for case in dataset.cases[:3]], axis=-1)
    np.testing.assert_array_equal(mask, seg[::-1, ::-1] > 0)
    assert {case.volume for case in load(task, split="test").cases} == {"BRATS_003"}
    assert len(load(task)) == 9 and build_dataset("AUTO", task, 32).layout.startswith("Medical Segmentation Decathlon")


def test_classes_have_the_names_of_dataset_json(task):
    dataset = load(task, split="train", need_masks=True, classes="auto")
    assert str(dataset.classes) == "edema=1,non-enhancing tumor=2,enhancing tumour=3"
    mask = np.stack([dataset.load_mask(case)[0] for case in dataset.cases[:3]], axis=-1)
    seg = mri(0)[1][::-1, ::-1]
    np.testing.assert_array_equal(mask, np.stack([seg == 1, seg == 2, seg == 3]))
    regions = load(task, split="train", classes="WT=1+2+3,ET=3")
    np.testing.assert_array_equal(regions.load_mask(regions.cases[1])[0, 0], mask[..., 1].any(axis=0))


def test_classes_come_from_the_labels_of_dataset_json(task):
    dataset = load(task, split="train", need_masks=True, classes="auto")
    assert dataset.class_names == ("edema", "non-enhancing tumor", "enhancing tumour")
    _, seg = mri(0)
    labels = np.stack([dataset.load_mask(case)[0] for case in dataset.cases[:3]], axis=-1)
    np.testing.assert_array_equal(labels, [seg[::-1, ::-1] == value for value in (1, 2, 3)])
    regions = load(task, split="train", need_masks=True, classes="whole=1+2+4,core=1+4")
    np.testing.assert_array_equal(regions.load_mask(regions.cases[1])[0, 0], seg[::-1, ::-1, 1] > 0)


def test_without_imagesTs_training_cases_are_sampled_and_may_be_held_out(task, tmp_path):
    for part in ("imagesTr", "labelsTr", "dataset.json"):
        (tmp_path / part).symlink_to(task / part)
    assert load(tmp_path, split="test").cases == load(tmp_path, split="train").cases


@pytest.mark.parametrize(
    "name, window, expected", [("Lung", None, (-1000, 400)), ("Liver", None, (-160, 240)), ("Liver", (0, 80), (0, 80))]
)
def test_ct_is_cut_to_a_window(tmp_path, name, window, expected):
    hounsfield = np.linspace(-1100, 1500, 8 * 10 * 4).reshape(8, 10, 4).astype(np.int16)
    description = {"name": name, "modality": {"0": "CT"}, "labels": {"0": "background", "1": "cancer"}}
    write_task(tmp_path, description, {"a": hounsfield}, {"a": (hounsfield > 0).astype(np.uint8)})
    dataset = load(tmp_path, ct_window=window)
    assert dataset.class_names == ("cancer",)
    assert dataset.notes == (f"CT: {expected[0]} to {expected[1]} HU become -1 to 1 (--ct_window)",)
    volume = np.stack([dataset.load_image(case)[0] for case in dataset.cases], axis=-1)
    np.testing.assert_allclose(volume, np.interp(hounsfield[::-1, ::-1], expected, (-1, 1)), atol=1e-3)
    raw = hounsfield[None].astype(np.float32)
    again = dataset.without_data(dataset.kept_values(), dataset.class_names).normalise_raw(raw)
    np.testing.assert_allclose(again[0], np.interp(hounsfield, expected, (-1, 1)), atol=1e-3)


def test_nnunet_has_a_file_for_each_channel(tmp_path, save_nifti):
    image, seg = mri(0)
    for name in ("case_7", "case_8"):
        for k in range(2):
            save_nifti(tmp_path / "imagesTr" / f"{name}_{k:04d}.nii.gz", image[..., k], TASK_AFFINE)
        for rater in ("anna", "ben"):
            save_nifti(tmp_path / "labelsTr" / rater / f"{name}.nii.gz", seg * (rater == "ben"), TASK_AFFINE)
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "FLAIR", "1": "T1"}, "labels": {"background": 0, "tumor": 1}})
    )
    dataset = load(tmp_path, need_masks=True)
    assert {case.volume for case in dataset.cases} == {"case_7", "case_8"} and dataset.class_names == ("tumor",)
    assert dataset.load_image(dataset.cases[0]).shape == (2, 32, 32)
    mask = dataset.load_mask(dataset.cases[1])
    assert mask.shape == (2, 1, 32, 32) and not mask[0].any()  # Anna saw nothing
    np.testing.assert_array_equal(mask[1, 0], seg[::-1, ::-1, 1] > 0)
    (tmp_path / "labelsTr" / "anna" / "case_8.nii.gz").unlink()
    with pytest.raises(UserError, match="labelsTr/anna: has no mask of case_8, which ben/ has; training needs one of"):
        load(tmp_path, need_masks=True)
    cases = load(tmp_path).cases
    assert (cases[0].raters, cases[-1].raters, len(cases[-1].masks)) == (("anna", "ben"), ("ben",), 1)
    (tmp_path / "imagesTr" / "case_7_0001.nii.gz").unlink()
    with pytest.raises(
        UserError, match=r"has 2 channels \(FLAIR, T1\), but case_7 has the files 0000; they must agree"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"modality": None}, 'dataset.json: has no "modality" such as {"0": "MRI"}; add it'),
        ({"training": ["x"]}, '"training" must list'),
        (
            {"training": [{"image": "./imagesTr/gone.nii.gz"}]},
            "lists ./imagesTr/gone.nii.gz, but there is no such file",
        ),
        ({"modality": {"0": "MRI"}}, "has 4 channels, the data set has 1; leave it out"),
    ],
)
def test_descriptions_that_do_not_fit(task, tmp_path, change, words):
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).symlink_to(task / part)
    description = {**json.loads((task / "dataset.json").read_text()), **change}
    (tmp_path / "dataset.json").write_text(json.dumps({k: v for k, v in description.items() if v is not None}))
    with pytest.raises(UserError) as error:
        load(tmp_path)[0]
    assert words in str(error.value)


def test_missing_labels_and_empty_folders(task, tmp_path):
    (tmp_path / "imagesTr").symlink_to(task / "imagesTr")
    with pytest.raises(UserError, match="it must hold dataset.json, imagesTr/ and labelsTr/"):
        load(tmp_path)
    (tmp_path / "dataset.json").write_text((task / "dataset.json").read_text())
    with pytest.raises(UserError, match="BRATS_001.nii.gz: has no mask; add .*labelsTr/BRATS_001.nii.gz or remove"):
        load(tmp_path, need_masks=True)


def test_training_and_sampling_by_the_scripts(task, train, sample, capsys):
    checkpoint = train("AUTO", task, steps=1)
    said = capsys.readouterr().out
    assert "layout: Medical Segmentation Decathlon, BRATS: 2 volumes of 4 channels" in said
    results = sample(checkpoint, task, f"{FAST} --split train --num_samples 1")
    image = nibabel.load(task / "imagesTr" / "BRATS_001.nii.gz")
    mask = nibabel.load(results / "BRATS_001_seg.nii.gz")
    assert mask.shape == image.shape[:3] and np.array_equal(mask.affine, image.affine)
    assert [row["name"] for row in rows(results)] == ["BRATS_001"]
