"""From one script to the next: the command that training ends with, the README's first example, training images and
damaged truth at sampling."""

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import FAST, SCRIPTS, TINY, files, rows, strict_json, write_folder
from helpers import TRAIN

from guided_diffusion import Segmenter
from guided_diffusion.config.command_line import parse
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.runtime.program import VERB_SCRIPTS


@pytest.mark.parametrize("layout", ["together", "beside", "below", "train alone"])
def test_the_command_that_training_ends_with_runs_as_it_is(script, tmp_path, capsys, layout):
    folder = tmp_path / "the data"
    parts = {"together": [""], "beside": ["Train", "Test"], "below": ["train", "test"], "train alone": ["train"]}[
        layout
    ]
    for part in parts:
        write_folder(folder / part, 2)
    sampled = folder / parts[-1]
    data = ["--data_name FOLDER --data_dir", folder / "Train" if layout == "beside" else folder]
    script("segmentation_train", [*data, "--out_dir", tmp_path / "a run", TINY, "--max_steps 1"])
    command = shlex.split(capsys.readouterr().out.rpartition("sample with: ")[2])
    assert command[0] == "python" and os.path.samefile(command[1], SCRIPTS / "segmentation_sample.py")
    script("segmentation_sample", [shlex.join(command[2:]), FAST])
    results = tmp_path / "a run" / "results000001"
    assert files(results / "masks") == ["case0.png", "case1.png"]
    assert build_dataset("FOLDER", strict_json(results / "manifest.json")["data"]["data_dir"], 8, split="test")
    assert f"2 cases of {folder if layout == 'below' else sampled}" in capsys.readouterr().out


def test_the_readmes_first_example_leads_from_training_to_python(
    script, trained, pictures, tmp_path, monkeypatch, capsys
):
    """Each command takes what the one before it wrote, and runs as it stands; --help has the same ones."""
    text = (SCRIPTS.parent / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = {}
    for line in re.findall(r"(?m)^medsegdiff (.*runs/first.*)$", text):
        verb, *words = shlex.split(line)
        commands[VERB_SCRIPTS[verb].removesuffix(".py")] = words
    assert list(commands) == ["segmentation_train", "segmentation_sample", "segmentation_eval", "export"]
    for name, command in commands.items():
        with pytest.raises(SystemExit):
            script(name, "--help")
        assert " ".join(command) in " ".join(capsys.readouterr().out.replace("\\\n", " ").split())
    (data, train, *_), _ = parse("", TRAIN, commands["segmentation_train"])
    checkpoint = f"{train.out_dir}/last.pt"
    assert f'Segmenter.load("{train.out_dir}")' in text
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pictures, data.data_dir)
    Path(train.out_dir).mkdir(parents=True)
    shutil.copy(trained, checkpoint)
    script("segmentation_sample", [shlex.join(commands["segmentation_sample"]), "--num_workers 0"])
    script("segmentation_eval", shlex.join(commands["segmentation_eval"]))
    assert len(rows(Path("runs/first/results"))) == 4
    script("export", shlex.join(commands["export"]))
    assert Segmenter.load("shared/first").class_names == ("foreground",)


LEAK = "cases were trained on: Dice on training images says nothing about new ones"


def test_training_images_are_told_when_sampled_and_scored(script, sample, pictures, tmp_path, capsys):
    data = tmp_path / "data"
    write_folder(data, 4)
    script("segmentation_train", ["--data_name FOLDER --data_dir", data, "--out_dir", tmp_path, TINY, "--max_steps 1"])
    checkpoint = tmp_path / "model000001.pt"
    results = sample(checkpoint, data, FAST)
    assert f"warning: 4 of 4 {LEAK}" in capsys.readouterr().out
    script("segmentation_eval", ["--pred_dir", results])
    assert f"warning: 4 of 4 {LEAK}" in capsys.readouterr().out
    sample(checkpoint, pictures, FAST, out="others")
    assert LEAK not in capsys.readouterr().out


