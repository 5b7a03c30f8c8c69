"""The learning rate of each step, and the two stages of a run with `--condition_steps`: condition model, diffusion."""

import math

DECAYS = {  # the factor of the learning rate at a progress from 0 to 1
    "none": lambda progress: 1,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,  # arXiv 1608.03983 eq. 5, one period
}


def learning_rate_factor(step, *, warmup=0, total=0, decay="linear"):
    """The factor of the learning rate at a step (0 for the first), in [0, 1].

    It rises linearly over the first `warmup` steps and is 1 at the last of them. Then it decays to 0 at step `total` by
    a name in `DECAYS`; with total 0 it stays 1. A `total` above 0 must exceed `warmup`.
    """
    if step < warmup:
        return (step + 1) / warmup
    return DECAYS[decay]((step - warmup) / (total - warmup)) if total else 1


DICE_STEPS = 300  # of a run without stages
AT_REST = 0.01  # of --lr: below it weights hardly move, so their average is no better


def mark_learning(model, *, first, second, has_coarse_loss, freeze_encoder=False):
    """Let the parameters of a stage learn and fix the others; without stages all learn.

    The first stage trains the condition model, the second all but that. The condition model's last layer learns in both
    if the second's loss includes the coarse mask's (has_coarse_loss). freeze_encoder: the `PretrainedEncoder` never
    learns.
    """
    for name, parameter in model.named_parameters():
        of_condition = name.startswith("condition_model.")
        goes_on = has_coarse_loss and name.startswith("condition_model.head.")
        learns = of_condition if first else not second or not of_condition or goes_on
        parameter.requires_grad_(learns and not (freeze_encoder and ".pretrained." in name))


class Stages:
    """The stage and the learning rate of each step (0 for a run's first).

    The condition model learns alone in the first stage; in the second it is fixed and the diffusion learns. options:
    `TrainOptions`. ended: with --condition_steps -1 the length of the first stage, None before its end.
    dice_ended: the step at which --max_minutes ended Dice (see `has_dice`), or None.
    decayed: what `decay` was when the run stopped, 0 for a new one. seconds: of training since the run began or went
    on; all processes set the same.
    """

    def __init__(self, options, ended=None, decayed=0.0):
        self.options, self.ended, self.dice_ended = options, ended, None
        self.seconds, self.second_began = 0.0, None if ended is None else 0.0
        # A run that came to its end goes on with the whole learning rate: its steps would change nothing else.
        self.decayed = {"second" if ended is not None else "first": decayed if decayed < 1 else 0.0}

    @property
    def condition_steps(self):
        """The length of the first stage, an estimate before its end with --condition_steps -1; 0: no stages."""
        if self.options.condition_steps >= 0:
            return self.options.condition_steps
        return round(self.options.condition_share * self.options.last_step) if self.ended is None else self.ended

    def is_first(self, step):
        """Whether the step is in the first stage."""
        return step < self.condition_steps

    def is_second(self, step):
        """Whether the step is in the second stage."""
        return 0 < self.condition_steps <= step

    def steps_in(self, step):
        """The number of steps before this one in its stage."""
        return step if self.is_first(step) else step - self.condition_steps

    def takes_average(self, step):
        """Whether the condition model gets its averaged weights at this step, the first of the second stage.

        It does if the learning rate is still high: the average is then better than the last weights. It would be lost
        otherwise, as the average moves towards the fixed weights.
        """
        is_start = 0 < step == self.condition_steps
        return is_start and self.learning_rate(step - 1) > AT_REST * self.options.lr

    def has_dice(self, step):
        """Whether Dice is added to the cross-entropy of this step (see --dice_steps)."""
        options = self.options
        if options.dice_steps >= 0:
            return step < options.dice_steps and not self.is_second(step)
        if not self.condition_steps:
            return step < DICE_STEPS
        return step < options.dice_share * self.condition_steps and self.dice_ended is None

    def is_late(self, seconds, share=1.0):
        """Whether `seconds` of training exceed this share of the first stage's part of --max_minutes."""
        limit = share * self.options.condition_share * self.options.max_minutes * 60
        return bool(limit and seconds >= limit)

    def enter_second(self):
        """Note when the second stage begins; later calls change nothing."""
        if self.second_began is None:
            self.second_began = self.seconds

    def decay(self, step):
        """The share of its stage's decay that has passed at a step, from 0 to 1, with --lr_anneal_steps -1.

        It is the larger of the share of the stage's steps and of its time. A resumed run begins where it stopped, and
        the rest of the decay takes its whole --max_minutes, which count anew.
        """
        options, second = self.options, self.is_second(step)
        total = self.condition_steps if self.is_first(step) else options.last_step - self.condition_steps
        share = self.steps_in(step) / max(total, 1)
        limit = options.max_minutes * 60
        if limit:
            begin = self.second_began or 0.0 if second else 0.0
            end = limit * options.condition_share if self._ends_by_time(step) else limit
            passed = (self.seconds - begin) / max(end - begin, 1e-9)
            before = self.decayed.get("second" if second else "first", 0.0)
            share = max(share, before + (1 - before) * passed)
        return min(max(share, 0.0), 1.0)

    def _ends_by_time(self, step):
        """Whether --max_minutes may end the step's stage before the run."""
        return self.options.condition_steps == -1 and self.is_first(step)

    def learning_rate(self, step):
        """The learning rate of a step. Each stage has its own warm-up and, with --lr_anneal_steps, decays to 0.

        Without stages the decay follows --lr_anneal_steps, even if --max_steps ends the run sooner.
        """
        options, steps = self.options, self.steps_in(step)
        rate = options.lr * (options.second_stage_lr if self.is_second(step) else 1)
        if options.lr_anneal_steps < 0:
            return rate * min((steps + 1) / max(options.warmup_steps, 1), DECAYS[options.lr_decay](self.decay(step)))
        if options.lr_anneal_steps and self.is_first(step):
            total = self.condition_steps
        elif options.lr_anneal_steps and self.is_second(step):
            total = options.last_step - self.condition_steps
        else:
            total = options.lr_anneal_steps
        warmup = min(options.warmup_steps, total // 2) if self.condition_steps and total else options.warmup_steps
        return rate * learning_rate_factor(steps, warmup=warmup, total=total, decay=options.lr_decay)
