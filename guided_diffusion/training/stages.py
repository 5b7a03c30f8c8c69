"""The two stages of a run with `--condition_steps`: the condition model alone, then the diffusion on it."""

import math

# ---- The learning rate of each step: warm-up and decay, which follow from the step alone, so that resuming is exact -


DECAYS = {  # the share of the rate that is left at a progress of 0 to 1
    "none": lambda progress: 1,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,  # arXiv 1608.03983 eq. 5, one period
}


def learning_rate_factor(step, *, warmup=0, total=0, decay="linear"):
    """What the learning rate of a step (0 for the first) is multiplied by, in [0, 1].

    It rises linearly over the first `warmup` steps, the last of which has the full rate, and then decays to 0 at step
    `total`, as a name in `DECAYS` says; total 0: it stays. `warmup` must be below a `total` above 0.
    """
    if step < warmup:
        return (step + 1) / warmup
    return DECAYS[decay]((step - warmup) / (total - warmup)) if total else 1


CONDITION_SHARE = 0.85  # of a run, in which the condition model learns alone with --condition_steps -1
AT_REST = 0.01  # of --lr: below it weights hardly move, and their running average is no better


class Stages:
    """Which stage a step (0 for a run's first) belongs to, and its learning rate; without stages there is one.

    options: `TrainOptions`. ended: with --condition_steps -1 the steps that the first stage had, None before its end.
    """

    def __init__(self, options, ended=None):
        self.options, self.ended = options, ended

    @property
    def condition_steps(self):
        """The steps of the first stage, as far as is known; 0: there are no stages."""
        if self.options.condition_steps >= 0:
            return self.options.condition_steps
        return round(CONDITION_SHARE * self.options.last_step) if self.ended is None else self.ended

    def is_first(self, step):
        """Whether the condition model learns alone."""
        return step < self.condition_steps

    def is_second(self, step):
        """Whether the diffusion learns on a condition model that is fixed."""
        return 0 < self.condition_steps <= step

    def steps_in(self, step):
        """How many steps of its stage come before a step."""
        return step if self.is_first(step) else step - self.condition_steps

    def takes_average(self, step):
        """Whether the condition model takes its averaged weights at this step, the first of the second stage.

        It does where the learning rate is still high: the average is then better than the last weights, and it would
        be lost, since from here on it follows weights that do not change.
        """
        is_start = 0 < step == self.condition_steps
        return is_start and self.learning_rate(step - 1) > AT_REST * self.options.lr

    def is_late(self, seconds):
        """Whether `seconds` of training are more than the first stage's share of --max_minutes."""
        limit = CONDITION_SHARE * self.options.max_minutes * 60
        return bool(limit and seconds >= limit)

    def learning_rate(self, step):
        """Each stage begins anew, and with --lr_anneal_steps each ends with 0, wherever the run ends.

        Without stages a run that --max_steps ends sooner follows --lr_anneal_steps as far as it goes.
        """
        options = self.options
        if options.lr_anneal_steps and self.is_first(step):
            total = self.condition_steps
        elif options.lr_anneal_steps and self.is_second(step):
            total = options.last_step - self.condition_steps
        else:
            total = options.lr_anneal_steps
        warmup = min(options.warmup_steps, total // 2) if self.condition_steps and total else options.warmup_steps
        rate = options.lr * (options.second_stage_lr if self.is_second(step) else 1)
        return rate * learning_rate_factor(self.steps_in(step), warmup=warmup, total=total, decay=options.lr_decay)
