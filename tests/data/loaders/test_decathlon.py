"""The Medical Segmentation Decathlon's layout, and nnU-Net's: channels and labels from dataset.json, CT windows."""

import json
import shutil

import nibabel
import numpy as np
import pytest
from conftest import FAST, rows
from helpers import TASK_AFFINE, write_task
from PIL import Image

from guided_diffusion.data import phantoms as phantom
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.runtime.errors import NoTruthError, UserError

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


# ---- nnU-Net's raw folders ---------------------------------------------------------------------------------------

SHAPE = (4, 5, 2)
VOLUME = np.arange(1, 41, dtype=np.int16).reshape(SHAPE)
LABEL = (VOLUME > 30).astype(np.uint8)


@pytest.fixture
def raw(tmp_path, save_nifti):
    """A function (description, files) that writes dataset.json and files into a task below tmp_path, and returns that.

    files: {path: array}, NIfTI or pictures; None makes an empty file.
    """

    def write(description, files, folder="Dataset042_X"):
        task = tmp_path / folder
        for path, array in files.items():
            (task / path).parent.mkdir(parents=True, exist_ok=True)
            if array is None:
                (task / path).touch()
            elif ".nii" in path.rpartition("/")[2]:
                save_nifti(task / path, array)
            else:
                Image.fromarray(array).save(task / path)
        (task / "dataset.json").write_text(json.dumps(description))
        return task

    return write


V2 = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "tumor": 1},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


def volumes(dataset):
    return sorted({case.volume or case.name for case in dataset.cases})


def test_version_1_lists_names_without_the_channels(raw, tmp_path):
    """dataset.json looks like the Decathlon's, with ./imagesTr/a.nii.gz for imagesTr/a_0000.nii.gz."""
    description = {
        "modality": {"0": "T1", "1": "T2"},
        "labels": {"0": "background", "1": "tumor"},
        "numTraining": 2,
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "ab"],
        "test": ["./imagesTs/c.nii.gz"],
    }
    names = ("imagesTr/a", "imagesTr/b", "imagesTs/c")
    files = {f"{name}_{k:04d}.nii.gz": VOLUME + k for name in names for k in (0, 1)}
    files |= {f"labelsTr/{n}.nii.gz": LABEL for n in "ab"}
    raw(description, {**files, "imagesTr/._a_0000.nii.gz": None}, "nnUNet_raw_data/Task500_X")
    train = load(tmp_path, split="train", need_masks=True)
    assert volumes(train) == ["a", "b"] and train.layout == "nnU-Net, Task500_X: 2 volumes of 2 channels (T1, T2)"
    assert [path.name for path in train.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"] and train.notes == ()
    assert train.load_mask(train.cases[0]).shape == (1, 1, 4, 5)
    assert volumes(load(tmp_path, split="test")) == ["c"] and volumes(load(tmp_path)) == ["a", "b", "c"]
    description["training"] = description["training"][:1]  # the other volume is left over
    raw(description, {}, "nnUNet_raw_data/Task500_X")
    again = load(tmp_path, split="train")
    assert volumes(again) == ["a"] and '"numTraining": 2, but 1 training case is there' in again.notes[0]


def test_version_1_without_a_list(raw):
    files = {f"imagesTr/a_{k:04d}.nii.gz": VOLUME for k in (0, 1)}
    task = raw({"modality": ["T1", "T2"], "labels": {"0": "background"}, "training": []}, files)
    assert volumes(load(task)) == ["a"]
    assert load(task).notes == (f'{task / "dataset.json"}: has no "labels", which say what the values in masks mean',)
    (task / "imagesTr" / "a_0001.nii.gz").rename(task / "imagesTr" / "a_0007.nii.gz")  # numbers of cases, not channels
    task = raw({"modality": ["T1"], "labels": {"0": "background"}}, {})
    assert volumes(load(task)) == ["a_0000", "a_0007"]


def test_version_2_may_list_files_anywhere_below(raw, tmp_path):
    files = {"imagesTr/x.nii.gz": VOLUME, "elsewhere/y.nii.gz": LABEL, "imagesTs/t_0000.nii.gz": VOLUME}
    listed = {"case1": {"images": ["imagesTr/x.nii.gz"], "label": "./elsewhere/y.nii.gz"}}
    task = raw({**V2, "dataset": listed}, {**files, "labelsTs/t.nii.gz": LABEL})
    dataset = load(task, split="train", need_masks=True)
    assert volumes(dataset) == ["case1"] and dataset.load_mask(dataset.cases[1]).any()
    assert len(load(task, split="test", need_masks=True)) == 2  # with labelsTs
    for wrong, words in (
        ({"images": []}, r"correct 'case1'"),
        ({"images": ["imagesTr/gone.nii.gz"]}, "gone.nii.gz for case1, but there is no such file"),
        ({"images": ["../../secret.nii.gz"]}, "names ../../secret.nii.gz, which is not below --data_dir"),
        ({"images": [str(tmp_path.parent / "secret.nii.gz")]}, "secret.nii.gz, which is not below --data_dir"),
    ):
        raw({**V2, "dataset": {"case1": wrong}}, {})
        with pytest.raises(UserError, match=words):
            load(task, split="train")


def test_the_list_of_the_decathlon_stays_below_data_dir_too(task, tmp_path):
    description = json.loads((task / "dataset.json").read_text())
    description["training"] = [{"image": "./imagesTr/../../other/a.nii.gz", "label": ""}]
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="names ./imagesTr/../../other/a.nii.gz, which is not below --data_dir"):
        load(tmp_path, split="train")


