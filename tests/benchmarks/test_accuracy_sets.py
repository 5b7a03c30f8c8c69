"""Which data sets --sets names: those that the protocol knows, and any folder."""

import importlib

import numpy as np
import pytest
from conftest import SCRIPTS, write_folder

from guided_diffusion.data.phantoms import write_lidc
from guided_diffusion.io.files import write_json
from guided_diffusion.runtime.errors import UserError


@pytest.fixture
def sets(beside_each_other):
    return importlib.import_module("accuracy_sets")


def names_of(data, part):
    return sorted(case.name for case in data.build(part).cases)


def test_known_names_paths_and_named_paths(sets, tmp_path):
    write_folder(tmp_path / "polyps", 6)
    write_lidc(tmp_path / "ct", 4, 2, size=32)
    words = f"ph2, {tmp_path / 'polyps'},nodules={tmp_path / 'ct'}"
    ph2, polyps, nodules = sets.chosen_sets(words, {"ph2": "here/ph2"}, 0.4)
    assert ph2 == sets.KNOWN["ph2"]._replace(data_dir="here/ph2")
    assert (polyps.name, polyps.kind, polyps.test_fraction) == ("polyps", "Folder", 0.4)
    assert (nodules.name, nodules.kind, nodules.test_fraction) == ("nodules", "LIDC", 0.0)  # it has tests of its own
    assert polyps.as_user("test") == ["--data_dir", str(tmp_path / "polyps")]
    assert polyps.held_out() == ["--test_fraction", "0.4"] and nodules.held_out() == []
    assert nodules.as_user("tuning")[2:] == ["--data_name", f"{SCRIPTS / 'benchmarks' / 'loaders.py'}:TuningLIDC"]
    train, test = names_of(polyps, "train"), names_of(polyps, "test")
    assert len(test) == 2 and sorted(train + test) == [f"case{i}" for i in range(6)]
    assert names_of(nodules, "test") == ["lidc_0004", "lidc_0005"]


def test_a_table_alone_reads_no_folder(sets):
    (data,) = sets.chosen_sets("gone=no/such", {}, 0.2, look=False)
    assert (data.name, data.data_dir) == ("gone", "no/such")


@pytest.mark.parametrize("layout", ["listed", "folders"])
def test_a_division_of_the_data_s_own_is_kept(sets, tmp_path, layout):
    folder = tmp_path / "data"
    if layout == "listed":
        write_folder(folder, 4)
        write_json(folder / "split.json", {"train": ["case0", "case1", "case2"], "test": ["case3"]})
    else:
        write_folder(folder / "train", 3)
        write_folder(folder / "test", 2)
    (data,) = sets.chosen_sets(str(folder), {}, 0.2)
    assert data.test_fraction == 0 and len(names_of(data, "train")) == 3


def test_validation_cases_and_training_cases_are_no_tests(sets, tmp_path):
    """They select best.pt, or train the network."""
    write_folder(tmp_path / "a" / "train", 5)
    write_folder(tmp_path / "a" / "val", 2)
    write_folder(tmp_path / "b" / "train", 5)
    for data in sets.chosen_sets(f"{tmp_path / 'a'},{tmp_path / 'b'}", {}, 0.2):
        assert data.test_fraction == 0.2 and len(names_of(data, "train")) == 4 and len(names_of(data, "test")) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cifar", "--sets cifar: 'cifar' is none of ph2, lidc4, drive, em, and no folder; write a folder or NAME="),
        ("ph2=there", "--sets ph2=there: ph2 is a set with flags of its own; name its folder by --ph2_dir"),
        ("{}=x", "must be of letters"),
        ("a={0}/polyps,a={0}/polyps", "a is named twice; give one another name by NAME=FOLDER"),
        ("a={0}/gone", "gone: no such folder"),
        ("{0}/empty", "empty: is in none of the layouts"),
        ("{0}/unmarked", "has no mask"),
    ],
)
def test_what_is_no_set_is_refused(sets, tmp_path, words, message):
    write_folder(tmp_path / "polyps", 3)
    write_folder(tmp_path / "unmarked", 3)
    for path in (tmp_path / "unmarked" / "masks").iterdir():
        path.unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as refused:
        sets.chosen_sets(words.format(tmp_path), {"ph2": "there"}, 0.2)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_tests_without_truth_are_replaced(sets, tmp_path):
    """Challenges publish them so."""
    write_folder(tmp_path / "data" / "train", 5)
    write_folder(tmp_path / "data" / "test", 2)
    for path in (tmp_path / "data" / "test" / "masks").iterdir():
        path.unlink()
    (data,) = sets.chosen_sets(str(tmp_path / "data"), {}, 0.2)
    assert data.test_fraction == 0.2
    assert np.isin(names_of(data, "test"), [f"case{i}" for i in range(5)]).all()
