"""Whole training runs by the script: how they end, how they go on, and what they log."""

import itertools
import json
import math
import os
import re
import shlex
import signal

import pytest
from conftest import FAST, TINY, finish
from helpers import equal, logged

from guided_diffusion.checkpoint import load_checkpoint, newest_checkpoint


def log_rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# ---- how a run ends ----------------------------------------------------------------------------------------------


def test_an_absurd_learning_rate_is_told_in_one_line(refusal, pictures, tmp_path):
    line = refusal(
        "segmentation_train",
        ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path, TINY, "--lr 100 --max_steps 20"],
    )
    assert "is not finite" in line and "case" in line and "Try a lower --lr" in line


@pytest.mark.parametrize("number, workers, group", [(signal.SIGINT, 0, False), (signal.SIGTERM, 2, True)])
def test_a_signal_writes_a_checkpoint_and_ends_well(process, pictures, tmp_path, number, workers, group):
    """To the process alone (kill), and to its group with its loaders (Ctrl-C, a job scheduler)."""
    child = process(
        "segmentation_train",
        [
            "--data_name FOLDER --data_dir",
            pictures,
            "--out_dir",
            tmp_path,
            TINY,
            f"--num_workers {workers} --max_steps 1000000000",
        ],
    )
    lines = []
    for line in child.stdout:
        lines.append(line)
        if line.startswith("step 3"):
            break
    (os.killpg if group else os.kill)(child.pid, number)
    ended = finish(child)
    assert ended.status == 0 and not ended.messages, ended.err
    assert f"{number.name}: finishing the step and writing a checkpoint" in ended.out
    assert ended.out.count("finishing") == 1
    newest = newest_checkpoint(tmp_path)
    assert load_checkpoint(newest).step >= 3 and f"trained {int(newest.stem[5:])} steps of 1000000000" in ended.out
    assert "to go on, add --resume_checkpoint auto" in ended.out
    assert "a second Ctrl-C quits at once without saving" in ended.out
    begun = "".join(lines)
    ((seconds, days),) = re.findall(r"warning: at ([\d.e-]+) s a step, 1000000000 steps will take (\d+) days", begun)
    assert int(days) == pytest.approx(float(seconds) * 1e9 / 86400, rel=0.1)
    assert begun.index("days or so") < begun.index("step 2:")


# ---- resuming ----------------------------------------------------------------------------------------------------


RESUMED = (
    TINY
    + " --dropout 0.2 --schedule_sampler loss-second-moment --diffusion_steps 2 --ema_rate 0.5,0.999 --batch_size 6 "
    "--save_interval 4 --augment strong"
)


@pytest.fixture(scope="module")
def long_run(script, pictures, tmp_path_factory):
    """Six steps at once, with all that is random; of them the first four warm the time-step sampler."""
    out = tmp_path_factory.mktemp("long")
    script(
        "segmentation_train", ["--data_name FOLDER --data_dir", pictures, "--out_dir", out, RESUMED, "--max_steps 6"]
    )
    return out


@pytest.mark.parametrize("first", [1, 5])
def test_a_resumed_run_equals_one_at_once(script, pictures, tmp_path, long_run, first):
    data = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path]
    script("segmentation_train", [*data, RESUMED, f"--max_steps {first}"])
    script("segmentation_train", ["--out_dir", tmp_path, "--resume_checkpoint auto --max_steps 6 --precision fp32"])
    at_once, resumed = (load_checkpoint(folder / "model000006.pt") for folder in (long_run, tmp_path))
    for part in ("model", "ema", "optimizer", "timestep_sampler", "step"):
        assert equal(getattr(at_once, part), getattr(resumed, part)), part
    assert (at_once.timestep_sampler["counts"] >= 10).all()  # warm, so that the losses decided the time steps
    assert logged(tmp_path) == logged(long_run)
    assert [row["step"] for row in log_rows(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_killed_run_goes_on_from_its_last_checkpoint(script, tmp_path, pictures, long_run):
    """What was logged beyond the checkpoint is logged again, once."""
    for name in ("log.jsonl", "config.yaml", "model000004.pt"):
        (tmp_path / name).write_bytes((long_run / name).read_bytes())
    script("segmentation_train", ["--out_dir", tmp_path, "--resume_checkpoint auto --max_steps 6 --precision fp32"])
    assert [row["step"] for row in log_rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert equal(load_checkpoint(tmp_path / "model000006.pt").model, load_checkpoint(long_run / "model000006.pt").model)


def test_flags_given_now_count_in_a_resumed_run(script, long_run, tmp_path):
    line = ["--resume_checkpoint", long_run / "model000004.pt", "--out_dir", tmp_path, "--max_steps 5 --precision fp32"]
    script("segmentation_train", [*line, "--weight_decay 0.3 --lr 1e-5"])
    group = load_checkpoint(tmp_path / "model000005.pt").optimizer["param_groups"][0]
    assert group["weight_decay"] == 0.3 and group["lr"] == 1e-5
    assert load_checkpoint(tmp_path / "model000005.pt").config["train"]["batch_size"] == 6


def test_a_resumed_run_keeps_the_time_limit_and_says_so(script, pictures, tmp_path, capsys):
    data = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path]
    script("segmentation_train", [*data, TINY, "--max_steps 1 --max_minutes 0.01"])
    again = ["--resume_checkpoint auto --max_steps 1000000000 --precision fp32 --out_dir", tmp_path]
    capsys.readouterr()
    script("segmentation_train", again)
    out = capsys.readouterr().out
    assert "--max_minutes 0.01 is kept from before, counted anew; 0 lifts it" in out and "days or so" not in out
    step = load_checkpoint(newest_checkpoint(tmp_path)).step
    assert 1 < step < 1000000000
    script("segmentation_train", [*again, f"--max_minutes 0 --max_steps {step + 1}"])
    assert "is kept from before" not in capsys.readouterr().out


def test_a_run_that_the_time_ended_goes_on_in_both_ways_that_it_names(script, pictures, tmp_path, capsys, monkeypatch):
    now = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: 1.6 * next(now))
    data = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / "run"]
    script("segmentation_train", [*data, TINY, "--version v2 --recipe staged --max_minutes 1 --cache_dir none"])
    captured = capsys.readouterr()
    assert "/1.0 min" in captured.err and "100000" not in captured.err
    stage, last = (load_checkpoint(tmp_path / "run" / name) for name in ("stage1.pt", "last.pt"))
    assert 0 < stage.step == last.first_stage < last.step and not stage.has_learned_diffusion
    told = captured.out.partition(f"the condition model is fixed since step {stage.step}. To go on")[2]
    commands = [shlex.split(line.partition(": ")[2])[2:] for line in told.splitlines() if ": python" in line]
    assert len(commands) == 2
    alone, both = (" ".join(map(shlex.quote, words)) for words in commands)
    script("segmentation_train", both)
    script("segmentation_train", alone)
    assert "go on from " + str(tmp_path / "run" / "stage1.pt") in capsys.readouterr().out
    longer, fixed = (load_checkpoint(tmp_path / name / "last.pt") for name in ("run_longer", "run"))
    assert longer.step > longer.first_stage > stage.step == fixed.first_stage < last.step < fixed.step


