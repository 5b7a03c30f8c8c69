"""Contenders as a user meets them: the commands they run, what is recorded, and equal test-time augmentation."""

import importlib
import json
import shlex
from pathlib import Path

import pytest
from conftest import write_folder

TINY = "--image_size 32 --num_channels 8 --channel_mult 1,2 --num_res_blocks 1 --batch_size 2 --precision fp32"
TINY += " --num_workers 0 --augment light --orientation any --sample_interval 0"


@pytest.fixture
def modules(beside_each_other):
    return {name: importlib.import_module(name) for name in ("accuracy", "accuracy_runs", "accuracy_user")}


@pytest.fixture
def commands(modules, monkeypatch, script):
    """The commands that are run, each in this process, which saves importing torch for each."""
    run = []

    def call(options, name, words, **environment):
        run.append((name, words, environment))
        script(Path(name).stem, [shlex.quote(word) for word in words])
        return 3.0, 2.0

    monkeypatch.setattr(modules["accuracy_user"], "call_script", call)
    return run


def test_a_user_gives_data_seed_and_time(script, modules, commands, tmp_path, capfd):
    write_folder(tmp_path / "polyps", 5)
    asked = [
        f"--sets {tmp_path / 'polyps'} --seeds 7 --minutes 0.001 --record {tmp_path}/a.jsonl --out_dir {tmp_path}/runs",
        f"--contenders 'mine=auto {TINY};plain=auto_unet {TINY}'",
    ]
    script("benchmarks/accuracy", asked)
    trainings = [words for name, words, _ in commands if name == "segmentation_train.py"]
    data = ["--data_dir", str(tmp_path / "polyps")]
    folder = str(tmp_path / "runs" / "test_polyps_mine_7_0.001min_")
    assert len(trainings) == 2 and trainings[0][:3] == [*data, "--out_dir"] and trainings[0][3].startswith(folder)
    given = ["--seed", "7", "--max_minutes", "0.001", "--test_fraction", "0.2"]
    assert trainings[0][4:] == [*given, *TINY.split()]
    assert trainings[1][-len(TINY.split()) - 2 :] == ["--version", "unet", *TINY.split()]
    caches = {environment["MEDSEGDIFF_CACHE"] for *_, environment in commands if environment}
    assert len(caches) == 2 and not any(Path(cache).exists() for cache in caches)  # each decodes for itself
    samplings = [words for name, words, _ in commands if name == "segmentation_sample.py"]
    assert [words[2:4] for words in samplings] == [data] * 2
    assert samplings[0][6:] == [] and samplings[1][6:] == ["--symmetries", "all", "--scales", "0.9,1.1"]
    mine, plain = (json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines())
    assert [line["contender"] for line in (mine, plain)] == ["mine", "plain"]
    for line in (mine, plain):
        assert (line["kind"], line["set"], line["seed"], line["minutes"]) == ("user", "polyps", 7, 0.001)
        assert (line["train_seconds"], line["train_cpu_seconds"], line["sample_cpu_seconds"]) == (3.0, 2.0, 2.0)
        assert line["steps"] > 0 and len(line["groups"]) == len(line["cases"]["dice"]) == 1
    assert mine["views"] == plain["views"] == "mean over 8 symmetries of the image and scales 1, 0.9, 1.1"
    assert "| polyps | 1 | 1 |" in (tmp_path / "a.md").read_text()
    count = len(commands)
    capfd.readouterr()
    script("benchmarks/accuracy", asked)
    assert len(commands) == count and capfd.readouterr().out.count("done before") == 2


def test_the_program_s_own_contenders_name_no_size(modules):
    contenders = modules["accuracy"].CONTENDERS
    assert contenders["auto"].training == contenders["auto"].sampling == ""
    assert contenders["auto_unet"].training == "--version unet"
    assert contenders["auto_members"]._replace(sampling="", weights_of="") == contenders["auto"]
    assert contenders["auto_members"].weights_of == "auto"
