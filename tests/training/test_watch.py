"""Watching a run learn: validation cases, their figures and pictures, best.pt, last.pt and --overfit."""

import json
import math
import os
import shlex
from types import SimpleNamespace

import numpy as np
import processes
import pytest
import torch
from conftest import FAST, SCRIPTS, TINY, files, words
from helpers import equal
from PIL import Image

from guided_diffusion.checkpoint import load_checkpoint, names_digest
from guided_diffusion.data.loaders.folder import FolderDataset
from guided_diffusion.data.splits import HoldOut
from guided_diffusion.diffusion.samplers import sample_bernoulli
from guided_diffusion.diffusion.schedule import bernoulli_timesteps
from guided_diffusion.inference.members import MemberNoise
from guided_diffusion.io.files import temporary_name
from guided_diffusion.training.validation import FIGURES, TILE, ValidationResult
from guided_diffusion.training.watch import Watch

WATCHED = (
    TINY + " --max_steps 5 --save_interval 2 --val_fraction 0.4 --split_seed 1 --dropout 0.2 --lr 1e-2 --ema_rate 0.5"
)
EVERY = "--sample_interval 2 --keep_checkpoints 2"
PARTS = ("model", "ema", "optimizer", "scaler", "timestep_sampler", "step")


@pytest.fixture(scope="module")
def watched(script, pictures, tmp_path_factory):
    """A run of 5 steps that is validated after the steps 2, 4 and 5."""
    out = tmp_path_factory.mktemp("watched")
    script("segmentation_train", ["--data_name FOLDER --data_dir", pictures, "--out_dir", out, WATCHED, EVERY])
    return out


def rows_of(out):
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows}


def dice_log(out):
    """{step: Dice of the ensemble}"""
    return {step: row["val_dice"] for step, row in rows_of(out).items() if row.get("val_dice") is not None}


def held_out(pictures):
    return FolderDataset(pictures, 32, split="val", need_masks=True, hold_out=HoldOut(0.4, 1))


def test_the_log_has_the_figures_of_each_validation_and_a_picture_of_it(watched, pictures):
    rows = rows_of(watched)
    assert list(dice_log(watched)) == [2, 4, 5] and list(rows) == [1, 2, 3, 4, 5]
    for step in (2, 4, 5):
        shares = ("dice", "member_dice", "coarse_dice", "agreement", "empty", "full")
        assert all(0 <= float(rows[step][f"val_{name}"]) <= 1 for name in shares)
        assert all(rows[step][f"val_{name}"] > 0 for name in ("log_loss", "coarse_log_loss", "volume_ratio"))
        assert {f"val_{name}" for name in FIGURES} < rows[step].keys() and rows[step]["val_health"] is None  # no skip
        assert rows[step]["loss"]
        picture = np.asarray(Image.open(watched / "validation" / f"step00000{step}.png"))
        # image, truth, 5 members, fused, uncertainty, coarse
        assert picture.shape[1] == 10 * (TILE + 2) - 2 and picture.shape[0] >= len(held_out(pictures)) * TILE
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(watched / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("val_dice")] == [2, 4, 5]
    assert [event.step for event in events.Images("validation")] == [2, 4, 5]


def test_the_dice_is_that_of_averaged_weights_on_the_held_out_cases(watched, pictures):
    """Sampled and scored anew, member by member, without the code of validation."""
    checkpoint = load_checkpoint(watched / "model000004.pt")
    model, diffusion = checkpoint.build()
    checkpoint.load_weights(model, "ema")
    model.eval()
    scores, member_scores, losses = [], [], []
    for item in (dataset := held_out(pictures)):
        truth = item["mask"][0, 0].numpy() > 0.5
        with torch.no_grad():
            condition = model.encode(item["image"][None])
            denoise = diffusion.denoiser(model, condition)
            members, soft = [], []
            for member in range(5):
                noise = MemberNoise(0, [(item["name"], member)], (1, 32, 32), "cpu")
                times = [int(t) for t in bernoulli_timesteps(diffusion.schedule, 10)]

                def draw(x0, noise=noise):
                    return diffusion.draw(x0, noise.uniform())

                x0 = sample_bernoulli(denoise, noise(), times, diffusion.schedule, noise, draw=draw)
                soft.append(diffusion.to_mask(x0)[0, 0].numpy())
                members.append(draw(x0)[0, 0].numpy() > 0)
        member_scores.append(np.mean([dice(member, truth) for member in members]))
        scores.append(dice(np.mean(soft, axis=0) > 0.5, truth))
        mean = np.clip(np.mean(soft, axis=0, dtype=np.float64), 0.5 / 65535, 1 - 0.5 / 65535)
        losses.append(-np.log(np.where(truth, mean, 1 - mean)).mean())
    row = rows_of(watched)[4]
    assert len(dataset) == len(scores) and checkpoint.validation["cases"] == names_digest(
        [case.name for case in dataset.cases]
    )
    assert float(row["val_member_dice"]) == pytest.approx(np.mean(member_scores), abs=2e-3)
    assert float(row["val_dice"]) == pytest.approx(np.mean(scores), abs=2e-3)
    assert float(row["val_log_loss"]) == pytest.approx(np.mean(losses), rel=2e-2)  # rounding may flip a drawn pixel


