"""The folders of a split, and cases held out of training: what stays together, what decides, and what is then taken."""

import dataclasses
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
from guided_diffusion.runtime.errors import NoCasesError, NoSplitError, UserError


def cases(names, **keywords):
    return [Case(name, (Path(name),), **keywords) for name in names]


def names(found):
    return [case.name for case in found]


def sides(hold_out, case_names):
    """(kept, held out for validation)."""
    parts = hold_out.divide(cases(case_names))
    assert not parts["test"]
    return parts["train"], parts["val"]


PATIENTS = [f"P{patient:03d}_{image}" for patient in range(400) for image in range(3)]
SOME = HoldOut(0.4)
BY_PATIENT = HoldOut(0.2, group_key=r"^(P\d+)_")


# ---- the division ------------------------------------------------------------------------------------------------


def test_one_patient_is_never_on_both_sides_and_the_share_is_met():
    kept, held = sides(BY_PATIENT, PATIENTS)
    assert names(kept) == [name for name in PATIENTS if name not in set(names(held))]  # in order, nothing lost
    patients = [{name[:4] for name in names(side)} for side in (kept, held)]
    assert not patients[0] & patients[1]
    assert len(patients[1]) == 80  # of 400


@pytest.mark.parametrize(("count", "share", "held"), [(60, 0.2, 12), (24, 0.25, 6), (10, 0.25, 3), (3, 0.01, 1)])
def test_the_number_held_out_is_the_nearest_to_the_share(count, share, held):
    names = [f"c{k}" for k in range(count)]
    assert [len(HoldOut(share, seed).divide(cases(names))["val"]) for seed in range(5)] == [held] * 5
    volumes = [Case(f"{name}_{k}", (), volume=name, slice_index=k) for name in names for k in range(1 + len(name))]
    assert len({case.volume for case in HoldOut(share).divide(volumes)["val"]}) == held


def test_a_case_moves_only_over_a_border_when_others_come():
    hold_out = HoldOut(0.2, test_fraction=0.1)
    order = ("test", "val", "train")  # by the places of their hashes
    before = {}
    for count in range(20, 60):
        parts = hold_out.divide(cases([f"c{k}" for k in range(count)]))
        now = {case.name: name for name, part in parts.items() for case in part}
        moved = [(before[name], now[name]) for name in before if before[name] != now[name]]
        assert len(moved) <= 2 and len(set(moved)) == len(moved)  # at most one group over each border
        assert all(abs(order.index(a) - order.index(b)) == 1 for a, b in moved)
        before = now
    held = names(sides(BY_PATIENT, PATIENTS)[1])
    assert set(names(sides(BY_PATIENT, reversed(PATIENTS))[1])) == set(held)


def test_a_larger_share_holds_the_smaller_one_and_another_seed_is_unrelated():
    held = [set(names(sides(HoldOut(share, group_key=r"P\d+"), PATIENTS)[1])) for share in (0.1, 0.2, 0.5)]
    assert held[0] < held[1] < held[2]
    other = set(names(sides(HoldOut(0.2, 1, r"P\d+"), PATIENTS)[1]))
    assert len(other & held[1]) < len(held[1]) / 2


def test_the_test_part_does_not_depend_on_the_share_for_validation():
    parts = [HoldOut(share, 0, r"P\d+", 0.25).divide(cases(PATIENTS)) for share in (0, 0.1, 0.3)]
    assert len({tuple(names(part["test"])) for part in parts}) == 1 and len(parts[0]["test"]) == 300
    assert [len(part["val"]) for part in parts] == [0, 120, 360]
    for part in parts:
        assert sorted(sum(map(names, part.values()), [])) == sorted(PATIENTS)


