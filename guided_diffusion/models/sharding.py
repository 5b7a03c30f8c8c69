"""Weights in shards (torch's FSDP2): each process keeps a part of every tensor, and gathers one block at a time."""

from contextlib import contextmanager

import torch
from torch.nn.modules.module import register_module_module_registration_hook

from .condition import CrossAttention, Fusion, UncertainSpatialAttention
from .unet import Downsample, ResBlock, SelfAttention, Upsample

# torch.distributed's parts take half a second to import, which runs without shards need not wait for; so that is done
# in the functions that use them.

# What is gathered whole while it computes, one at a time. The little beside them is gathered for the whole pass.
BLOCKS = (ResBlock, SelfAttention, Downsample, Upsample, Fusion, UncertainSpatialAttention, CrossAttention)


@contextmanager
def sharded_as_built(processes):
    """A context in which each block of a network is split among the processes as soon as it has been built.

    So none holds more than its shards and one block, neither in its GPU's nor in main memory, and the random start is
    that of any other run: it is drawn on the CPU, layer after layer, by every process alike.
    """
    from torch.distributed.fsdp import fully_shard

    mesh = _mesh(processes)

    def split(_parent, _name, module):
        if isinstance(module, BLOCKS):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)

    handle = register_module_module_registration_hook(split)  # a block is put in its place once it is complete
    try:
        yield
    finally:
        handle.remove()


def shard_the_rest(module, processes):
    """Split what no block has, and let a forward pass of `module` gather whatever it needs. Returns `module`."""
    from torch.distributed.fsdp import fully_shard

    return fully_shard(module, mesh=_mesh(processes), reshard_after_forward=True)


def _mesh(processes):
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(processes.device.type, (processes.count,))


def whole_at_once(model):
    """How many of a network's weights are whole on a device at once: one block, the next on its way, and the rest."""
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.modules() if isinstance(block, BLOCKS)]
    return sum(p.numel() for p in model.parameters()) - sum(blocks) + 2 * max(blocks)


def in_shards(value):
    """Whether it is a tensor in shards, torch's DTensor."""
    return hasattr(value, "to_local")


def local(tensor):
    """What this process has of a tensor: its shard, or all of one that is whole."""
    return tensor.to_local() if in_shards(tensor) else tensor


def laid_out(whole, like):
    """A whole tensor in its own type, laid out in memory as `like` is and on its device; in shards where `like` is.

    In shards every process has the whole tensor. The fused optimizer goes through the memory of weights and moments at
    once, whatever their strides say.
    """
    if not in_shards(like):
        return torch.empty_like(like, dtype=whole.dtype, requires_grad=False).copy_(whole)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gathered(tensors, keep):
    """A dict of tensors with those in shards put together on the CPU; all processes call this at once.

    keep: whether this process is to have them; others get {}. No more than one is whole on a device at a time.
    """
    whole = {}
    for name, value in tensors.items():
        value = value.full_tensor() if in_shards(value) else value
        if keep:
            whole[name] = value.cpu() if in_shards(tensors[name]) else value
    return whole


def state_dicts(model, optimizer):
    """The state dicts of a network and its optimizer, both by the parameters' names. All processes call this at once.

    From shards whole tensors are put together on the CPU: the first process gets them, the others get empty dicts.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict

    sharded = any(map(in_shards, model.parameters()))
    options = StateDictOptions(full_state_dict=sharded, cpu_offload=sharded)
    weights = get_model_state_dict(model, options=options)
    if not optimizer.state:  # torch would take a step to have some
        return weights, {"state": {}, "param_groups": []}
    return weights, get_optimizer_state_dict(model, optimizer, options=options)


def load_optimizer_state(model, optimizer, state):
    """Load what `state_dicts` returned in the first process into the optimizer of a network that may be in shards.

    Every process has `state`. Older checkpoints number the parameters instead of naming them.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    if not state["state"]:
        return
    names = [name for name, _ in model.named_parameters()]
    numbers = dict(enumerate(names))
    groups = [{**group, "params": names} for group in state["param_groups"]]  # there is one
    state = {numbers.get(key, key): values for key, values in state["state"].items()}
    options = StateDictOptions(full_state_dict=any(map(in_shards, model.parameters())), strict=False)
    set_optimizer_state_dict(model, optimizer, {"state": state, "param_groups": groups}, options=options)
    for name, parameter in model.named_parameters():
        if name not in state:  # it has not learned yet; torch has given it moments
            optimizer.state.pop(parameter, None)


def load_whole(model, state):
    """Load a state dict of whole tensors, which every process has, into a model whose blocks may be in shards.

    torch's `set_model_state_dict` wants all on one device; while a network is built, only its blocks are on the GPU.
    """
    own = model.state_dict()
    model.load_state_dict(
        {name: laid_out(value, own[name]) if in_shards(own.get(name)) else value for name, value in state.items()}
    )


def whole_norm(norm):
    """A norm of tensors in shards as a plain tensor, the same in every process; a plain one is itself."""
    return norm.full_tensor() if in_shards(norm) else norm
