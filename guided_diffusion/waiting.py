"""How much of a training run's time goes into waiting for data, and a word when it is a lot."""

import time

from .runtime.console import console

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
