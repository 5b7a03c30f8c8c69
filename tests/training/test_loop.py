"""The training loop: batches, averaged weights, time steps, resuming, and how a run ends."""

import dataclasses
import math
import time

import numpy as np
import pytest
import torch
from helpers import batch_of, equal, flat, log_rows
from networks import Blobs

from guided_diffusion.checkpoint import STAGE, load_checkpoint, newest_checkpoint
from guided_diffusion.config.options import DiffusionOptions
from guided_diffusion.config.recipe import recipe_values
from guided_diffusion.data.batches import training_batches
from guided_diffusion.data.resizing import View
from guided_diffusion.runtime.errors import UserError
from guided_diffusion.training.log import RunLog
from guided_diffusion.training.optimization import EMA

CPU = torch.device("cpu")


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
            values.append(trainer.train_step(batch_of(trainer.dataset, [step, step + 1, step + 2])).read())
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


@pytest.mark.parametrize("rate, dtype", [(0.0, torch.float32), (0.5, torch.bfloat16), (0.9999, torch.float64)])
def test_ema_is_the_recursion(rate, dtype):
    model = torch.nn.Linear(1, 1, bias=False, dtype=dtype)
    values = [1.0, 4.0, -2.0, 8.0, 3.0]
    torch.nn.init.constant_(model.weight, values[0])
    ema, expected = EMA(model, rate), values[0]
    for n, value in enumerate(values[1:]):
        torch.nn.init.constant_(model.weight, value)
        ema.update(model, n)
        decay = min(rate, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
        precise = dtype == torch.float64
        assert ema.parameters["weight"].dtype == (dtype if precise else torch.float32)
        assert ema.parameters["weight"].item() == pytest.approx(expected, rel=1e-14 if precise else 1e-6)


def test_ema_warms_up_to_its_rate():
    ema = EMA(torch.nn.Linear(1, 1), 0.99)
    assert ema.decay(0) == 0.1 and ema.decay(90) == pytest.approx(0.91)
    assert ema.decay(10_000) == 0.99
    published = EMA(torch.nn.Linear(1, 1), 0.99, warmup=False)
    assert published.decay(0) == published.decay(10_000) == 0.99


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
    rates = [row["lr"] for row in log_rows(tmp_path / "run")]
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


def test_constant_rate_without_annealing(loop, tmp_path):
    assert loop(lr=0.01, max_steps=3, log_interval=1).run() == 3
    assert {row["lr"] for row in log_rows(tmp_path / "run")} == {0.01}


# ---- raters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("foreground", ["class", "none", "pixel"])
def test_batches_are_of_the_crops_that_the_run_asks_for(loop, foreground):
    trainer = loop(crop=True, crop_foreground=foreground)
    trainer.dataset.image_size, trainer.dataset.view = 4, View(keep_size=True)
    keywords = {"batch_size": 3, "seed": trainer.options.seed}
    batch = next(trainer._batches())
    assert batch["image"].shape == (3, 2, 4, 4)
    for other in ("class", "none", "pixel"):
        twin = next(training_batches(trainer.dataset, crop_foreground=other, **keywords))
        assert torch.equal(batch["image"], twin["image"]) == (other == foreground)


def test_one_rater_is_drawn_for_each_item(loop):
    trainer = loop(dataset=type("ThreeRaters", (Blobs,), {"raters": 3}))
    batch = batch_of(trainer.dataset, [0, 1])
    seen = [set(), set()]
    for trainer.step in range(40):
        (chosen, _, _), _ = trainer._draw(batch["mask"])
        for n in range(2):
            matches = [r for r in range(3) if torch.equal(chosen[n], batch["mask"][n, r])]
            assert len(matches) == 1
            seen[n].add(matches[0])
    assert seen == [{0, 1, 2}, {0, 1, 2}]
    trainer.train_step(batch)


def test_the_raters_mean_is_a_soft_target_and_draws_the_same_noise(loop):
    three = type("ThreeRaters", (Blobs,), {"raters": 3})
    random, mean = loop(dataset=three), loop(dataset=three, raters="mean")
    batch = batch_of(mean.dataset, [0, 1])
    (mask, *others), _ = mean._draw(batch["mask"])
    torch.testing.assert_close(mask, batch["mask"].sum(dim=1) / 3)
    assert mask.unique().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    for one, other in zip(others, random._draw(batch["mask"])[0][1:], strict=True):
        assert torch.equal(one, other)
    assert math.isfinite(mean.train_step(batch).read()["loss"])


def test_the_mean_of_one_rater_is_that_rater(loop):
    trainer = loop(raters="mean")
    batch = batch_of(trainer.dataset, [0, 1])
    assert torch.equal(trainer._draw(batch["mask"])[0][0], batch["mask"][:, 0])


def test_what_an_item_draws_depends_on_seed_step_and_place_alone(loop):
    trainer = loop()
    three, one = (batch_of(trainer.dataset, indices)["mask"] for indices in ([0, 1, 2], [0]))
    (_, t3, noise3), _ = trainer._draw(three)
    (_, t1, noise1), _ = trainer._draw(one)
    assert t3[0] == t1[0] and torch.equal(noise3[0], noise1[0])
    assert not torch.equal(noise3[0], noise3[1])
    trainer.step += 1
    assert not torch.equal(trainer._draw(one)[0][2], noise1)


# ---- soft masks ----------------------------------------------------------------------------------------------------


class Large(Blobs):
    """`Blobs` of 40 pixels, whose masks shrink to shares of pixels. The last rows of the image have no truth."""

    def read_image(self, case):
        return np.random.default_rng(int(case.name[1:])).uniform(0, 255, (2, 40, 40))

    def read_mask(self, case):
        rows, columns = np.mgrid[0:40, 0:40]
        return (np.hypot(rows - 18, columns - 15) < 9 + int(case.name[1:]))[None, None]

    def read_labels(self, case):
        return np.where(np.arange(40)[:, None] < 36, self.read_mask(case)[:, 0], 7)


def test_the_diffusion_learns_a_level_set_of_a_soft_mask_and_the_coarse_mask_the_soft_one(loop):
    trainer, drawn = loop(dataset=Large), []
    batch = batch_of(trainer.dataset, [0, 1])
    soft = batch["mask"][:, 0]
    assert ((soft > 0) & (soft < 1)).sum() > 40
    for trainer.step in range(200):
        (mask, _, _, coarse), _ = trainer._draw(batch["mask"])
        assert torch.equal(coarse, soft)
        for one, shares in zip(mask, soft, strict=True):
            assert set(one.unique().tolist()) == {0, 1} and shares[one == 1].min() > shares[one == 0].max()
        drawn.append(mask)
    assert (torch.stack(drawn).mean(dim=0) - soft).abs().max() < 0.12
    assert math.isfinite(trainer.train_step(batch).read()["coarse"])


def test_a_soft_mask_is_itself_the_target_of_a_plain_unet_of_the_raters_mean_and_of_the_first_stage(loop):
    unet = {"model": {"version": "unet"}, "diffusion": {"objective": "x0", "mask_loss": "bce"}}
    for options in (unet, {"raters": "mean"}, {"model": {"version": "v2"}, "condition_steps": 3}):
        trainer = loop(dataset=Large, **options)
        batch = batch_of(trainer.dataset, [0, 1])
        (mask, _, _), _ = trainer._draw(batch["mask"])
        assert torch.equal(mask, batch["mask"][:, 0])


def test_soft_masks_with_pixels_without_truth(loop, tmp_path):
    dataset = Large(tmp_path, 16, need_masks=True, ignore_label=(7,))
    trainer = loop(dataset=lambda *_, **__: dataset)
    batch = batch_of(dataset, [0, 1])
    (mask, _, noise, coarse, known, coarse_known), _ = trainer._draw(batch["mask"], batch["known"])
    assert torch.equal(coarse, batch["mask"][:, 0]) and set(mask.unique().tolist()) == {0, 1}
    assert mask.shape == noise.shape == coarse.shape and torch.equal(known, coarse_known)
    assert known[:, :, :14].all() and not known[:, :, 14:].any()  # row 14 is known by a fifth
    assert math.isfinite(trainer.train_step(batch).read()["loss"])


# ---- a run that goes wrong ---------------------------------------------------------------------------------------


def poison(trainer, name, from_step):
    """From a step on, give the case `name` a loss that is not a number."""
    losses = trainer._losses

    def poisoned(batch, drawn, part):
        result = losses(batch, drawn, part)
        if trainer.step >= from_step:
            bad = torch.tensor([math.nan if n == name else 0.0 for n in batch["name"][part]])
            result["loss"] = result["loss"] + bad
        return result

    trainer._losses = poisoned


@pytest.fixture(params=[0, 1])
def ahead(request, monkeypatch):
    """The steps by which the loop is ahead of its hooks: 1 as on a GPU, or 0."""
    monkeypatch.setattr("guided_diffusion.training.loop.runs_ahead", lambda device: request.param)
    return request.param


@pytest.mark.parametrize("microbatch", [-1, 1])
def test_a_loss_that_is_not_finite_stops_the_run_and_changes_no_weight(loop, tmp_path, microbatch, ahead):
    trainer = loop(batch_size=6, save_interval=3, max_steps=9, microbatch=microbatch)
    poison(trainer, "c4", from_step=3)
    with pytest.raises(UserError) as error:
        trainer.run()
    line = str(error.value)
    newest = newest_checkpoint(tmp_path / "run")
    assert line.startswith("step 4: the loss of c4 is not finite") and "\n" not in line
    assert newest.name == "model000003.pt" and f"checkpoint {newest} is good" in line
    assert trainer.step == 4 + ahead
    assert equal(load_checkpoint(newest).model, trainer.model.state_dict())


def test_a_first_step_that_is_not_finite_says_that_nothing_was_saved(loop, tmp_path):
    trainer = loop()
    poison(trainer, "c0", from_step=0)
    poison(trainer, "c1", from_step=0)
    before = flat(trainer.model)
    with pytest.raises(UserError, match="step 1: .*no checkpoint had been written"):
        trainer.train_step(batch_of(trainer.dataset, [0, 1, 2])).read()
    assert torch.equal(flat(trainer.model), before)


def test_a_gradient_that_is_not_finite_changes_no_weight(loop):
    trainer = loop()
    before = flat(trainer.model)
    next(trainer.model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(UserError, match="step 1: the gradient of c0, c1 is not finite"):
        trainer.train_step(batch_of(trainer.dataset, [0, 1])).read()
    assert torch.equal(flat(trainer.model), before)


def test_half_precision_skips_a_step_that_overflows(loop):
    """As on a GPU; the scaler then scales less, and its state is kept in the checkpoint."""
    trainer = loop(precision="fp16")
    trainer.train_step(batch_of(trainer.dataset, [0, 1]))
    before, scale = flat(trainer.model), trainer.scaler.get_scale()
    hook = next(trainer.model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    values = trainer.train_step(batch_of(trainer.dataset, [0, 1])).read()
    hook.remove()
    assert not math.isfinite(values["grad_norm"]) and torch.equal(flat(trainer.model), before)
    assert trainer.scaler.get_scale() == scale / 2
    assert loop(precision="fp16", start=trainer.checkpoint()).scaler.get_scale() == scale / 2
    trainer.train_step(batch_of(trainer.dataset, [0, 1]))
    assert not torch.equal(flat(trainer.model), before)


# ---- speed -------------------------------------------------------------------------------------------------------


def test_moments_go_on_in_the_layout_of_the_weights(loop):
    """The fused optimizer reads both through memory, so moments of another layout would be other weights' ones."""
    batches = [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    runs = []
    for layouts in ([torch.contiguous_format] * 2, [torch.contiguous_format, torch.channels_last]):
        trainer = loop()
        for index, items in enumerate(batches):
            if index == 1:
                saved = trainer.checkpoint()
                trainer = loop(start=saved, layout=layouts[1])
                trainer.model.load_state_dict(saved.model)
                assert trainer.optimizer.defaults["fused"]
            trainer.train_step(batch_of(trainer.dataset, items))
            trainer.step += 1
        runs.append(flat(trainer.model))
    assert (runs[0] - runs[1]).abs().max() < 5e-4  # of three steps of 1e-2


def test_a_compiled_network_learns_the_same_and_is_saved_as_usual(loop, monkeypatch):
    """The compiler itself is stood in for: it takes minutes."""
    calls = []

    def compile(function, dynamic):
        return lambda *inputs: calls.append(function.__name__) or function(*inputs)

    monkeypatch.setattr(torch, "compile", compile)
    plain, fast = loop(), loop(compile=True)
    for trainer in (plain, fast):
        trainer.train_step(batch_of(trainer.dataset, [0, 1, 2]))
    assert calls == ["encode", "forward"]
    assert torch.equal(flat(plain.model), flat(fast.model))
    assert fast.checkpoint().model.keys() == plain.checkpoint().model.keys()


def test_a_compiler_error_is_one_line(loop, monkeypatch):
    def no_compiler(*_):
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: no_compiler)
    with pytest.raises(UserError, match=r"--compile True: training fails \(no C\+\+ compiler\); leave it out$"):
        loop(compile=True).run()


# ---- how a run ends ----------------------------------------------------------------------------------------------


def test_time_limit(loop, tmp_path):
    began = time.monotonic()
    last = loop(max_minutes=0.01, max_steps=10**6).run()
    assert 0.5 < time.monotonic() - began < 20 and last < 10**6
    assert newest_checkpoint(tmp_path / "run").name == f"model{last:06d}.pt"
    assert log_rows(tmp_path / "run")[-1]["step"] <= last


def test_save_interval_and_last(loop, tmp_path):
    loop(max_steps=5, save_interval=2).run()
    assert sorted(p.name for p in (tmp_path / "run").glob("*.pt")) == [
        "last.pt",
        *(f"model00000{n}.pt" for n in (2, 4, 5)),
    ]


def test_log_interval_means(loop, tmp_path, ahead, monkeypatch):
    """A step that saves and the last one are logged at once, another one when the next is under way."""
    run = loop(max_steps=5, log_interval=2, save_interval=3)
    step, seen = run.train_step, []
    run.train_step = lambda batch: seen.append(step(batch)) or seen[-1]
    write, begun = RunLog.write, []
    monkeypatch.setattr(RunLog, "write", lambda log, *row: begun.append(run.step) or write(log, *row))
    run.run()
    rows = log_rows(tmp_path / "run")
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert begun == [2 + ahead, 4 + ahead, 5]
    for row, steps in zip(rows, [(0, 1), (2, 3), (4,)], strict=True):
        assert float(row["loss"]) == pytest.approx(np.mean([seen[k].read()["loss"] for k in steps]), rel=1e-5)


# ---- stages and draws --------------------------------------------------------------------------------------------


def weights_of(trainer, prefix):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if name.startswith(prefix)}


def moved(trainer, before):
    now = dict(trainer.model.named_parameters())
    return {name for name, value in before.items() if not torch.equal(value, now[name])}


def test_in_the_first_stage_the_condition_model_learns_alone_and_then_its_last_layer(loop):
    trainer = loop(model={"version": "v2"}, condition_steps=2, lr=1e-2, max_steps=4)
    batch, all_before = batch_of(trainer.dataset, [0, 1]), weights_of(loop(model={"version": "v2"}, lr=1e-2), "")
    for trainer.step in range(2):
        assert trainer.train_step(batch).read().keys() == {"loss", "coarse", "grad_norm", "lr"}
    changed = moved(trainer, all_before)
    assert changed and all(name.startswith("condition_model.") for name in changed)
    trainer.step = 2
    trainer.train_step(batch)  # in which the averaged weights take the place of the last
    before = weights_of(trainer, "")
    for trainer.step in range(3, 6):
        assert "mask" in trainer.train_step(batch).read()
    changed = moved(trainer, before)
    assert {name for name in changed if name.startswith("condition_model.")} == {
        name for name in before if name.startswith("condition_model.head.")
    }
    assert any(name.startswith("decoder.") for name in changed)


def test_in_the_second_stage_the_last_layer_learns_the_raters_mean_and_the_diffusion_one_rater(loop):
    three = type("ThreeRaters", (Blobs,), {"raters": 3})
    trainer = loop(dataset=three, model={"version": "v2"}, condition_steps=2)
    batch = batch_of(trainer.dataset, [0, 1])
    mean = torch.stack([mask.mean(dim=0) for mask in batch["mask"]])
    (first, _, _), _ = trainer._draw(batch["mask"])
    trainer.step = 2
    (mask, t, noise, coarse_target), _ = trainer._draw(batch["mask"])
    assert torch.equal(first, mean) and torch.equal(coarse_target, mean) and not torch.equal(mask, mean)
    assert mask.unique().tolist() == [0, 1]
    trainer.model.eval()
    with torch.no_grad():
        coarse = trainer.model.encode(batch["image"]).coarse
    expected = trainer.diffusion.coarse_mask_loss(coarse, mean, t).mean().item()
    found = trainer._backward(batch, (mask, t, noise, coarse_target), torch.ones(2))
    assert found["coarse"].mean().item() == pytest.approx(expected, rel=1e-4)


def test_where_raters_disagree_the_recipe_s_expected_volume_is_their_mean_volume(loop):
    """Disks of three radii about one centre, in images that blur where their edges are."""

    class Disks(Blobs):
        away = np.hypot(*(np.mgrid[:16, :16] - 8))

        def read_mask(self, case):
            return np.stack([(self.away <= radius)[None] for radius in (1, 3, 5)])

        def read_image(self, case):
            noise = np.random.default_rng(int(case.name[1:])).normal(0, 40, (16, 16))
            return np.clip(255 - 25 * self.away + noise, 0, 255)[None].repeat(2, axis=0)

    names = {item.name for item in dataclasses.fields(DiffusionOptions)}
    recipe = {name: value for name, value in recipe_values("staged", {}).items() if name in names}
    model = {"version": "v2", "channel_mult": "1", "ss_former": "add"}
    trainer = loop(dataset=Disks, model=model, diffusion=recipe, condition_steps=15, lr=2e-2)
    batch = batch_of(trainer.dataset, range(2))
    for trainer.step in range(45):
        trainer.train_step(batch)
    with torch.no_grad():
        probability = trainer.model.eval().encode(batch["image"]).coarse.sigmoid()
    truth = sum(mask.mean(dim=0).sum().item() for mask in batch["mask"])
    assert probability.sum().item() == pytest.approx(truth, rel=0.1)  # a loss that weighs borders gave 1.7 of it


def test_each_stage_has_its_own_decay(loop, tmp_path):
    loop(model={"version": "v2"}, lr=0.1, condition_steps=4, lr_anneal_steps=6, max_steps=6, log_interval=1).run()
    assert [row["lr"] for row in log_rows(tmp_path / "run")] == pytest.approx([0.1, 0.075, 0.05, 0.025, 0.1, 0.05])


def test_a_step_learns_from_what_was_drawn(loop):
    trainer = loop(model={"version": "v2"})
    batch = batch_of(trainer.dataset, [0, 1])
    (mask, t, noise), weights = trainer._draw(batch["mask"])
    assert len(mask) == len(t) == len(weights) == len(noise) == 2 and not torch.equal(noise[0], noise[1])
    model = trainer.model.eval()
    with torch.no_grad():
        condition = model.encode(batch["image"])
        expected = trainer.diffusion.training_losses(model, mask, condition, t, noise, dice=True)
    assert trainer.train_step(batch).read()["loss"] == pytest.approx(expected["loss"].mean().item(), rel=1e-4)


def test_the_first_stage_ends_by_its_share_of_the_steps_and_that_is_kept(loop, tmp_path):
    trainer = loop(model={"version": "v2"}, condition_steps=-1, max_steps=4, save_interval=2, log_interval=1)
    trainer.run()
    at = {step: load_checkpoint(tmp_path / "run" / f"model00000{step}.pt") for step in (2, 4)}
    assert (at[2].first_stage, at[4].first_stage) == (None, 3)
    assert (at[2].has_learned_diffusion, at[4].has_learned_diffusion) == (False, True)
    assert at[4].config["train"]["condition_steps"] == -1  # no option changes while a run trains
    assert ["mask" in row for row in log_rows(tmp_path / "run")] == [False, False, False, True]


def test_the_second_stage_has_a_learning_rate_of_its_own(loop):
    trainer = loop(
        model={"version": "v2"}, condition_steps=2, max_steps=4, second_stage_lr=3.0, log_interval=1, lr=1e-3
    )
    rates = [trainer._set_learning_rate() for trainer.step in range(4)]
    assert rates == pytest.approx([1e-3, 1e-3, 3e-3, 3e-3])


def test_the_first_stage_ends_by_its_share_of_the_time(loop, monkeypatch):
    trainer = loop(model={"version": "v2"}, condition_steps=-1, max_steps=1000, max_minutes=1)
    trainer.step = 5
    monkeypatch.setattr("time.monotonic", lambda: 30.0)
    trainer._end_stage(0.0)
    assert trainer.stages.has_dice(5)
    monkeypatch.setattr("time.monotonic", lambda: 50.0)
    trainer._end_stage(0.0)
    assert trainer.stages.is_first(trainer.step)
    assert [trainer.stages.has_dice(step) for step in (4, 5)] == [False, False]  # after 0.85 of the stage's 51 s
    monkeypatch.setattr("time.monotonic", lambda: 52.0)
    trainer._end_stage(0.0)
    assert trainer.stages.is_second(trainer.step) and trainer.stages.ended == 5


def test_a_stage_that_the_time_ended_can_go_on_and_one_that_steps_ended_keeps_nothing(loop, monkeypatch, tmp_path):
    options = {"model": {"version": "v2"}, "condition_steps": -1, "max_minutes": 1}
    trainer = loop(**options, max_steps=1000)
    trainer.train_step(batch_of(trainer.dataset, [0, 1]))
    trainer.step = 1
    monkeypatch.setattr("time.monotonic", lambda: 52.0)
    trainer._end_stage(0.0)
    start = load_checkpoint(tmp_path / "run" / STAGE, to_train=True)
    assert (start.step, start.stage_end, start.first_stage) == (1, None, None) and start.optimizer["state"]
    again = loop(**options, max_steps=1000, start=start)
    assert again.stages.is_first(again.step)
    monkeypatch.setattr("time.monotonic", lambda: 50.0)
    again._end_stage(0.0)
    assert again.stages.is_first(again.step)  # until 85 % of the new limit
    by_steps = loop(**options, max_steps=1)
    by_steps.step = 1
    by_steps._end_stage(0.0)
    assert by_steps.stages.ended == 1 and not (tmp_path / "run" / STAGE).exists()  # it was of the run replaced


def test_no_stage_is_kept_after_a_step_that_was_not_finite(loop, monkeypatch, tmp_path, ahead):
    trainer = loop(model={"version": "v2"}, condition_steps=-1, max_minutes=60, max_steps=9, batch_size=6)
    poison(trainer, "c4", from_step=0)
    monkeypatch.setattr(trainer.stages, "is_late", lambda seconds, share=1: trainer.step == 1)
    with pytest.raises(UserError, match="step 1: .*no checkpoint had been written"):
        trainer.run()
    assert not (tmp_path / "run" / STAGE).exists()


@pytest.mark.parametrize("resumed", [False, True])
def test_where_the_rate_is_still_high_the_condition_model_stays_with_its_averaged_weights(loop, tmp_path, resumed):
    """Otherwise they would be lost: the average moves towards the fixed weights."""
    options = {"model": {"version": "v2"}, "condition_steps": 3, "lr": 1e-2, "save_interval": 3}
    if resumed:
        loop(**options, max_steps=3).run()
        start = load_checkpoint(tmp_path / "run" / "model000003.pt")
        trainer = loop(**options, max_steps=5, start=start)
        start.load_weights(trainer.model, "model")
        trainer.run()
    else:
        loop(**options, max_steps=5).run()
    first, last = (load_checkpoint(tmp_path / "run" / f"model00000{step}.pt") for step in (3, 5))
    (average,), (still,) = first.ema.values(), last.ema.values()
    stayed = [n for n in first.model if n.startswith("condition_model.") and not n.startswith("condition_model.head.")]
    assert any(not torch.equal(first.model[name], average[name]) for name in stayed)
    for name in stayed:
        torch.testing.assert_close(last.model[name], average[name])
        torch.testing.assert_close(still[name], average[name])


def test_the_average_of_the_second_stage_begins_anew(loop):
    """Or what the diffusion was before it learned would stay in it for a tenth of both stages' steps."""
    trainer = loop(model={"version": "v2"}, condition_steps=3, lr=1e-2, max_steps=4)
    batch = batch_of(trainer.dataset, [0, 1])
    for trainer.step in range(4):
        trainer.train_step(batch)
    (ema,) = trainer.ema.values()
    before = dict(loop(model={"version": "v2"}).model.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        if name.startswith("decoder."):
            expected = 0.1 * before[name] + 0.9 * parameter  # the decay of the first update, 1 / 10
            torch.testing.assert_close(ema.parameters[name], expected)