def test_a_copy_of_the_training_data_is_told_and_how_to_take_what_was_held_out(script, sample, tmp_path, capsys):
    """As when data are moved from a cluster to a laptop: the checkpoint knows them by another folder."""
    data, moved = tmp_path / "data", tmp_path / "moved"
    write_folder(data, 8)
    line = ["--data_name FOLDER --data_dir", data, "--out_dir", tmp_path, TINY, "--max_steps 1 --val_fraction 0.5"]
    script("segmentation_train", line)
    checkpoint = tmp_path / "model000001.pt"
    held = files(sample(checkpoint, data, FAST) / "masks")
    shutil.copytree(data, moved)
    capsys.readouterr()
    flags = "--val_fraction 0.5 takes the held-out cases"
    first = sample(checkpoint, moved, FAST, out="first")
    out = capsys.readouterr().out
    assert len(files(first / "masks")) == 8 > len(held)
    assert f"{8 - len(held)} of 8 cases have the names of training cases of {data}" in out and flags in out
    script("segmentation_eval", ["--pred_dir", first])
    assert "have the names of training cases" in capsys.readouterr().out
    data.rename(tmp_path / "gone")
    sample(checkpoint, moved, FAST, out="second")
    assert f"training held cases out of {data}, which is not here; if these are the same data, {flags}" in (
        capsys.readouterr().out
    )
    divided = sample(checkpoint, moved, f"{FAST} --val_fraction 0.5", out="third")
    assert files(divided / "masks") == held and "warning: training held" not in capsys.readouterr().out


def test_training_images_are_told_only_where_the_split_leaves_them(script, sample, tmp_path, capsys):
    data = tmp_path / "data"
    write_folder(data, 4)
    (data / "split.json").write_text('{"train": ["case0", "case1"], "test": ["case2"]}')
    script("segmentation_train", ["--data_name FOLDER --data_dir", data, "--out_dir", tmp_path, TINY, "--max_steps 1"])
    left_out = f"{data / 'split.json'}: 1 image in no list, left out"
    assert left_out in capsys.readouterr().out
    results = sample(tmp_path / "model000001.pt", data, FAST)
    out = capsys.readouterr().out
    assert files(results / "masks") == ["case2.png"] and LEAK not in out and left_out in out


@pytest.mark.parametrize("kind", ["picture", "volume", "own loader"])
def test_a_damaged_truth_does_not_hinder_sampling(train, sample, refusal, truncate, brats, tmp_path, capsys, kind):
    """It is told, left out of overlay and evaluation; the evaluation by itself refuses and names it."""
    data = tmp_path / "data"
    if kind == "volume":
        shutil.copytree(brats, data)
        checkpoint, truth = train("BRATS", data), next((data / "testing").rglob("*_seg.nii.gz"))
    else:
        write_folder(data, 3)
        checkpoint, truth = train("FOLDER", data), data / "masks" / "case1.png"
    if kind == "own loader":
        (tmp_path / "own.py").write_text(OWN)
        flags = f"{FAST} --data_name {tmp_path / 'own.py'}:Own"
    else:
        truncate(truth)
        flags = FAST
    capsys.readouterr()
    results = sample(checkpoint, data, flags)
    out = capsys.readouterr().out
    told = [line for line in out.splitlines() if "goes on without its truth" in line]
    assert len(told) == 1 and (kind == "own loader" or f"{truth}: is truncated or damaged" in told[0])
    assert (results / "report.html").exists()
    if kind == "volume":
        assert "warning: not evaluated: " in out and (results / "BraTS2021_05000_seg.nii.gz").exists()
    else:
        assert [row["name"] for row in rows(results)] == ["case0", "case2"] and "left out: 1 case without truth" in out
        assert len(files(results / "masks")) == len(files(results / "overlay")) == 3
    if kind != "own loader":
        assert f"{truth}: is truncated or damaged" in refusal("segmentation_eval", ["--pred_dir", results])


OWN = """from guided_diffusion.data.loaders.folder import FolderDataset

class Own(FolderDataset):
    def read_mask(self, case):
        if case.name == "case1":
            raise IndexError(case.name)
        return super().read_mask(case)
"""