@pytest.mark.parametrize("fraction", [0.01, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_no_part_is_empty(fraction, seed):
    assert all(sides(HoldOut(fraction, seed), "abc"))
    assert all(HoldOut(fraction, seed, test_fraction=0.9 - fraction or 0.05).divide(cases("abc")).values())


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
    few = "--val_fraction 0.3 --test_fraction 0.3: the 2 cases are of 2 groups, which cannot be divided into 3 parts"
    with pytest.raises(UserError, match=few):
        HoldOut(0.3, test_fraction=0.3).divide(cases("ab"))


def test_option_values():
    assert hold_out_of({}) is None and hold_out_of({"val_fraction": 0.0, "group_key": "", "split_seed": 0}) is None
    both = {"val_fraction": 0.2, "test_fraction": 0.1, "group_key": "x", "split_seed": 3}
    assert hold_out_of(both) == HoldOut(0.2, 3, "x", 0.1)
    with pytest.raises(UserError, match="by version 0.2.0 or an earlier one, which held out other cases"):
        hold_out_of({"val_fraction": 0.2, "group_key": "x", "split_seed": 3})
    assert refused("--val_fraction 0.5 --test_fraction 0.5").endswith("together must be at most 0.9")
    assert values("--val_fraction 0.2 --group_key ^P")["val_fraction"] == 0.2
    assert refused("--val_fraction 1").endswith("must be at most 0.9")
    assert refused("--split_seed 1") == "--split_seed belongs to --val_fraction and --test_fraction; leave it out"
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
    note = "--val_fraction 0.4: of 6 cases, 2 for validation are held out of training"
    assert load(folder, "train").notes[0] == note and len(val) == 2
    assert "of 6 cases, 1 for validation is held out" in load(folder, "train", HoldOut(0.01)).notes[0]
    assert [load(folder, split).part for split in ("train", "val", "test", None)] == ["train", "val", "val", "all"]


def test_cases_kept_for_testing_neither_train_nor_validate(folder):
    both = HoldOut(1 / 3, test_fraction=1 / 3)
    train, val, test = (names(load(folder, split, both).cases) for split in ("train", "val", "test"))
    assert (
        sorted(train + val + test) == names(load(folder, None).cases) and [len(train), len(val), len(test)] == [2] * 3
    )
    assert load(folder, "test", both).part == "test"
    assert "2 for validation and 2 for testing are held out" in load(folder, "train", both).notes[0]
    only = HoldOut(0, test_fraction=1 / 3)
    assert names(load(folder, "test", only).cases) == test
    with pytest.raises(NoCasesError, match="has no validation cases"):
        load(folder, "val", only)


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
    with pytest.raises((NoCasesError, NoSplitError), match='no cases found|has no list "test", or an empty one'):
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
    trained = {"data_name": "FOLDER", "data_dir": str(folder), "val_fraction": 0.4, "test_fraction": 0.0}

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


def test_data_that_moved_are_known_by_their_names_though_few_were_trained_on(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "moved")
    moved = load(tmp_path / "moved", None, None)
    trained = {"data_name": "FOLDER", "data_dir": str(folder), "val_fraction": 0.8, "test_fraction": 0.0}
    assert "1 of 6 cases has the name of training cases" in leakage_warning(moved, group_cases(moved.cases), trained)


def test_moved_data_that_an_earlier_version_divided_are_not_divided_anew(folder, tmp_path):
    trained = {"data_name": "FOLDER", "data_dir": str(folder), "val_fraction": 0.4}
    shutil.copytree(folder, tmp_path / "moved")
    moved = load(tmp_path / "moved", None, None)
    line = leakage_warning(moved, group_cases(moved.cases), trained)
    assert "6 of 6 cases have the names of training cases" in line
    assert line.endswith("; only version 0.2.0 takes the held-out cases")
    for kind in ("images", "masks"):
        for path in (tmp_path / "moved" / kind).iterdir():
            path.rename(path.with_name(f"other_{path.name}"))
    others = load(tmp_path / "moved", None, None)
    assert leakage_warning(others, group_cases(others.cases), trained) is None


def test_a_key_alone_divides_nothing(refusal, folder):
    message = refusal("segmentation_train", ["--data_name FOLDER --group_key ^c --data_dir", folder])
    assert "--group_key belongs to --val_fraction and --test_fraction, which divide the cases; leave" in message


def test_slices_of_a_volume_in_two_groups_are_refused():
    slices = [
        Case(f"P{volume}_slice_{k}", (Path("v"),), volume=f"P{volume}", slice_index=k)
        for volume in range(4)
        for k in range(3)
    ]
    with pytest.raises(UserError, match="slices of the volume P0 are of the groups '0' and '1', .*; let --group_key"):
        HoldOut(0.3, group_key=r"slice_(\d+)").divide(slices)
    slices = [dataclasses.replace(case, group=case.slice_index) for case in slices]
    with pytest.raises(UserError, match="of the groups '0' and '1', .*; give its cases one group"):
        HoldOut(0.3).divide(slices)
    assert len(HoldOut(0.3, group_key=r"P\d").divide(slices)["val"]) == 3


@pytest.mark.parametrize("key", [r"(P\d)?", "X*"])
def test_a_key_that_finds_nothing_in_a_name_is_refused(key):
    with pytest.raises(UserError, match="is not found in the case name 'a_1'"):
        group_of(Case("a_1", (Path("a"),)), key)


@pytest.mark.parametrize("key", ["training", "Train"])
def test_the_lists_of_split_json_may_have_the_names_of_folders(folder, tmp_path, key):
    for part in ("images", "masks"):
        (tmp_path / part).symlink_to(folder / part)
    lists = {key: ["case0", "case1", "case2"], "validation": ["case3"], "fold_2": ["case4"], "seed": 1}
    (tmp_path / "split.json").write_text(json.dumps(lists))
    train, val = (load(tmp_path, split, None) for split in ("train", "val"))
    assert names(train.cases) == ["case0", "case1", "case2"] and names(val.cases) == ["case3"]
    assert f"{tmp_path / 'split.json'}: names no split by 'fold_2'; write " in "\n".join(train.notes)
    (tmp_path / "split.json").write_text(json.dumps({"val": ["case0"], key: ["case1"], "valid": ["case3"]}))
    with pytest.raises(UserError, match="has two lists of one split, among val, "):
        load(tmp_path, "train", None)


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
        ("MICCAI_BraTS_2019_Data_Validation", "val"),
        ("BraTS2020_TrainingData", "train"),
        ("MICCAI_BraTS2020_TrainingData (1)", "train"),
        ("Brats17TrainingData", "train"),
        ("RSNA_ASNR_MICCAI_BraTS2021_ValidationData", "val"),
        ("BraTS2021_Training_Data", "train"),
        ("ASNR-MICCAI-BraTS2023-SSA-Challenge-TrainingData_V2", "train"),
        ("ASNR-MICCAI-BraTS2023-MET-Challenge-TrainingData_1", "train"),
        ("BraTS2024-BraTS-GLI-AdditionalTrainingData", "train"),
        ("training_data1_v2", "train"),
        ("training_data_additional", "train"),
        ("validation_data", "val"),
        ("BraTS-PEDs2024_Training", "train"),
        ("BraTS-MEN-RT-Train-v2", "train"),
        ("BraTS-MEN-RT-Val-v1", "val"),
        ("MICCAI2024-BraTS-GoAT-TrainingData-With-GroundTruth", "train"),
        ("test_set", "test"),
        ("testdata", "test"),
        ("brats20-dataset-training-validation", None),  # holds both
        ("BraTS20_Training_001", None),  # a case
        ("images", None),
        ("train_images", None),
        ("latest_data", None),
        ("dataset", None),
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
