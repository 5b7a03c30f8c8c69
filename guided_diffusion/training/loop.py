"""The training loop: a page of named steps, from a batch to averaged weights, logs and checkpoints."""

import dataclasses
import signal
import time
from collections import defaultdict
from contextlib import closing, nullcontext

import numpy as np
import torch
from tqdm import tqdm

from ..checkpoint import Checkpoint, CheckpointFolder, checkpoint_path
from ..data.batches import training_batches
from ..io.files import remove_temporaries
from ..io.storage import WorkFolder
from ..models.sharding import gathered, state_dicts
from ..report.training_page import write_training_page
from ..runtime.console import console, counted
from ..runtime.distributed import Processes, autocast, peers_needed
from ..runtime.errors import PeerGone, UserError
from ..runtime.seeds import seed_of
from .log import RunLog
from .optimization import EMA, build_optimizer, gradient_norm, restore_optimizer, take_step
from .parallel import StepLosses, compiled, compiler_errors, gradients_exchanged, ready_for_calls, with_shared_gradients
from .randomness import TIMESTEP_SAMPLERS, draw_for_items, rows
from .stages import Stages
from .watch import OVERFIT_DICE

# ---- How a training run is asked to stop: signals that let the step in hand be finished -----------------------------


class SignalsCaught:
    """While inside, SIGINT and SIGTERM ask the loop to stop after the step in hand; a second one stops at once.

    loop: a `train_util.TrainLoop`, whose `stop_signal` is set. Several processes agree at the end of the step, which
    then says so; they do not count signals, since a scheduler and the launcher may both pass on the same one.
    """

    def __init__(self, loop):
        self.loop = loop

    def __enter__(self):
        self.previous = {number: signal.signal(number, self._caught) for number in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, _kind, error, _trace):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if isinstance(error, PeerGone) and self.loop.stop_signal is not None:
            signal.raise_signal(self.loop.stop_signal)  # the launcher ends those that are left

    def _caught(self, number, _frame):
        alone = self.loop.processes.count == 1
        if self.loop.stop_signal is not None and alone:
            raise KeyboardInterrupt
        self.loop.stop_signal = number
        if not alone:
            return
        console().info(
            f"{signal.Signals(number).name}: finishing the step and writing a checkpoint, which may take a while; a "
            "second Ctrl-C quits at once without saving"
        )


# ---- How much of a training run's time goes into waiting for data, and a word when it is a lot ----------------------


MUCH = 0.2  # of the time, and at least so many seconds: a start or a short trial says nothing


AT_LEAST = 10.0


class WaitingShare:
    """Measures which share of the time since it was last asked was spent waiting for batches.

    num_workers: the processes that read images, for the advice.
    """

    def __init__(self, num_workers):
        self.num_workers, self.told = num_workers, False
        self.waited, self.since = 0.0, time.monotonic()

    def next(self, batches):
        """The next of an iterator's batches."""
        began = time.monotonic()
        batch = next(batches)
        self.waited += time.monotonic() - began
        return batch

    @property
    def share(self):
        """In [0, 1]."""
        return self.waited / max(time.monotonic() - self.since, 1e-9)

    def take(self):
        """The share, to begin anew; says once what to do about a large one."""
        share = self.share
        if share > MUCH and self.waited > AT_LEAST and not self.told:
            self.told = True
            console().warning(
                f"warning: {share:.0%} of the time goes into waiting for images. More --num_workers than "
                f"{self.num_workers} help where cores are idle; images that are stored smaller are read faster"
            )
        self.waited, self.since = 0.0, time.monotonic()
        return share


# The step whose time foretells the run's: the first ones on a GPU load and tune its kernels.
MEASURED_STEP = {"cpu": 1, "cuda": 10}


