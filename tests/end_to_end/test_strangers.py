"""What strangers wrote runs no code of theirs and reads nothing outside the folders named: every kind of file."""

import ast
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAST, LOADER, TINY
from helpers import write_task

import guided_diffusion
from guided_diffusion import Segmenter
from guided_diffusion.checkpoint import OLD_FORMAT, load_checkpoint
from guided_diffusion.data.accounting import account
from guided_diffusion.data.cases import group_cases
from guided_diffusion.data.compatibility import leakage_warning
from guided_diffusion.data.registry import build_dataset, find_loader, recognised
from guided_diffusion.runtime.errors import NoCasesError, UserError

SEGMENTER = {"members": 1, "steps": 2, "sampler": "dpm_solver", "device": "cpu", "precision": "fp32"}
VOLUME, LABELS = np.ones((8, 8, 3), np.int16), np.ones((8, 8, 3), np.uint8)
SAFE = "names the loader file"


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """The --data_name of a file that leaves a mark when it runs, in the folder that the test is in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{LOADER}")
    yield f"{tmp_path}/evil.py:Polyps"
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def strange(trained, pictures, tmp_path):
    """A function (data name, run's folder) that gives a checkpoint, as older versions wrote it, that names them."""

    def make(data_name, out_dir=None):
        content = vars(load_checkpoint(trained))
        path = tmp_path / "run" / trained.name
        data = content["config"]["data"] | {"data_name": data_name, "data_dir": str(pictures)}
        train = content["config"]["train"] | {"out_dir": str(out_dir or path.parent)}
        path.parent.mkdir(exist_ok=True)
        config = {**content["config"], "data": data, "train": train}
        torch.save(content | {"format": OLD_FORMAT, "config": config}, path)
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
    for name in ("results", "the options of evaluation"):
        assert SAFE in refusal(*door(name, spelt))
    with pytest.raises(UserError, match=f"run/{trained.name}: {SAFE} .* add data_name="):
        Segmenter.load(f"run/{trained.name}", **SEGMENTER)


@pytest.mark.parametrize(
    "stored", ["os:system", "evil", "evil:Polyps", "guided_diffusion.data.loaders.folder:FolderDataset", "evil.pyc:A"]
)
def test_a_stored_name_is_one_of_a_registered_loader(door, planted, refusal, stored):
    assert f"names the loader {stored}, which is not installed here" in refusal(*door("results", stored))


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
    wrong, names_of_calls = [], ("build_dataset", "find_loader", "find_parts")
    for path in Path(guided_diffusion.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if not any(f"{name}(" in text for name in names_of_calls):
            continue
        for node in ast.walk(ast.parse(text)):
            called = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if called not in names_of_calls or path.name == "registry.py":
                continue
            names = {word.arg for word in node.keywords}
            first = ast.unparse(node.args[0])
            if not names & {"named_by", None} and first not in ("type(dataset)", "task.data_name"):
                wrong.append(f"{path.name}: {ast.unparse(node)}")
    assert not [line for line in wrong if "segmenter.py: find_loader(data_name)" not in line]


def test_a_checkpoint_does_not_choose_where_its_run_goes_on(strange, refusal, tmp_path):
    path = strange("FOLDER", tmp_path / "elsewhere")
    line = refusal("segmentation_train", f"--resume_checkpoint {path} --max_steps 3 --num_workers 0")
    assert f"--out_dir: is needed; {path} names the folder {tmp_path}/elsewhere for it, which is not its own" in line
    assert not (tmp_path / "elsewhere").exists()


# ---- lists of files ----------------------------------------------------------------------------------------------

LEADS_OUT = ["../secret", "/etc/hostname", "images/../../secret", "..\\secret", "C:\\secret"]


@pytest.fixture
def data(pictures, tmp_path):
    """A copy of `pictures`, with a file beside it that no list may name."""
    shutil.copytree(pictures, tmp_path / "data")
    shutil.copy(pictures / "images" / "case0.png", tmp_path / "secret.png")
    return tmp_path / "data"


@pytest.mark.parametrize("text", LEADS_OUT)
def test_lists_of_names_do_not_lead_out_of_the_data(data, text):
    said = "names .*, which is not below --data_dir; put the file, or a link to it, there"
    (data / "split.json").write_text(json.dumps({"train": ["case0"], "test": [text]}))
    with pytest.raises(UserError, match=f"^{data}/split.json: {said}"):
        build_dataset("FOLDER", data, 8, split="train")
    (data / "split.json").unlink()
    (data / "labels.csv").write_text(f"case0,a\ncase1,b\ncase2,a\ncase3,a\n{text},a\n")
    with pytest.raises(UserError, match=f"^{data}/labels.csv: {said}"):
        build_dataset("FOLDER", data, 8)


@pytest.mark.parametrize("key", ["training", "validation", "test"])
@pytest.mark.parametrize("text", ["../secret.nii.gz", "/etc/x.nii.gz", "imagesTr/../../secret.nii.gz"])
def test_a_task_lists_no_file_outside(tmp_path, key, text):
    task = write_task(tmp_path / "task", {"modality": {"0": "MRI"}, "labels": {"1": "x"}}, {"a": VOLUME}, {"a": LABELS})
    description = json.loads((task / "dataset.json").read_text())
    for entry in ({"image": text, "label": "labelsTr/a.nii.gz"}, {"image": "imagesTr/a.nii.gz", "label": text}, text):
        changed = {**description, key: [*description.get(key, []), entry]}
        (task / "dataset.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=f"^{task}/dataset.json: names {text}, which is not below --data_dir"):
            build_dataset("MSD", task, 8)


# ---- links -------------------------------------------------------------------------------------------------------


def tangle(folder):
    """Links in a folder to itself, to the one that holds it, to the root, to each other and to nothing."""
    for name, target in (("self", "."), ("me", folder), ("up", ".."), ("root", "/"), ("circle", "circle"), ("no", "x")):
        (folder / name).symlink_to(target)
    for one, other in (("a", "b"), ("b", "a")):
        (folder / one).mkdir()
        (folder / one / "x").symlink_to(f"../{other}")
        (folder / one / "y").symlink_to(f"../{other}")
        (folder / one / "images").symlink_to("..")
    for one in range(7):
        (folder / f"web{one}").mkdir()
        for other in range(7):
            (folder / f"web{one}" / f"web{other}").symlink_to(f"../web{other}")


@pytest.mark.parametrize("place", [".", "images", "deep/down"])
def test_links_in_a_circle_end_soon(data, place):
    (data / place).mkdir(parents=True, exist_ok=True)
    tangle(data / place)
    began = time.monotonic()
    assert recognised("AUTO", data) == "FOLDER"
    dataset = build_dataset("AUTO", data, 8)
    assert len(dataset.cases) == 4 and len(account([dataset]).used) == 8
    for kind in ("ISIC", "BRATS", "MSD", "LIDC"):
        with pytest.raises(NoCasesError):
            build_dataset(kind, data, 8)
    assert time.monotonic() - began < 5


def test_files_that_links_put_outside_are_told_in_one_line(data, script, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("shared").mkdir()
    for name in ("images/case1.png", "masks/case1.png"):
        (data / name).rename(f"shared/{Path(name).parent}.png")
        (data / name).symlink_to(f"../../shared/{Path(name).parent}.png")
    Path("chain.png").symlink_to(data / "images/case2.png")
    (data / "images/case2.png").rename(data / "masks/../kept.tmp")
    Path("far").symlink_to("data")
    (data / "images/case2.png").symlink_to("../../far/kept.tmp")  # leaves the folder and comes back
    line = f"2 of 8 files are reached by links that lead out of data, such as images/case1.png -> {tmp_path}/shared/"
    assert script("check_data", "--data_dir data --num_workers 0 --out_dir out") == 0
    assert f"note: {line}" in capsys.readouterr().out
    script("segmentation_train", f"--data_name FOLDER --data_dir data --out_dir run {TINY} --max_steps 1")
    assert line in capsys.readouterr().out
    script("segmentation_sample", f"--model_path {trained} --data_dir data --out_dir results --num_samples 1 {FAST}")
    assert line in capsys.readouterr().out
    shutil.move("data/masks", "shared/masks")
    (data / "masks").symlink_to("../shared/masks")
    script("check_data", "--data_dir data --num_workers 0 --out_dir out")
    assert "5 of 8 files are reached by links that lead out of data" in capsys.readouterr().out


def test_links_in_a_strangers_results(door, script, planted, pictures, capsys, tmp_path):
    command, line = door("results", "FOLDER")
    Path("kept").mkdir()
    Path("kept/card.jpg").touch()
    Path("results/masks/case1.png").symlink_to(pictures / "masks" / "case1.png")
    Path("results/report_files").symlink_to("../kept")
    script(command, line)
    said = capsys.readouterr().out
    assert "2 of 4 files are reached by links that lead out of results, such as masks/case1.png -> " in said
    assert "warning: no report.html: results/report_files: is a link" in said
    assert f"truth: {pictures}, which results/manifest.json names; --data_dir names another folder" in said
    assert Path("kept/card.jpg").exists()


def test_sampling_says_where_links_in_its_folder_lead(script, trained, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("elsewhere").mkdir()
    Path("results").mkdir()
    Path("results/masks").symlink_to("../elsewhere")
    script(
        "segmentation_sample", f"--model_path {trained} --data_dir {pictures} --out_dir results --num_samples 1 {FAST}"
    )
    line = f"warning: results/masks: is a link, and results are written where it leads: {tmp_path}/elsewhere"
    assert capsys.readouterr().out.count(line) == 1 and list(Path("elsewhere").iterdir())


def test_a_checkpoint_that_names_the_whole_disk_as_its_data(data):
    dataset = build_dataset("FOLDER", data, 8)
    units = group_cases(dataset.cases)
    for place in ("/", str(Path.home())):
        line = leakage_warning(dataset, units, {"data_name": "FOLDER", "data_dir": place})
        assert "which cases were trained on is unknown" in line


# ---- what others see ---------------------------------------------------------------------------------------------


def test_no_page_or_table_shows_where_things_lie(script, data, tmp_path, capsys):
    run, results = tmp_path / "run", tmp_path / "run" / "results"
    (data / "images/case0.png").rename(data / "images/=1+1.png")
    (data / "masks/case0.png").rename(data / "masks/=1+1.png")
    script("segmentation_train", f"--data_name FOLDER --data_dir {data} --out_dir {run} {TINY} --max_steps 1")
    script("segmentation_sample", f"--model_path {run}/last.pt --data_dir {data} --out_dir {results} {FAST}")
    script("segmentation_eval", f"--pred_dir {results} --card True")
    pages = [run / "training.html", *(results / n for n in ("report.html", "model_card.md", "metrics.csv"))]
    for page in [*pages, results / "summary.json", results / "curves.json"]:
        assert str(tmp_path) not in page.read_text(), page
    assert "run/results" in pages[1].read_text() and "last.pt, step 1" in pages[1].read_text()
    table = pages[3].read_text()
    assert "\n'=1+1," in table and "\n=" not in table and '"name":"=1+1"' in pages[1].read_text()
    assert '"dice"' in pages[1].read_text()
