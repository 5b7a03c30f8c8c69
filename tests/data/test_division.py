"""Which part of the data a data set's cases are: what is held out, and what stands for a part that the data lack."""

import json
import shutil

import numpy as np
import pytest
from conftest import FAST, TINY, rows, strict_json, write_folder

from guided_diffusion.data.cases import group_cases
from guided_diffusion.data.compatibility import leakage_warning
from guided_diffusion.data.division import part_of
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.splits import HoldOut
from guided_diffusion.runtime.errors import NoCasesError, NoSplitError, UserError


def names(found):
    return [case.name for case in found]


SOME = HoldOut(0.4)


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
    assert [part_of(load(folder, split)) for split in ("train", "val", "test", None)] == ["train", "val", "val", "all"]


def test_cases_kept_for_testing_neither_train_nor_validate(folder):
    both = HoldOut(1 / 3, test_fraction=1 / 3)
    train, val, test = (names(load(folder, split, both).cases) for split in ("train", "val", "test"))
    assert (
        sorted(train + val + test) == names(load(folder, None).cases) and [len(train), len(val), len(test)] == [2] * 3
    )
    assert part_of(load(folder, "test", both)) == "test"
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


def test_the_folds_by_the_scripts_are_pooled_into_one_evaluation(script, refusal, folder, tmp_path, capsys):
    data, held, results = ["--data_name FOLDER --data_dir", folder], [], []
    for fold in ("1/2", "2/2"):
        out, place = tmp_path / f"run{fold[0]}", tmp_path / f"results{fold[0]}"
        script("segmentation_train", [*data, "--out_dir", out, TINY, f"--max_steps 1 --fold {fold}"])
        checkpoint = ["--model_path", out / "model000001.pt", "--data_dir", folder, FAST]
        script("segmentation_sample", [*checkpoint, "--split val --out_dir", place])
        assert "were trained on" not in capsys.readouterr().out
        held.append(sorted(path.stem for path in (place / "masks").iterdir()))
        results.append(place)
        assert strict_json(place / "manifest.json")["data"]["fold"] == fold
    pair = ",".join(str(tmp_path / f"run{number}" / "last.pt") for number in (1, 2))
    together = ["--model_path", pair, "--data_dir", folder, FAST, "--split val --num_samples 1 --out_dir"]
    script("segmentation_sample", [*together, tmp_path / "both"])
    assert "1 of 1 case was trained on" in capsys.readouterr().out  # by the second one
    (further,) = strict_json(tmp_path / "both" / "manifest.json")["further"]
    assert further["data"]["fold"] == "2/2" and further["checkpoint"] == pair.split(",")[1]
    script("segmentation_eval", ["--pred_dir", tmp_path / "both"])
    assert "3 of 3 cases were trained on" in capsys.readouterr().out
    assert [len(part) for part in held] == [3, 3] and sorted(sum(held, [])) == [f"case{k}" for k in range(6)]

    both = ["--pred_dir", f"{results[0]},{results[1]}", "--out_dir", tmp_path / "pooled"]
    script("segmentation_eval", both)
    found, table = strict_json(tmp_path / "pooled" / "summary.json"), capsys.readouterr().out
    own = [strict_json(place / "summary.json")["ensemble"]["dice"]["mean"] for place in results]
    assert found["ensemble"]["cases"] == 6 and found["ensemble"]["dice"]["mean"] == pytest.approx(sum(own) / 2)
    assert [(one["fold"], one["cases"]) for one in found["folds"]] == [("1/2", 3), ("2/2", 3)]
    assert [one["dice"] for one in found["folds"]] == pytest.approx(own)
    assert "fold" in table and "1/2" in table
    assert sorted(row["name"] for row in rows(tmp_path / "pooled")) == sorted(sum(held, []))

    line = refusal("segmentation_eval", both[:2])
    assert "--out_dir: is needed with several folders" in line
    twice = refusal("segmentation_eval", ["--pred_dir", f"{results[0]},{results[0]}", "--out_dir", tmp_path / "none"])
    assert twice.endswith(f"{results[0]}: is named twice in --pred_dir; name each folder once")
    assert not (tmp_path / "none").exists()


def test_a_key_alone_divides_nothing(refusal, folder):
    message = refusal("segmentation_train", ["--data_name FOLDER --group_key ^c --data_dir", folder])
    assert "--group_key belongs to --val_fraction, --fold and --test_fraction, which divide the cases; leave" in message


def test_data_that_moved_are_known_by_their_names_though_few_were_trained_on(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "moved")
    moved = load(tmp_path / "moved", None, None)
    trained = {"data_name": "FOLDER", "data_dir": str(folder), "val_fraction": 0.8, "test_fraction": 0.0}
    assert "1 of 6 cases has the name of training cases" in leakage_warning(moved, group_cases(moved.cases), trained)


@pytest.mark.parametrize("key", ["training", "Train"])
def test_the_lists_of_split_json_may_have_the_names_of_folders(folder, tmp_path, key):
    for part in ("images", "masks"):
        (tmp_path / part).symlink_to(folder / part)
    lists = {key: ["case0", "case1", "case2"], "validation": ["case3"], "fold_2": ["case4"], "seed": 1}
    (tmp_path / "split.json").write_text(json.dumps(lists))
    train, val = (load(tmp_path, split, None) for split in ("train", "val"))
    assert names(train.cases) == ["case0", "case1", "case2"] and names(val.cases) == ["case3"]
    assert f"{tmp_path / 'split.json'}: the list 'fold_2' is no split's: not read" in "\n".join(train.notes)
    (tmp_path / "split.json").write_text(json.dumps({"val": ["case0"], key: ["case1"], "valid": ["case3"]}))
    with pytest.raises(UserError, match="has the lists .* both of one split; keep one"):
        load(tmp_path, "train", None)


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
