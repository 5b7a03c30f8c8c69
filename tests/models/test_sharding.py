"""Weights in shards over real processes: the steps, checkpoints and random start of runs that keep them whole."""

import math

import processes
import pytest
import torch
from conftest import FAST, TINY, run_of, words
from helpers import checkpoints, equal, furthest, wait_for_more
from networks import Remembered

from guided_diffusion.checkpoint import load_checkpoint, newest_checkpoint
from guided_diffusion.config.fields import build
from guided_diffusion.config.options import DiffusionOptions, ModelOptions
from guided_diffusion.config.train_options import TrainOptions
from guided_diffusion.data.batches import collate
from guided_diffusion.diffusion.gaussian_diffusion import build_diffusion
from guided_diffusion.models.medsegdiff import build_model
from guided_diffusion.models.sharding import BLOCKS, in_shards, load_whole, local, sharded_as_built
from guided_diffusion.runtime.distributed import joined_processes
from guided_diffusion.training.loop import TrainLoop

# The largest preset with small numbers: its norm, its heads, its long stacks of blocks, and activations recomputed.
PLUS = {
    "preset": "++",
    "image_size": 16,
    "num_channels": 8,
    "channel_mult": "1,2",
    "num_res_blocks": 2,
    "num_heads": 2,
    "attention_resolutions": "8",
    "use_checkpoint": True,
}


@pytest.fixture
def run(tmp_path):
    """A function (count, target, *arguments) that runs that many processes: their statuses and outputs, by rank."""

    def go(count, target, *arguments):
        return processes.finish(processes.start_ranks(count, target, *arguments, folder=tmp_path), tmp_path, 180)

    return go


def make_loop(folder, joined, model=(), diffusion=(), train=(), precision="fp32", dtype=torch.float64, start=None):
    """A loop on 2-channel blobs as the training script builds it, in shards where there are several processes."""
    options = [
        build(ModelOptions, PLUS | dict(model)),
        build(DiffusionOptions, {"diffusion_steps": 20, **dict(diffusion)}),
        build(TrainOptions, {"batch_size": 5, "lr": 1e-3, "fsdp": joined.count > 1, **dict(train)}),
    ]
    torch.manual_seed(0)
    dataset = Remembered(folder, 16, need_masks=True)
    dataset.dtype = dtype
    if joined.count > 1:
        with sharded_as_built(joined):
            built = build_model(options[0], 2, 1)
    else:
        built = build_model(options[0], 2, 1)
    run = run_of(*options, dataset, precision, start)
    return TrainLoop(run, built.to(dtype), build_diffusion(options[1]), joined)


def train_plus(folder, *flags):
    """Train four steps; what came of it is the run's checkpoint, and what each process held is <count>of<rank>.pt."""
    with joined_processes("cpu") as joined:
        model, diffusion, train = flags
        train = {"out_dir": str(folder / f"run{joined.count}"), "max_steps": 4, "log_interval": 1, **train}
        loop = make_loop(folder, joined, model, diffusion, train)
        step, values = loop.train_step, []
        loop.train_step = lambda batch: values.append(step(batch)) or values[-1]
        loop.run()
        held = sum(local(parameter).numel() for parameter in loop.model.parameters())
        kept = {"values": [figures.read() for figures in values], "held": held, "read": loop.dataset.read}
        torch.save(kept, folder / f"{joined.count}of{joined.rank}.pt")