def test_a_volume_that_is_listed_twice_is_refused_before_headers_are_read(task, tmp_path, monkeypatch):
    description = json.loads((task / "dataset.json").read_text())
    description["training"].append(description["training"][0])
    shutil.copytree(task, tmp_path, dirs_exist_ok=True)
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    monkeypatch.setattr("guided_diffusion.data.volumes.read_nifti_header", None)
    with pytest.raises(UserError, match=r"dataset\.json: lists .* twice; keep one"):
        load(tmp_path)


def test_a_list_of_validation_cases(raw):
    """As AMOS has it, with names that end like nnU-Net's channels."""

    def listed(part, *numbers):
        pairs = [(f"./images{part}/amos_000{n}.nii.gz", f"./labels{part}/amos_000{n}.nii.gz") for n in numbers]
        return [{"image": image, "label": label} for image, label in pairs]

    labels = {"0": "background", "1": "liver"}
    description = {"modality": {"0": "CT"}, "labels": labels, "training": listed("Tr", 1)}
    description["validation"] = listed("Va", 8, 9)
    task = raw(description, {"imagesTr/amos_0001.nii.gz": VOLUME, "labelsTr/amos_0001.nii.gz": LABEL})
    assert volumes(load(task)) == volumes(load(task, split="test")) == ["amos_0001"]  # a part not downloaded is none
    raw(description, {"imagesVa/amos_0008.nii.gz": VOLUME})
    with pytest.raises(UserError, match="imagesVa/amos_0009.nii.gz for validation, but there is no such file; correct"):
        load(task)
    raw(description, {"imagesVa/amos_0009.nii.gz": VOLUME})
    with pytest.raises(NoTruthError, match="its 2 validation cases have no masks"):
        load(task, split="val", need_masks=True)
    raw(description, {f"labelsVa/amos_000{n}.nii.gz": LABEL for n in (8, 9)})
    held = load(task, split="val", need_masks=True)
    assert volumes(held) == volumes(load(task, split="test")) == ["amos_0008", "amos_0009"]
    assert held.load_mask(held.cases[1]).any() and volumes(load(task, split="train")) == ["amos_0001"]
    assert len(volumes(load(task))) == 3


