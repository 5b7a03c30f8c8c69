"""The comparisons of steps and of memory through their scripts' doors, at their smallest."""

import json
import math

import pytest
import torch
from conftest import SCRIPTS, files

GRID = "--samplers ddim,dpm_solver --steps 2,3 --num_ensemble 2 --num_samples 3"


@pytest.fixture(autouse=True)
def beside_the_other_scripts(monkeypatch):
    """A script finds its neighbours, as when it is run by its path."""
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_steps_are_compared_with_full_ddpm_and_a_rerun_takes_what_is_there(script, trained, pictures, tmp_path, capsys):
    out = tmp_path / "steps"
    flags = ["--model_path", trained, "--data_dir", pictures, "--out_dir", out, GRID]
    # Full DDPM takes all steps of the training: the checkpoint's T is cut down for the test.
    checkpoint = torch.load(trained, weights_only=True)
    checkpoint["config"]["diffusion"]["diffusion_steps"] = 5
    small = tmp_path / "model000002.pt"
    torch.save(checkpoint, small)
    flags[1] = small
    script("benchmark_steps", flags)
    result = json.loads((out / "steps.json").read_text())
    rows = {(row["sampler"], row["steps"]): row for row in result["rows"]}
    assert list(rows) == [("ddpm", 5), ("ddim", 2), ("ddim", 3), ("dpm_solver", 2), ("dpm_solver", 3)]
    reference = rows["ddpm", 5]
    assert reference["difference"] == 0 and reference["interval"] == [0, 0]
    for row in rows.values():
        assert row["dice_of"].keys() == {"case0", "case1", "case2"} and row["seconds"] > 0
        assert row["dice"] == pytest.approx(sum(row["dice_of"].values()) / 3, abs=1e-5)
        assert 0 <= row["pairwise_dice"] <= 1 and 0 <= row["ece"] <= 1 and 0 <= row["ece_band"] <= 1
        differences = [row["dice_of"][name] - reference["dice_of"][name] for name in row["dice_of"]]
        assert row["difference"] == pytest.approx(sum(differences) / 3)
        low, high = row["interval"]
        assert min(differences) - 1e-9 <= low <= row["difference"] + 1e-9 and row["difference"] - 1e-9 <= high
    table = (out / "steps.md").read_text()
    assert table.count("\n") == 7 and "| dpm_solver | 3 |" in table
    before = {name: (out / name).stat().st_mtime_ns for name in files(out) if name.endswith("masks/case0.png")}
    script("benchmark_steps", flags)
    assert before == {name: (out / name).stat().st_mtime_ns for name in before}
    again = json.loads((out / "steps.json").read_text())
    assert all(math.isfinite(row["seconds"]) and row["seconds"] > 0 for row in again["rows"])
    capsys.readouterr()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--samplers euler", "'euler' is none of ddpm, ddim"),
        ("--steps 4,x", "--steps 4,x: must be numbers above 0"),
        ("--steps 0", "--steps 0: must be numbers above 0"),
        ("--model_path x.pt", "--data_dir: is needed with --model_path"),
    ],
)
def test_what_makes_no_sense_is_refused(refusal, tmp_path, flags, words):
    assert words in refusal("benchmark_steps", [flags, "--out_dir", tmp_path])


def test_memory_is_noted_after_the_tenth_and_the_last_case(script, capsys):
    script("benchmark_memory", "--cases 12 --num_channels 4 --num_ensemble 2 --diffusion_steps 2 --precision fp32")
    lines = capsys.readouterr().out.splitlines()
    early, last = (float(line.split(": ")[1].split(" MB")[0]) for line in lines[-2:])
    assert "after 10 cases" in lines[-2] and lines[-1].startswith("after 12: ")
    assert 50 < early < 10_000 and last == pytest.approx(early, rel=0.1)