CASES = {
    "v2, one by one, learned time steps": (
        {"version": "v2", "learn_sigma": True, "ss_blocks": 1, "num_res_blocks": 1},
        {"diffusion_steps": 2},
        {"microbatch": 1, "schedule_sampler": "loss-second-moment", "batch_size": 3},
    ),
    "v2, in stages": (
        {"version": "v2", "ss_blocks": 1, "num_res_blocks": 1},
        {},
        {"condition_steps": 2, "grad_clip": 0.5, "batch_size": 3, "warmup_steps": 2, "ema_rate": "0.5,0.99"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_with_shards_take_the_steps_of_one(run, tmp_path, case):
    """In float64: weights, averages, moments, gradient norms and losses, after four steps on an odd batch."""
    train_plus(tmp_path, *CASES[case])
    ended = run(2, train_plus, tmp_path, *CASES[case])
    assert ended.statuses == [0, 0], ended.outputs
    one, two = (load_checkpoint(tmp_path / f"run{count}" / "model000004.pt") for count in (1, 2))
    assert furthest(one.model, two.model) < 1e-9
    for rate in one.ema:
        assert (
            furthest(one.ema[rate], two.ema[rate]) < 1e-9 and one.ema[rate]["head.conv.weight"].dtype == torch.float64
        )
    assert one.optimizer["state"].keys() == two.optimizer["state"].keys()
    for index, moments in one.optimizer["state"].items():
        assert furthest(moments, two.optimizer["state"][index]) < 1e-9
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1of0", "2of0", "2of1"))
    for before, *after in zip(alone["values"], first["values"], second["values"], strict=True):
        assert after[0] == pytest.approx(before, rel=1e-9) and after[1] == after[0]
    assert sorted(first["read"] + second["read"]) == sorted(alone["read"])
    assert first["held"] + second["held"] == alone["held"] and first["held"] < 0.6 * alone["held"]


def build_in_shards(folder):
    """Save what this process has of a network that was built in shards, and what was whole until the end."""
    with joined_processes("cpu") as joined:
        torch.manual_seed(0)
        with sharded_as_built(joined):
            model = build_model(build(ModelOptions, PLUS | {"version": "v2"}), 2, 1)
        whole = sum(parameter.numel() for parameter in model.parameters() if not in_shards(parameter))
        shards = {name: local(parameter).detach() for name, parameter in model.named_parameters()}
        torch.save({"shards": shards, "whole": whole}, folder / f"built{joined.rank}.pt")


def test_the_random_start_is_that_of_a_whole_network_though_none_is_ever_built(run, tmp_path):
    assert run(2, build_in_shards, tmp_path).statuses == [0, 0]
    torch.manual_seed(0)
    expected = dict(build_model(build(ModelOptions, PLUS | {"version": "v2"}), 2, 1).named_parameters())
    first, second = (torch.load(tmp_path / f"built{rank}.pt") for rank in (0, 1))
    assert first["shards"].keys() == expected.keys() and first["whole"] < 0.2 * sum(map(torch.numel, expected.values()))
    split = 0
    for name, value in expected.items():
        one, other = first["shards"][name], second["shards"][name]
        split += len(one) < len(value)
        assert torch.equal(one if len(one) == len(value) else torch.cat([one, other]), value), name
    assert split > 0.9 * len(expected)


@pytest.mark.parametrize("version", ["v1", "v2", "unet"])
def test_nearly_all_of_the_largest_preset_is_in_blocks_none_of_which_is_large(version):
    with torch.device("meta"):
        model = build_model(build(ModelOptions, {"preset": "++", "version": version}), 4, 1)
    blocks = [sum(p.numel() for p in module.parameters()) for module in model.modules() if isinstance(module, BLOCKS)]
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total > 6e9 and sum(blocks) > 0.99 * total and max(blocks) < 0.03 * total


def go_on_in_first_stage(folder):
    """Five steps at once, and the same from the checkpoint of step 2, when the diffusion has no moments yet."""
    with joined_processes("cpu") as joined:
        flags = {"max_steps": 5, "save_interval": 2, "condition_steps": 3, "batch_size": 3}
        make_loop(folder, joined, CASES["v2, in stages"][0], {}, {**flags, "out_dir": str(folder / "once")}).run()
        start = load_checkpoint(folder / "once" / "model000002.pt")
        flags["out_dir"] = str(folder / "again")
        loop = make_loop(folder, joined, CASES["v2, in stages"][0], {}, flags, start=start)
        load_whole(loop.model, start.model)
        loop.run()


def test_a_run_in_shards_goes_on_where_a_part_has_not_learned_yet(run, tmp_path):
    ended = run(2, go_on_in_first_stage, tmp_path)
    assert ended.statuses == [0, 0], ended.outputs
    early = load_checkpoint(tmp_path / "once" / "model000002.pt")
    assert 0 < len(early.optimizer["state"]) < len(early.ema["0.9999"])
    once, again = (load_checkpoint(tmp_path / out / "model000005.pt") for out in ("once", "again"))
    for part in ("model", "ema", "optimizer"):
        assert equal(getattr(once, part), getattr(again, part)), part


# ---- half precision ----------------------------------------------------------------------------------------------


def overflow_in_one_process(folder):
    """Three steps by an fp16 scaler; in the second the gradients of the last process's shards overflow."""
    with joined_processes("cpu") as joined:
        loop = make_loop(folder, joined, {}, {}, {"grad_clip": 1.0}, precision="fp16", dtype=torch.float32)
        states, norms, scales = [], [], []
        for step in range(3):
            batch = collate([loop.dataset[index] for index in range(5)[loop.share]])
            if step == 1 and joined.rank == joined.count - 1:
                unscale = loop.scaler.unscale_

                def spoil(optimizer, unscale=unscale):
                    local(next(iter(loop.model.parameters())).grad).fill_(torch.inf)
                    unscale(optimizer)

                loop.scaler.unscale_ = spoil
            norms.append(loop.train_step(batch).read()["grad_norm"])
            loop.scaler.__dict__.pop("unscale_", None)
            states.append({name: local(value).clone() for name, value in loop.model.state_dict().items()})
            scales.append(loop.scaler.get_scale())
            loop.step += 1
        torch.save([states, norms, scales], folder / f"fp16_{joined.count}of{joined.rank}.pt")


def test_a_scaler_of_half_precision_skips_a_step_in_all_processes_alike(run, tmp_path):
    ended = run(2, overflow_in_one_process, tmp_path)
    assert ended.statuses == [0, 0], ended.outputs
    for rank in (0, 1):
        states, norms, scales = torch.load(tmp_path / f"fp16_2of{rank}.pt")
        assert [math.isfinite(norm) for norm in norms] == [True, False, True]
        assert scales == [scales[0], scales[0] / 2, scales[0] / 2]
        assert equal(states[0], states[1]) and not equal(states[1], states[2])
        assert all(torch.isfinite(value).all() for value in states[2].values())


# ---- the script --------------------------------------------------------------------------------------------------


def test_checkpoints_go_from_shards_to_whole_and_back_and_are_sampled(run, script, sample, pictures, tmp_path):
    """Killed while it trains, a run in shards ends with the very weights of one that was not."""

    def line(flags, out="run"):
        base = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / out, TINY]
        return words(
            [
                *base,
                "--batch_size 3 --preset ++ --num_heads 1 --save_interval 1 --sample_interval 2 --val_cases 1",
                flags,
            ]
        )

    shards = "--fsdp True --use_checkpoint True --resume_checkpoint auto"
    children = processes.start_ranks(2, processes.train, line(f"{shards} --max_steps 100000"), folder=tmp_path)
    wait_for_more(lambda: checkpoints(tmp_path / "run"), children[0])
    for child in children:
        child.kill()
    assert processes.finish(children, tmp_path).statuses == [-9, -9]
    step = load_checkpoint(newest_checkpoint(tmp_path / "run")).step
    ended = run(2, processes.train, line(f"{shards} --max_steps {step + 1}"))
    assert ended.statuses == [0, 0] and f"going on from step {step}" in ended.outputs[0], ended.outputs
    assert "in shards" in ended.outputs[0] and ended.outputs[1] == ""
    assert run(2, processes.train, line(f"{shards} --max_steps {step + 1}", "once")).statuses == [0, 0]
    name = f"model{step + 1:06d}.pt"
    resumed, once = (load_checkpoint(tmp_path / out / name) for out in ("run", "once"))
    for part in ("model", "ema", "optimizer", "scaler"):
        assert equal(getattr(resumed, part), getattr(once, part)), part

    go_on = "--resume_checkpoint auto --max_steps"
    script("segmentation_train", line(f"{go_on} {step + 2}"))  # in one process, to which the flag means nothing
    assert run(2, processes.train, line(f"{go_on} {step + 3} --fsdp True")).statuses == [0, 0]
    script("segmentation_train", line(f"--use_checkpoint True --max_steps {step + 3}", "alone"))
    name = f"model{step + 3:06d}.pt"
    changed, alone = (load_checkpoint(tmp_path / out / name) for out in ("run", "alone"))
    assert furthest(changed.model, alone.model) < 1e-5 and furthest(changed.ema["0.9999"], alone.ema["0.9999"]) < 1e-5
    assert all(type(value) is torch.Tensor for value in changed.model.values())
    results = sample(tmp_path / "run" / name, pictures, FAST + " --num_samples 1")
    assert (results / "masks" / "case0.png").exists()
