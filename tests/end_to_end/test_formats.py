"""From the formats of scanners to masks that lie over them: DICOM series, NRRD and MetaImage in the commands."""

import json

import numpy as np
import pytest
import SimpleITK
from conftest import TINY, files, rows
from volume_files import DIRECTIONS, write_series, write_slice, write_volume_as

from guided_diffusion.data.accounting import account
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.inference.segmenter import Segmenter

RNG = np.random.default_rng(0)
PLACE = {"directions": DIRECTIONS["oblique"]}


def content(number):
    """(values, labels), [32, 32, 3] each."""
    labels = (np.indices((32, 32, 3))[0] > 9 + number).astype(np.uint8)
    return (RNG.integers(1, 40, labels.shape) + 100 * labels).astype(np.int16), labels


def write_all(folder):
    """images/ and masks/ in four formats, and the same as NIfTI. Returns (folder, NIfTI's folder)."""
    suffixes = {"P1": ".dcm", "P2": ".nrrd", "P3": ".mhd", "P4": ".mha"}
    for number, (name, suffix) in enumerate(suffixes.items()):
        values, labels = content(number)
        if suffix == ".dcm":
            write_series(folder / "mixed/images/P1", values, **PLACE)
        else:
            write_volume_as(folder / f"mixed/images/{name}{suffix}", values, **PLACE)
        write_volume_as(folder / f"mixed/masks/{name}{'.mha' if number % 2 else '.seg.nrrd'}", labels, **PLACE)
        write_volume_as(folder / f"nifti/images/{name}.nii", values, **PLACE)
        write_volume_as(folder / f"nifti/masks/{name}.nii", labels, **PLACE)
    return folder / "mixed", folder / "nifti"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("formats"))


def test_every_format_gives_the_items_of_nifti(data):
    mixed, nifti = (build_dataset("AUTO", folder, 32, need_masks=True) for folder in data)
    assert [case.name for case in mixed.cases] == [case.name for case in nifti.cases] and len(mixed) == 12
    for ours, theirs in zip(mixed, nifti, strict=True):
        assert np.array_equal(ours["image"], theirs["image"]) and np.array_equal(ours["mask"], theirs["mask"])


def test_check_data_reads_and_counts_them(data, script, tmp_path, capsys):
    assert script("check_data", ["--num_workers 0 --data_dir", data[0], "--out_dir", tmp_path / "checked"]) in (0, None)
    shown = capsys.readouterr()
    assert "folder of 4 volumes" in shown.out + shown.err and "error:" not in shown.out + shown.err


@pytest.fixture(scope="module")
def trained_on_volumes(data, script, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    line = ["--data_name FOLDER --data_dir", data[0], "--out_dir", out, TINY, "--max_steps 2 --cache_dir", out / "c"]
    script("segmentation_train", line)
    return out / "model000002.pt"


@pytest.mark.parametrize("form", ["series", "folder", ".nrrd", "file"])
def test_the_mask_lies_over_its_image_in_simpleitk(trained_on_volumes, sample, tmp_path, form):
    """The image as SimpleITK reads it, and the mask: the same size, and each voxel at the same physical point."""
    values, truth = content(0)
    if form == "series":
        image = write_series(tmp_path / "CT", values, DIRECTIONS["sagittal"], RescaleSlope=1, RescaleIntercept=-24)
        results, name = sample(trained_on_volumes, image), "CT"
    elif form == "folder":
        image, name = write_series(tmp_path / "data" / "images" / "1.2.840.17", values, **PLACE), "1.2.840.17"
        write_volume_as(tmp_path / "data" / "masks" / "1.2.840.17.nrrd", truth, **PLACE)
        results = sample(trained_on_volumes, tmp_path / "data")
    else:
        suffix = ".mhd" if form == "file" else form
        image, name = write_volume_as(tmp_path / "data" / f"a{suffix}", values, DIRECTIONS["flipped"]), "a"
        results = sample(trained_on_volumes, image if form == "file" else image.parent)
    if image.is_dir():
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(image)))
        seen = reader.Execute()
    else:
        seen = SimpleITK.ReadImage(str(image))
    mask = SimpleITK.ReadImage(str(results / f"{name}_seg.nii.gz"))
    assert mask.GetSize() == seen.GetSize()
    for voxel in ((0, 0, 0), (31, 0, 0), (0, 31, 2), (31, 31, 2)):
        assert np.allclose(
            mask.TransformIndexToPhysicalPoint(voxel), seen.TransformIndexToPhysicalPoint(voxel), atol=1e-3
        )


