"""What a checkpoint remembers of how its images were read: the CT window, and of which kind the images were."""

import json

import numpy as np
import pytest
import torch
from conftest import FAST, TINY, strict_json
from helpers import train_options, write_task

from guided_diffusion.checkpoint import load_checkpoint, save_checkpoint
from guided_diffusion.data.compatibility import check_reading, trained_window, used_window
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.runtime.distributed import Processes
from guided_diffusion.runtime.errors import UserError
from guided_diffusion.training.run import prepare_run

HOUNSFIELD = np.linspace(-1100, 1500, 32 * 32 * 2).reshape(32, 32, 2).astype(np.int16)
LABELS = (HOUNSFIELD > 0).astype(np.uint8)


def task(folder, name, *channels):
    """An MSD task of two volumes with these channels."""
    description = {"name": name, "modality": dict(enumerate(channels)), "labels": {"0": "background", "1": "lesion"}}
    image = np.stack([HOUNSFIELD] * len(channels), axis=-1) if len(channels) > 1 else HOUNSFIELD
    return write_task(folder, description, {"a": image, "b": image}, {"a": LABELS, "b": LABELS})


@pytest.fixture
def lung(train, tmp_path):
    """A checkpoint of two steps on a task of lungs."""
    return train("MSD", task(tmp_path / "lung", "Task06_Lung", "CT"))


@pytest.fixture
def clinic(tmp_path):
    return task(tmp_path / "clinic", "Clinic", "CT")


def window_of(results):
    return strict_json(results / "manifest.json")["data"]["ct_window"]


# ---- the window --------------------------------------------------------------------------------------------------


def test_data_of_another_name_are_cut_to_the_window_of_training(lung, clinic, sample, capsys, tmp_path):
    capsys.readouterr()
    assert window_of(sample(lung, clinic)) == "-1000,400"
    assert "CT: -1000 to 400 HU" in "".join(capsys.readouterr())
    assert window_of(sample(lung, clinic, f"{FAST} --ct_window 0,80", out="other")) == "0,80"
    older = load_checkpoint(lung)  # as they were written when the flag was left out
    assert older.config["data"]["ct_window"] == "-1000,400"
    older.config["data"]["ct_window"] = ""
    save_checkpoint(older, tmp_path / "older.pt")
    assert window_of(sample(tmp_path / "older.pt", clinic, out="older")) == "-1000,400"


def test_a_folder_of_files_is_read_as_the_task_was(lung, sample, save_nifti, tmp_path):
    save_nifti(tmp_path / "files" / "images" / "a.nii.gz", HOUNSFIELD)
    assert window_of(sample(lung, tmp_path / "files", f"{FAST} --data_name FOLDER")) == "-1000,400"


def test_training_goes_on_with_the_window(lung, clinic, script):
    again = [
        "--resume_checkpoint auto --max_steps 3 --data_name MSD --out_dir",
        lung.parent,
        "--data_dir",
        clinic,
        TINY,
    ]
    script("segmentation_train", again)
    config = load_checkpoint(lung.parent / "model000003.pt").config
    assert tuple(config["loader"]["window"]) == (-1000, 400) and config["data"]["ct_window"] == "-1000,400"


def test_validation_cases_are_cut_to_the_window_of_training(clinic, tmp_path):
    flags = ["--data_name", "MSD", "--data_dir", str(task(tmp_path / "lung", "Lung", "CT")), "--val_dir", str(clinic)]
    options, given = train_options(" ".join([TINY, "--sample_interval 1", *flags, "--out_dir", str(tmp_path / "run")]))
    run = prepare_run(options, given, Processes(0, 1, torch.device("cpu")))
    assert run.validation.dataset.window == run.dataset.window == (-1000, 400)


def test_a_folder_of_results_is_of_one_window(lung, clinic, sample, refusal, tmp_path):
    results = sample(lung, clinic)
    line = ["--model_path", lung, "--data_dir", clinic, "--out_dir", results, FAST]
    message = refusal("segmentation_sample", [*line, "--ct_window -160,240"])
    assert "made with --ct_window -1000,400, now it is -160,240; choose another --out_dir" in message
    manifest = strict_json(results / "manifest.json")
    del manifest["data"]["ct_window"]  # as in older ones
    manifest["data"]["data_name"] = "AUTO"
    (results / "manifest.json").write_text(json.dumps(manifest))
    assert window_of(sample(lung, clinic)) == "-1000,400"


