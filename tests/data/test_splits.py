"""The folders of a split, and cases held out of training: what stays together, what decides, and what is then taken."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import FAST, TINY, rows, strict_json, write_folder
from helpers import refused, values

from guided_diffusion.data.cases import Case, group_cases
from guided_diffusion.data.compatibility import leakage_warning
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.splits import HoldOut, group_of, hold_out_of, split_folders, split_of
from guided_diffusion.runtime.errors import NoCasesError, UserError


def cases(names, **keywords):
    return [Case(name, (Path(name),), **keywords) for name in names]


def names(found):
    return [case.name for case in found]


PATIENTS = [f"P{patient:03d}_{image}" for patient in range(400) for image in range(3)]
SOME = HoldOut(0.4)
BY_PATIENT = HoldOut(0.2, group_key=r"^(P\d+)_")


# ---- the division ------------------------------------------------------------------------------------------------


def test_one_patient_is_never_on_both_sides_and_the_share_is_met():
    kept, held = BY_PATIENT.divide(cases(PATIENTS))
    assert names(kept) == [name for name in PATIENTS if name not in set(names(held))]  # in order, nothing lost
    patients = [{name[:4] for name in names(side)} for side in (kept, held)]
    assert not patients[0] & patients[1]
    assert 55 < len(patients[1]) < 105  # of 400: the binomial's 80 +- 3 sigma


def test_a_case_keeps_its_side_when_others_come_or_go():
    held = set(names(BY_PATIENT.divide(cases(PATIENTS))[1]))
    some = PATIENTS[300:900]
    assert set(names(BY_PATIENT.divide(cases(some))[1])) == held & set(some)
    assert set(names(BY_PATIENT.divide(cases(reversed(PATIENTS)))[1])) == held


def test_a_larger_share_holds_the_smaller_one_and_another_seed_is_unrelated():
    held = [set(names(HoldOut(share, group_key=r"P\d+").divide(cases(PATIENTS))[1])) for share in (0.1, 0.2, 0.5)]
    assert held[0] < held[1] < held[2]
    other = set(names(HoldOut(0.2, 1, r"P\d+").divide(cases(PATIENTS))[1]))
    assert len(other & held[1]) < len(held[1]) / 2


@pytest.mark.parametrize("fraction", [0.01, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_neither_side_is_empty(fraction, seed):
    kept, held = HoldOut(fraction, seed).divide(cases("abc"))
    assert kept and held


def test_groups():
    assert group_of(Case("a_1", ())) == "a_1"
    assert group_of(Case("v_slice_001", (), volume="v", slice_index=1)) == "v"
    assert group_of(Case("v_slice_001", (), volume="v", slice_index=1, group="P1")) == "P1"
    assert group_of(Case("a_1", (), group="P1"), r"^[a-z]+") == "a"
    assert group_of(Case("site2_P7_left", ()), r"_(P\d+)_") == "P7"
    with pytest.raises(UserError, match=r"--group_key \^P: is not found in the case name 'a_1'"):
        group_of(Case("a_1", ()), "^P")


def test_one_group_alone_cannot_be_divided():
    with pytest.raises(UserError, match="all 2 cases are of one group, 'P1', which cannot be divided"):
        HoldOut(0.5).divide(cases("ab", group="P1"))


def test_option_values():
    assert hold_out_of({}) is None and hold_out_of({"val_fraction": 0.0, "group_key": "", "split_seed": 0}) is None
    assert hold_out_of({"val_fraction": 0.2, "group_key": "x", "split_seed": 3}) == HoldOut(0.2, 3, "x")
    assert values("--val_fraction 0.2 --group_key ^P")["val_fraction"] == 0.2
    assert refused("--val_fraction 1").endswith("must be at most 0.9")
    assert refused("--split_seed 1") == "--split_seed belongs to --val_fraction; leave it out"
    assert values("--group_key ^P")["group_key"] == "^P"  # for sampling and check_data, to count patients
    assert "--group_key (: is no regular expression" in refused("--val_fraction 0.1 --group_key (")


# ---- data sets ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undivided")
    write_folder(folder, 6)
    return folder


def load(folder, split, hold_out=SOME):
    return build_dataset("FOLDER", folder, 16, split=split, hold_out=hold_out)


def test_undivided_data_is_sampled_on_what_was_held_out(folder):
    train, val, test = (names(load(folder, split).cases) for split in ("train", "val", "test"))
    assert train and val and sorted(train + val) == names(load(folder, None).cases) and test == val
    assert f"{len(val)} of 6 cases are held out of training" in load(folder, "train").notes[0]
    assert "1 of 6 cases is held out of training" in load(folder, "train", HoldOut(0.01)).notes[0]


def test_data_with_tests_of_its_own_keeps_them(isic):
    def found(split, hold_out=SOME):
        return names(build_dataset("ISIC", isic, 16, split=split, hold_out=hold_out).cases)

    assert found("test") == found("test", None) and sorted(found("train") + found("val")) == found("train", None)


def test_a_training_folder_alone_is_divided_for_testing_too(brats, tmp_path):
    (tmp_path / "training").symlink_to(brats / "training")
    volumes = [
        {case.volume for case in build_dataset("BRATS", tmp_path, 16, split=split, hold_out=HoldOut(0.5)).cases}
        for split in ("train", "val", "test")
    ]
    assert len(volumes[0]) == len(volumes[1]) == 1 and volumes[0] != volumes[1] == volumes[2]


@pytest.mark.parametrize("name", ["FOLDER", "BRATS", "LIDC"])
def test_an_empty_test_part_holds_no_test_cases(name, folder, brats, tmp_path):
    if name == "FOLDER":
        for part in ("images", "masks"):
            (tmp_path / part).symlink_to(folder / part)
        (tmp_path / "split.json").write_text(json.dumps({"train": [f"case{n}" for n in range(6)], "test": []}))
    elif name == "BRATS":
        (tmp_path / "training").symlink_to(brats / "training")
        (tmp_path / "testing").mkdir()
    else:
        none = np.zeros(4, bool)
        arrays = {"images": np.zeros((4, 8, 8), np.uint8), "masks": np.zeros((4, 1, 8, 1), np.uint8)}
        np.savez(tmp_path / "data.npz", **arrays, patient=np.arange(4), is_test=none)
    train, val, test = (
        names(build_dataset(name, tmp_path, 16, split=split, hold_out=SOME).cases) for split in ("train", "val", "test")
    )
    assert train and test and test == val and not set(train) & set(test)
    with pytest.raises(NoCasesError, match="no cases found"):
        build_dataset(name, tmp_path, 16, split="test")


def test_data_with_validation_of_its_own_is_not_divided_again(folder, tmp_path):
    for part in ("train", "val"):
        (tmp_path / part).symlink_to(folder)
    with pytest.raises(UserError, match="has validation cases of its own; leave out --val_fraction"):
        load(tmp_path, "train")
    assert len(load(tmp_path, "val", None)) == 6


def test_a_loader_that_knows_no_validation_gives_none(tmp_path, slices):
    with pytest.raises(NoCasesError, match="has no validation cases"):
        load(slices / "training", "val", None)


def test_held_out_cases_do_not_leak(folder):
    trained = {"data_name": "FOLDER", "data_dir": str(folder), "val_fraction": 0.4}

    def warning(split):
        dataset = load(folder, split)
        units = [type("U", (), {"cases": [case]}) for case in dataset.cases]
        return leakage_warning(dataset, units, trained)

    assert warning("val") is None and "were trained on" in warning("train")


def test_a_name_in_two_splits_is_no_leak(folder, tmp_path):
    for part, name in (("train", "case0"), ("test", "case1")):
        for kind in ("images", "masks"):
            (tmp_path / "data" / part / kind).mkdir(parents=True)
            shutil.copy(folder / kind / f"{name}.png", tmp_path / "data" / part / kind / "000.png")
    trained = {"data_name": "FOLDER", "data_dir": str(tmp_path / "data")}
    for split, warned in (("test", False), ("train", True)):
        dataset = load(tmp_path / "data", split, None)
        assert (leakage_warning(dataset, group_cases(dataset.cases), trained) is not None) == warned


def test_training_sampling_and_evaluating_by_the_scripts(script, folder, tmp_path, capsys):
    data = ["--data_name FOLDER --data_dir", folder]
    script("segmentation_train", [*data, "--out_dir", tmp_path / "run", TINY, "--max_steps 1 --val_fraction 0.4"])
    held = names(load(folder, "val").cases)
    assert f"data: {6 - len(held)} cases" in capsys.readouterr().out
    checkpoint = ["--model_path", tmp_path / "run" / "model000001.pt", FAST]
    script("segmentation_sample", [*checkpoint, "--data_dir", folder, "--out_dir", tmp_path / "results"])
    assert sorted(path.stem for path in (tmp_path / "results" / "masks").iterdir()) == held
    assert "were trained on" not in capsys.readouterr().out
    script("segmentation_eval", ["--pred_dir", tmp_path / "results"])
    assert [row["name"] for row in rows(tmp_path / "results")] == held
    assert strict_json(tmp_path / "results" / "summary.json")["missing"] == 0


def test_a_key_alone_divides_nothing(refusal, folder):
    message = refusal("segmentation_train", ["--data_name FOLDER --group_key ^c --data_dir", folder])
    assert "--group_key belongs to --val_fraction: without it training divides no cases; leave it out" in message


# ---- the folders of a split ---------------------------------------------------------------------------------------


def test_split_folders(tmp_path):
    assert split_folders(tmp_path, "train") == [tmp_path]
    (tmp_path / "Training").mkdir()
    assert split_folders(tmp_path, "train") == [tmp_path / "Training"]
    with pytest.raises(UserError, match="holds Training/ but no test/ or testing/"):
        split_folders(tmp_path, "test")
    (tmp_path / "test").mkdir()
    assert split_folders(tmp_path, "test") == [tmp_path / "test"]
    assert split_folders(tmp_path, None) == [tmp_path / "Training", tmp_path / "test"]


@pytest.mark.parametrize(
    "name, split",
    [
        ("Train", "train"),
        ("valid", "val"),
        ("testing", "test"),
        ("MICCAI_BraTS_2018_Data_Training", "train"),
        ("MICCAI_BraTS2020_ValidationData", "val"),
        ("RSNA_ASNR_MICCAI_BraTS2021_TrainingData_16July2021", "train"),
        ("ASNR-MICCAI-BraTS2023-GLI-Challenge-ValidationData", "val"),
        ("images", None),
        ("latest_data", None),
        ("TrainDataset", "train"),
        ("test set", "test"),
        ("Validation_Set", "val"),
        ("testset2", None),
        ("test_set_old", None),
        ("trainee", None),
    ],
)
def test_the_split_that_a_folder_is_of(name, split):
    assert split_of(name) == split
