"""What a training run does beside its steps: signals, forecast, validation, log and checkpoints."""

import signal
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from ..io.files import remove_temporaries
from ..report.training_page import write_training_page
from ..runtime.console import console, counted
from ..runtime.errors import PeerGone
from .log import RunLog
from .parallel import ready_for_calls
from .trackers import Tracker
from .validation import ValidationResult
from .watch import OVERFIT_DICE

MEASURED_STEP = {"cpu": 1}  # the step whose time the forecast uses; on a GPU the tenth: it tunes kernels in the first
MUCH_WAITING, LEAST_WAITED = 0.2, 10.0  # share of the time and seconds, both exceeded before a warning


@dataclass
class StepResult:
    """The result of a step. Hooks get it in their order, and each may complete it for the next.

    step: its number, 1 for a run's first. finished: whether the run ends here. values: the mean losses, "grad_norm" and
    "lr". seconds: the step's duration.
    validation: the `ValidationResult` of this step, or None. is_best: whether it is the run's best so far.
    """

    step: int
    finished: bool
    values: dict = field(default_factory=dict)
    seconds: float = 0.0
    validation: ValidationResult | None = None
    is_best: bool = False


class Hook:
    """A part of a run beside its steps. `TrainLoop.run` calls its methods."""

    def begin(self, loop):
        """Called before the first step."""

    def needs_weights(self, loop, result):
        """Whether `after_step` needs the weights as this step leaves them. The run then waits for the device."""
        return False

    def after_step(self, loop, result):
        """Called after each step with its `StepResult`. On a GPU the loop may be a step further already."""

    def close(self):
        """Called at the end, also when the run fails."""


def standard_hooks(loop, watch):
    """The hooks of a training run, in their order. watch: the `Watch` that validates, or None."""
    hooks = [Forecast(), *([Validate(watch)] if watch else [])]
    return [*hooks, *([Report(watch)] if loop.processes.is_first else []), SaveCheckpoints()]


class Forecast(Hook):
    """Warns early if a run will take more than a day."""

    def begin(self, loop):
        """Note the first step."""
        self.first_step = loop.step

    def after_step(self, loop, result):
        """Warn once, by the duration of an early step."""
        if result.step - self.first_step != MEASURED_STEP.get(loop.device.type, 10):
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
    """Validates with the averaged weights when the watch is due; ends an --overfit check that passes."""

    def __init__(self, watch):
        self.watch = watch

    def needs_weights(self, loop, result):
        """Whether a validation is due."""
        return not loop.stopping and self.watch.due(result.step, result.finished)

    def after_step(self, loop, result):
        """Add the validation of this step to the result."""
        self.watch.note(result.values["loss"])
        if not self.needs_weights(loop, result):
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
        if result.finished and loop.processes.is_first and not loop.options.overfit:
            self.watch.warn_of_useless_diffusion()


class Report(Hook):
    """Shows the run: progress bar, log and training.html. Only the first process has this hook."""

    def __init__(self, watch):
        self.watch, self.recent = watch, defaultdict(list)
        self.log = self.bar = None

    def begin(self, loop):
        """Open the log and the bar."""
        remove_temporaries(loop.folder.path / "validation")  # of a killed run
        track = loop.options.track
        tracker = Tracker(track, loop.folder.path, loop.config, goes_on=loop.step > 0) if track else None
        self.log = RunLog(loop.folder.path, loop.step, tracker)
        self.bar = MinuteBar(loop) if loop.options.max_minutes else StepBar(loop)

    def after_step(self, loop, result):
        """Move the bar; log the means since the last line and the validation."""
        for name, value in result.values.items():
            self.recent[name].append(value)
        self.bar.move(loop, result.step, self._postfix(loop, result))
        means = {}
        if result.step % loop.options.log_interval == 0 or result.finished:
            means = {name: float(np.mean(history)) for name, history in self.recent.items()}
            self.recent.clear()
            means |= {"waiting": loop.waiting.take(), "lr": result.values["lr"]}  # the rate is not averaged
            console().info(f"step {result.step}: " + "  ".join(f"{name} {value:.4g}" for name, value in means.items()))
        validation = result.validation
        if means or validation is not None:
            self.log.write(result.step, means | (validation.logged if validation is not None else {}))
        if validation is not None:
            self.log.picture("validation", result.step, validation.picture)
        if validation is not None or result.finished or result.step % loop.options.save_interval == 0:
            best = self.watch.best if self.watch else None
            write_training_page(loop.folder.path, loop.config, loop.last_step, best, loop.stages.condition_steps)

    def _postfix(self, loop, result):
        shown = {"loss": f"{result.values['loss']:.4f}", "waiting": f"{loop.waiting.share:.0%}"}
        if self.watch is not None and self.watch.latest is not None:
            shown["val"] = f"{self.watch.latest.shown_dice:.3f}"
        return shown

    def close(self):
        """Close the bar and the log."""
        for opened in (self.bar, self.log):
            if opened is not None:
                opened.close()


