"""The optimizer's step: AdamW in one pass over the memory, after gradients are unscaled, measured and clipped."""

import torch

from .models.sharding import laid_out, whole_norm


def build_optimizer(parameters, lr, weight_decay):
    """AdamW over these parameters, fused: one pass over weights, gradients and moments for all of them."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)


def restore_optimizer(optimizer, state):
    """Load a checkpoint's state, moments and step counts; the settings are those that `optimizer` was built with.

    state: of whole tensors; of weights in shards each process takes its own.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        index: {
            name: laid_out(value, parameters[index]) if value.shape == parameters[index].shape else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    groups = [{**saved, **own} for saved, own in zip(state["param_groups"], settings, strict=True)]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


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
