"""The learning rate of each step: warm-up and decay, which follow from the step alone, so that resuming is exact."""

import math

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