def test_masks_in_other_formats_are_scored_as_nifti_is(data, script, tmp_path):
    scores = {}
    for folder, suffix in zip(data, (".nrrd", ".nii.gz"), strict=True):
        for number in range(4):
            labels = np.roll(content(number)[1], 2, axis=1) * (np.indices((32, 32, 3))[1] > 4)
            write_volume_as(tmp_path / suffix / f"P{number + 1}{suffix}", labels.astype(np.uint8), **PLACE)
        out = tmp_path / f"scores{suffix}"
        script(
            "segmentation_eval",
            ["--pred_dir", tmp_path / suffix, "--data_name FOLDER --data_dir", folder, "--out_dir", out],
        )
        scores[suffix] = [{k: v for k, v in row.items()} for row in rows(out)]
    assert scores[".nrrd"] == scores[".nii.gz"] and float(scores[".nrrd"][0]["dice"]) < 1


def test_the_decathlon_and_nnunet_layouts_take_nrrd(tmp_path):
    for number in range(2):
        values, labels = content(number)
        write_volume_as(tmp_path / f"imagesTr/a{number}_0000.nrrd", values)
        write_volume_as(tmp_path / f"labelsTr/a{number}.nrrd", labels)
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1}, "numTraining": 2}
    (tmp_path / "dataset.json").write_text(json.dumps(description | {"file_ending": ".nrrd"}))
    dataset = build_dataset("AUTO", tmp_path, 32, need_masks=True)
    assert dataset.data_name == "MSD" and len(dataset) == 6 and dataset[0]["mask"].mean() == pytest.approx(22 / 32)


def test_single_images_of_dicom_are_two_dimensional(tmp_path, trained_on_volumes, sample):
    for number in range(2):
        values, labels = content(number)
        write_slice(tmp_path / f"data/images/x{number}.dcm", values[..., 0], Modality="DX")
        write_volume_as(tmp_path / f"data/masks/x{number}.nrrd", labels[..., 0])
    dataset = build_dataset("FOLDER", tmp_path / "data", 32, need_masks=True)
    assert [case.volume for case in dataset.cases] == [None, None] and dataset[0]["mask"].mean() == 22 / 32
    results = sample(trained_on_volumes, tmp_path / "data")
    assert {"masks/x0.png", "x0_seg.nii.gz"} <= set(files(results))


def test_two_series_in_one_folder_fail_alone_in_sampling(tmp_path, trained_on_volumes, sample, caplog):
    values, _ = content(0)
    write_series(tmp_path / "data/images/good", values)
    write_series(tmp_path / "data/images/bad", values)
    write_slice(tmp_path / "data/images/bad/z.dcm", values[..., 0], (0, 0, 0), series="1.9")
    results = sample(trained_on_volumes, tmp_path / "data")
    assert (results / "good_seg.nii.gz").exists() and not (results / "bad_seg.nii.gz").exists()
    assert "bad: goes on without it" in caplog.text and "holds 2 DICOM series" in caplog.text


def test_series_without_suffixes_in_folders_of_splits(tmp_path):
    """PATIENT/IM0001 below train/ and test/: each series counts as one volume, and its masks are found by its name."""
    for number, part in enumerate(("train", "train", "test")):
        values, labels = content(number)
        series = write_series(tmp_path / part / "images" / f"P{number}", values)
        for path in series.iterdir():
            path.rename(path.with_suffix(""))
        write_volume_as(tmp_path / part / "masks" / f"P{number}.mha", labels)
    training = build_dataset("AUTO", tmp_path, 32, split="train", need_masks=True)
    assert {case.volume for case in training.cases} == {"P0", "P1"} and training.layout.startswith(
        "folder of 2 volumes"
    )
    assert {case.volume for case in build_dataset("AUTO", tmp_path, 32, split="test").cases} == {"P2"}
    assert not account([training]).data_like


def test_a_segmenter_takes_the_path_of_a_series(tmp_path, trained_on_volumes):
    segmenter = Segmenter.load(trained_on_volumes, members=1, steps=1, device="cpu", precision="fp32")
    values, _ = content(0)
    by_path = segmenter(write_series(tmp_path / "s", values, **PLACE))
    same = segmenter(write_volume_as(tmp_path / "s.nii", values, **PLACE))
    assert by_path.mask.shape == values.shape and np.array_equal(by_path.probability, same.probability)
