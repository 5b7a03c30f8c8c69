"""The memory of a training step: estimates beside measured peaks, and runs that do not fit."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import SCRIPTS, TINY, run_of
from networks import Blobs

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.config.fields import build
from guided_diffusion.config.options import DiffusionOptions, ModelOptions
from guided_diffusion.config.train_options import TrainOptions
from guided_diffusion.runtime import live_memory
from guided_diffusion.runtime.distributed import Processes
from guided_diffusion.runtime.errors import UserError
from guided_diffusion.training import step_memory
from guided_diffusion.training.step_memory import StepMemory, fitted_to_memory

CPU = torch.device("cpu")
MEASURED = [  # options of the network and the training
    ({"version": "v1", "use_checkpoint": True}, {"batch_size": 8}),
    ({"version": "v2", "image_size": 128}, {"batch_size": 4, "condition_steps": 1}),
]
MEASURING = """
import json, os, sys, torch
from types import SimpleNamespace
from measuring import peak_memory
from workloads import training_loop
from guided_diffusion.config.fields import build
from guided_diffusion.config.options import DiffusionOptions, ModelOptions
from guided_diffusion.config.train_options import TrainOptions
from guided_diffusion.models.medsegdiff import build_model
from guided_diffusion.runtime.distributed import keep_freed_memory
from guided_diffusion.training.step_memory import StepMemory

def measured(network, train):
    network, train = build(ModelOptions, network), build(TrainOptions, train)
    def steps():
        loop = training_loop(build_model(network, 3, 1).train(), network, build(DiffusionOptions, {}), train, "fp32")
        size, count = network.image_size, train.batch_size
        batch = {"image": torch.randn(count, 3, size, size), "mask": torch.ones(count, 1, 1, size, size)}
        for loop.step in (0, 0, 1, 1) if train.condition_steps else (0, 1):
            loop.train_step(batch | {"name": ["a"] * count})
    return peak_memory(steps, torch.device("cpu"))

keep_freed_memory()
for case in json.loads(sys.argv[1]):
    if not os.fork():  # each in a process of its own, as holes that one case leaves in the heap serve the next
        measured({"image_size": 16, "num_channels": 16, "num_res_blocks": 1}, {"batch_size": 2})
        print(measured(*case), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
SIZE = {"image_size": 64, "num_channels": 32, "num_res_blocks": 1}
FIRST = {"image_size": 32, "num_channels": 16, "num_res_blocks": 1, "channel_mult": "1", "version": "unet"}


class ColourBlobs(Blobs):
    image_channels = 3


def a_run(folder, model, dataset=Blobs, **train):
    options = [build(ModelOptions, model), build(DiffusionOptions, {})]
    train = build(TrainOptions, {"out_dir": str(folder), **train})
    return run_of(*options, train, dataset(folder, 16, need_masks=True))


def test_estimates_are_within_15_percent_of_the_measured_peaks_and_below_the_bound(tmp_path):
    cases = [({**SIZE, **model}, train) for model, train in MEASURED]
    command = [sys.executable, "-c", MEASURING, json.dumps(cases)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=SCRIPTS / "benchmarks")
    estimates = []
    for model, train in cases:
        memory = StepMemory(a_run(tmp_path, model, ColourBlobs, **train), CPU)
        estimates.append(memory.need(train["batch_size"]))
        assert estimates[-1] < memory.bound(train["batch_size"])
    peaks = [int(line) for line in child.communicate()[0].splitlines()]
    assert child.returncode == 0
    for estimate, peak, case in zip(estimates, peaks, cases, strict=True):
        assert estimate == pytest.approx(peak, rel=0.15), case


@pytest.fixture
def memory(monkeypatch):
    """A function that sets the free memory, without which no estimate is near the small networks' own needs."""
    monkeypatch.setitem(live_memory.CODE, "cpu", 0)

    def free(count):
        monkeypatch.setattr(step_memory, "free_memory_on", lambda device, sharing=1: count)

    return free


def test_an_open_microbatch_becomes_the_largest_that_fits(tmp_path, memory):
    run = a_run(tmp_path, FIRST, batch_size=8)
    needs = StepMemory(run, CPU)
    memory((needs.need(3) + needs.need(4)) / 2 / live_memory.USABLE)
    processes = Processes(0, 1, CPU)
    smaller, line = fitted_to_memory(run, processes)
    assert smaller.settings.train == replace(run.settings.train, microbatch=3)
    assert "8 images at once need about" in line and ": --microbatch 3 (about" in line
    fitting, line = fitted_to_memory(smaller, processes)
    assert fitting is smaller and line.startswith("memory: about ")
    with pytest.raises(UserError, match=r"^--microbatch 7: a training step needs about .*; give --microbatch 3$"):
        fitted_to_memory(a_run(tmp_path, FIRST, batch_size=8, microbatch=7), processes)
    memory(1e12)
    assert fitted_to_memory(run, processes) == (run, "")


def test_what_fits_in_no_microbatch_is_refused_with_what_would(tmp_path, memory):
    run = a_run(tmp_path, FIRST, batch_size=2)
    recomputing = StepMemory(run, CPU, use_checkpoint=True).need(1)
    assert recomputing < StepMemory(run, CPU).need(1)
    memory(recomputing * 1.01 / live_memory.USABLE)
    with pytest.raises(UserError, match="--batch_size 2: .* free on cpu; give --use_checkpoint True --microbatch 1"):
        fitted_to_memory(run, Processes(0, 1, CPU))
    large = a_run(tmp_path, {**FIRST, "image_size": 128}, batch_size=2)
    memory(StepMemory(large, CPU, use_checkpoint=True, image_size=64).need(1) * 1.01 / live_memory.USABLE)
    with pytest.raises(UserError, match="give --use_checkpoint True --microbatch 1 --image_size 64"):
        fitted_to_memory(large, Processes(0, 1, CPU))


def test_training_shrinks_or_is_refused_before_it_writes_and_a_dry_run_says_what_it_needs(
    script, refusal, pictures, tmp_path, memory, capsys, monkeypatch
):
    monkeypatch.setattr(step_memory, "_smaller", lambda model: ())
    line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / "run", TINY, "--max_steps 1"]
    memory(10_000)
    assert "error: --batch_size 2: a training step needs about" in refusal("segmentation_train", line)
    script("segmentation_train", [*line, "--dry_run"])
    assert "\n# --batch_size 2: a training step needs about" in capsys.readouterr().out
    memory(math.inf)  # the system does not say
    script("segmentation_train", [*line, "--dry_run"])
    assert re.search(r"\n# memory: about 0.00\d+ GB on cpu\n", capsys.readouterr().out)
    assert not (tmp_path / "run").exists()
    options = {"image_size": 32, "num_channels": 8, "channel_mult": "1,2", "num_res_blocks": 1, "version": "v1"}
    needs = StepMemory(a_run(tmp_path, {**options, "attention_resolutions": "16"}, ColourBlobs, batch_size=2), CPU)
    memory((needs.need(1) + needs.need(2)) / 2 / live_memory.USABLE)
    script("segmentation_train", line)
    assert ": --microbatch 1 (about" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "run" / "last.pt").config["train"]["microbatch"] == 1
