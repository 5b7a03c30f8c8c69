"""The accuracy protocol at its smallest: what is trained, recorded, resumed, split and refused."""

import importlib
import json
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.utils.benchmark  # warns once, on import, where CUDA is installed without a device
from conftest import SCRIPTS, write_folder

from guided_diffusion.data.phantoms import write_lidc
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.io.files import write_json

SIZE = "'--image_size 32 --num_channels 8 --channel_mult 1,2,2 --num_res_blocks 1 --batch_size 2 --precision fp32'"
ACCURACY = "benchmarks/accuracy"


pytestmark = pytest.mark.usefixtures("beside_each_other")


@pytest.fixture
def protocol():
    """The script as a module."""
    return importlib.import_module("accuracy")


@pytest.fixture
def sets(tmp_path):
    """Flags that name phantoms in place of the real sets."""
    write_folder(tmp_path / "ph2", 6)
    write_json(tmp_path / "ph2" / "split.json", {"train": [f"case{i}" for i in range(4)], "test": ["case4", "case5"]})
    write_lidc(tmp_path / "lidc", 8, 2, size=32)
    return ["--ph2_dir", tmp_path / "ph2", "--lidc4_dir", tmp_path / "lidc", "--out_dir", tmp_path / "runs"]


def lines_of(record):
    return [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def in_this_process(script, monkeypatch):
    """The protocol's commands run in this process, which saves importing torch for each."""

    def run(command, env):
        script(Path(command[1]).with_suffix("").name, [shlex.quote(word) for word in command[2:]])
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(subprocess, "Popen", run)


def test_each_run_is_a_line_and_is_not_done_again(script, sets, tmp_path, capfd, in_this_process):
    record = tmp_path / "accuracy.jsonl"
    flags = [*sets, "--record", record, "--sets lidc4 --minutes 0.001 --seeds 3 --split tuning --threads 1"]
    flags += ["--contenders 'v2;two=v2: --num_ensemble 2 --diffusion_steps 2'", "--size", SIZE]
    flags += ["--sampling '--precision fp32 --scales none'"]
    script(ACCURACY, flags)
    speed, copula, *runs = lines_of(record)
    assert speed["kind"] == "speed" and speed["contender"] == "v2" and speed["seconds_per_step"] > 0
    assert copula["kind"] == "copula" and copula["length"] > 0  # fitted once
    assert [line["contender"] for line in runs] == ["v2", "two"]
    for line in runs:
        assert (line["kind"], line["set"], line["split"], line["seed"]) == ("run", "lidc4", "tuning", 3)
        assert line["steps"] == max(1, int(0.06 / speed["seconds_per_step"])) and line["minutes"] == 0.001
        assert "--recipe staged" in line["flags"] and "threads" in line["machine"]
        defined = [value for value in line["cases"]["dice"] if value is not None]
        mean = float(np.mean(defined)) if defined else None
        assert line["figures"]["dice"] == (None if mean is None else pytest.approx(mean, abs=1e-3))
        assert line["figures"]["ged2_unbiased"] is not None and line["seconds_per_case"] > 0
        assert line["figures"]["copula_ged2"] is not None and line["figures"]["log_loss_per_area"] > 0
        assert len(line["groups"]) == len(line["cases"]["ged2_unbiased"]) > 0
    assert runs[0]["train_seconds"] > 0
    assert runs[0]["train_seconds"] == runs[1]["train_seconds"]  # they share their weights
    assert runs[1]["sampling"].endswith("--num_ensemble 2 --diffusion_steps 2")
    table = record.with_suffix(".md").read_text(encoding="utf-8")
    assert "### lidc4, tuning split, 0.001 minutes" in table and "| two | 1 |" in table
    before = record.read_text(encoding="utf-8")
    capfd.readouterr()
    script(ACCURACY, flags)
    assert record.read_text(encoding="utf-8") == before and capfd.readouterr().out.count("done before") == 2


def test_a_deep_ensemble_s_answer_is_the_mean_of_its_networks(script, protocol, sets, tmp_path, in_this_process):
    record = tmp_path / "a.jsonl"
    flags = [*sets, "--record", record, "--sets ph2 --steps 4 --seeds 0", "--size", SIZE, "--only_train True"]
    flags += ["--contenders unet_mean_x4 --sampling '--precision fp32 --symmetries none --scales none'"]
    script(ACCURACY, flags)
    assert not record.exists()
    script(ACCURACY, flags[:-2] + flags[-1:])
    (line,) = (line for line in lines_of(record) if line["kind"] == "run")
    folder = tmp_path / "runs" / "test_ph2_unet_mean_x4_0_4"
    parts = [folder / str(n) / "results_unet_mean_x4" / "probability" / "case4.png" for n in range(protocol.DEEP)]
    mean = np.mean([protocol.read_picture(part).astype(float) for part in parts], axis=0)
    written = protocol.read_picture(folder / "results" / "probability" / "case4.png")
    assert np.abs(written - mean).max() <= 0.5 / 257 + 1e-5 and len({part.read_bytes() for part in parts}) > 1
    assert len(line["groups"]) == 2 and line["train_seconds"] > 0


def test_tuning_never_sees_the_test_split_and_keeps_patients_together(sets):
    for kind, folder in {"Folder": sets[1], "LIDC": sets[3]}.items():
        file = SCRIPTS / "benchmarks" / "loaders.py"
        whole = build_dataset(f"{file}:Benchmark{kind}", folder, 32, split="train").cases
        tuning = [build_dataset(f"{file}:Tuning{kind}", folder, 32, split=split).cases for split in ("train", "test")]
        assert sorted(case.name for part in tuning for case in part) == [case.name for case in whole]
        assert all(tuning)
        groups = [{case.group or case.name for case in part} for part in tuning]
        assert not groups[0] & groups[1]


def test_items_are_kept_and_stay_as_they_were(sets):
    dataset = build_dataset(f"{SCRIPTS / 'benchmarks' / 'loaders.py'}:BenchmarkFolder", sets[1], 32, need_masks=True)
    first = dataset[0]
    first["image"] += 1
    shutil.rmtree(sets[1])
    assert torch.equal(dataset[0]["image"] + 1, first["image"])


def test_a_later_contender_gets_the_steps_of_the_machine_as_it_was(protocol, tmp_path, monkeypatch):
    slowness, seconds = 1.0, {"v2": 0.3, "one_rate": 0.24, "unet": 0.1}
    monkeypatch.setattr(protocol, "measure", lambda options, name, flags: {c: slowness * seconds[c] for c in flags})
    record = tmp_path / "a.jsonl"

    def steps(contenders, **more):
        options = protocol.AccuracyOptions(record=str(record), minutes=1, contenders=contenders, **more)
        return protocol.steps_of(options, protocol.KNOWN["lidc4"], protocol.chosen(options)[1])

    assert steps("v2") == {"v2": 200}
    slowness = 2.0  # all are slowed alike by other work, also the recipe, which is measured beside them for that
    assert steps("one_rate=v2 --second_stage_lr 1;v2") == {"one_rate": 250, "v2": 200}
    assert steps("unet_mse,unet_mean_x4") == {"unet_mse": 600, "unet_mean_x4": 600}
    lines = lines_of(record)
    assert [line["seconds_per_step"] for line in lines] == pytest.approx([0.3, 0.24, 0.1])
    assert [("scaled_by" in line) for line in lines] == [False, True, True]
    assert steps("v1_published,v2", steps=70) == {"v1_published": 70, "v2": 70}
    assert lines_of(record) == lines


def test_contenders_of_ones_own(protocol):
    asked = "v1_published;a=--version unet;b=v1_published --ema_rate 0.9;c=v1_published: --scales none;d=b: --seed 1"
    contenders = protocol.chosen(protocol.AccuracyOptions(contenders=asked))[1]
    published = contenders["v1_published"]
    assert contenders["a"] == protocol.Contender("--version unet")
    assert contenders["b"] == protocol.Contender(f"{published.training} --ema_rate 0.9", published.sampling)
    assert contenders["c"] == published._replace(
        sampling=f"{published.sampling} --scales none", weights_of="v1_published"
    )
    assert contenders["d"].weights_of == "b" and contenders["d"].training == contenders["b"].training


def test_the_second_stage_begins_at_its_share(protocol):
    assert protocol.in_steps("--condition_steps 85% --lr 1 --dice_steps 67%", 100) == (
        "--condition_steps 85 --lr 1 --dice_steps 67"
    )
    assert protocol.in_steps("--condition_steps 85%", 1) == "--condition_steps 1"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--sets cifar", "'cifar' is none of ph2, lidc4"),
        ("--contenders v3", "'v3' is none of unet"),
        ("--contenders auto,unet --steps 9", "--steps 9: auto chooses its steps; give it --minutes"),
        ("--contenders 'big=nnunet --preset S'", "nnunet takes no flags of ours"),
        ("--contenders 'more=nnunet: --scales none'", "nnunet takes no flags of ours"),
        ("--contenders nnunet", "--nnunet_python: is needed for nnunet; name the python of an environment of its own"),
        ("--seeds 1,x", "--seeds 1,x: must be whole numbers separated by commas"),
    ],
)
def test_what_makes_no_sense_is_refused(refusal, tmp_path, flags, words):
    assert words in refusal(ACCURACY, [flags, "--record", tmp_path / "a.jsonl"])


