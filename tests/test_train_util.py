"""The training loop: batches, averaged weights, time steps, resuming, and how a run ends."""

import csv
import dataclasses
import json
import math
import os
import signal
import time

import numpy as np
import pytest
import torch
from conftest import TINY, finish

from guided_diffusion.checkpoint import load_checkpoint, newest_checkpoint
from guided_diffusion.config import DiffusionOptions, ModelOptions, TrainOptions, build
from guided_diffusion.data import Case, SegmentationDataset, collate
from guided_diffusion.errors import UserError
from guided_diffusion.gaussian_diffusion import build_diffusion
from guided_diffusion.medsegdiff import build_model
from guided_diffusion.train_util import EMA, LossSecondMomentTimesteps, TrainLoop, UniformTimesteps

CPU = torch.device("cpu")


class Blobs(SegmentationDataset):
    """Six random images of 16 pixels in memory, each marked by `raters` raters."""

    image_channels = 2
    raters = 1

    def find_cases(self):
        return [Case(f"c{i}", (self.data_dir / str(i),), (self.data_dir / "m",)) for i in range(6)]

    def read_image(self, case):
        return np.random.default_rng(int(case.name[1:])).uniform(0, 255, (2, 16, 16))

    def read_mask(self, case):
        rater = np.arange(self.raters)[:, None, None, None]
        return np.arange(16)[:, None] * np.ones((self.raters, 1, 16, 16)) > 4 + 2 * rater + int(case.name[1:])

    def normalise(self, image):
        return image / 127.5 - 1


@pytest.fixture
def loop(tmp_path):
    """A function that builds a `TrainLoop` on `Blobs`; keywords are of TrainOptions, the dicts of the other options."""

    def make(dataset=Blobs, model=(), diffusion=(), **train):
        torch.manual_seed(0)
        shape = {"image_size": 16, "num_channels": 8, "channel_mult": "1,2", "num_res_blocks": 1, **dict(model)}
        model_options = build(ModelOptions, shape)
        diffusion_options = build(DiffusionOptions, {"diffusion_steps": 20, **dict(diffusion)})
        options = build(TrainOptions, {"out_dir": str(tmp_path / "run"), "batch_size": 3, "lr": 1e-2, **train})
        config = {"model": model_options, "diffusion": diffusion_options, "train": options}
        return TrainLoop(
            build_model(model_options, 2, 1),
            build_diffusion(diffusion_options),
            dataset(tmp_path, 16, need_masks=True),
            options,
            config={name: dataclasses.asdict(value) for name, value in config.items()},
            device=CPU,
            precision="fp32",
        )

    return make


def batch_of(dataset, indices):
    return collate([dataset[i] for i in indices])


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def log_rows(folder):
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


