"""`medsegdiff plan`: what it prints and refuses, and that training follows it and a resumed run repeats it."""

import numpy as np
import pytest
import yaml
from conftest import files

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.cli import main
from guided_diffusion.runtime.errors import UserError
from guided_diffusion.training import planning


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    def estimate(run, device):
        return f"memory: about 1 GB at {run.settings.image_size} pixels on {device}"

    monkeypatch.setattr(planning, "step_seconds", lambda *_: (0.05, 0.05))
    monkeypatch.setattr("guided_diffusion.cli.plan.estimate_line", estimate)


def test_it_prints_fingerprint_plan_and_command_and_writes_nothing(pictures, capsys):
    before = files(pictures)
    assert main.main(["plan", str(pictures), "--max_minutes", "3", "--lr", "0.01"]) == 0
    text = capsys.readouterr().out
    assert files(pictures) == before
    assert "what the training cases show" in text and "size in pixels" in text
    assert "memory: about 1 GB at 64 pixels on cpu" in text
    assert "--lr 0.01 (as you set it)" in text and "about 3" in text and "orientation: upright" in text
    line = text.splitlines()[-1]
    assert line.startswith("the same as: ") and f"--data_dir {pictures} --max_minutes 3 --lr 0.01 --out_dir" in line
    assert "--image_size 64" in line and "--lr_anneal_steps -1" in line and line.count("--lr ") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data_dir: is needed"),
        (["{data}", "--image_size", "64"], "--image_size: training plans nothing where a size is set"),
        (["{data}", "--overfit", "2"], "--overfit 2: training plans nothing with it"),
        (["{data}", "--recipe", "none"], "--recipe none: training plans nothing with it"),
        (["{data}", "--resume_checkpoint", "x.pt"], "a run that goes on keeps its own options"),
        (["{data}/none"], "no such folder"),
        (["{data}", "--class_cond", "True"], "has no class label, which --class_cond True needs"),
    ],
)
def test_it_refuses_what_training_would_not_plan(pictures, words, message):
    with pytest.raises(UserError, match=message):
        main.main(["plan", *(word.format(data=pictures) for word in words)])


def test_images_without_masks_are_refused_with_the_remedy(tmp_path, save_picture):
    for name in "ab":
        save_picture(tmp_path / f"images/{name}.png", np.zeros((8, 8), np.uint8))
        (tmp_path / "masks").mkdir(exist_ok=True)
    with pytest.raises(UserError, match="has no mask; add"):
        main.main(["plan", str(tmp_path), "--data_name", "FOLDER"])


def test_training_follows_the_plan_and_a_resumed_run_repeats_it(script, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("guided_diffusion.training.training_plan.BASE_SIDE", 32)
    monkeypatch.setattr("guided_diffusion.training.training_plan.SMALL_SIDE", 32)
    monkeypatch.setattr("guided_diffusion.training.training_plan.PATCHES", (1,))
    run = tmp_path / "run"
    line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", run, "--batch_size 2 --num_workers 0"]
    script("segmentation_train", [*line, "--max_steps 2 --max_minutes 5 --condition_share 0.5 --sample_interval 0"])
    text = capsys.readouterr().out
    assert "plan: --image_size 32" in text and "plan: --lr_anneal_steps -1" in text
    record = yaml.safe_load((run / "config.yaml").read_text())
    assert record["image_size"] == 32 and record["lr_anneal_steps"] == -1 and record["num_channels"] == 16
    first = load_checkpoint(run / "last.pt", to_train=True)
    assert first.decayed == 1.0  # of the second stage, by its steps

    def none(*_):
        raise AssertionError("planned again")

    monkeypatch.setattr("guided_diffusion.training.run.find_plan", none)
    script("segmentation_train", ["--resume_checkpoint auto --out_dir", run, "--data_dir", pictures, "--max_steps 3"])
    assert "plan:" not in capsys.readouterr().out
    again = load_checkpoint(run / "last.pt")
    assert again.step == 3 and again.config["model"] == first.config["model"]