def test_going_back_needs_a_folder_without_later_checkpoints(refusal, long_run):
    line = refusal("segmentation_train", ["--resume_checkpoint", long_run / "model000004.pt"])
    assert "model000006.pt) than the one to go on from, of step 4" in line


def test_auto_starts_anew_where_nothing_is(script, pictures, tmp_path):
    data = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / "new"]
    script("segmentation_train", [*data, TINY, "--max_steps 1 --resume_checkpoint auto"])
    assert load_checkpoint(tmp_path / "new" / "model000001.pt").step == 1


def test_a_new_run_over_an_old_one_is_refused(refusal, pictures, long_run):
    before = sorted(path.name for path in long_run.iterdir())
    line = refusal("segmentation_train", ["--data_name FOLDER --data_dir", pictures, "--out_dir", long_run, TINY])
    assert "model000006.pt" in line and "--resume_checkpoint auto" in line
    assert sorted(path.name for path in long_run.iterdir()) == before


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--num_channels 16", "--num_channels 16 contradicts the checkpoint"),
        ("--noise_schedule linear", "trained with noise_schedule cosine"),
        ("--image_size 64", "trained with image_size 32"),
        ("--objective eps", "trained with objective x0"),
    ],
)
def test_flags_that_contradict_the_checkpoint(refusal, long_run, flags, words):
    assert words in refusal("segmentation_train", ["--out_dir", long_run, "--resume_checkpoint auto", flags])


# ---- logs --------------------------------------------------------------------------------------------------------


def test_logs_hold_loss_gradient_and_rate(long_run):
    weight = load_checkpoint(long_run / "model000006.pt").config["diffusion"]["coarse_weight"]
    for row in log_rows(long_run):
        assert all(math.isfinite(float(row[name])) for name in ("loss", "mask", "coarse", "grad_norm", "lr"))
        assert 0 < float(row["waiting"]) < 1
        assert float(row["loss"]) == pytest.approx(float(row["mask"]) + weight * float(row["coarse"]), rel=1e-5)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(long_run / "tensorboard"))
    events.Reload()
    assert {"loss", "grad_norm", "lr", "waiting"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("first", [2, 4])
def test_a_staged_run_that_is_resumed_in_either_stage_equals_one_at_once(script, pictures, tmp_path, first):
    flags = f"{TINY} --version v2 --recipe staged --condition_steps 3 --dropout 0.2"
    for name, stops in (("once", (6,)), ("resumed", (first, 6))):
        for stop in stops:
            given = ["--data_name FOLDER --data_dir", pictures, flags] if stop == stops[0] else ["--precision fp32"]
            script(
                "segmentation_train",
                [*given, "--resume_checkpoint auto --out_dir", tmp_path / name, f"--max_steps {stop}"],
            )
    at_once, resumed = (load_checkpoint(tmp_path / name / "model000006.pt") for name in ("once", "resumed"))
    for part in ("model", "ema", "optimizer", "step"):
        assert equal(getattr(at_once, part), getattr(resumed, part)), part


def test_a_run_that_goes_on_for_long_after_its_first_stage_is_warned_of(script, pictures, tmp_path, capsys):
    data = ["--data_name FOLDER --data_dir", pictures, "--resume_checkpoint auto --out_dir", tmp_path / "run"]
    flags = f"{TINY} --version v2 --recipe staged"
    for steps, warned in ((4, False), (6, False), (12, True)):  # the first stage ends after step 3
        capsys.readouterr()
        script("segmentation_train", [*data, flags, f"--max_steps {steps}"])
        told = "the condition model learned in the first 3 of 12 steps and stays fixed" in capsys.readouterr().out
        assert told == warned


def test_sampling_warns_of_a_checkpoint_of_the_first_stage(script, pictures, tmp_path, capsys):
    flags = f"{TINY} --version v2 --recipe staged --condition_steps 2 --save_interval 1 --max_steps 3"
    script("segmentation_train", ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / "run", flags])
    for step, warned in ((1, True), (2, True), (3, False)):
        capsys.readouterr()
        where = ["--model_path", tmp_path / "run" / f"model00000{step}.pt", "--data_dir", pictures]
        script("segmentation_sample", [*where, "--out_dir", tmp_path / f"results{step}", FAST])
        assert ("from training's first stage" in capsys.readouterr().out) == warned