class StepBar:
    """The progress bar of a run that its last step ends; it counts steps."""

    def __init__(self, loop):
        self.bar = tqdm(total=loop.last_step, initial=loop.step, desc="training", unit="step", dynamic_ncols=True)

    def move(self, loop, step, figures):
        """Show the step. figures: a dict of texts, shown after the bar."""
        self.bar.set_postfix(figures, refresh=False)
        self.bar.update(step - self.bar.n)

    def close(self):
        """Leave the bar as it is."""
        self.bar.close()


class MinuteBar(StepBar):
    """The progress bar of a run with a time limit: it counts minutes, and its line says the step.

    It ends at the limit or, at the pace so far, at the last step: at whichever comes first.
    """

    def __init__(self, loop):
        self.limit, self.first_step = loop.options.max_minutes, loop.step
        shape = "{l_bar}{bar}| {n:.1f}/{total:.1f} min [{remaining} left{postfix}]"
        self.bar = tqdm(total=self.limit, desc="training", bar_format=shape, dynamic_ncols=True)

    def move(self, loop, step, figures):
        """Show the time. figures: a dict of texts, shown after the step."""
        minutes = (time.monotonic() - loop.began) / 60
        for_all = minutes / (step - self.first_step) * (loop.last_step - self.first_step)
        self.bar.total = max(minutes, min(self.limit, for_all))
        self.bar.set_postfix({"step": f"{step}", **figures}, refresh=False)
        self.bar.update(minutes - self.bar.n)


class SaveCheckpoints(Hook):
    """Writes a checkpoint every --save_interval steps and at the end, and best.pt after the best validation."""

    def needs_weights(self, loop, result):
        """Whether a checkpoint is due."""
        return result.finished or result.step % loop.options.save_interval == 0

    def after_step(self, loop, result):
        """Save if a checkpoint is due."""
        if self.needs_weights(loop, result):
            loop.save()
        if result.is_best:
            loop.save_best()


class StopWaiting(BaseException):
    """A signal came while the loop waited for a batch. No `Exception`: a user's loader must not catch it."""


class StopSignals:
    """A context in which SIGINT or SIGTERM makes the loop stop after the current step, and a second one at once.

    received: the signal's number, or None. A single process that waits for a batch (see `waiting`) does not wait on: a
    disk may hang. Several processes agree at the end of the step. They do not count signals,
    since a scheduler and the launcher may both pass on the same one.
    """

    def __init__(self, processes):
        self.alone, self.received, self.is_waiting = processes.count == 1, None, False
        self.announcement = None  # the thread that prints what a signal does

    @contextmanager
    def waiting(self):
        """A context that waits for a batch: a signal raises `StopWaiting`."""
        self.is_waiting = True
        try:
            yield
        finally:
            self.is_waiting = False

    def __enter__(self):
        self.previous = {number: signal.signal(number, self._caught) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, _kind, error, _trace):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.announcement is not None:
            self.announcement.join()
        if isinstance(error, PeerGone) and self.received is not None:
            signal.raise_signal(self.received)  # the launcher ends the other processes

    def _caught(self, number, _frame):
        if self.received is not None and self.alone:
            raise KeyboardInterrupt
        self.received = number
        if self.alone:
            line = (
                f"{signal.Signals(number).name}: finishing the step and writing a checkpoint, which may take a while; "
                "a second Ctrl-C quits at once without saving"
            )
            # In a thread, since the signal may have come while this one prints: a stream cannot be entered twice by it.
            self.announcement = threading.Thread(target=console().info, args=(line,))
            self.announcement.start()
            if self.is_waiting:
                raise StopWaiting


class WaitingShare:
    """Measures which share of the time goes into waiting for batches.

    num_workers: the number of processes that read images, for the warning.
    """

    def __init__(self, num_workers):
        self.num_workers, self.has_warned = num_workers, False
        self.waited, self.since = 0.0, time.monotonic()

    def next(self, batches):
        """The iterator's next batch."""
        began = time.monotonic()
        batch = next(batches)
        self.waited += time.monotonic() - began
        return batch

    @property
    def share(self):
        """The share since the last `take`, in [0, 1]."""
        return self.waited / max(time.monotonic() - self.since, 1e-9)

    def take(self):
        """Return the share and start a new measurement; warn once if the share is large."""
        share = self.share
        if share > MUCH_WAITING and self.waited > LEAST_WAITED and not self.has_warned:
            self.has_warned = True
            console().warning(
                f"warning: {share:.0%} of the time goes into waiting for images. More --num_workers than "
                f"{self.num_workers} help if cores are idle; smaller image files are read faster"
            )
        self.waited, self.since = 0.0, time.monotonic()
        return share