def test_each_of_several_classes_has_its_dice_in_the_line_and_the_log():
    figures = dict.fromkeys(FIGURES, math.nan) | {"dice": 0.5, "coarse_dice": 0.6, "log_loss": 0.1}
    class_dice = {"right ventricle": 0.75, "wall": 0.25, "rare": math.nan}
    watch = SimpleNamespace(validation=SimpleNamespace(indices=[0, 1], source="case"))
    for coarse_only in (False, True):
        result = ValidationResult(figures, None, coarse_only, 1.0, class_dice=class_dice)
        line = Watch._summary_line(watch, result)
        assert ", right ventricle 0.750, wall 0.250, log loss" in line and "rare" not in line
        assert result.logged["val_dice_right_ventricle"] == 0.75 and result.logged["val_dice"] == 0.5


def dice(mask, truth):
    return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())


def test_best_is_by_log_loss_last_is_the_newest_and_older_ones_go(watched):
    rows, log = rows_of(watched), dice_log(watched)
    losses = {step: rows[step]["val_log_loss"] for step in log}
    best = load_checkpoint(watched / "best.pt")
    assert best.step == min(losses, key=losses.get)  # the first of equals
    assert best.validation["step"] == best.step and best.validation["log_loss"] == min(losses.values())
    assert best.validation["dice"] == log[best.step]
    names = {name for name in files(watched) if name.endswith(".pt")}
    assert names == {"best.pt", "last.pt", "model000004.pt", "model000005.pt"}
    assert (watched / "last.pt").samefile(watched / "model000005.pt")  # no second copy on disk
    assert load_checkpoint(watched / "model000005.pt").validation == best.validation


def test_best_can_be_sampled(script, watched, pictures, tmp_path):
    script(
        "segmentation_sample",
        ["--model_path", watched / "best.pt", "--data_dir", pictures, "--out_dir", tmp_path, FAST, "--num_samples 1"],
    )
    assert len(list((tmp_path / "masks").iterdir())) == 1


def test_what_is_learned_does_not_depend_on_validation(script, watched, pictures, tmp_path):
    data = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path, WATCHED]
    script("segmentation_train", [*data, "--sample_interval 0"])
    with_it, without = (load_checkpoint(out / "model000005.pt") for out in (watched, tmp_path))
    for part in PARTS:
        assert equal(getattr(with_it, part), getattr(without, part)), part
    assert without.validation == {} and not (tmp_path / "best.pt").exists()


