"""The training loop: a page of named steps, from a batch to averaged weights and checkpoints."""

import dataclasses
import signal
import time
from contextlib import ExitStack, closing

import numpy as np
import torch

from ..checkpoint import Checkpoint, CheckpointFolder, checkpoint_path
from ..data.batches import select_slices, training_batches
from ..models.sharding import gathered, state_dicts
from ..runtime.console import console
from ..runtime.distributed import Processes, autocast, peers_needed
from ..runtime.errors import UserError
from ..runtime.seeds import seed_of
from .hooks import StepResult, StopSignals, WaitingShare, standard_hooks
from .optimization import EMA, build_optimizer, gradient_norm, restore_optimizer, take_step
from .parallel import StepLosses, compiled, compiler_errors, gradients_exchanged, with_shared_gradients
from .randomness import TIMESTEP_SAMPLERS, draw_for_items
from .stages import Stages


class TrainLoop:
    """Trains a network until the last step, a time limit or a signal.

    run: the `run.Run`. model: its network, on this process's device, with the weights of run.start where the run goes
    on. diffusion: its `GaussianDiffusion`. processes: the `Processes` that share every batch; all of them run this
    loop, and the first one writes. watch: the `Watch` that validates, or None.
    """

    def __init__(self, run, model, diffusion, processes=None, watch=None):
        self.model, self.diffusion, self.dataset = model, diffusion, run.dataset
        self.options, self.config, self.folder, self.precision = (
            run.settings.train,
            run.config,
            run.folder,
            run.precision,
        )
        self.processes = processes or Processes(0, 1, next(model.parameters()).device)
        self.device, self.watch, start = self.processes.device, watch, run.start
        self.num_workers = run.settings.data.num_workers if run.settings.data else 0
        self.checkpoints = CheckpointFolder(self.folder, self.options.keep_checkpoints)
        self.stages = Stages(self.options, start.first_stage if start else None)
        self.share = self.processes.share(self.options.batch_size)
        self.items_elsewhere = self.options.batch_size - (self.share.stop - self.share.start)
        self.sharded = self.options.fsdp and self.processes.count > 1
        losses = StepLosses(compiled(model) if self.options.compile else model, diffusion)
        has_stages = self.options.condition_steps != 0
        self.step_losses = with_shared_gradients(losses, self.processes, stages=has_stages, shards=self.sharded)
        self.step = start.step if start else 0
        self.optimizer = build_optimizer(model.parameters(), self.options.lr, self.options.weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.timesteps = TIMESTEP_SAMPLERS[self.options.schedule_sampler](diffusion.num_timesteps)
        saved_ema = start.ema if start else {}
        self.ema = {str(rate): EMA(model, rate, saved_ema.get(str(rate))) for rate in self.options.ema_rates()}
        if start:
            self._restore(start)
        has_start = start and self.processes.from_first(lambda: self.checkpoints.has(self.step))
        self.last_saved = self.step if has_start else None
        self.signals, self.stopping = StopSignals(self.processes), False

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
        """Train; the hooks log, validate and save. Returns the last step."""
        self.began = time.monotonic()
        batches, self.waiting = self._batches(), WaitingShare(self.num_workers)
        self.model.train()
        with ExitStack() as stack:
            hooks = [stack.enter_context(closing(hook)) for hook in standard_hooks(self, self.watch)]
            stack.enter_context(self.signals)
            stack.enter_context(peers_needed())
            for hook in hooks:
                hook.begin(self)
            finished = self._finished()
            while not finished:
                self._end_stage(self.began)
                batch, started = self.waiting.next(batches), time.monotonic()
                with compiler_errors(self.options.compile, "training"), peers_needed():
                    values = self.train_step(batch)
                self.step += 1
                result = StepResult(values, time.monotonic() - started, self._finished())
                for hook in hooks:
                    hook.after_step(self, result)
                finished = result.finished
            if self.step != self.last_saved:
                self.save()
        return self.step

    def _batches(self):
        return training_batches(
            self.dataset,
            self.options.batch_size,
            seed=self.options.seed,
            start_step=self.step,
            num_workers=self.num_workers,
            augment=self.options.augment,
            share=self.share,
            selection=select_slices(self.dataset, self.options.slices, self.processes),
        )

    def _finished(self):
        """Whether to stop after this step, for any process's signal or clock: all processes stop after the same one."""
        limit = self.options.max_minutes * 60
        late = bool(limit and time.monotonic() - self.began >= limit)
        asked = self.processes.largest({"signal": self.signals.received or 0, "time": late})
        self.stopping = bool(asked["signal"])
        if self.stopping and self.processes.count > 1:
            self.signals.received = signal.Signals(int(asked["signal"]))
            console().info(f"{self.signals.received.name}: all processes stop after step {self.step}")
        return self.step >= self.last_step or any(asked.values())

    # ---- one step ----------------------------------------------------------------------------------------------

    def train_step(self, batch):
        """One optimizer step on a batch (see `batches.collate`). Returns a dict of its mean losses, gradient norm, lr.

        Gradients are summed over microbatches, which gives the full batch's. Raises `UserError`, before any weight
        changes, for a loss or gradient that is not finite.
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
        parts = []
        for part, counts in self._parts(here):
            with gradients_exchanged(self.step_losses, now=part.stop == here):
                losses = self._losses(batch, (mask, t, noise), part)
                total = (losses["loss"] * weights[part].to(self.device)).sum() / count
                # The processes average their gradients, and the sum is wanted.
                self.scaler.scale(total * self.processes.count * counts).backward()
            if counts:
                parts.append({name: value.detach() for name, value in losses.items()})
        # The device is waited for only here, when it has all the work of the step.
        losses = {name: torch.cat([values[name] for values in parts]).cpu() for name in parts[0]}
        self._check_finite(losses["loss"], batch["name"])
        if not alone:
            self._learn_timesteps(t, losses["loss"])
        grad_norm = self._optimizer_step(batch["name"])
        for ema in self.ema.values():
            ema.update(self.model, self.stages.steps_in(self.step))
        sums = {name: value.sum().item() / count for name, value in losses.items()}
        return {**self.processes.sum(sums), "grad_norm": grad_norm, "lr": learning_rate}

    def _parts(self, here):
        """(slice of this process's `here` items, whether it counts) of each pass through the network.

        Processes need each other to gather shards, so one with fewer parts repeats its last, which does not count.
        """
        size = self.options.microbatch if self.options.microbatch > 0 else here
        parts = [(slice(low, min(low + size, here)), True) for low in range(0, here, size)]
        if self.sharded and self.options.microbatch > 0:
            most = -(-self.options.batch_size // self.processes.count)  # of the largest share
            parts += [(parts[-1][0], False)] * (-(-most // size) - len(parts))
        return parts

    def _seed_dropout(self):
        """Seed dropout by (seed, step, process): with one seed for all, the shares would drop the same units."""
        rank = [self.processes.rank] if self.processes.rank else []
        torch.manual_seed(seed_of("step", self.options.seed, self.step, *rank))

    def _learn_timesteps(self, t, losses):
        """Update the sampler of time steps by the whole global batch, so that it is the same in every process."""
        if self.timesteps.learns:
            shares = self.processes.gather((t, losses))
            self.timesteps.update(*(torch.cat(parts) for parts in zip(*shares, strict=True)))

    # ---- the parts of a step -------------------------------------------------------------------------------------

    def _end_stage(self, began):
        """Note where the first stage ends: at its share of the steps, or of the time where that comes first."""
        if self.options.condition_steps != -1 or self.stages.ended is not None:
            return
        late = self.processes.largest({"time": self.stages.is_late(time.monotonic() - began)})["time"]
        if late or not self.stages.is_first(self.step):
            self.stages.ended = self.step
            console().info(
                f"step {self.step}: from here on the condition model is fixed, and the diffusion learns on it"
            )

    def _set_learning_rate(self):
        rate = self.stages.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _draw(self, masks):
        """Draws for each item of this process's share (see `randomness.draw_for_items`).

        In the first stage the condition model learns from the mean of the raters' masks, which holds more than one.
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
                *map(to_device, drawn),
                dice=self.step < (self.stages.condition_steps or self.options.dice_steps),
                condition_alone=self.stages.is_first(self.step),
            )

    def _check_finite(self, losses, names):
        finite = torch.isfinite(losses)
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

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def checkpoint(self):
        """The run as it stands, as a `Checkpoint`. All processes call this; the first one gets whole weights."""
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
            stage_end=self.stages.ended,
        )

    def save(self):
        """Write OUT/model<step>.pt, whole or not at all; the first process writes. An --overfit check writes none."""
        if self.options.overfit:
            return
        checkpoint = self.checkpoint()
        if self.processes.is_first:
            console().info(f"step {self.step}: wrote {self.checkpoints.save(checkpoint)}")
        self.last_saved = self.step

    def save_best(self):
        """Write the run as it stands to OUT/best.pt."""
        if self.options.overfit:
            return
        checkpoint = self.checkpoint()
        if self.processes.is_first:
            self.checkpoints.save_best(checkpoint, saved=self.last_saved == self.step)