# ---- microbatches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["uniform", "loss-second-moment"])
@pytest.mark.parametrize("microbatch", [1, 2, 3, 5])
def test_every_microbatch_counts(loop, microbatch, sampler):
    """Weights after 3 steps of plain gradient descent, which AdamW's division by the gradient's size would blur."""
    results = []
    for size in (-1, microbatch):
        trainer = loop(microbatch=size, schedule_sampler=sampler, diffusion={"diffusion_steps": 2})
        start = flat(trainer.model)
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0)
        values = []
        for step in range(3):
            values.append(trainer.train_step(batch_of(trainer.dataset, [step, step + 1, step + 2])))
            trainer.step += 1
        results.append((flat(trainer.model), values, trainer.timesteps.state_dict()))
    (full, full_values, full_state), (parts, parts_values, parts_state) = results
    assert (full - parts).abs().max() < 1e-6 and (full - start).abs().max() > 1e-4
    for one, other in zip(full_values, parts_values, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    for name in full_state:
        assert torch.allclose(full_state[name], parts_state[name], atol=1e-5)


def test_training_moves_every_weight(loop):
    trainer = loop(lr=1e-3)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    for _ in range(4):  # zero-initialised layers let gradients through from the second step on
        trainer.train_step(batch_of(trainer.dataset, [0, 1, 2]))
        trainer.step += 1
    still = [name for name, value in trainer.model.named_parameters() if torch.equal(value, before[name])]
    assert not still


# ---- averaged weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9999])
def test_ema_is_the_recursion(rate):
    model = torch.nn.Linear(1, 1, bias=False)
    values = [1.0, 4.0, -2.0, 8.0, 3.0]
    torch.nn.init.constant_(model.weight, values[0])
    ema, expected = EMA(model, rate), values[0]
    for n, value in enumerate(values[1:]):
        torch.nn.init.constant_(model.weight, value)
        ema.update(model, n)
        decay = min(rate, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
        assert ema.parameters["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_ema_warms_up_to_its_rate():
    ema = EMA(torch.nn.Linear(1, 1), 0.99)
    assert ema.decay(0) == 0.1 and ema.decay(90) == pytest.approx(0.91)
    assert ema.decay(10_000) == 0.99


def test_several_rates_in_one_run(loop):
    trainer = loop(ema_rate="0.05,0.99", max_steps=4, save_interval=1)
    start = flat(trainer.model)
    trainer.run()
    checkpoints = [load_checkpoint(trainer.config["train"]["out_dir"] + f"/model{n:06d}.pt") for n in range(1, 5)]
    for rate in ("0.05", "0.99"):
        expected = start
        for n, checkpoint in enumerate(checkpoints):
            decay = min(float(rate), (1 + n) / (10 + n))
            current = torch.cat([checkpoint.model[name].flatten() for name in checkpoint.ema[rate]])
            expected = decay * expected + (1 - decay) * current
            averaged = torch.cat([value.flatten() for value in checkpoint.ema[rate].values()])
            assert torch.allclose(averaged, expected, atol=1e-6)
    assert list(checkpoints[0].ema) == ["0.05", "0.99"]


# ---- learning rate -----------------------------------------------------------------------------------------------


def test_linear_annealing_to_zero_and_stop(loop, tmp_path):
    trainer = loop(lr=0.01, lr_anneal_steps=4, max_steps=100, log_interval=1)
    assert trainer.run() == 4
    rates = [float(row["lr"]) for row in log_rows(tmp_path / "run")]
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


def test_constant_rate_without_annealing(loop, tmp_path):
    assert loop(lr=0.01, max_steps=3, log_interval=1).run() == 3
    assert {row["lr"] for row in log_rows(tmp_path / "run")} == {"0.01"}


# ---- time steps --------------------------------------------------------------------------------------------------


def test_uniform_time_steps():
    t, weights = UniformTimesteps(4).draw([0.0, 0.24, 0.25, 0.99, 1 - 1e-16])
    assert t.tolist() == [0, 0, 1, 3, 3] and weights.tolist() == [1] * 5


def warm_sampler(losses, history=3):
    """A loss-second-moment sampler that has seen, `history` times each, these losses by time step."""
    sampler = LossSecondMomentTimesteps(len(losses), history)
    for _ in range(history):
        sampler.update(torch.arange(len(losses)), torch.tensor(losses))
    return sampler


def test_second_moment_is_uniform_until_every_step_is_known():
    sampler = LossSecondMomentTimesteps(2, history=2)
    for t, loss in [(0, 5.0), (0, 5.0), (1, 1.0)]:
        assert sampler.probabilities().tolist() == [0.5, 0.5]
        sampler.update(torch.tensor([t]), torch.tensor([loss]))
    assert sampler.probabilities().tolist() == [0.5, 0.5]
    sampler.update(torch.tensor([1]), torch.tensor([1.0]))
    assert sampler.probabilities()[0] > 0.8


def test_second_moment_probabilities_by_hand():
    sampler = LossSecondMomentTimesteps(2, history=2, uniform_share=0.1)
    for t, loss in [(0, 9.0), (0, 3.0), (0, 4.0), (1, 1.0), (1, 1.0)]:  # the 9 has left the history
        sampler.update(torch.tensor([t]), torch.tensor([loss]))
    root = math.sqrt((3**2 + 4**2) / 2)
    assert sampler.probabilities() == pytest.approx([0.9 * root / (root + 1) + 0.05, 0.9 / (root + 1) + 0.05])


def test_weighted_loss_is_unbiased():
    losses = np.array([0.1, 5.0, 1.0, 0.5, 2.0])
    sampler = warm_sampler(losses.tolist())
    uniforms = (np.arange(200_000) + 0.5) / 200_000  # every quantile once: no chance involved
    t, weights = sampler.draw(uniforms)
    assert np.bincount(t, minlength=5) / len(t) == pytest.approx(sampler.probabilities(), abs=1e-5)
    assert (weights.double() * torch.from_numpy(losses)[t]).mean() == pytest.approx(losses.mean(), rel=1e-4)


def test_a_loss_of_zero_leaves_every_step_possible():
    assert (warm_sampler([0.0, 0.0, 0.0]).probabilities() > 0).all()
    assert warm_sampler([0.0, 1.0, 1.0]).probabilities()[0] == pytest.approx(0.001 / 3)


# ---- raters ------------------------------------------------------------------------------------------------------


def test_one_rater_is_drawn_for_each_item(loop):
    trainer = loop(dataset=type("ThreeRaters", (Blobs,), {"raters": 3}))
    batch = batch_of(trainer.dataset, [0, 1])
    seen = [set(), set()]
    for trainer.step in range(40):
        chosen = trainer._draw(batch["mask"])[0]  # [N, K, H, W]
        for n in range(2):
            matches = [r for r in range(3) if torch.equal(chosen[n], batch["mask"][n, r])]
            assert len(matches) == 1
            seen[n].add(matches[0])
    assert seen == [{0, 1, 2}, {0, 1, 2}]
    trainer.train_step(batch)


def test_what_an_item_draws_depends_on_seed_step_and_place_alone(loop):
    trainer = loop()
    three, one = (batch_of(trainer.dataset, indices)["mask"] for indices in ([0, 1, 2], [0]))
    _, t3, _, noise3 = trainer._draw(three)
    _, t1, _, noise1 = trainer._draw(one)
    assert t3[0] == t1[0] and torch.equal(noise3[0], noise1[0])
    assert not torch.equal(noise3[0], noise3[1])
    trainer.step += 1
    assert not torch.equal(trainer._draw(one)[3], noise1)


# ---- a run that goes wrong ---------------------------------------------------------------------------------------


def poison(trainer, name, from_step):
    """From a step on, give the case `name` a loss that is not a number."""
    losses = trainer._losses

    def poisoned(batch, mask, t, noise, part):
        result = losses(batch, mask, t, noise, part)
        if trainer.step >= from_step:
            bad = torch.tensor([math.nan if n == name else 0.0 for n in batch["name"][part]])
            result["loss"] = result["loss"] + bad
        return result

    trainer._losses = poisoned


@pytest.mark.parametrize("microbatch", [-1, 1])
def test_a_loss_that_is_not_finite_stops_the_run(loop, tmp_path, microbatch):
    trainer = loop(batch_size=6, save_interval=2, max_steps=9, microbatch=microbatch)
    poison(trainer, "c4", from_step=3)
    with pytest.raises(UserError) as error:
        trainer.run()
    line = str(error.value)
    newest = newest_checkpoint(tmp_path / "run")
    assert line.startswith("step 4: the loss of c4 is not finite") and "\n" not in line
    assert newest.name == "model000002.pt" and f"checkpoint {newest} is good" in line
    assert all(torch.isfinite(value).all() for value in load_checkpoint(newest).model.values())


def test_a_first_step_that_is_not_finite_says_that_nothing_was_saved(loop, tmp_path):
    trainer = loop()
    poison(trainer, "c0", from_step=0)
    poison(trainer, "c1", from_step=0)
    with pytest.raises(UserError, match="step 1: .*no checkpoint had been written"):
        trainer.train_step(batch_of(trainer.dataset, [0, 1, 2]))


def test_a_gradient_that_is_not_finite_changes_no_weight(loop):
    trainer = loop()
    before = flat(trainer.model)
    next(trainer.model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(UserError, match="step 1: the gradient of c0, c1 is not finite"):
        trainer.train_step(batch_of(trainer.dataset, [0, 1]))
    assert torch.equal(flat(trainer.model), before)


def test_an_absurd_learning_rate_is_told_in_one_line(refusal, pictures, tmp_path):
    line = refusal(
        "segmentation_train",
        ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path, TINY, "--lr 1e30 --max_steps 20"],
    )
    assert "is not finite" in line and "case" in line and "Try a lower --lr" in line


# ---- how a run ends ----------------------------------------------------------------------------------------------


def test_time_limit(loop, tmp_path):
    began = time.monotonic()
    last = loop(max_minutes=0.01, max_steps=10**6).run()
    assert 0.5 < time.monotonic() - began < 20 and last < 10**6
    assert newest_checkpoint(tmp_path / "run").name == f"model{last:06d}.pt"
    assert int(log_rows(tmp_path / "run")[-1]["step"]) <= last


def test_save_interval_and_last(loop, tmp_path):
    loop(max_steps=5, save_interval=2).run()
    assert sorted(p.name for p in (tmp_path / "run").glob("*.pt")) == [f"model00000{n}.pt" for n in (2, 4, 5)]


def test_log_interval_means(loop, tmp_path):
    every = loop(max_steps=5, log_interval=1, out_dir=str(tmp_path / "every"))
    every.run()
    loop(max_steps=5, log_interval=2).run()
    single, means = log_rows(tmp_path / "every"), log_rows(tmp_path / "run")
    assert [row["step"] for row in means] == ["2", "4", "5"]
    for row, steps in zip(means, [(0, 1), (2, 3), (4,)], strict=True):
        expected = np.mean([float(single[step]["loss"]) for step in steps])
        assert float(row["loss"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("number, workers, group", [(signal.SIGINT, 0, False), (signal.SIGTERM, 2, True)])
def test_a_signal_writes_a_checkpoint_and_ends_well(process, pictures, tmp_path, number, workers, group):
    """To the process alone (kill), and to its group with its loaders (Ctrl-C, a job scheduler)."""
    child = process(
        "segmentation_train",
        ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path, TINY, f"--num_workers {workers}"],
    )
    for line in child.stdout:
        if line.startswith("step 3"):
            break
    (os.killpg if group else os.kill)(child.pid, number)
    ended = finish(child)
    assert ended.status == 0 and not ended.messages, ended.err
    assert f"{number.name}: finishing the step and writing a checkpoint" in ended.out
    assert ended.out.count("finishing") == 1
    newest = newest_checkpoint(tmp_path)
    assert load_checkpoint(newest).step >= 3 and f"stopped at step {int(newest.stem[5:])} of 100000" in ended.out


# ---- resuming ----------------------------------------------------------------------------------------------------

RESUMED = (
    TINY
    + " --dropout 0.2 --schedule_sampler loss-second-moment --diffusion_steps 2 --ema_rate 0.5,0.999 --batch_size 6 "
    "--save_interval 4"
)


@pytest.fixture(scope="module")
def long_run(script, pictures, tmp_path_factory):
    """Six steps at once, with all that is random; of them the first four warm the time-step sampler."""
    out = tmp_path_factory.mktemp("long")
    script(
        "segmentation_train", ["--data_name FOLDER --data_dir", pictures, "--out_dir", out, RESUMED, "--max_steps 6"]
    )
    return out


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.parametrize("first", [1, 5])
def test_a_resumed_run_equals_one_at_once(script, pictures, tmp_path, long_run, first):
    data = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path]
    script("segmentation_train", [*data, RESUMED, f"--max_steps {first}"])
    script("segmentation_train", ["--out_dir", tmp_path, "--resume_checkpoint auto --max_steps 6 --precision fp32"])
    at_once, resumed = (load_checkpoint(folder / "model000006.pt") for folder in (long_run, tmp_path))
    for part in ("model", "ema", "optimizer", "timestep_sampler", "step"):
        assert equal(getattr(at_once, part), getattr(resumed, part)), part
    assert (at_once.timestep_sampler["counts"] >= 10).all()  # warm, so that the losses decided the time steps
    steps = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [json.loads(line) for line in (long_run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log_rows(tmp_path)] == list("123456")


def test_a_killed_run_goes_on_from_its_last_checkpoint(script, tmp_path, pictures, long_run):
    """What was logged beyond the checkpoint is logged again, once."""
    for name in ("log.jsonl", "log.csv", "model000004.pt"):
        (tmp_path / name).write_bytes((long_run / name).read_bytes())
    script("segmentation_train", ["--out_dir", tmp_path, "--resume_checkpoint auto --max_steps 6 --precision fp32"])
    assert [row["step"] for row in log_rows(tmp_path)] == list("123456")
    assert equal(load_checkpoint(tmp_path / "model000006.pt").model, load_checkpoint(long_run / "model000006.pt").model)


def test_flags_given_now_count_in_a_resumed_run(script, long_run, tmp_path):
    line = ["--resume_checkpoint", long_run / "model000004.pt", "--out_dir", tmp_path, "--max_steps 5 --precision fp32"]
    script("segmentation_train", [*line, "--weight_decay 0.3 --lr 1e-5"])
    group = load_checkpoint(tmp_path / "model000005.pt").optimizer["param_groups"][0]
    assert group["weight_decay"] == 0.3 and group["lr"] == 1e-5
    assert load_checkpoint(tmp_path / "model000005.pt").config["train"]["batch_size"] == 6


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
        assert float(row["loss"]) == pytest.approx(float(row["mask"]) + weight * float(row["coarse"]), rel=1e-5)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(long_run / "tensorboard"))
    events.Reload()
    assert {"loss", "grad_norm", "lr"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
