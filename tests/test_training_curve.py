"""The curve of a training run, and the commands of docs/training.md."""

import json
import re
import shlex
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from guided_diffusion.command_line import parse
from guided_diffusion.config import DataOptions, DiffusionOptions, ModelOptions, ProcessOptions
from guided_diffusion.run_options import SampleOptions
from guided_diffusion.train_options import TrainOptions

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "training.md"
BLOCKS = re.findall(r"^```bash\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
SVG = "{http://www.w3.org/2000/svg}"


def write_lines(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def write_run(folder):
    """The log of a run that was killed and gone on with from step 20, and then ended by SIGTERM after step 30."""
    rows = [{"step": step, "loss": 1 / step} | ({"val_dice": step / 50} if step > 20 else {}) for step in range(5, 50)]
    write_lines(folder / "log.jsonl", rows)
    events = [("begin", 0, {}), ("begin", 20, {}), ("end", 30, {"how": "SIGTERM"}), ("begin", 30, {})]
    write_lines(folder / "sessions.jsonl", [{"event": event, "step": step, **more} for event, step, more in events])
    with open(folder / "log.jsonl", "a") as file:
        file.write('{"step": 50, "los')  # torn by a kill


def test_the_curve_has_loss_and_dice_and_marks_where_it_was_interrupted(script, tmp_path):
    write_run(tmp_path)
    assert script("plot_training", ["--run_dir", tmp_path]) == 0
    picture = ElementTree.parse(tmp_path / "curve.svg").getroot()
    loss, dice = picture.iter(f"{SVG}polyline")
    assert len(loss.get("points").split()) == 45 and len(dice.get("points").split()) == 29
    marks = [text for text in picture.iter(f"{SVG}text") if text.text in ("killed", "SIGTERM")]
    assert [mark.text for mark in marks] == ["killed", "SIGTERM"] * 2  # in both charts
    assert {text.text for text in picture.iter(f"{SVG}text")} > {"training loss", "Dice on validation cases", "step"}


def test_of_a_run_without_validation_the_loss_alone_is_drawn(script, tmp_path):
    write_lines(tmp_path / "log.jsonl", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    script("plot_training", ["--run_dir", tmp_path, "--out", tmp_path / "a.svg"])
    assert len(list(ElementTree.parse(tmp_path / "a.svg").getroot().iter(f"{SVG}polyline"))) == 1


def test_a_folder_without_a_log_is_refused(refusal, tmp_path):
    assert "has no log.jsonl with a loss" in refusal("plot_training", ["--run_dir", tmp_path])
    assert "--run_dir: is needed" in refusal("plot_training", "")


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_commands_of_the_document_are_right(block):
    """bash reads them, and the scripts take their flags."""
    assert subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True).stderr == ""
    found = 0
    for line in block.replace("\\\n", " ").splitlines():
        script = re.search(r"segmentation_(train|sample)\.py", line)
        if script:
            own = TrainOptions if script[1] == "train" else SampleOptions
            groups = [own, DataOptions, ModelOptions, DiffusionOptions, ProcessOptions]
            parse("", groups, shlex.split(line[script.end() :]))
            found += 1
    assert found
