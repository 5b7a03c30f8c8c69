"""How a training run is asked to stop: signals that let the step in hand be finished."""

import signal

from .runtime.console import console
from .runtime.errors import PeerGone


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