class TrainLoop:
    """Train `model` on `dataset` until the last step, a time limit or a signal.

    options: `train_options.TrainOptions`. config: the option values kept in the checkpoint. start: a `Checkpoint` to go
    on from, whose weights the model already holds, or None. processes: the `Processes` that share every batch; all of
    them run this loop, the first one writes. folder: the `WorkFolder` of options.out_dir. watch: the `Watch` that
    samples validation cases meanwhile, or None. selection: the `selection.Selection` of the items to train on; None:
    all.
    """

    def __init__(
        self,
        model,
        diffusion,
        dataset,
        options,
        *,
        config,
        device,
        precision,
        num_workers=0,
        start=None,
        processes=None,
        folder=None,
        watch=None,
        selection=None,
    ):
        self.folder, self.watch = folder or WorkFolder(options.out_dir), watch
        self.selection = selection
        self.checkpoints = CheckpointFolder(self.folder, options.keep_checkpoints)
        self.model, self.diffusion, self.dataset, self.options = model, diffusion, dataset, options
        self.config, self.device, self.precision, self.num_workers = config, device, precision, num_workers
        self.stages = Stages(options)
        self.processes = processes or Processes(0, 1, device)
        self.share = self.processes.share(options.batch_size)
        self.items_elsewhere = options.batch_size - (self.share.stop - self.share.start)
        self.sharded = options.fsdp and self.processes.count > 1
        losses = StepLosses(compiled(model) if options.compile else model, diffusion)
        self.step_losses = with_shared_gradients(
            losses, self.processes, stages=options.condition_steps != 0, shards=self.sharded
        )
        self.step = self.first_step = start.step if start else 0
        self.optimizer = build_optimizer(model.parameters(), options.lr, options.weight_decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.timesteps = TIMESTEP_SAMPLERS[options.schedule_sampler](diffusion.num_timesteps)
        saved_ema = start.ema if start else {}
        self.ema = {str(rate): EMA(model, rate, saved_ema.get(str(rate))) for rate in options.ema_rates()}
        if start:
            self._restore(start)
        has_start = start and self.processes.from_first(lambda: self.checkpoints.has(self.step))
        self.last_saved = self.step if has_start else None
        self.stop_signal, self.stopping = None, False

    def _restore(self, start):
        restore_optimizer(self.model, self.optimizer, start.optimizer)
        if self.scaler.is_enabled() and start.scaler:
            self.scaler.load_state_dict(start.scaler)
        if start.config["train"]["schedule_sampler"] == self.options.schedule_sampler:
            self.timesteps.load_state_dict(start.timestep_sampler)

    @property
    def last_step(self):
        """The step after which the run is complete."""
        return self.options.last_step

    def run(self):
        """Train; write checkpoints and logs as asked, and a checkpoint at the end. Returns the last step."""
        began = time.monotonic()
        batches = training_batches(
            self.dataset,
            self.options.batch_size,
            seed=self.options.seed,
            start_step=self.step,
            num_workers=self.num_workers,
            augment=self.options.augment,
            share=self.share,
            selection=self.selection,
        )
        recent, self.waiting = defaultdict(list), WaitingShare(self.num_workers)
        self.model.train()
        with self._log() as log, SignalsCaught(self), self._bar() as bar, peers_needed():
            finished = self._finished(began)
            while not finished:
                self._end_stage(began)
                batch, started = self.waiting.next(batches), time.monotonic()
                with compiler_errors(self.options.compile, "training"), peers_needed():
                    values = self.train_step(batch)
                self.step += 1
                self._foretell(time.monotonic() - started)
                finished = self._finished(began)
                seen = self._look(values["loss"], finished)
                finished = finished or self._is_learned(seen)
                best = seen is not None and self.watch.is_best(self.step)
                if self.processes.is_first:
                    self._report(bar, log, recent, values, began, finished, seen)
                if self.step % self.options.save_interval == 0 or finished:
                    self.save()
                if best:
                    self._save_best()
            if self.step != self.last_saved:
                self.save()
        return self.step

    def _log(self):
        if not self.processes.is_first:
            return nullcontext()
        remove_temporaries(self.folder.path)  # of a run that was killed while it wrote
        return closing(RunLog(self.folder.path, self.step))

    def _bar(self):
        words = {"desc": "training", "unit": "step", "dynamic_ncols": True, "disable": not self.processes.is_first}
        return tqdm(total=self.last_step, initial=self.step, **words)

    def _finished(self, began):
        """Whether to stop after this step, for any process's signal or clock: all processes stop after the same one."""
        limit = self.options.max_minutes * 60
        asked = {"signal": self.stop_signal or 0, "time": bool(limit and time.monotonic() - began >= limit)}
        asked = self.processes.largest(asked)
        self.stopping = bool(asked["signal"])
        if asked["signal"] and self.processes.count > 1:
            self.stop_signal = signal.Signals(int(asked["signal"]))
            console().info(f"{self.stop_signal.name}: all processes stop after step {self.step}")
        return self.step >= self.last_step or any(asked.values())

    def _foretell(self, seconds):
        """Say how long the run will take, from the seconds of one of its first steps, where that is beyond a day."""
        if self.step - self.first_step != MEASURED_STEP[self.device.type]:
            return
        steps = self.last_step - self.first_step
        limit = self.options.max_minutes * 60 or float("inf")
        days = min(seconds * steps, limit) / 86400
        if days > 1:
            console().warning(
                f"warning: at {seconds:.3g} s a step, {steps} steps will take {counted(round(days), 'day')} or so; a "
                "smaller model takes less, for example --image_size 64 --num_channels 32 --channel_mult 1,2,3,4 "
                "--num_res_blocks 1"
            )

    # ---- one step ----------------------------------------------------------------------------------------------

    def train_step(self, batch):
        """One optimizer step on a batch (see `batches.collate`). Returns a dict of its mean losses, gradient norm, lr.

        Gradients are summed over microbatches and mean the same as the full batch's. Raises `UserError`, before any
        weight changes, for a loss or gradient that is not finite.
        """
        learning_rate = self._set_learning_rate()
        alone = self.stages.is_first(self.step)
        if self.stages.condition_steps:
            self.model.fix_condition(not alone)
        if self.stages.takes_average(self.step):
            next(iter(self.ema.values())).settle(self.model, "condition_model.")
        self._seed_dropout()
        mask, t, weights, noise = self._draw(batch["mask"])
        here = len(mask)
        count = here + self.items_elsewhere  # of the global batch: processes may have unequal shares
        seen, draws = [], self.options.noise_draws
        for part, counts in self._parts(here):
            with gradients_exchanged(self.step_losses, now=part.stop == here):
                losses = self._losses(batch, (mask, t, noise), part)
                total = (losses["loss"] * rows(weights, part).to(self.device)).sum() / (count * draws)
                # The processes' mean is taken: of this, the sum.
                self.scaler.scale(total * self.processes.count * counts).backward()
            if counts:
                seen.append({name: value.detach() for name, value in losses.items()})
        # Only here, where the device has all it needs for the whole step, is it waited for.
        losses = {name: torch.cat([values[name] for values in seen]).cpu() for name in seen[0]}
        self._check_finite(losses["loss"].unflatten(0, (here, draws)), batch["name"])
        if not alone:
            self._learn_timesteps(t.flatten(), losses["loss"])
        grad_norm = self._optimizer_step(batch["name"])
        for ema in self.ema.values():
            ema.update(self.model, self.stages.steps_in(self.step))
        sums = {name: value.sum().item() / (count * draws) for name, value in losses.items()}
        return {**self.processes.sum(sums), "grad_norm": grad_norm, "lr": learning_rate}

    def _parts(self, here):
        """The slices of this process's share, of `here` items, that go through the network at once, and whether each
        counts: to gather shards the processes need each other, so one with fewer parts repeats its last for nothing."""
        size = self.options.microbatch if self.options.microbatch > 0 else here
        parts = [(slice(low, min(low + size, here)), True) for low in range(0, here, size)]
        if self.sharded and self.options.microbatch > 0:
            most = -(-self.options.batch_size // self.processes.count)  # of the largest share
            parts += [(parts[-1][0], False)] * (-(-most // size) - len(parts))
        return parts

    def _seed_dropout(self):
        """Dropout follows from (seed, step) and the process: the same mask for each share would tie their items."""
        rank = [self.processes.rank] if self.processes.rank else []
        torch.manual_seed(seed_of("step", self.options.seed, self.step, *rank))

    def _learn_timesteps(self, t, losses):
        """Tell the sampler of time steps of the whole global batch, in its order: it stays the same everywhere."""
        if self.timesteps.learns:
            shares = self.processes.gather((t, losses))
            self.timesteps.update(*(torch.cat(parts) for parts in zip(*shares, strict=True)))

    # ---- the parts of a step -------------------------------------------------------------------------------------

    def _end_stage(self, began):
        """Once the first stage is over, by its share of the steps or of the time, write down when it was."""
        if self.options.condition_steps != -1:
            return
        late = self.processes.largest({"time": self.stages.is_late(time.monotonic() - began)})["time"]
        if late or not self.stages.is_first(self.step):
            self.options.condition_steps = self.config["train"]["condition_steps"] = self.step
            console().info(f"step {self.step}: from here on the condition model stays, and the diffusion learns on it")

    def _set_learning_rate(self):
        rate = self.stages.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _draw(self, masks):
        """Draws for each of the items of this process's share (see `draws.draw_for_items`).

        The condition model alone learns from the mean of the raters' masks, which says more than one of them does.
        """
        options = dataclasses.replace(self.options, raters="mean") if self.stages.is_first(self.step) else self.options
        return draw_for_items(masks, options, self.timesteps, self.step, self.share.start)

    def _losses(self, batch, drawn, part):
        def to_device(x):
            return x[part].to(self.device, non_blocking=True)

        label = to_device(batch["label"]) if self.model.label_embedding is not None else None
        with autocast(self.precision, self.device, keep_weights=not self.sharded):
            return self.step_losses(
                to_device(batch["image"]),
                label,
                *(rows(values, part).to(self.device, non_blocking=True) for values in drawn),
                dice=self.step < (self.stages.condition_steps or self.options.dice_steps),
                condition_alone=self.stages.is_first(self.step),
            )

    def _check_finite(self, losses, names):
        finite = torch.isfinite(losses).all(dim=1)  # [N, R] -> [N]
        if not finite.all():
            bad = [name for name, good in zip(names, finite, strict=True) if not good]
            self._stop_broken(f"the loss of {', '.join(bad)} is not finite")

    def _stop_broken(self, what):
        saved = (
            f"checkpoint {self.folder.shown(checkpoint_path('', self.last_saved))} is good"
            if (self.last_saved is not None)
            else "no checkpoint had been written"
        )
        raise UserError(f"step {self.step + 1}: {what}; stopped, {saved}. Try a lower --lr or --precision fp32")

    def _optimizer_step(self, names):
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.model.parameters())
        grad_norm = norm.item()
        if not np.isfinite(grad_norm) and not self.scaler.is_enabled():  # a scaler skips the step and scales less
            names = sum(self.processes.gather(list(names)), [])
            self._stop_broken(f"the gradient of {', '.join(names)} is not finite")
        take_step(self.optimizer, self.scaler, self.model.parameters(), norm, self.options.grad_clip)
        return grad_norm

    # ---- what is kept ------------------------------------------------------------------------------------------

    def _look(self, loss, finished):
        """Sample the validation cases with averaged weights, where that is due. Returns a `validation.Seen` or None."""
        if self.watch is None:
            return None
        self.watch.note(loss)
        if self.stopping or not self.watch.due(self.step, finished):
            return None
        with next(iter(self.ema.values())).weights_in(self.model), ready_for_calls(self.step_losses):
            return self.watch.look(
                self.model,
                self.step,
                coarse_only=self.step <= self.stages.condition_steps,
                stopped=lambda: self.stop_signal is not None,
            )

    def _is_learned(self, seen):
        """Whether --overfit has nothing more to find out."""
        return bool(self.options.overfit and seen is not None and seen.dice >= OVERFIT_DICE)

    def _report(self, bar, log, recent, values, began, finished, seen):
        for name, value in values.items():
            recent[name].append(value)
        bar.update()
        shown = {"loss": f"{values['loss']:.4f}", "waiting": f"{self.waiting.share:.0%}"}
        if self.options.max_minutes:
            left = self.options.max_minutes - (time.monotonic() - began) / 60
            shown["minutes left"] = f"{max(left, 0):.1f}"
        if self.watch is not None and self.watch.seen is not None:
            shown["val"] = f"{self.watch.seen.shown_dice:.3f}"
        bar.set_postfix(shown, refresh=False)
        means = {}
        if self.step % self.options.log_interval == 0 or finished:
            means = {name: float(np.mean(history)) for name, history in recent.items()}
            recent.clear()
            means |= {"waiting": self.waiting.take(), "lr": values["lr"]}  # the rate of this step, not of those before
            console().info(f"step {self.step}: " + "  ".join(f"{name} {value:.4g}" for name, value in means.items()))
        if means or seen is not None:
            log.write(self.step, means | (seen.logged if seen is not None else {}))
        if seen is not None:
            log.picture("validation", self.step, seen.picture)
        if seen is not None or finished or self.step % self.options.save_interval == 0:
            write_training_page(self.folder.path, self.config, self.last_step, self.watch.best if self.watch else None)

    def checkpoint(self):
        """The run as it stands, as a `Checkpoint`. Weights in shards are put together for it, in the first process
        alone; all of them call this at once."""
        model, optimizer = state_dicts(self.model, self.optimizer)
        ema = {rate: gathered(ema.parameters, self.processes.is_first) for rate, ema in self.ema.items()}
        return Checkpoint(
            config=self.config | {"loader": self.dataset.kept_values()},
            image_channels=self.dataset.image_channels,
            class_names=list(self.dataset.class_names),
            label_names=list(self.dataset.label_names),
            step=self.step,
            model=model,
            ema=ema,
            optimizer=optimizer,
            scaler=self.scaler.state_dict(),
            timestep_sampler=self.timesteps.state_dict(),
            validation=self.watch.best if self.watch is not None else {},
        )

    def save(self):
        """Write OUT/model<step>.pt, whole or not at all; the first process does, for all. Not of an --overfit check."""
        if self.options.overfit:
            return
        checkpoint = self.checkpoint()
        if self.processes.is_first:
            console().info(f"step {self.step}: wrote {self.checkpoints.save(checkpoint)}")
        self.last_saved = self.step

    def _save_best(self):
        """Let OUT/best.pt be the run as it stands."""
        if self.options.overfit:
            return
        checkpoint = self.checkpoint()
        if self.processes.is_first:
            self.checkpoints.save_best(checkpoint, saved=self.last_saved == self.step)
