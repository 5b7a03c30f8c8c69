"""The training loop: from a batch to averaged weights and checkpoints."""

import dataclasses
import gc
import signal
import time
from collections import deque
from contextlib import ExitStack, closing

import numpy as np
import torch

from ..checkpoint import Checkpoint, CheckpointFolder, checkpoint_path
from ..data.batches import select_slices, training_batches
from ..models.sharding import gathered, state_dicts
from ..runtime.console import console
from ..runtime.distributed import HostCopies, Processes, autocast, peers_needed, runs_ahead, sent
from ..runtime.errors import UserError
from ..runtime.seeds import seed_of
from .hooks import StepResult, StopSignals, StopWaiting, WaitingShare, standard_hooks
from .optimization import (
    EMA,
    build_optimizer,
    gradient_norm,
    restore_optimizer,
    spoiled_unless_finite,
    take_step,
)
from .parallel import StepLosses, compiled, compiler_errors, gradients_exchanged, with_shared_gradients
from .randomness import TIMESTEP_SAMPLERS, draw_for_items, mean_masks
from .stages import Stages, mark_learning


class TrainLoop:
    """Trains a network until its last step, a time limit or a signal.

    run: the `run.Run`. model: its network, on this process's device, with the weights of run.start if there is one.
    diffusion: its `GaussianDiffusion`. processes: the `Processes` that share every batch; each runs this loop. watch:
    the `Watch` that validates, or None.
    """

    def __init__(self, run, model, diffusion, processes=None, watch=None):
        self.model, self.diffusion, self.dataset, self.watch = model, diffusion, run.dataset, watch
        self.options, self.config = run.settings.train, run.config
        self.has_diffusion = run.settings.model.version != "unet"
        self.folder, self.precision = run.folder, run.precision
        self.num_workers = run.settings.data.num_workers if run.settings.data else 0
        self.checkpoints = CheckpointFolder(self.folder, self.options.keep_checkpoints)

        self.processes = processes or Processes(0, 1, next(model.parameters()).device)
        self.device = self.processes.device
        self.share = self.processes.share(self.options.batch_size)
        self.items_elsewhere = self.options.batch_size - (self.share.stop - self.share.start)
        self.sharded = self.options.fsdp and self.processes.count > 1
        self.signals, self.stopping = StopSignals(self.processes), False

        start = run.start
        self.step = start.step if start else 0
        self.stages = Stages(self.options, *((start.first_stage, start.decayed) if start else ()))
        self.own_losses = StepLosses(compiled(model) if self.options.compile else model, diffusion)
        self.stage = self.step_losses = None
        self._enter_stage()
        self.hooks, self.unread = [], deque()  # of steps (StepResult, StepFigures, when it began), the oldest first
        self.read_at = 0.0
        self.optimizer = build_optimizer(model.parameters(), self.options.lr, self.options.weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.timesteps = TIMESTEP_SAMPLERS[self.options.schedule_sampler](diffusion.num_timesteps)
        saved_ema = start.ema if start else {}
        self.ema = {
            str(rate): EMA(model, rate, saved_ema.get(str(rate)), self.options.ema_warmup)
            for rate in self.options.ema_rates()
        }
        if start:
            self._restore(start)
        has_start = start and self.processes.from_first(lambda: self.checkpoints.has(self.step))
        self.last_saved = self.step if has_start else None

    def _restore(self, start):
        restore_optimizer(self.model, self.optimizer, start.optimizer)
        if self.scaler.is_enabled() and start.scaler:
            self.scaler.load_state_dict(start.scaler)
        if start.config["train"].get("schedule_sampler") == self.options.schedule_sampler:
            self.timesteps.load_state_dict(start.timestep_sampler)

    @property
    def last_step(self):
        """The step after which the run is complete."""
        return self.options.last_step

    # ---- the loop ----------------------------------------------------------------------------------------------

    def run(self):
        """Train; the hooks log, validate and save. Returns the last step."""
        batches, self.waiting = self._batches(), WaitingShare(self.num_workers)
        self.model.train()
        with ExitStack() as stack:
            self.hooks = [stack.enter_context(closing(hook)) for hook in standard_hooks(self, self.watch)]
            stack.enter_context(self.signals)
            stack.enter_context(peers_needed())
            for hook in self.hooks:
                hook.begin(self)
            self.began = time.monotonic()  # opening the log may take seconds: they are not training
            finished = self._finished()
            while not finished:
                self._end_stage(self.began)
                batch, started = self._next_batch(batches), time.monotonic()
                if batch is None:
                    break
                with compiler_errors(self.options.compile, "training"), peers_needed():
                    figures = self.train_step(batch)
                self.step += 1
                result = StepResult(self.step, self._finished())
                self.unread.append((result, figures, started))
                waits = any([hook.needs_weights(self, result) for hook in self.hooks])
                self._call_hooks(ahead=0 if waits else int(runs_ahead(self.device)))
                finished = result.finished
            self._call_hooks()
            if self.step != self.last_saved:
                self.save()
        return self.step

    def _call_hooks(self, ahead=0):
        """Read the figures of all steps but the last `ahead`, and hand them to the hooks.

        With a step under way meanwhile, a GPU never waits for the next one.
        """
        while len(self.unread) > ahead:
            result, figures, began = self.unread.popleft()
            result.values = figures.read()
            now = time.monotonic()
            result.seconds, self.read_at = now - max(began, self.read_at), now
            for hook in self.hooks:
                hook.after_step(self, result)

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
            crop_foreground=self.options.crop_foreground,
        )

    def _next_batch(self, batches):
        """The next batch; None if a signal came while waiting for it."""
        try:
            with self.signals.waiting():
                return self.waiting.next(batches)
        except StopWaiting:
            self.stopping = True
            return None

    def _finished(self):
        """Whether the run ends after this step. A signal or time limit in one process ends all after the same step."""
        limit, seconds = self.options.max_minutes * 60, time.monotonic() - self.began
        late = bool(limit and seconds >= limit)
        reasons = self.processes.largest({"signal": self.signals.received or 0, "time": late, "seconds": seconds})
        self.stages.seconds = reasons.pop("seconds")
        self.stopping = bool(reasons["signal"])
        if self.stopping and self.processes.count > 1:
            self.signals.received = signal.Signals(int(reasons["signal"]))
            console().info(f"{self.signals.received.name}: all processes stop after step {self.step}")
        return self.step >= self.last_step or any(reasons.values())

    def _end_stage(self, began):
        """Note the end of the first stage and of Dice in it: after a share of the steps or of the time, whichever comes
        first."""
        if self.options.condition_steps != -1 or self.stages.ended is not None:
            return
        seconds, stages = time.monotonic() - began, self.stages
        late = {"dice": stages.is_late(seconds, self.options.dice_share), "stage": stages.is_late(seconds)}
        late = self.processes.largest(late)
        if late["dice"] and stages.dice_ended is None:
            stages.dice_ended = self.step
        if late["stage"] or not stages.is_first(self.step):
            self._keep_stage(by_time=stages.is_first(self.step))
            stages.ended = self.step
            stages.enter_second()
            console().info(f"step {self.step}: from here on the condition model is fixed, and the diffusion learns")

    def _keep_stage(self, by_time):
        """Write stage1.pt before the condition model is fixed, if a time limit ends its stage.

        A longer limit is another run then: it may go on from there. A run that ends by its steps was planned so.
        """
        if not by_time:
            if self.processes.is_first:
                self.checkpoints.forget_stage()
            return
        self._call_hooks()  # a step that was not finite ends the run before it is written
        checkpoint = self.checkpoint()
        if self.processes.is_first:
            where = self.checkpoints.save_stage(checkpoint)
            console().info(f"step {self.step}: wrote {where}, from which a longer run can go on")

    # ---- one step ----------------------------------------------------------------------------------------------

    def train_step(self, batch):
        """One optimizer step on a batch (see `batches.collate`). Returns its `StepFigures`.

        Gradients are summed over microbatches and processes, so they are those of the whole batch. A loss or gradient
        that is not finite changes no weight. A GPU is not waited for: the step's random numbers are drawn here while it
        computes the step before. Only a sampler of time steps that `learns` waits, for the losses.
        """
        learning_rate = self._set_learning_rate()
        self._enter_stage()
        self._take_average()
        self._seed_dropout()
        drawn, weights = self._draw(batch["mask"], batch.get("known"))
        losses = self._backward(batch, drawn, weights)
        self._learn_timesteps(drawn[1], losses["loss"], batch["name"])
        norm = self._optimizer_step()
        # After a step that changed no weight the averages move all the same. Only one of a scaler is ever saved.
        for ema in self.ema.values():
            ema.update(self.model, self.stages.steps_in(self.step))
        return StepFigures(self, batch["name"], losses, norm, learning_rate)

    def _set_learning_rate(self):
        rate = self.stages.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _enter_stage(self):
        """At the first step of a stage let its parameters learn, and exchange their gradients alone."""
        stage = {"first": self.stages.is_first(self.step), "second": self.stages.is_second(self.step)}
        if stage != self.stage:
            if stage["second"]:
                self.stages.enter_second()
            self.stage, has_coarse_loss = stage, bool(self.diffusion.coarse_weight)
            frozen = self.options.freeze_encoder
            mark_learning(self.model, **stage, has_coarse_loss=has_coarse_loss, freeze_encoder=frozen)
            if self.step_losses is None or not self.sharded:  # shards are made once
                self.step_losses = None
                gc.collect()  # a wrapper that is still there would exchange gradients too
                # Without its loss the coarse mask's decoder gets no gradient. In a stage all that learns has one.
                some_unused = not has_coarse_loss and not any(stage.values())
                self.step_losses = with_shared_gradients(self.own_losses, self.processes, self.sharded, some_unused)

    def _take_average(self):
        """At the second stage's start, give the condition model its averaged weights where they help."""
        if self.stages.takes_average(self.step):
            next(iter(self.ema.values())).settle(self.model, "condition_model.")

    def _seed_dropout(self):
        """Seed dropout by (seed, step, process): with one seed for all, the shares would drop the same units."""
        rank = [self.processes.rank] if self.processes.rank else []
        torch.manual_seed(seed_of("step", self.options.seed, self.step, *rank))

    def _draw(self, masks, known=None):
        """The random draws for each item of this process's share (see `randomness.draw_for_items`).

        known: the pixels that each rater's mask knows, [N, R, 1, H, W] in {0, 1}; None for all. Returns the tuple
        (mask, time step, noise), in the second stage with the coarse mask's target, and the weights of losses; with
        `known` the tuple goes on as `StepLosses` takes it. With stages the condition model's target is the mean of the
        raters' masks, whose probability it estimates.
        A rater's soft mask stays the coarse mask's target, or a plain U-Net's. The diffusion's is a level set of it,
        which is in {0, 1}, as `GaussianDiffusion.skipped_logits` and sampling assume of x_0. With one level for all
        pixels borders stay smooth; the mean over the levels is the soft mask.
        """
        options = dataclasses.replace(self.options, raters="mean") if self.stages.is_first(self.step) else self.options
        if known is not None:  # one more channel, which goes with the rater
            masks = torch.cat([masks, known], dim=2)
        mask, t, weights, noise, levels = draw_for_items(masks, options, self.timesteps, self.step, self.share.start)
        coarse = mean_masks(masks) if self.stages.is_second(self.step) else None
        is_known = coarse_is_known = None
        if known is not None:
            (mask, is_known), (coarse, coarse_is_known) = map(_with_known, (mask, coarse))
            noise = noise[:, :-1]
        if options.raters != "mean" and self.has_diffusion and bool(((mask != 0) & (mask != 1)).any()):
            if coarse is None:
                coarse, coarse_is_known = mask, is_known
            mask = self.diffusion.draw_mask(mask, levels.reshape(-1, 1, 1, 1))
        if known is None:
            return (mask, t, noise, *([] if coarse is None else [coarse])), weights
        return (mask, t, noise, coarse, is_known, coarse_is_known), weights

    def _backward(self, batch, drawn, weights):
        """Add up the gradients of this process's N items. Returns {name: losses [N] on the device}."""
        items, parts = len(weights), []
        for part, counts in self._parts(items):
            with gradients_exchanged(self.step_losses, now=part.stop == items):
                losses = self._losses(batch, drawn, part)
                weighted = losses["loss"] * sent(weights[part], self.device)
                total = spoiled_unless_finite(weighted.sum() / self._global_count(weights))
                # The exchange averages over processes, and the sum is wanted.
                self.scaler.scale(total * self.processes.count * counts).backward()
            if counts:
                parts.append({name: value.detach() for name, value in losses.items()})
        return {name: torch.cat([values[name] for values in parts]) for name in parts[0]}

    def global_mean(self, values):
        """{name: mean over the items of all processes} of {name: values [N] of this process's share, on the CPU}."""
        return self.processes.sum({name: v.sum().item() / self._global_count(v) for name, v in values.items()})

    def _global_count(self, drawn):
        """The items of all processes, whose shares may be unequal. drawn: [N] of this process's share."""
        return len(drawn) + self.items_elsewhere

    def _parts(self, items):
        """(slice of this process's items, whether it counts) of each pass through the network.

        Processes gather shards together, so one with fewer parts repeats its last; the repetition does not count.
        """
        size = self.options.microbatch if self.options.microbatch > 0 else items
        parts = [(slice(low, min(low + size, items)), True) for low in range(0, items, size)]
        if self.sharded and self.options.microbatch > 0:
            largest_share = -(-self.options.batch_size // self.processes.count)
            parts += [(parts[-1][0], False)] * (-(-largest_share // size) - len(parts))
        return parts

    def _losses(self, batch, drawn, part):
        """The losses of some items, {name: [n]}. drawn: as of `_draw`."""
        label = sent(batch["label"][part], self.device) if self.model.label_embedding is not None else None
        with autocast(self.precision, self.device, keep_weights=not self.sharded):
            return self.step_losses(
                sent(batch["image"][part], self.device),
                label,
                *(None if values is None else sent(values[part], self.device) for values in drawn),
                dice=self.stages.has_dice(self.step),
                condition_alone=self.stages.is_first(self.step),
            )

    def _learn_timesteps(self, t, losses, names):
        """Update the sampler of time steps by the global batch, so that it is the same in every process."""
        if self.timesteps.learns and not self.stages.is_first(self.step):  # its losses say nothing about t
            losses = losses.cpu()
            self.check_losses(losses, names, self.step + 1)
            shares = self.processes.gather((t, losses))
            self.timesteps.update(*(torch.cat(parts) for parts in zip(*shares, strict=True)))

    def _optimizer_step(self):
        """Clip the gradients and step. Returns their norm before."""
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.model.parameters())
        take_step(self.optimizer, self.scaler, self.model.parameters(), norm, self.options.grad_clip)
        return norm

    def check_losses(self, losses, names, step):
        """Raise `UserError` if a loss [N] of the N named cases is not finite, at step `step` of the run."""
        finite = torch.isfinite(losses)
        if not finite.all():
            bad = [name for name, good in zip(names, finite, strict=True) if not good]
            self._stop_broken(f"the loss of {', '.join(bad)} is not finite", step)

    def check_gradient(self, norm, names, step):
        """Raise `UserError` if the gradients' norm is not finite; a scaler skips such a step and scales less."""
        if not np.isfinite(norm) and not self.scaler.is_enabled():
            names = sum(self.processes.gather(list(names)), [])
            self._stop_broken(f"the gradient of {', '.join(names)} is not finite", step)

    def _stop_broken(self, reason, step):
        saved = "no checkpoint had been written"
        if self.last_saved is not None:
            saved = f"checkpoint {self.folder.shown(checkpoint_path('', self.last_saved))} is good"
        raise UserError(f"step {step}: {reason}; stopped, {saved}. Try a lower --lr or --precision fp32")

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def checkpoint(self):
        """The `Checkpoint` of this step. All processes call this; the first one gets whole weights.

        All figures are read first: after a step that was not finite there is none.
        """
        self._call_hooks()
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
            decayed=self.stages.decay(self.step) if self.options.lr_anneal_steps < 0 else 0.0,
        )

    def save(self):
        """Write OUT/model<step>.pt, whole or not at all, in the first process. An --overfit check writes none."""
        if self.options.overfit:
            return
        checkpoint = self.checkpoint()
        if self.processes.is_first:
            console().info(f"step {self.step}: wrote {self.checkpoints.save(checkpoint)}")
        self.last_saved = self.step

    def save_best(self):
        """Write OUT/best.pt likewise."""
        if self.options.overfit:
            return
        checkpoint = self.checkpoint()
        if self.processes.is_first:
            self.checkpoints.save_best(checkpoint, saved=self.last_saved == self.step)


class StepFigures:
    """The figures of a step that a loop took, which a GPU may still compute.

    names: of this process's N cases. losses: {name: [N]}. norm: of the gradients.
    """

    def __init__(self, loop, names, losses, norm, learning_rate):
        self.loop, self.names, self.step, self.learning_rate = loop, names, loop.step + 1, learning_rate
        self.losses = tuple(losses)
        self.copies = HostCopies([torch.cat([*losses.values(), norm.reshape(1)])])

    def read(self):
        """A dict: the mean losses of all processes, which all call this, "grad_norm" and "lr".

        Waits until the step is taken. Raises `UserError` if a loss or gradient was not finite.
        """
        (numbers,) = self.copies.read()
        *losses, norm = numbers.split([len(self.names)] * len(self.losses) + [1])
        losses, norm = dict(zip(self.losses, losses, strict=True)), norm.item()
        self.loop.check_losses(losses["loss"], self.names, self.step)
        self.loop.check_gradient(norm, self.names, self.step)
        return {**self.loop.global_mean(losses), "grad_norm": norm, "lr": self.learning_rate}


def _with_known(masks):
    """(masks [N, K, H, W], where every rater in them knows the truth, bool [N, 1, H, W]) of masks whose last channel is
    the share of the raters who do; (None, None) of None."""
    return (None, None) if masks is None else (masks[:, :-1], masks[:, -1:] == 1)