def test_validation_leaves_the_random_state_alone(watched, pictures):
    from guided_diffusion.training.validation import Validation

    model, diffusion = load_checkpoint(watched / "last.pt").build()
    dataset = held_out(pictures)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    results = [
        Validation(dataset, [0], "case", diffusion, torch.device("cpu"), "fp32", rows=rows).validate(model)
        for rows in (None, None, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()
    assert results[0].figures == results[1].figures and (results[0].picture == results[1].picture).all()
    assert results[2].figures == pytest.approx(
        results[0].figures, abs=1e-3, nan_ok=True
    )  # one member at a time: but for rounding
    assert model.training
    stopped = Validation(dataset, [0], "case", diffusion, torch.device("cpu"), "fp32").validate(
        model, stopped=lambda: True
    )
    assert stopped is None


def test_a_resumed_run_knows_its_best(script, watched, pictures, tmp_path, capsys):
    data = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path, WATCHED, EVERY]
    script("segmentation_train", [*data, "--max_steps 3"])
    best = load_checkpoint(tmp_path / "best.pt").validation
    (tmp_path / "best.pt").unlink()  # as if it had been killed before that was written: the checkpoint stands in
    if best["step"] != 3:
        (tmp_path / "best.pt").hardlink_to(tmp_path / "model000002.pt")
    half_drawn = temporary_name(tmp_path / "validation" / "step000003.png")
    half_drawn.touch()
    script("segmentation_train", ["--out_dir", tmp_path, "--resume_checkpoint auto --max_steps 5 --precision fp32"])
    assert not half_drawn.exists()
    at_once, resumed = (load_checkpoint(out / "model000005.pt") for out in (watched, tmp_path))
    assert equal(at_once.model, resumed.model)
    assert at_once.validation["log_loss"] >= resumed.validation["log_loss"]  # of step 3 too, at which it ended once
    assert resumed.validation == load_checkpoint(tmp_path / "best.pt").validation
    logged = dice_log(tmp_path)
    assert {step: logged[step] for step in (2, 4, 5)} == dice_log(watched)
    assert f"best.pt is of step {resumed.validation['step']}, validation log loss" in capsys.readouterr().out


def test_a_best_that_was_chosen_by_dice_begins_anew_and_a_line_says_so(pictures, capsys):
    class Watched:
        names = ("a",)

    old = {"step": 3, "dice": 0.9, "cases": names_digest(("a",))}
    watch = Watch(Watched, None, {}, None, old)
    assert watch.best == {} and "chose it by Dice, and now the log loss decides: best.pt" in capsys.readouterr().out
    new = old | {"log_loss": 0.1}
    assert Watch(Watched, None, {}, None, new).best == new and not capsys.readouterr().out


def test_other_validation_cases_begin_a_new_best(script, pictures, tmp_path, capsys):
    data = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path, TINY, "--sample_interval 1"]
    script("segmentation_train", [*data, "--max_steps 1 --val_cases 1"])
    out = capsys.readouterr().out
    assert "They are trained on" in out and "--val_fraction" in out and "1 training case" in out
    script(
        "segmentation_train",
        ["--out_dir", tmp_path, "--resume_checkpoint auto --max_steps 2 --val_cases 2 --precision fp32"],
    )
    assert "best.pt begins anew" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "best.pt").step == 2


def test_a_dry_run_names_the_validation_cases(script, pictures, tmp_path, capsys):
    line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / "new", WATCHED, EVERY, "--val_cases 1"]
    script("segmentation_train", [*line, "--dry_run True"])
    out = capsys.readouterr().out
    assert "# validation: 1 held-out case, every 2 steps" in out and "keep_checkpoints: 2" in out
    assert not (tmp_path / "new").exists()


def test_val_dir_names_cases_and_none_that_are_trained_on(script, refusal, pictures, isic, tmp_path, capsys):
    where = ["--data_name ISIC --data_dir", isic / "Train", "--out_dir", tmp_path, TINY]
    flags = "--sample_interval 1 --max_steps 1 --version unet"
    assert "is trained on" in refusal("segmentation_train", [*where, flags, "--val_dir", isic / "Train"])
    script("segmentation_train", [*where, flags, "--val_dir", isic / "Test"])
    assert "validation: 3 validation cases, every 1 step" in capsys.readouterr().out
    row = rows_of(tmp_path)[1]
    assert row["val_dice"] is not None and row["val_coarse_dice"] is row["val_member_dice"] is None  # it answers once


def test_in_the_first_stage_the_coarse_mask_is_validated_and_in_the_second_the_health_of_the_diffusion(
    script, pictures, tmp_path, capsys
):
    flags = f"{TINY} --version v2 --recipe staged --condition_steps 2 --max_steps 3 --sample_interval 2 --val_cases 1"
    script("segmentation_train", ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path, flags, "--lr 1e-9"])
    out = capsys.readouterr().out
    assert "of the condition model alone" in out
    rows = rows_of(tmp_path)
    assert rows[2]["val_coarse_dice"] is not None and rows[2]["val_dice"] is rows[2]["val_health"] is None
    assert rows[2]["val_coarse_log_loss"] > 0 and rows[2]["val_coarse_volume_ratio"] > 0
    assert rows[3]["val_dice"] is not None and abs(rows[3]["val_health"]) < 1e-3
    assert "warning: the diffusion shows no gain on 1 training case" in out  # its head has not moved from zero
    best = load_checkpoint(tmp_path / "best.pt")
    mean = (rows[3]["val_log_loss"] + rows[3]["val_coarse_log_loss"]) / 2
    assert best.step == 3 and best.validation["log_loss"] == pytest.approx(mean)


