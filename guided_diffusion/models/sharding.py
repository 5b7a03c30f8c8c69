"""Sharded weights (torch's FSDP2): each process keeps a part of every tensor and gathers one block at a time."""

from contextlib import contextmanager

import torch
from torch.nn.modules.module import register_module_module_registration_hook

from .condition import CrossAttention, Fusion, UncertainSpatialAttention
from .unet import Downsample, ResBlock, SelfAttention, Upsample

# Functions import torch.distributed's parts themselves: that takes half a second, which unsharded runs save.

# Blocks are gathered one at a time while they compute; the few weights outside of blocks for a whole pass.
BLOCKS = (ResBlock, SelfAttention, Downsample, Upsample, Fusion, UncertainSpatialAttention, CrossAttention)


@contextmanager
def sharded_as_built(processes):
    """A context in which each block of a network is split among the processes as soon as it is built.

    So no process ever holds more than its shards and one block, on its GPU or in main memory. Every process draws the
    same initial weights on the CPU, layer by layer, as an unsharded run does.
    """
    from torch.distributed.fsdp import fully_shard

    mesh = _mesh(processes)

    def split(_parent, _name, module):
        if isinstance(module, BLOCKS):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)

    handle = register_module_module_registration_hook(split)  # a block is registered when it is complete
    try:
        yield
    finally:
        handle.remove()


def shard_the_rest(module, processes):
    """Split the weights outside of blocks, and make `module` gather weights in its forward pass. Returns `module`."""
    from torch.distributed.fsdp import fully_shard

    return fully_shard(module, mesh=_mesh(processes), reshard_after_forward=True)


def _mesh(processes):
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(processes.device.type, (processes.count,))


def in_shards(value):
    """Whether a tensor is sharded, a DTensor of torch."""
    return hasattr(value, "to_local")


def local(tensor):
    """This process's shard of a tensor, or the tensor itself if it is whole."""
    return tensor.to_local() if in_shards(tensor) else tensor


def laid_out(whole, like):
    """A whole tensor with its own dtype and the device, memory layout and sharding of `like`.

    The fused optimizer needs it, as it reads weights and moments in memory order, whatever their strides. For shards
    every process passes the whole tensor.
    """
    if not in_shards(like):
        return torch.empty_like(like, dtype=whole.dtype, requires_grad=False).copy_(whole)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gathered(tensors, keep):
    """A dict of tensors with sharded ones made whole on the CPU, one at a time. All processes call this together.

    keep: whether this process gets them; else it gets {}.
    """
    whole = {}
    for name, value in tensors.items():
        value = value.full_tensor() if in_shards(value) else value
        if keep:
            whole[name] = value.cpu() if in_shards(tensors[name]) else value
    return whole


def state_dicts(model, optimizer):
    """The state dicts of a network and its optimizer, both by parameter names. All processes call this together.

    Sharded tensors are made whole on the CPU for the first process; the others get empty dicts.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict

    sharded = any(map(in_shards, model.parameters()))
    options = StateDictOptions(full_state_dict=sharded, cpu_offload=sharded)
    weights = get_model_state_dict(model, options=options)
    if not optimizer.state:  # torch would take a step to create it
        return weights, {"state": {}, "param_groups": []}
    return weights, get_optimizer_state_dict(model, optimizer, options=options)


def load_optimizer_state(model, optimizer, state):
    """Load the optimizer's part of `state_dicts`, which every process passes, for a network that may be sharded.

    Older checkpoints number the parameters instead of naming them.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    if not state["state"]:
        return
    names = [name for name, _ in model.named_parameters()]
    numbers = dict(enumerate(names))
    groups = [{**group, "params": names} for group in state["param_groups"]]  # there is one
    state = {numbers.get(key, key): values for key, values in state["state"].items()}
    options = StateDictOptions(full_state_dict=any(map(in_shards, model.parameters())), strict=False)
    fixed = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in fixed:  # torch would drop their moments, which the checkpoint of a run at once has
        parameter.requires_grad_(True)
    set_optimizer_state_dict(model, optimizer, {"state": state, "param_groups": groups}, options=options)
    for parameter in fixed:
        parameter.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name not in state:  # not trained yet; torch has added moments
            optimizer.state.pop(parameter, None)


def load_whole(model, state, strict=True):
    """Load a state dict of whole tensors, which every process passes, into a model with blocks that may be sharded.

    strict: whether it must have all tensors of the model.
    torch's `set_model_state_dict` needs one device; while a network is built, only its blocks are on the GPU.
    """
    own = model.state_dict()
    model.load_state_dict(
        {name: laid_out(value, own[name]) if in_shards(own.get(name)) else value for name, value in state.items()},
        strict=strict,
    )


def whole_norm(norm):
    """A norm, which may be sharded, as a plain tensor; the same in every process."""
    return norm.full_tensor() if in_shards(norm) else norm
