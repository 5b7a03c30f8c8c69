"""The running average of a model's weights, which is what is sampled with."""

from contextlib import contextmanager

import torch

from .models.layers import at_least_float32
from .models.sharding import laid_out, local


class EMA:
    """An exponential moving average of a model's parameters, in float32 (or float64 if they have that).

    The decay warms up as min(rate, (1 + n) / (10 + n)) after n updates: a fixed 0.9999 would keep the random start
    for tens of thousands of steps and ruin a short run. It is in shards where the parameters are.

    state: of a checkpoint, whole tensors by name, to go on from.
    """

    def __init__(self, model, rate, state=None):
        self.rate = rate
        self.parameters = {}
        for name, parameter in model.named_parameters():
            source = parameter.detach() if state is None else laid_out(state[name], parameter)
            self.parameters[name] = at_least_float32(source).clone()

    def decay(self, updates):
        """The decay of update number `updates` (0 for the first)."""
        return min(self.rate, (1 + updates) / (10 + updates))

    @torch.no_grad()
    def update(self, model, updates):
        """Move the average towards the model's parameters."""
        average = [local(value) for value in self.parameters.values()]
        current = [at_least_float32(local(parameter.detach())) for parameter in model.parameters()]
        torch._foreach_lerp_(average, current, 1 - self.decay(updates))

    def settle(self, model, prefix):
        """Give `model` the averaged weights for good, those of the parameters whose names begin so."""
        chosen = {name: parameter for name, parameter in model.named_parameters() if name.startswith(prefix)}
        _set(list(chosen.values()), [self.parameters[name] for name in chosen])

    @contextmanager
    def weights_in(self, model):
        """Within, `model` computes with the averaged weights; afterwards it has its own again, to the bit."""
        current = list(model.parameters())
        own = [parameter.detach().clone() for parameter in current]
        _set(current, list(self.parameters.values()))
        try:
            yield
        finally:
            _set(current, own)


@torch.no_grad()
def _set(parameters, values):
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
