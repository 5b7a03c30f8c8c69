"""Planning a new run: what it reads and times, and what the run then records."""

import math

import pytest
import torch
import yaml
from helpers import train_options

from guided_diffusion.config.settings import settle
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.runtime.distributed import Processes
from guided_diffusion.training import planning
from guided_diffusion.training.run import facts_of, planned_options, prepare_run
from guided_diffusion.training.training_plan import NETWORKS

CPU = Processes(0, 1, torch.device("cpu"))
SIZES = (
    "--image_size 32 --num_channels 8 --channel_mult 1,2 --num_res_blocks 1 --attention_resolutions 8 --batch_size 2"
)


@pytest.mark.parametrize("flags", ["", "--version unet --augment light", "--version v1"])
def test_steps_of_each_stage_are_timed(pictures, flags):
    options, given = train_options(f"--data_name FOLDER --data_dir {pictures} {SIZES} {flags}")
    dataset = build_dataset("FOLDER", pictures, 32, split="train", need_masks=True)
    settings = settle(options, given, None, facts_of(dataset, options[0]))
    first, second = planning.step_seconds(settings, dataset, CPU.device, "fp32")
    assert 0 < first < math.inf and 0 < second < math.inf and (first == second) == bool(flags)
    assert dataset.orientation == "upright"


def test_a_network_that_the_memory_cannot_hold_takes_forever(pictures, monkeypatch):
    def full(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(planning, "build_model", full)
    options, given = train_options(f"--data_name FOLDER --data_dir {pictures} {SIZES}")
    dataset = build_dataset("FOLDER", pictures, 32, split="train", need_masks=True)
    settings = settle(options, given, None, facts_of(dataset, options[0]))
    assert planning.step_seconds(settings, dataset, CPU.device, "fp32") == (math.inf, math.inf)


@pytest.fixture
def fixed_seconds(monkeypatch):
    monkeypatch.setattr(planning, "step_seconds", lambda *_: (0.01, 0.01))


def test_a_run_takes_the_plan_and_one_with_a_size_does_not(pictures, tmp_path, fixed_seconds):
    line = f"--data_name FOLDER --data_dir {pictures} --out_dir {tmp_path / 'run'} --max_minutes 1 --lr 0.007"
    run = prepare_run(*train_options(line), CPU)
    train, model = run.settings.train, run.settings.model
    assert run.plan is not None and run.values["dropout"] == 0.1
    assert (model.image_size, train.lr, train.lr_anneal_steps, train.condition_share) == (64, 0.007, -1, 0.95)
    assert model.num_channels in {network.channels for network in NETWORKS} and train.recipe == "staged"
    assert run.settings.diffusion.mask_loss == "bce"
    assert run.values["image_size"] == 64 and run.dataset.image_size == 64
    sized = prepare_run(*train_options(f"{line} --image_size 32"), CPU)
    assert sized.plan is None and sized.settings.train.lr_anneal_steps == 0


def test_what_a_run_records_is_not_planned_again(pictures, tmp_path, fixed_seconds):
    line = f"--data_name FOLDER --data_dir {pictures} --out_dir {tmp_path / 'run'} --max_minutes 1"
    first = prepare_run(*train_options(line), CPU)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(first.values))
    again = prepare_run(*train_options(f"--config {tmp_path / 'run.yaml'} --out_dir {tmp_path / 'other'}"), CPU)
    assert again.plan is None and again.settings.model == first.settings.model
    assert again.values == first.values | {"out_dir": str(tmp_path / "other")}


def test_of_several_processes_the_first_plans(pictures, tmp_path, fixed_seconds):
    class Second(Processes):
        def from_first(self, make):
            return {"values": {"image_size": 32, "num_channels": 8, "lr": 0.1}, "classes": ""}

    options, given = train_options(f"--data_name FOLDER --data_dir {pictures}")
    settings, second = settle(options, given), Second(1, 1, CPU.device)
    options, data, plan = planned_options(options, given, settings, settings.data, "", "fp32", second)
    assert plan is None and settle(options, given).train.lr == 0.1 and settle(options, given).image_size == 32
