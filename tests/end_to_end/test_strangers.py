"""What strangers wrote runs no code of theirs and reads nothing outside the folders named: every kind of file."""

import ast
import json
import shutil
from pathlib import Path

import pytest
from conftest import FAST, LOADER, TINY

import guided_diffusion
from guided_diffusion import Segmenter
from guided_diffusion.checkpoint import load_checkpoint, save_checkpoint
from guided_diffusion.data.registry import find_loader
from guided_diffusion.runtime.errors import UserError

SEGMENTER = {"members": 1, "steps": 2, "sampler": "dpm_solver", "device": "cpu", "precision": "fp32"}
SAFE = "names the loader file"


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """The --data_name of a file that leaves a mark when it runs, in the folder that the test is in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{LOADER}")
    yield f"{tmp_path}/evil.py:Polyps"
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def strange(trained, tmp_path):
    """A function (data name) that gives a checkpoint that says it was trained with that loader."""

    def make(data_name):
        checkpoint = load_checkpoint(trained)
        checkpoint.config["data"]["data_name"] = data_name
        path = tmp_path / "run" / trained.name
        save_checkpoint(checkpoint, path)
        return path

    return make


SAMPLE = f"--data_dir DATA --out_dir out {FAST}"
DOORS = {  # name: (command, its flags)
    "sampling": ("segmentation_sample", f"--model_path run/model000002.pt {SAMPLE}"),
    "a run's folder, resumed": ("segmentation_train", "--resume_checkpoint auto --out_dir run --max_steps 3"),
    "a checkpoint, resumed": ("segmentation_train", "--resume_checkpoint run/model000002.pt --out_dir o --max_steps 3"),
    "a dry run": ("segmentation_train", "--resume_checkpoint run/model000002.pt --max_steps 3 --dry_run True"),
    "the options of sampling": ("segmentation_sample", f"--config stranger.yaml --model_path CLEAN {SAMPLE}"),
    "the options of training": ("segmentation_train", f"--config stranger.yaml --data_dir DATA --out_dir out {TINY}"),
    "the options of a check": ("check_data", "--config stranger.yaml --data_dir DATA --out_dir out"),
    "the options of evaluation": ("segmentation_eval", "--config stranger.yaml --pred_dir results --data_dir DATA"),
    "included options": ("segmentation_sample", f"--config includes.yaml --model_path CLEAN {SAMPLE}"),
    "a run's record": ("segmentation_sample", f"--config record.yaml --model_path CLEAN --out_dir out {FAST}"),
    "results": ("segmentation_eval", "--pred_dir results"),
    "results, an empty flag": ("segmentation_eval", "--pred_dir results --data_name="),
}
WHERE = {"options": "stranger.yaml", "included": "stranger.yaml", "record": "record.yaml", "results": "manifest.json"}


def yaml_of(data_name):
    return f"data_name: {json.dumps(data_name)}\n"


@pytest.fixture
def door(strange, trained, pictures, tmp_path):
    """A function (door, stored data name) that writes a stranger's files and gives the command and its flags."""

    def open_door(name, data_name):
        strange(data_name)
        (tmp_path / "stranger.yaml").write_text(yaml_of(data_name))
        (tmp_path / "includes.yaml").write_text("include: stranger.yaml\n")
        (tmp_path / "record.yaml").write_text(f"# What ran;\ndata_dir: {pictures}\n{yaml_of(data_name)}")
        (tmp_path / "results" / "masks").mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / "masks" / "case0.png", tmp_path / "results" / "masks" / "case0.png")
        recorded = {"data_name": data_name, "data_dir": str(pictures), "split": "all"}
        manifest = {"data": recorded, "config": {"data": recorded}, "checkpoint_sha256": "0"}
        (tmp_path / "results" / "manifest.json").write_text(json.dumps(manifest))
        command, line = DOORS[name]
        return command, line.replace("DATA", str(pictures)).replace("CLEAN", str(trained))

    return open_door


@pytest.mark.parametrize("name", DOORS)
def test_a_loader_file_named_in_a_file_does_not_run(refusal, door, planted, name):
    line = refusal(*door(name, planted))
    where = next((file for word, file in WHERE.items() if word in name), "run")
    flag = f"--data_name {planted}"
    assert where in line and f"{SAFE} {planted}, which was not run" in line and line.endswith(flag)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "spelt",
    ["evil.py:Polyps", "./x/../evil.py:Polyps", "/proc/self/cwd/evil.py:Polyps", "link.py:Polyps", "~/evil.py:Polyps"],
)
def test_in_no_spelling(refusal, door, planted, spelt, trained):
    Path("x").mkdir()
    Path("link.py").symlink_to("evil.py")
    for name in ("sampling", "a checkpoint, resumed", "results", "the options of training"):
        assert SAFE in refusal(*door(name, spelt))
    with pytest.raises(UserError, match=f"run/{trained.name}: {SAFE} .* add data_name="):
        Segmenter.load(f"run/{trained.name}", **SEGMENTER)


@pytest.mark.parametrize(
    "stored", ["os:system", "evil", "evil:Polyps", "guided_diffusion.data.loaders.folder:FolderDataset", "evil.pyc:A"]
)
def test_a_stored_name_is_one_of_a_registered_loader(door, planted, refusal, stored):
    for name in ("sampling", "a checkpoint, resumed", "results"):
        assert f"names the loader {stored}, which is not installed here" in refusal(*door(name, stored))


@pytest.mark.parametrize("stored", [None, 5, ["FOLDER"], {"a": 1}])
def test_a_stored_name_that_is_none(door, planted, stored, tmp_path):
    with pytest.raises(UserError, match="^m.pt: its data_name is .*, not a name; name the loader by --data_name NAME"):
        find_loader(stored, named_by="m.pt")


def test_control_characters_of_a_stored_name_do_not_reach_the_terminal():
    with pytest.raises(UserError) as caught:
        find_loader("\x1b[2Ja\nb.py:C", named_by="m.pt")
    assert str(caught.value).isprintable()


def test_with_another_loader_the_stranger_s_checkpoint_is_usable(script, door, planted, capsys):
    """What compares the training cases leaves the stranger's loader alone, and says so."""
    command, line = door("sampling", planted)
    assert script(command, f"{line} --data_name FOLDER --num_samples 1") == 0
    said = capsys.readouterr().out
    assert f"warning: which cases were trained on is unknown: the checkpoint: {SAFE}" in said
    command, line = door("results", planted)
    script(command, f"{line} --data_name FOLDER")
    assert f"warning: which cases were trained on is unknown: the checkpoint: {SAFE}" in capsys.readouterr().out
    assert Segmenter.load("run/model000002.pt", data_name="FOLDER", **SEGMENTER).class_names == ("foreground",)


def test_every_call_of_the_registry_says_who_named_the_loader():
    """A call that leaves `named_by` out would run a loader that a stranger named, so only constants may do so."""
    wrong = []
    for path in Path(guided_diffusion.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if called not in ("build_dataset", "find_loader", "find_parts") or path.name == "registry.py":
                continue
            names = {word.arg for word in node.keywords}
            first = ast.unparse(node.args[0])
            if not names & {"named_by", None} and first not in ("type(dataset)", "task.data_name"):
                wrong.append(f"{path.name}: {ast.unparse(node)}")
    assert not [line for line in wrong if "segmenter.py: find_loader(data_name)" not in line]