@pytest.mark.parametrize(
    "odd", ["imagesTr/odd.nii.gz", "imagesTr/a.png", "imagesTr/x.json", "labelsTr/a.txt", "x/y.nii"]
)
@pytest.mark.parametrize("version", [1, 2])
def test_an_odd_file_does_not_change_what_is_read(raw, odd, version):
    files = {f"imagesTr/{n}_0000.nii.gz": VOLUME for n in "ab"} | {f"labelsTr/{n}.nii.gz": LABEL for n in "ab"}
    listed = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "ab"]
    old = {"modality": {"0": "MRI"}, "labels": {"1": "x"}, "training": listed}
    before = load(raw(V2 if version == 2 else old, files), need_masks=True).cases
    dataset = load(raw(V2 if version == 2 else old, {odd: None}), need_masks=True)
    assert dataset.cases == before and volumes(dataset) == ["a", "b"]


def test_several_tasks_below_data_dir(raw, tmp_path):
    for number in (1, 2):
        raw(V2, {"imagesTr/a_0000.nii.gz": VOLUME}, f"raw/Dataset00{number}_X")
    with pytest.raises(UserError, match="holds 2 tasks, Dataset001_X, Dataset002_X; name one of them with --data_dir"):
        load(tmp_path)
    assert len(load(tmp_path / "raw" / "Dataset001_X")) == 2


def test_regions_and_joined_labels(raw):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    task = raw(
        {**V2, "labels": labels, "regions_class_order": [1, 2, 3]},
        {"imagesTr/a_0000.nii.gz": VOLUME, "labelsTr/a.nii.gz": LABEL * 3},
    )
    assert str(load(task, classes="auto").classes) == "whole=1+2+3,core=2+3,enhancing=3"
    dataset = load(task, split="train")
    assert dataset.notes == ("3 labels are joined as foreground; --classes auto keeps them apart",)
    assert load(task, split="train", classes="auto").notes == ()


def test_files_that_were_unpacked_into_folders(raw):
    files = {"imagesTr/a.nii/a.nii": VOLUME, "labelsTr/a.nii/x.nii": LABEL, "imagesTr/b.nii": VOLUME}
    listed = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "ab"]
    task = raw({"modality": {"0": "MRI"}, "labels": {"1": "x"}, "training": listed}, files)
    dataset = load(task)
    assert volumes(dataset) == ["a", "b"] and [len(case.masks) for case in dataset.cases] == [1, 1, 0, 0]
    assert dataset.load_mask(dataset.cases[1]).any() and dataset.cases[0].raters == ()


RGB = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
COLOURS = {
    "channel_names": {"0": "R", "1": "G", "2": "B"},
    "labels": {"background": 0, "road": 1},
    "file_ending": ".png",
}


def test_a_colour_picture_of_one_channel(raw):
    dataset = load(raw({**COLOURS, "channel_names": {"0": "RGB"}}, {"imagesTr/a_0000.png": RGB}))
    with pytest.raises(
        UserError, match="a_0000.png: is in colour, but dataset.json names one channel; save it in grey"
    ):
        dataset.load_image(dataset.cases[0])


def test_a_json_file_beside_flat_tiffs_is_no_spacing(raw):
    task = raw({**COLOURS, "file_ending": ".tif"}, {"imagesTr/a_0000.tif": RGB, "imagesTr/notes.json": None})
    assert volumes(load(task)) == ["a"]


def test_pictures_in_colour(raw):
    truth = (RGB[..., 0] > 30).astype(np.uint8)
    files = {"imagesTr/a_0000.png": RGB, "imagesTr/b_0000.png": RGB[..., 0], "labelsTr/a.png": truth}
    task = raw(COLOURS, {**files, "labelsTr/b.png": truth})
    dataset = load(task, split="train", need_masks=True)
    assert (
        volumes(dataset) == ["a", "b"] and dataset.layout == "nnU-Net, Dataset042_X: 2 pictures of 3 channels (R, G, B)"
    )
    np.testing.assert_array_equal(dataset.load_image(dataset.cases[0]), RGB.transpose(2, 0, 1))
    assert dataset.load_normalised(dataset.cases[0]).min() == -1 and dataset[1]["image"].shape == (3, 32, 32)
    np.testing.assert_array_equal(dataset.load_mask(dataset.cases[0])[0, 0], truth > 0)
    assert dataset.geometry(dataset.cases[0]) is None and dataset.left_right_axis == -1
    again = dataset.without_data(dataset.kept_values(), dataset.class_names)
    assert again.normalise_raw(np.zeros((3, 2, 2), np.float32)).max() == -1