def test_windows_as_text():
    ct, mri = ({"modalities": names, "window": (-160, 240.5)} for names in (["MRI", "CT"], ["MRI"]))
    assert (used_window(ct), used_window(mri, "0,80")) == ("-160,240.5", "")
    files = {"is_nifti": True, "ct_window": (-1024.0, 3071.0)}
    assert (used_window(files), used_window({**files, "is_nifti": False})) == ("-1024,3071", "")
    assert (used_window({}, "-160, 240.0"), used_window({})) == ("-160,240", "")
    assert trained_window({"data": {"ct_window": "0,80"}}) == "0,80" and trained_window({"data": {}}) == ""


# ---- other kinds of images ---------------------------------------------------------------------------------------


def test_pictures_and_nifti_files_do_not_fit_each_other(trained, refusal, save_nifti, tmp_path):
    for name in "ab":
        save_nifti(tmp_path / "data" / "images" / f"{name}.nii.gz", np.zeros((32, 32, 1, 3), np.int16) + 7)
        save_nifti(tmp_path / "data" / "masks" / f"{name}.nii.gz", np.ones((32, 32, 1), np.uint8))
    data = ["--data_dir", tmp_path / "data", "--data_name FOLDER --out_dir", tmp_path / "out"]
    message = (
        "data: holds volumes other than CT, the checkpoint was trained on images of 0 to 255; take data of that kind"
    )
    assert message in refusal("segmentation_sample", ["--model_path", trained, FAST, *data])
    assert message in refusal("segmentation_train", ["--resume_checkpoint", trained, TINY, *data])


@pytest.mark.parametrize(
    "old, new, message",
    [
        (["CT"], ["MRI"], "holds volumes other than CT, the checkpoint was trained on CT"),
        (["T1"], ["CT"], "holds CT .*, the checkpoint was trained on volumes other than CT"),
        (["CT", "PET"], ["PET", "CT"], "holds channels of volumes other than CT, CT .* was trained on channels of CT"),
        (["T1", "T2"], ["T2", "T1"], "has the channels T2, T1, .* trained on T1, T2; they must be in the same order"),
    ],
)
def test_channels_that_mean_something_else(old, new, message, tmp_path):
    trained, other = (
        build_dataset("MSD", task(tmp_path / part, part, *names), 32)
        for part, names in zip("ab", (old, new), strict=True)
    )
    config = {"data": {"data_name": "MSD"}, "loader": trained.kept_values()}
    check_reading(trained, config)
    check_reading(other, {"data": {"data_name": "MSD"}})  # one that is older and does not say
    with pytest.raises(UserError, match=message):
        check_reading(other, config)


def test_ct_is_warned_of_where_the_checkpoint_saw_none(save_nifti, tmp_path, capsys):
    """An MRI checkpoint takes z-scores of all; one that was trained on CT with --ct_window none says nothing."""
    save_nifti(tmp_path / "mri" / "images" / "a.nii.gz", HOUNSFIELD.clip(0))
    save_nifti(tmp_path / "ct" / "images" / "a.nii.gz", HOUNSFIELD)
    mri, ct = (build_dataset("FOLDER", tmp_path / name, 32, need_masks=False, ct_window=()) for name in ("mri", "ct"))
    named = build_dataset("MSD", task(tmp_path / "clinic", "Clinic", "CT"), 32, ct_window=())
    warned = ((mri, ct), (mri, named))
    for trained, new in (*warned, (ct, ct), (mri, mri), (ct, mri), (named, ct)):
        check_reading(new, {"data": {"data_name": "FOLDER"}, "loader": trained.kept_values()})
        assert ("holds CT in Hounsfield units, but the checkpoint saw other" in "".join(capsys.readouterr())) == (
            (trained, new) in warned
        )


def test_channels_of_other_names_are_warned_of(tmp_path, capsys):
    trained, other = (build_dataset("MSD", task(tmp_path / name, "Clinic", name), 32) for name in ("T2", "MRI"))
    check_reading(other, {"data": {"data_name": "MSD"}, "loader": trained.kept_values()})
    said = "".join(capsys.readouterr())
    assert "has the channels MRI, the checkpoint was trained on T2; they must mean the same" in said


def test_loaders_that_keep_nothing_read_bytes(pictures, save_nifti, tmp_path):
    for name in ("ISIC", "LIDC"):
        check_reading(build_dataset("FOLDER", pictures, 32), {"data": {"data_name": name}, "loader": {}})
    save_nifti(tmp_path / "images" / "a.nii.gz", HOUNSFIELD)
    files = build_dataset("FOLDER", tmp_path, 32, ct_window=(-160, 240))
    with pytest.raises(UserError, match="holds CT .*, the checkpoint was trained on images of 0 to 255"):
        check_reading(files, {"data": {"data_name": "LIDC"}, "loader": {}})
    check_reading(files, {"data": {"data_name": "somewhere.py:Own"}, "loader": {}})