def test_two_processes_share_the_cases(watched, pictures, tmp_path):
    """The picture and the Dice are those of one process, but for the rounding of gradients; 3 cases, not 2 or 4."""
    line = words(
        ["--data_name FOLDER --data_dir", pictures, TINY, "--sample_interval 1 --val_cases 3 --max_steps 1 --lr 1e-5"]
    )
    logs = {}
    for count in (1, 2):
        (tmp_path / f"logs{count}").mkdir()
        out = tmp_path / str(count)
        started = processes.start_ranks(
            count, processes.train, [*line, "--out_dir", str(out)], folder=tmp_path / f"logs{count}"
        )
        ended = processes.finish(started, tmp_path / f"logs{count}", timeout=240)
        assert ended.statuses == [0] * count, ended.outputs
        logs[count] = [json.loads(text) for text in (out / "log.jsonl").read_text().splitlines()][0]
    for name in ("val_dice", "val_member_dice", "val_coarse_dice"):
        assert logs[2][name] == pytest.approx(logs[1][name], abs=0.02)
    one, two = (np.asarray(Image.open(tmp_path / n / "validation" / "step000001.png"), dtype=float) for n in "12")
    assert one.shape == two.shape and np.abs(one - two).mean() < 3


# ---- a check by heart ---------------------------------------------------------------------------------------------


def test_overfit_passes_and_stops_as_soon_as_it_does(script, pictures, tmp_path, capsys):
    flags = f"{TINY} --version unet --num_channels 16 --lr 5e-3 --ema_rate 0.5 --sample_interval 20 --dropout 0.5"
    line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path, flags, "--augment strong --overfit 2"]
    assert script("segmentation_train", line) == 0
    out = capsys.readouterr().out
    assert "overfit: PASS: Dice 0.9" in out and "on 2 cases" in out and "augmentation: " not in out
    names = files(tmp_path)
    assert all(name.startswith("overfit/") for name in names) and not any(name.endswith(".pt") for name in names)
    assert "dropout: 0.0" in (tmp_path / "overfit" / "config.yaml").read_text()


def test_overfit_fails_where_nothing_is_learned(script, pictures, tmp_path, capsys):
    line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path, TINY, "--overfit 1 --lr 1e-9"]
    assert script("segmentation_train", [*line, "--max_steps 1 --sample_interval 1 --version unet"]) == 1
    out = capsys.readouterr().out
    (verdict,) = [text for text in out.splitlines() if text.startswith("overfit: FAIL: Dice ")]
    assert verdict.endswith("belong together? If they do, try a higher --lr than 1e-09 or more --max_steps")
    command = shlex.split(out.rpartition("check the masks with: ")[2])
    assert command[0] == "python" and os.path.samefile(command[1], SCRIPTS / "check_data.py")
    script("check_data", [shlex.join(command[2:]), "--out_dir", tmp_path / "checked", "--num_workers 0"])
    assert (tmp_path / "checked" / "contact_sheet.png").exists() and "0 errors" in capsys.readouterr().out


@pytest.mark.parametrize("flags", ["", "--max_minutes 0.001 --max_steps 99999"])
def test_a_check_that_fails_is_not_advised_to_check(script, pictures, tmp_path, capsys, flags):
    """Neither by its verdict nor by the warnings of its validations, which advise other runs to check."""
    line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path, TINY, "--overfit 1 --lr 1e-9"]
    assert script("segmentation_train", [*line, "--max_steps 3 --sample_interval 1 --precision bf16", flags]) == 1
    out = capsys.readouterr().out
    assert "warning: " in out and "--overfit" not in out
    ended_by = "--max_minutes" if "max_minutes" in flags else "--max_steps"
    assert f"try a higher --lr than 1e-09, more {ended_by} or --precision fp32" in out


def test_a_check_on_masks_without_marks_has_no_result(script, tmp_path, save_picture, capsys):
    save_picture(tmp_path / "data" / "images" / "a.png", np.full((32, 32, 3), 90, np.uint8))
    save_picture(tmp_path / "data" / "masks" / "a.png", np.zeros((32, 32), np.uint8))
    line = ["--data_name FOLDER --data_dir", tmp_path / "data", "--out_dir", tmp_path / "run", TINY, "--lr 1e-2"]
    flags = "--overfit 1 --max_steps 40 --sample_interval 40 --version unet --ema_rate 0.5"
    assert script("segmentation_train", [*line, flags]) == 1
    out = capsys.readouterr().out
    assert (
        "overfit: NO RESULT after 40 steps: nothing is marked in the truth of 1 case\ncheck the masks with: python "
        in out
    )
