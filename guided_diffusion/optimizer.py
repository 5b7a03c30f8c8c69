"""The optimizer's step: AdamW in one pass over the memory, after gradients are unscaled, measured and clipped."""

import torch

from .sharding import in_shards, laid_out, load_optimizer_state, whole_norm


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
