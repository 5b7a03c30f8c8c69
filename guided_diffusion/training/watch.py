"""The validations of a training run: when they are due, what they report, and the best one so far."""

import math

import numpy as np

from ..checkpoint import names_digest
from ..io.images import write_png
from ..runtime.console import console, counted
from .hints import SYMPTOM_NAMES, checking_command, symptoms

OVERFIT_DICE = 0.9  # of the ensemble, on training cases: the least with which --overfit passes


class Watch:
    """Validates a run every `options.sample_interval` steps and at its end, and reports the result.

    validation: a `Validation`. options: the run's `TrainOptions`. config: its option values, as in a checkpoint.
    folder: the run's `WorkFolder`, for pictures. best: `Checkpoint.validation` of best.pt so far, or {}. All processes
    validate; the first one prints and writes.
    """

    def __init__(self, validation, options, config, folder, best=None):
        self.validation, self.options, self.config, self.folder = validation, options, config, folder
        self.latest = None  # the `ValidationResult`
        self.last_step = None
        self.reported = set()
        self.losses, self.loss_before = [], None
        self.cases = names_digest(validation.names)
        self.best = best if best and best.get("cases") == self.cases and "log_loss" in best else {}
        if best and not self.best:
            why = "the validation cases have changed"
            if best.get("cases") == self.cases:
                why = "a version up to 0.4.0 chose it by Dice, and now the log loss decides"
            console().info(f"{why}: best.pt begins anew")

    def due(self, step, ending):
        """Whether to validate after this step. ending: whether it is the run's last."""
        interval = self.options.sample_interval
        return bool(interval) and step != self.last_step and (step % interval == 0 or ending)

    def note(self, loss):
        """Record a step's loss, for symptoms."""
        self.losses.append(loss)

    def validate(self, model, step, *, coarse_only, stopped):
        """Validate `model` after `step` steps; print a line and write OUT/validation/step<step>.png.

        coarse_only, stopped: see `Validation.validate`. Returns the `ValidationResult`, or None if it was stopped.
        """
        result = self.validation.validate(model, coarse_only=coarse_only, stopped=stopped)
        if result is None:
            return None
        if self.latest is not None and self.latest.coarse_only != coarse_only:
            self.loss_before = None  # a new stage has another loss
        self.latest, self.last_step = result, step
        if self.validation.processes.is_first:
            picture = self.folder.path / "validation" / f"step{step:06d}.png"
            write_png(picture, result.picture)
            console().info(
                f"step {step}: {self._summary_line(result)}; {self.folder.shown('validation', picture.name)}"
            )
            self._warn(result)
        self.loss_before, self.losses = self._mean_loss(), []
        return result

    def is_best(self, step):
        """Whether the latest validation is the best so far; if so, record it in `best`."""
        log_loss, dice = self.latest.log_loss, self.latest.dice
        if math.isnan(log_loss) or log_loss >= self.best.get("log_loss", math.inf):
            return False
        self.best = {"step": step, "log_loss": log_loss, "cases": self.cases}
        self.best |= {} if math.isnan(dice) else {"dice": dice}
        return True

    def warn_of_useless_diffusion(self):
        """Warn if the members of the latest validation are not better than those of a zeroed head."""
        if self.latest is None or self.latest.is_healthy is not False:
            return
        figures, error = self.latest.figures, self.latest.health_error
        known = "" if math.isnan(error) else f" with a standard error of {error:.4f}"
        instead = ", or sample without --num_ensemble: one pass needs no diffusion" if self.latest.in_one_pass else ""
        console().warning(
            f"warning: the diffusion shows no gain on {counted(len(self.validation.indices), self.validation.source)}: "
            f"the members' unbiased GED² is {figures['ged2']:.4f}, and {figures['ged2'] + figures['health']:.4f} with "
            f"the denoiser's output set to zero, a gain of {figures['health']:.4f}{known}. Train the diffusion for "
            f"longer (more --max_steps, or fewer --condition_steps){instead}"
        )

    def verdict(self, step):
        """Print whether --overfit passed after `step` steps. Returns the exit status."""
        cases, steps = counted(len(self.validation.indices), "case"), counted(step, "step")
        if self.latest is None:
            console().info(f"overfit: NO RESULT after {steps}: no masks of {cases} were sampled")
            return 1
        check = f"check the masks with: {checking_command(self.config['data'])}"
        if math.isnan(self.latest.dice):
            console().info(f"overfit: NO RESULT after {steps}: nothing is marked in the truth of {cases}\n{check}")
            return 1
        if self.latest.dice >= OVERFIT_DICE:
            console().info(f"overfit: PASS: Dice {self.latest.dice:.3f} on {cases} after {steps}")
            return 0
        console().info(
            f"overfit: FAIL: Dice {self.latest.dice:.3f} on {cases} after {steps}, {OVERFIT_DICE} is needed. Look at "
            f"{self.folder.shown('validation')}: do image and truth belong together? If they do, try "
            f"{self._overfit_remedies(step)}\n{check}"
        )
        return 1

    def _overfit_remedies(self, step):
        """What may make an --overfit pass that failed at this step."""
        options = self.options
        ended_by = options.ending_flags if step >= options.last_step else "--max_minutes" if options.max_minutes else ""
        tries = [f"a higher --lr than {options.lr:g}", f"more {ended_by or 'steps'}"]
        tries += [] if self.config["device"]["precision"] == "fp32" else ["--precision fp32"]
        return f"{', '.join(tries[:-1])} or {tries[-1]}"

    def _summary_line(self, result):
        figures = {name: value for name, value in result.figures.items() if not math.isnan(value)}
        coarse = f"coarse {figures['coarse_dice']:.3f}" if "coarse_dice" in figures else ""
        losses = [figures[name] for name in ("log_loss", "coarse_log_loss") if name in figures]
        loss = f", log loss {' (coarse '.join(f'{value:.4f}' for value in losses)}{')' * (len(losses) - 1)}"
        undefined = "undefined (no case has anything to segment)"
        if result.coarse_only:
            line = (
                f"validation Dice {coarse or undefined}, of the condition model alone: the diffusion does not learn yet"
            )
        else:
            members = f"members {figures['member_dice']:.3f}" if "member_dice" in figures else ""
            beside = ", ".join(filter(None, [members, coarse]))
            dice = f"{result.dice:.3f}" if "dice" in figures else undefined
            line = f"validation Dice {dice}" + (f" ({beside})" if beside else "")
        known = [f"{name} {dice:.3f}" for name, dice in result.class_dice.items() if not math.isnan(dice)]
        line += f", {', '.join(known)}" if known else ""
        cases = counted(len(self.validation.indices), self.validation.source)
        return f"{line}{loss}, {cases}, in {result.seconds:.1f} s"

    def _mean_loss(self):
        return float(np.mean(self.losses)) if self.losses else None

    def _warn(self, result):
        """Warn of each new symptom, and report those that have passed."""
        losses = (self.loss_before, self._mean_loss())
        found = symptoms(result.figures, losses, self.config["diffusion"], self.config["train"])
        for name in found.keys() - self.reported:
            console().warning(f"warning: {found[name]}")
        for name in sorted(self.reported - found.keys()):
            console().info(f"no longer: {SYMPTOM_NAMES[name]}")
        self.reported = set(found)