def test_a_script_runs_with_the_threads_asked_for_and_its_failure_is_named(protocol, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("accuracy_runs"), "SCRIPTS", tmp_path)
    (tmp_path / "small.py").write_text("import os, sys\nsys.exit(os.environ['OMP_NUM_THREADS'] != sys.argv[1])")
    options = protocol.AccuracyOptions(threads=3)
    seconds, processor_seconds = protocol.call_script(options, "small.py", ["3"])
    assert seconds > 0 and processor_seconds > 0
    with pytest.raises(protocol.UserError, match=r"small.py failed with status 1 \(its message is above\): 'not 3'"):
        protocol.call_script(options, "small.py", ["not 3"])


def test_layouts_without_a_loader_here_are_for_contenders_that_choose_for_themselves(protocol):
    other = protocol.KNOWN["ph2"]._replace(kind="", data_dir="hearts")
    options = protocol.AccuracyOptions(contenders="auto")
    protocol.check_contenders(options, [other], {"auto": protocol.CONTENDERS["auto"]})
    with pytest.raises(protocol.UserError, match="unet reads folders of pairs and LIDC, and hearts is of another"):
        protocol.check_contenders(options, [other], {"unet": protocol.CONTENDERS["unet"]})
    options = protocol.AccuracyOptions(split="tuning")
    with pytest.raises(protocol.UserError, match="--split tuning: hearts is not divided"):
        protocol.check_contenders(options, [other], {})


def test_a_broken_record_is_named(refusal, tmp_path):
    record = tmp_path / "a.jsonl"
    record.write_text('{"kind": "speed"}\n{"kind": "run"\n')
    assert "a.jsonl: line 2 is not JSON" in refusal(ACCURACY, ["--table True --record", record])


def test_the_published_record_still_matches_today_s_contenders(protocol):
    """A flag string that changed would run everything anew beside the recorded rows."""
    places = [SCRIPTS.parent / "docs" / place for place in ("record/accuracy.jsonl", "accuracy.jsonl")]
    lines = [line for line in lines_of(next(filter(Path.is_file, places))) if line["kind"] == "run"]
    options = protocol.AccuracyOptions()
    for contender in ("unet_mean", "v2", "v2_members"):
        how = protocol.CONTENDERS[contender]
        flags = protocol.trained_with(options, protocol.KNOWN["lidc4"], how.training)
        sampling = " ".join(f"{protocol.KNOWN['lidc4'].sampling} {how.sampling}".split())
        wanted = {"contender": contender, "set": "lidc4", "flags": flags, "sampling": sampling, "minutes": 2.0}
        assert sum(wanted.items() <= line.items() for line in lines) == 3, contender  # three seeds
