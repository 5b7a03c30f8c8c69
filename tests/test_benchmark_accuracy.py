"""The accuracy protocol through its script's door, at its smallest: what is recorded, resumed, split and refused."""

import importlib
import json
import re
import runpy

import numpy as np
import pytest
from conftest import SCRIPTS, write_folder

from guided_diffusion.data import build_dataset
from guided_diffusion.files import write_json
from guided_diffusion.phantom import write_lidc

SIZE = (
    "--size '--image_size 32 --num_channels 8 --channel_mult 1,2,2 --num_res_blocks 1 --batch_size 2' "
    "--sampling '--diffusion_steps 2 --dpm_solver True'"
)
PROTOCOL = SCRIPTS / "benchmark_accuracy.py"


@pytest.fixture(autouse=True)
def beside_the_other_scripts(monkeypatch):
    """A script finds its neighbours, as when it is run by its path."""
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture
def sets(tmp_path):
    """Flags that name phantoms in place of the real sets."""
    write_folder(tmp_path / "ph2", 6)
    write_json(tmp_path / "ph2" / "split.json", {"train": [f"case{i}" for i in range(4)], "test": ["case4", "case5"]})
    write_lidc(tmp_path / "lidc", 8, 2, size=32)
    return ["--ph2_dir", tmp_path / "ph2", "--lidc4_dir", tmp_path / "lidc", "--out_dir", tmp_path / "runs"]


def test_each_run_is_a_line_and_is_not_done_again(script, sets, tmp_path, capsys):
    record = tmp_path / "accuracy.jsonl"
    flags = [*sets, "--record", record, "--minutes 0.001 --seeds 3 --contenders unet,v2", SIZE]
    script("benchmark_accuracy", flags)
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    runs = {(line["set"], line["contender"]): line for line in lines if line["kind"] == "run"}
    assert list(runs) == [("ph2", "unet"), ("ph2", "v2"), ("lidc4", "unet"), ("lidc4", "v2")]
    speeds = [line for line in lines if line["kind"] == "speed"]
    assert len(speeds) == 4 and all(line["seconds_per_step"] > 0 for line in speeds)
    for (name, contender), line in runs.items():
        assert line["seed"] == 3 and line["steps"] >= 1 and line["train_seconds"] > 0 and line["split"] == "test"
        assert f"--version {contender}" in line["flags"] and "--image_size 32" in line["flags"]
        dice = [value for value in line["cases"]["dice"] if value is not None]
        assert (
            line["figures"]["dice"] == pytest.approx(np.mean(dice), abs=1e-3) if dice else not line["figures"]["dice"]
        )
        assert (line["figures"]["ged2"] is None) == (name == "ph2")
        assert (line["figures"]["coarse_dice"] is None) == (contender == "unet")
        assert len(line["groups"]) == 2 and line["seconds_per_case"] > 0
    assert runs["lidc4", "v2"]["groups"] == ["PHANTOM-2500"] * 2
    table = record.with_suffix(".md").read_text()
    assert "### ph2, test split" in table and "GED²" in table
    before = record.read_text()
    capsys.readouterr()
    script("benchmark_accuracy", flags)
    assert record.read_text() == before and capsys.readouterr().out.count("done before") == 4


def test_tuning_never_sees_the_test_split_and_keeps_patients_together(sets):
    folders = {"FOLDER": sets[1], "LIDC": sets[3]}
    for kind, folder in folders.items():
        all_of = {split: build_dataset(kind, folder, 32, split=split).cases for split in ("train", "test")}
        tuning = {
            split: build_dataset(f"{PROTOCOL}:Tuning{kind}", folder, 32, split=split).cases
            for split in ("train", "test")
        }
        assert sorted(c.name for part in tuning.values() for c in part) == [c.name for c in all_of["train"]]
        assert tuning["train"] and tuning["test"]
        groups = [{case.group or case.name for case in part} for part in tuning.values()]
        assert not groups[0] & groups[1]


def test_a_contender_that_comes_later_gets_the_steps_of_the_machine_as_it_was(tmp_path, monkeypatch):
    """All are slowed alike by what else runs, also the recipe, which is measured beside it for that."""
    module = importlib.import_module("benchmark_accuracy")
    slowness, seconds = 1.0, {"v2": 0.3, "v2_one_draw": 0.24}
    monkeypatch.setattr(module, "measure", lambda options, name, flags: {c: slowness * seconds[c] for c in flags})
    options = module.AccuracyOptions(record=str(tmp_path / "a.jsonl"), minutes=1)

    def steps(*contenders):
        return module.steps_of(options, "lidc4", {name: module.CONTENDERS[name] for name in contenders})

    assert steps("v2") == {"v2": 200}
    slowness = 2.0
    assert steps("v2_one_draw", "v2") == {"v2_one_draw": 250, "v2": 200}
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["seconds_per_step"] for line in lines] == pytest.approx([0.3, 0.24])
    assert "scaled_by" in lines[1] and "scaled_by" not in lines[0]


def test_a_contender_of_ones_own(script, sets, tmp_path):
    record = tmp_path / "accuracy.jsonl"
    own = ["--contenders 'mine=--version unet --mask_loss mse' --sets ph2 --seeds 0 --minutes 0.001 --split tuning"]
    script("benchmark_accuracy", [*sets, "--record", record, *own, SIZE])
    line = json.loads(record.read_text().splitlines()[-1])
    assert line["contender"] == "mine" and "--mask_loss mse" in line["flags"] and line["split"] == "tuning"
    assert len(line["groups"]) == 1  # of the four images to train on, one


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--sets cifar", "'cifar' is none of ph2, lidc4"),
        ("--contenders v3", "'v3' is none of unet"),
        ("--seeds 1,x", "--seeds 1,x: must be whole numbers"),
    ],
)
def test_what_makes_no_sense_is_refused(refusal, tmp_path, flags, words):
    assert words in refusal("benchmark_accuracy", [flags, "--record", tmp_path / "a.jsonl"])


def test_a_broken_record_is_named(refusal, tmp_path):
    record = tmp_path / "a.jsonl"
    record.write_text('{"kind": "run"\n')
    assert "a.jsonl: line 1 is not JSON" in refusal("benchmark_accuracy", ["--table True --record", record])


def test_the_readme_s_table_is_what_the_record_says_of_today_s_recipe():
    module = runpy.run_path(str(PROTOCOL))
    root = SCRIPTS.parent
    lines = [json.loads(line) for line in (root / "docs" / "accuracy.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = re.findall(
        r"(?m)^\| (LIDC|PH2)[^|]* \| `(\w+)` \| (.*) \|$", (root / "README.md").read_text(encoding="utf-8")
    )
    assert {row[:2] for row in rows} == {(name, c) for name in ("LIDC", "PH2") for c in ("unet", "unet_mse", "v2")}
    for name, contender, told in rows:
        flags = module["trained_with"](module["AccuracyOptions"](), module["CONTENDERS"][contender])
        asked = {"set": {"LIDC": "lidc4", "PH2": "ph2"}[name], "flags": flags, "minutes": 12.0, "split": "test"}
        runs = [line for line in lines if line["kind"] == "run" and asked.items() <= line.items()]
        runs = [run["figures"] for run in runs if run["contender"] == contender]
        expected = []
        for figure in ("dice", "ece_band", "ged2"):
            values = [run[figure] for run in runs]
            expected.append("–" if None in values else f"{np.mean(values):.3f}")
        assert told.replace("*", "").split(" | ") == expected
