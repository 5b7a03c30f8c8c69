"""Training over several real processes: the global batch decides, not how many share it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from conftest import SCRIPTS, TINY, messages, run_of, words, write_folder
from helpers import equal, furthest, logged
from networks import Remembered

from guided_diffusion.checkpoint import load_checkpoint, newest_checkpoint
from guided_diffusion.cli.train import CASES_LOOKED_AT
from guided_diffusion.config.fields import build
from guided_diffusion.config.options import DiffusionOptions, ModelOptions
from guided_diffusion.config.train_options import TrainOptions
from guided_diffusion.data.batches import Selection, TrainingOrder
from guided_diffusion.diffusion.gaussian_diffusion import build_diffusion
from guided_diffusion.models.medsegdiff import build_model
from guided_diffusion.runtime.distributed import Processes, joined_processes
from guided_diffusion.runtime.errors import UserError
from guided_diffusion.training import loop as loop_module
from guided_diffusion.training.loop import TrainLoop


@pytest.fixture
def run(tmp_path):
    """A function (count, target, *arguments) that runs that many processes: their statuses and outputs, by rank."""

    def go(count, target, *arguments):
        return processes.finish(processes.start_ranks(count, target, *arguments, folder=tmp_path), tmp_path)

    return go


# ---- numbers -----------------------------------------------------------------------------------------------------


SMALL = {"image_size": 16, "num_channels": 8, "channel_mult": "1,2", "num_res_blocks": 1}


def train_blobs(folder, steps, dtype, model, diffusion, train):
    """Train a small model on `Remembered` and save what came of it as FOLDER/<count>of<rank>.pt."""
    with joined_processes("cpu") as joined:
        torch.manual_seed(0)
        out = folder / f"run{joined.count}"
        train = {"out_dir": str(out), "max_steps": steps, "batch_size": 5, "lr": 1e-3, **train}
        options = [
            build(ModelOptions, SMALL | model),
            build(DiffusionOptions, {"diffusion_steps": 20, **diffusion}),
            build(TrainOptions, train),
        ]
        dataset = Remembered(folder, 16, need_masks=True)
        dataset.dtype = dtype
        model = build_model(options[0], 2, 1, 2).to(dtype)
        exchanged = []  # the number of gradients in each exchange
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop_module, "with_shared_gradients", counting(loop_module.with_shared_gradients, exchanged))
            loop = TrainLoop(run_of(*options, dataset), model, build_diffusion(options[1]), joined)
            finish_step, gradients = loop._optimizer_step, []

            def keep_gradients():
                gradients.append({n: p.grad.clone() for n, p in loop.model.named_parameters() if p.grad is not None})
                return finish_step()

            loop._optimizer_step = keep_gradients
            loop.run()
        kept = {"gradients": gradients, "weights": loop.model.state_dict(), "read": dataset.read}
        kept |= {"timesteps": loop.timesteps.state_dict(), "exchanged": exchanged}
        torch.save(kept, folder / f"{joined.count}of{joined.rank}.pt")


def counting(with_shared_gradients, exchanged):
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    def count(exchanged, bucket):
        exchanged.append(bucket.buffer().numel())
        return allreduce_hook(None, bucket)

    def build(losses, processes, *options):
        shared = with_shared_gradients(losses, processes, *options)
        if processes.count > 1:
            shared.register_comm_hook(exchanged, count)
        return shared

    return build


CASES = {
    "v1, whole shares, clipped": ({}, {}, {"grad_clip": 0.5, "warmup_steps": 4}),
    "v2, one by one, learned time steps": (
        {"version": "v2", "learn_sigma": True, "ss_blocks": 1},
        {"diffusion_steps": 2, "coarse_every": 2},
        {"microbatch": 1, "schedule_sampler": "loss-second-moment"},
    ),
    "v2, parts without a gradient": (
        {"version": "v2", "anchor_levels": 0},
        {"coarse_weight": 0.0},
        {"microbatch": 2},
    ),
    "v2, by class label, in stages without the other's gradients": (
        {"version": "v2", "class_cond": True},
        {},
        {"condition_steps": 5},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(run, tmp_path, case):
    """Five images, so that the shares are unequal, and parts of which one process has more than the other."""
    train_blobs(tmp_path, 10, torch.float64, *CASES[case])
    ended = run(2, train_blobs, tmp_path, 10, torch.float64, *CASES[case])
    assert ended.statuses == [0, 0], ended.outputs
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1of0", "2of0", "2of1"))
    assert furthest(one["weights"], first["weights"]) < 1e-9
    assert furthest(first["weights"], second["weights"]) == 0
    for name, value in one["timesteps"].items():
        assert torch.allclose(value, first["timesteps"][name], atol=1e-9)
        assert torch.equal(first["timesteps"][name], second["timesteps"][name])
    assert not one["timesteps"] or (one["timesteps"]["counts"] >= 10).all()  # so that they decided what was drawn
    assert len(first["read"]) == 20 and len(second["read"]) == 30  # each its own share alone
    assert sorted(first["read"] + second["read"]) == sorted(one["read"])
    assert (
        first["exchanged"] == second["exchanged"] and len(first["exchanged"]) == 10
    )  # once a step, whatever its parts
    if "parts without" not in case:  # whose parameters learn all the same
        sizes = [sum(gradient.numel() for gradient in gradients.values()) for gradients in one["gradients"]]
        assert first["exchanged"] == sizes
    model = build_model(build(ModelOptions, SMALL | CASES[case][0]), 2, 1, 2)
    everything = {name for name, _ in model.named_parameters()}
    assert (first["gradients"][0].keys() < everything) == ("without" in case)
    for alone, shared in zip(logged(tmp_path / "run1"), logged(tmp_path / "run2"), strict=True):
        assert shared == pytest.approx(alone, rel=1e-9)


def test_gradients_in_single_precision(run, tmp_path):
    train_blobs(tmp_path, 3, torch.float32, {}, {}, {})
    assert run(2, train_blobs, tmp_path, 3, torch.float32, {}, {}, {}).statuses == [0, 0]
    one, first = (torch.load(tmp_path / f"{name}.pt")["gradients"] for name in ("1of0", "2of0"))
    for alone, shared in zip(one, first, strict=True):
        assert furthest(alone, shared) < 1e-5 and max(value.abs().max() for value in alone.values()) > 0.1


def test_shares_are_even_and_cover_the_batch():
    for count in range(1, 6):
        for total in range(count, 12):
            shares = [Processes(rank, count, None).share(total) for rank in range(count)]
            sizes = [share.stop - share.start for share in shares]
            assert [i for share in shares for i in range(total)[share]] == list(range(total))
            assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
    with pytest.raises(UserError, match="--batch_size 2: is shared by 3 processes"):
        Processes(0, 3, None).share(2)


# ---- the script --------------------------------------------------------------------------------------------------


@pytest.fixture
def line(pictures, tmp_path):
    """A function (flags) that gives the words of a command line for the training script."""
    return lambda flags="", out="run": words(
        ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / out, TINY, flags]
    )


def test_processes_go_on_where_one_stopped_and_one_where_they_did(run, script, line, tmp_path):
    """Dropout would differ with the number of processes, nothing else does; the first process alone speaks."""
    script("segmentation_train", line("--batch_size 3 --max_steps 4", "alone"))
    script("segmentation_train", line("--batch_size 3 --max_steps 1"))
    go_on = "--batch_size 3 --resume_checkpoint auto"
    ended = run(2, processes.train, line(f"{go_on} --max_steps 3"))
    assert ended.statuses == [0, 0]
    assert "on 2 processes (cpu)" in ended.outputs[0] and "trained 3 steps" in ended.outputs[0]
    assert ended.outputs[1] == ""
    ended = run(2, processes.train, line(f"{go_on} --max_steps 3"))
    assert ended.statuses == [0, 0] and "complete already (step 3 of 3)" in ended.outputs[0] and not ended.outputs[1]
    script("segmentation_train", line(f"{go_on} --max_steps 4"))
    alone, shared = (load_checkpoint(tmp_path / out / "model000004.pt") for out in ("alone", "run"))
    assert furthest(alone.model, shared.model) < 1e-5
    assert furthest(alone.ema["0.9999"], shared.ema["0.9999"]) < 1e-5


def test_each_share_has_dropout_of_its_own(tmp_path):
    drawn = []
    for rank in (None, 0, 1):
        torch.manual_seed(0)
        loop = object.__new__(TrainLoop)
        loop.options, loop.step = build(TrainOptions, {"seed": 3}), 5
        loop.processes = Processes(rank or 0, 1 if rank is None else 2, None)
        loop._seed_dropout()
        drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


@pytest.mark.parametrize("rank, number", [(1, signal.SIGTERM), (None, signal.SIGINT)])
def test_a_signal_to_one_or_all_stops_all_at_one_step(line, tmp_path, rank, number):
    """To all, it comes twice: from the scheduler and from the launcher."""
    children = processes.start_ranks(2, processes.train, line("--max_steps 1000000"), folder=tmp_path)
    wait_for(lambda: "step 3:" in (tmp_path / "0.log").read_text())
    for child in [children[rank]] if rank is not None else children * 2:
        os.kill(child.pid, number)
    ended = processes.finish(children, tmp_path)
    assert ended.statuses == [0, 0]
    newest = newest_checkpoint(tmp_path / "run")
    step = load_checkpoint(newest).step
    assert f"{number.name}: all processes stop after step {step}" in ended.outputs[0]
    assert f"wrote {newest}" in ended.outputs[0] and "--resume_checkpoint auto" in ended.outputs[0]
    assert ended.outputs[1] == ""


def test_a_failure_in_one_process_ends_all_and_is_reported_once(line, truncate, tmp_path):
    """The launcher, which ends the others once one has failed, is the test here."""
    copy = tmp_path / "data"
    write_folder(copy, 20)
    everything = Selection.of_all(20)
    first = {seed: [index for index, _ in next(iter(TrainingOrder(everything, 2, seed)))] for seed in range(30)}
    # process 1's case is none of those at which the first process looks before it trains
    looked_at = np.linspace(0, 19, CASES_LOOKED_AT).round()
    seed, (_, second) = next(item for item in first.items() if item[1][1] not in looked_at)
    path = truncate(sorted((copy / "images").iterdir())[second])
    children = processes.start_ranks(
        2, processes.train, [*line(f"--seed {seed}"), "--data_dir", str(copy)], folder=tmp_path
    )
    children[1].join(60)
    os.kill(children[0].pid, signal.SIGTERM)
    ended = processes.finish(children, tmp_path)
    assert ended.statuses == [-signal.SIGTERM, 2]
    (message,) = messages(ended.outputs[1])
    assert message.startswith("error: ") and path.name in message
    assert "error" not in ended.outputs[0] and "Traceback" not in ended.outputs[0]
    assert newest_checkpoint(tmp_path / "run") is None


def test_fewer_images_than_processes(run, line):
    ended = run(2, processes.train, line("--batch_size 1"))
    assert ended.statuses == [2, 2]
    assert (
        "error: --batch_size 1: is shared by 2 processes, one image each at least; give 2 or more" in ended.outputs[0]
    )


# ---- restarts ----------------------------------------------------------------------------------------------------


def children_of(parent):
    """The environments of a process's children, by their process id (Linux)."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rpartition(")")[2].split()[1]) == parent:
                words = (status.parent / "environ").read_text().split("\0")
                found[int(status.parent.name)] = dict(word.split("=", 1) for word in words if "=" in word)
        except (OSError, IndexError):  # it has ended meanwhile
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the worker in Linux's /proc")
def test_torchrun_restarts_a_killed_worker_from_the_last_checkpoint(run, line, tmp_path):
    flags = "--max_steps 12 --save_interval 1 --dropout 0.2"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    command += [str(SCRIPTS / "segmentation_train.py"), *line(f"{flags} --resume_checkpoint auto", "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPTS.parent)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    launcher = subprocess.Popen(command, env=environment, **pipes)
    wait_for((tmp_path / "killed" / "model000002.pt").exists)
    (worker,) = (pid for pid, words in children_of(launcher.pid).items() if words.get("RANK") == "1")
    os.kill(worker, signal.SIGKILL)
    out = launcher.communicate(timeout=120)[0]
    assert launcher.returncode == 0, out
    (gone_on,) = re.findall(r"^going on from step (\d+)$", out, re.MULTILINE)
    assert 2 <= int(gone_on) < 12
    assert not re.search("Traceback|^error", out, re.MULTILINE), out
    assert run(2, processes.train, line(flags.replace("interval 1", "interval 12"))).statuses == [0, 0]
    killed, at_once = (load_checkpoint(tmp_path / out / "model000012.pt") for out in ("killed", "run"))
    for part in ("model", "ema", "optimizer"):
        assert equal(getattr(killed, part), getattr(at_once, part)), part


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if condition():
                return
        except FileNotFoundError:
            pass
        time.sleep(0.01)
    raise AssertionError("it did not happen")
