"""The optimizer's step: AdamW in one pass over the memory, after gradients are unscaled, measured and clipped."""

from contextlib import contextmanager

import torch

from ..models.layers import at_least_float32
from ..models.sharding import in_shards, laid_out, load_optimizer_state, local, whole_norm


def build_optimizer(parameters, lr, weight_decay):
    """AdamW over these parameters, fused: one pass over weights, gradients and moments for all of them."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)


def restore_optimizer(model, optimizer, state):
    """Load a checkpoint's state, moments and step counts; the settings are those that `optimizer` was built with.

    state: of whole tensors; of weights in shards each process takes its own.
    """
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    load_optimizer_state(model, optimizer, state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if value.shape == parameter.shape and not in_shards(value):
                moments[name] = laid_out(value, parameter)


def gradient_norm(parameters):
    """The norm of all their gradients together, as a tensor; parameters without one are left out.

    Of gradients in shards it is that of all processes' shards; all of them call this at once.
    """
    return whole_norm(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def take_step(optimizer, scaler, parameters, norm, clip=0.0):
    """Let the optimizer take a step on gradients that `scaler` has unscaled, and drop them.

    norm: their `gradient_norm`. clip: they are scaled down to this norm if theirs is larger; 0: not.
    """
    if clip:  # unscaled, of all processes: the same for any number of them, with any scaler
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)


# ---- The running average of a model's weights, which is what is sampled with ----------------------------------------


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
