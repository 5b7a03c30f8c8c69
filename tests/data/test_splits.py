"""The division of cases: what stays together, what decides, and the folders of a split."""

import dataclasses
from pathlib import Path

import pytest
from helpers import refused, values

from guided_diffusion.data.cases import Case
from guided_diffusion.data.splits import HoldOut, group_of, hold_out_of, split_folders, split_of
from guided_diffusion.runtime.errors import UserError


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
BY_PATIENT = HoldOut(0.2, group_key=r"^(P\d+)_")


# ---- the division ------------------------------------------------------------------------------------------------


def test_one_patient_is_never_on_both_sides_and_the_share_is_met():
    kept, held = sides(BY_PATIENT, PATIENTS)
    assert names(kept) == [name for name in PATIENTS if name not in set(names(held))]  # in order, nothing lost
    patients = [{name[:4] for name in names(side)} for side in (kept, held)]
    assert not patients[0] & patients[1]
    assert len(patients[1]) == 80  # of 400


def test_folds_hold_out_every_patient_once_and_never_on_both_sides():
    parts = [HoldOut(0, group_key=r"^(P\d+)_", fold=(fold, 7)).divide(cases(PATIENTS)) for fold in range(1, 8)]
    assert sorted(sum((names(part["val"]) for part in parts), [])) == sorted(PATIENTS)
    for part in parts:
        patients = [{name[:4] for name in names(part[side])} for side in ("train", "val")]
        assert not patients[0] & patients[1] and len(patients[1]) in (57, 58) and not part["test"]
    tested = [HoldOut(0, 0, r"P\d+", 0.25, (fold, 3)).divide(cases(PATIENTS)) for fold in (1, 2, 3)]
    assert {tuple(names(part["test"])) for part in tested} == {
        tuple(names(HoldOut(0, 0, r"P\d+", 0.25).divide(cases(PATIENTS))["test"]))
    }
    assert sorted(sum((names(part["val"]) for part in tested), names(tested[0]["test"]))) == sorted(PATIENTS)


def test_the_first_of_n_folds_is_that_share_and_one_more_case_moves_few():
    assert HoldOut(0, fold=(1, 5)).divide(cases(PATIENTS[:60])) == HoldOut(0.2).divide(cases(PATIENTS[:60]))
    before = {}
    for count in range(20, 60):
        every = cases([f"c{k}" for k in range(count)])
        held = [HoldOut(0, fold=(fold, 4)).divide(every)["val"] for fold in range(1, 5)]
        now = {case.name: fold for fold, part in enumerate(held) for case in part}
        moved = [(before[name], now[name]) for name in before if before[name] != now[name]]
        assert len(moved) <= 3 and len(set(moved)) == len(moved) and all(abs(a - b) == 1 for a, b in moved)
        before = now


def test_fewer_groups_than_folds_are_refused():
    with pytest.raises(UserError, match="--fold 3/5: the cases to divide are of 4 groups, fewer than folds; ask for"):
        HoldOut(0, fold=(3, 5)).divide(cases("abcd"))


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
    assert refused("--split_seed 1").startswith("--split_seed belongs to --val_fraction, --fold and --test_fraction;")
    assert values("--group_key ^P")["group_key"] == "^P"  # for sampling and check_data, to count patients
    assert "--group_key (: is no regular expression" in refused("--val_fraction 0.1 --group_key (")
    assert hold_out_of({"fold": "2/5", "split_seed": 3}) == HoldOut(0, 3, fold=(2, 5))
    assert HoldOut(0, 3, test_fraction=0.2, fold=(2, 5)).flags == "--fold 2/5 --test_fraction 0.2"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--fold 0/5", "--fold 0/5: folds are counted from 1: name one of 1/5 to 5/5"),
        ("--fold 6/5", "--fold 6/5: folds are counted from 1: name one of 1/5 to 5/5"),
        ("--fold 1/1", "--fold 1/1: the number of folds must be from 2 to 1000"),
        ("--fold 2", "--fold 2: write K/N, the fold and the number of folds, as 1/5"),
        ("--fold 1/5 --val_fraction 0.2", "--fold 1/5 --val_fraction 0.2: both name the validation cases; leave one"),
    ],
)
def test_folds_that_are_none(flags, line):
    assert refused(flags).startswith(line)


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
