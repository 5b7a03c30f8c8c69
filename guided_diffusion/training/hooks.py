"""What follows a training run without being part of a step: signals, forecast, validation, log and checkpoints."""

import signal
import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ..io.files import remove_temporaries
from ..report.training_page import write_training_page
from ..runtime.console import console, counted
from ..runtime.errors import PeerGone
from .log import RunLog
from .parallel import ready_for_calls
from .validation import ValidationResult
from .watch import OVERFIT_DICE

MEASURED_STEP = {"cpu": 1, "cuda": 10}  # the step whose time the forecast takes: a GPU's first ones tune its kernels
MUCH_WAITING, LEAST_WAITED = 0.2, 10.0  # share of the time, and seconds, from which a warning is worth it


@dataclass
class StepResult:
    """What a step came to. The hooks see it one after another, and each may complete it for the next.

    values: the mean losses, "grad_norm" and "lr". seconds: what the step took. finished: whether the run ends here.
    validation: the `ValidationResult` of this step, or None. is_best: whether it is the run's best so far.
    """

    values: dict
    seconds: float
    finished: bool
    validation: ValidationResult | None = None
    is_best: bool = False


class Hook:
    """A part of a run beside its steps. `TrainLoop.run` calls `begin` first, `after_step` each step, `close` last."""

    def begin(self, loop):
        """Before the first step."""

    def after_step(self, loop, result):
        """After a step; result: its `StepResult`."""

    def close(self):
        """At the end, also of a run that fails."""


def standard_hooks(loop, watch):
    """The hooks of a training run in their order. watch: the `Watch` that validates, or None."""
    hooks = [Forecast(), *([Validate(watch)] if watch else [])]
    return [*hooks, *([Report(watch)] if loop.processes.is_first else []), SaveCheckpoints()]


class Forecast(Hook):
    """Warns early where a run will take more than a day."""

    def begin(self, loop):
        """Note where the run begins."""
        self.first_step = loop.step

    def after_step(self, loop, result):
        """Warn once, by the time of one of the first steps."""
        if loop.step - self.first_step != MEASURED_STEP[loop.device.type]:
            return
        steps = loop.last_step - self.first_step
        limit = loop.options.max_minutes * 60 or float("inf")
        days = min(result.seconds * steps, limit) / 86400
        if days > 1:
            console().warning(
                f"warning: at {result.seconds:.3g} s a step, {steps} steps will take {counted(round(days), 'day')} or "
                "so; a smaller model takes less, for example --image_size 64 --num_channels 32 --channel_mult 1,2,3,4 "
                "--num_res_blocks 1"
            )


class Validate(Hook):
    """Samples the validation cases with averaged weights where that is due; ends an --overfit check that passes."""

    def __init__(self, watch):
        self.watch = watch

    def after_step(self, loop, result):
        """Complete the result by the validation of this step."""
        self.watch.note(result.values["loss"])
        if loop.stopping or not self.watch.due(loop.step, result.finished):
            return
        with next(iter(loop.ema.values())).weights_in(loop.model), ready_for_calls(loop.step_losses):
            result.validation = self.watch.validate(
                loop.model,
                loop.step,
                coarse_only=loop.step <= loop.stages.condition_steps,
                stopped=lambda: loop.signals.received is not None,
            )
        if result.validation is None:  # stopped by a signal
            return
        if loop.options.overfit and result.validation.dice >= OVERFIT_DICE:
            result.finished = True
        result.is_best = self.watch.is_best(loop.step)


class Report(Hook):
    """The bar, the log and training.html; the first process alone has it."""

    def __init__(self, watch):
        self.watch, self.recent = watch, defaultdict(list)
        self.log = self.bar = None

    def begin(self, loop):
        """Open the log and the bar."""
        remove_temporaries(loop.folder.path)  # a killed run may have left them
        self.log = RunLog(loop.folder.path, loop.step)
        self.bar = tqdm(total=loop.last_step, initial=loop.step, desc="training", unit="step", dynamic_ncols=True)

    def after_step(self, loop, result):
        """Move the bar; log the means since the last line, and what validation found."""
        for name, value in result.values.items():
            self.recent[name].append(value)
        self.bar.update()
        self.bar.set_postfix(self._shown(loop, result), refresh=False)
        means = {}
        if loop.step % loop.options.log_interval == 0 or result.finished:
            means = {name: float(np.mean(history)) for name, history in self.recent.items()}
            self.recent.clear()
            means |= {"waiting": loop.waiting.take(), "lr": result.values["lr"]}  # the rate of this very step
            console().info(f"step {loop.step}: " + "  ".join(f"{name} {value:.4g}" for name, value in means.items()))
        found = result.validation
        if means or found is not None:
            self.log.write(loop.step, means | (found.logged if found is not None else {}))
        if found is not None:
            self.log.picture("validation", loop.step, found.picture)
        if found is not None or result.finished or loop.step % loop.options.save_interval == 0:
            best = self.watch.best if self.watch else None
            write_training_page(loop.folder.path, loop.config, loop.last_step, best, loop.stages.condition_steps)

    def _shown(self, loop, result):
        shown = {"loss": f"{result.values['loss']:.4f}", "waiting": f"{loop.waiting.share:.0%}"}
        if loop.options.max_minutes:
            left = loop.options.max_minutes - (time.monotonic() - loop.began) / 60
            shown["minutes left"] = f"{max(left, 0):.1f}"
        if self.watch is not None and self.watch.latest is not None:
            shown["val"] = f"{self.watch.latest.shown_dice:.3f}"
        return shown

    def close(self):
        """Close the bar and the log."""
        for part in (self.bar, self.log):
            if part is not None:
                part.close()


class SaveCheckpoints(Hook):
    """Writes a checkpoint every --save_interval steps and at the end, and best.pt after the best validation."""

    def after_step(self, loop, result):
        """Save where that is due."""
        if loop.step % loop.options.save_interval == 0 or result.finished:
            loop.save()
        if result.is_best:
            loop.save_best()


class StopSignals:
    """A context in which SIGINT and SIGTERM ask the loop to stop after the current step; a second one stops at once.

    received: the signal's number, or None. Several processes agree at the end of the step, which then says so; they do
    not count signals, since a scheduler and the launcher may both pass on the same one.
    """

    def __init__(self, processes):
        self.alone, self.received = processes.count == 1, None

    def __enter__(self):
        self.previous = {number: signal.signal(number, self._caught) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, _kind, error, _trace):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if isinstance(error, PeerGone) and self.received is not None:
            signal.raise_signal(self.received)  # the launcher ends the other processes

    def _caught(self, number, _frame):
        if self.received is not None and self.alone:
            raise KeyboardInterrupt
        self.received = number
        if self.alone:
            console().info(
                f"{signal.Signals(number).name}: finishing the step and writing a checkpoint, which may take a while; "
                "a second Ctrl-C quits at once without saving"
            )


class WaitingShare:
    """Measures the share of the time, since it was last taken, that was spent waiting for batches.

    num_workers: the processes that read images, for the advice.
    """

    def __init__(self, num_workers):
        self.num_workers, self.has_warned = num_workers, False
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
        """The share, which then begins anew; warns once where it is large."""
        share = self.share
        if share > MUCH_WAITING and self.waited > LEAST_WAITED and not self.has_warned:
            self.has_warned = True
            console().warning(
                f"warning: {share:.0%} of the time goes into waiting for images. More --num_workers than "
                f"{self.num_workers} help where cores are idle; images that are stored smaller are read faster"
            )
        self.waited, self.since = 0.0, time.monotonic()
        return share
