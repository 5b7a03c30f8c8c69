"""Optimization: AdamW, gradient clipping, and the exponential moving average of the weights."""

import math
from contextlib import contextmanager

import torch

from ..models.layers import at_least_float32
from ..models.sharding import in_shards, laid_out, load_optimizer_state, local, whole_norm


def build_optimizer(parameters, lr, weight_decay):
    """Fused AdamW over these parameters, which updates weights and moments in one pass over memory."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)


def restore_optimizer(model, optimizer, state):
    """Load moments and step counts of a checkpoint. `optimizer` keeps its own settings, such as the learning rate.

    state: with whole tensors; a process takes its shards of them.
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
    """The Euclidean norm of all gradients together, as a tensor; parameters without gradient are skipped.

    With shards it is the norm over all processes, which call this together.
    """
    return whole_norm(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def take_step(optimizer, scaler, parameters, norm, clip=0.0):
    """Step on gradients that `scaler` has unscaled, and drop them. The device is not waited for.

    norm: their `gradient_norm`; one that is not finite changes no weight, if the optimizer is fused. clip: the largest
    norm, to which larger gradients are scaled down; 0: no clipping.
    """
    if clip:  # the norm is unscaled and of all processes, so clipping depends on neither
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    if optimizer.defaults.get("fused"):  # it looks for this attribute, which an enabled scaler sets too
        optimizer.found_inf = (~norm.isfinite()).float()
    scaler.step(optimizer)
    optimizer.__dict__.pop("found_inf", None)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)


def spoiled_unless_finite(total):
    """The loss `total`, which has no finite gradient where it is not finite itself.

    So `take_step` changes no weight after a bad loss either, in no process, and nobody need look at the loss before.
    """
    return total * torch.where(total.detach().isfinite(), 1.0, math.nan)


# ---- averaged weights, by which runs are validated and sampled -----------------------------------------------------


class EMA:
    """An exponential moving average of a model's parameters, in float32 or higher precision.

    The decay warms up as min(rate, (1 + n) / (10 + n)) after n updates: a fixed 0.9999 would keep the random start
    for tens of thousands of steps and ruin a short run. The average is sharded like the parameters.

    state: {name: whole tensor} of a checkpoint to go on from. warmup: False for a fixed decay, as published.
    """

    def __init__(self, model, rate, state=None, warmup=True):
        self.rate, self.warmup = rate, warmup
        self.parameters = {}
        for name, parameter in model.named_parameters():
            source = parameter.detach() if state is None else laid_out(state[name], parameter)
            self.parameters[name] = at_least_float32(source).clone()

    def decay(self, updates):
        """The decay of update number `updates` (0 for the first)."""
        return min(self.rate, (1 + updates) / (10 + updates)) if self.warmup else self.rate

    @torch.no_grad()
    def update(self, model, updates):
        """Move the average towards the model's parameters."""
        average = [local(value) for value in self.parameters.values()]
        current = [at_least_float32(local(parameter.detach())) for parameter in model.parameters()]
        torch._foreach_lerp_(average, current, 1 - self.decay(updates))

    def settle(self, model, prefix):
        """Replace the weights of `model` whose names start with `prefix` by their averages."""
        chosen = {name: parameter for name, parameter in model.named_parameters() if name.startswith(prefix)}
        _set(list(chosen.values()), [self.parameters[name] for name in chosen])

    @contextmanager
    def weights_in(self, model):
        """Within, `model` has the averaged weights; afterwards it has its own again, bit for bit."""
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