@pytest.mark.parametrize("ending", [".tif", ".bmp", "png"])
def test_grey_pictures_have_a_file_for_each_channel(raw, ending):
    grey = [RGB[..., k] for k in range(2)]
    suffix = f".{ending.lstrip('.')}"
    files = {f"imagesTr/a_{k:04d}{suffix}": grey[k] for k in (0, 1)} | {f"labelsTr/a{suffix}": grey[0] // 30}
    description = {
        "channel_names": {"0": "CT", "1": "other"},
        "labels": {"background": 0, "x": 1},
        "file_ending": ending,
    }
    dataset = load(raw(description, files), need_masks=True, classes="auto")
    np.testing.assert_array_equal(dataset.load_image(dataset.cases[0]), np.stack(grey))
    assert str(dataset.classes) == "x=1" and dataset.load_mask(dataset.cases[0]).any()
    Image.fromarray(RGB).save(dataset.cases[0].images[1])
    with pytest.raises(UserError, match="is in colour, but is one channel of 2; save it in grey"):
        dataset.load_image(dataset.cases[0])


@pytest.mark.parametrize(
    "change, files, words",
    [
        (
            {"file_ending": ".mgz"},
            {"imagesTr/a_0000.mgz": None},
            '"file_ending": ".mgz", which is not read; convert',
        ),
        ({"file_ending": "mnc"}, {"imagesTr/a_0000.mnc": None}, '"file_ending": "mnc", which is not read; convert the'),
        (
            {"file_ending": ".tif"},
            {"imagesTr/a_0000.tif": None, "imagesTr/a.json": None},
            "imagesTr: holds 3-D TIFF files with their spacing in .json files, which are not read; convert",
        ),
        ({"file_ending": ".png"}, {"imagesTr/a_0000.bmp": RGB}, 'file_ending": ".png", but imagesTr/ holds .bmp files'),
        ({"file_ending": None}, {"imagesTr/a_0000.png": RGB}, 'no "file_ending", but imagesTr/ holds .png'),
        (
            {"labels": ["background", "x"]},
            {"imagesTr/a_0000.nii.gz": VOLUME},
            '"labels" must be an object {...}, not',
        ),
        ({"channel_names": None}, {"imagesTr/a_0000.nii.gz": VOLUME}, 'calls it "channel_names"'),
        ({"channel_names": None, "modality": ["MRI"], "training": 3}, {"imagesTr/a.nii.gz": VOLUME}, '"training" must'),
        (
            {},
            {"imagesTr/a_0000.nii.gz": VOLUME, "imagesTr/a_0000.nii": VOLUME},
            "a_0000.nii.gz: is a second file of this channel beside a_0000.nii; keep one",
        ),
    ],
)
def test_fields_that_are_missing_or_do_not_fit_are_named(raw, change, files, words):
    description = {key: value for key, value in {**V2, **change}.items() if value is not None}
    with pytest.raises(UserError, match=words):
        load(raw(description, files), split="train")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"modality": None}, 'dataset.json: has no "modality" such as {"0": "MRI"}; add it'),
        ({"training": ["x"]}, '"training" must list'),
        (
            {"training": [{"image": "./imagesTr/gone.nii.gz"}]},
            "lists ./imagesTr/gone.nii.gz, but there is no such file",
        ),
        ({"modality": {"0": "MRI"}}, "has 4 channels, dataset.json names 1; correct it"),
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


def test_masks_whose_names_nearly_fit_are_taken_and_said(task, tmp_path):
    shutil.copytree(task, tmp_path / "task")
    (tmp_path / "task/labelsTr/BRATS_002.nii.gz").rename(tmp_path / "task/labelsTr/Brats_002.nii.gz")
    dataset = load(tmp_path / "task", split="train", need_masks=True)
    assert {case.masks[0].name for case in dataset.cases} == {"BRATS_001.nii.gz", "Brats_002.nii.gz"}
    assert "labelsTr/Brats_002.nii.gz differs from its image's name in case: taken" in dataset.notes
